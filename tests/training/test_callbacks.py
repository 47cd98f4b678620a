"""Metrics, progress, signals and manifests around the steps of a run, and what of it only the first process does."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from synopsis.compressors.section import Subject
from synopsis.config.training import LanguageModelTraining
from synopsis.training import callbacks, distributed
from synopsis.training.callbacks import Progress, StopOnSignal, utilisation
from transformers import LlamaConfig, TrainerControl


def state(step: int = 0, steps: int = 10) -> SimpleNamespace:
    return SimpleNamespace(global_step=step, max_steps=steps)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(callbacks.time, "monotonic", found)
    return found


def begun(step: int = 0, utilisation: Any = None) -> Progress:
    progress = Progress("gist-s0", 600, utilisation)
    progress.on_train_begin(None, state(step), None)
    return progress


# ------------------------------------------------------------------------------------------------------------ speed


def test_speed_is_that_of_the_steps_since_the_last_log(clock: Clock) -> None:
    progress = begun()
    for seconds in (2.0, 4.0):
        clock.now += seconds
        progress.on_step_end(None, state(1), None)
    assert progress.measured() == {"tokens_per_second": pytest.approx(200)}
    clock.now += 1
    progress.on_step_end(None, state(3), None)
    assert progress.measured() == {"tokens_per_second": pytest.approx(600)}


def test_evaluations_and_checkpoints_take_no_time_of_the_steps(clock: Clock) -> None:
    progress = begun()
    for other in (progress.on_evaluate, progress.on_save):
        clock.now += 2
        progress.on_step_end(None, state(1), None)
        clock.now += 1000
        other(None, state(1), None)
    assert progress.measured() == {"tokens_per_second": pytest.approx(300)}


@pytest.mark.parametrize("processes", [1, 4])
def test_utilisation_is_a_share_of_all_devices(processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many tokens for each device give the same share of the peak, on one and on four."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    config = LlamaConfig(vocab_size=1000, hidden_size=64, intermediate_size=128, num_hidden_layers=2)
    training = LanguageModelTraining(
        corpus="c", sequence_length=100, steps=1, batch_size=8, learning_rate=1.0, dtype="bfloat16"
    )
    share = utilisation(config, Subject(), training, 100)
    assert share is not None
    weights = 2 * (4 * 64 * 64 + 3 * 64 * 128) + 64 * 1000
    plain = 6 * weights * 100 * 8 / 989e12  # without attention, which is little here
    assert share(1.0) == pytest.approx(plain, rel=0.2)


# --------------------------------------------------------------------------------------------------------- progress


def test_a_progress_line_has_loss_speed_share_memory_and_time_left(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = begun(4, lambda rate: 0.347)
    clock.now += 3
    progress.on_step_end(None, state(5), None)
    progress.on_log(None, state(5), None, {"loss": 2.34567, **progress.measured()})
    progress.on_step_end(None, state(10), None)
    line = capsys.readouterr().err
    assert progress.figures["mfu"] == 0.347
    assert line.startswith("gist-s0: step 10/10, loss 2.346, 200 tokens/s, 35% of the peak, ")
    assert line.endswith(" GiB, 0 s left\n")


def test_a_progress_line_before_the_first_log_has_a_speed(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    progress = begun()
    clock.now += 20
    progress.on_step_end(None, state(2), None)
    assert "step 2/10, loss -, 60 tokens/s, " in (line := capsys.readouterr().err)
    assert line.endswith(", 80 s left\n")


# ----------------------------------------------------------------------------------------------------------- signals


def stop_after(stop: StopOnSignal) -> TrainerControl:
    control = TrainerControl()
    stop.on_step_end(None, state(3), control)
    return control


@pytest.mark.parametrize("received", [signal.SIGTERM, None])
def test_a_signal_to_any_process_stops_all(received: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "gathered", lambda number: [number, int(received or 0)])
    stop = StopOnSignal()
    control = stop_after(stop)
    assert control.should_save == control.should_training_stop == (received is not None)
    assert stop.received == received


def test_a_signal_during_the_exchange_stops_after_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = StopOnSignal()

    def interrupted(number: int) -> list[int]:
        stop.received = stop.received or signal.SIGUSR1
        return [number]

    monkeypatch.setattr(distributed, "gathered", interrupted)
    assert [bool(stop_after(stop).should_training_stop) for _ in range(2)] == [False, True]
    assert stop.received == signal.SIGUSR1


def test_of_several_processes_none_dies_of_a_second_signal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Slurm signals each of them, and who started them does so too."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(distributed, "gathered", lambda number: [number, 0])
    before = signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    stop = StopOnSignal()
    try:
        stop.on_train_begin(None, state(), None)
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGUSR1)
        assert stop_after(stop).should_training_stop
        assert capsys.readouterr().err == "SIGUSR1 received: saving a checkpoint after this step\n"
    finally:
        stop.on_train_end(None, state(), None)
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
        signal.signal(signal.SIGUSR1, before)
