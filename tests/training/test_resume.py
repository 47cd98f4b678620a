"""Checkpoints that can be trusted, and a stopped run that ends as one that was never stopped."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from compressor_models import summary_model
from safetensors.torch import load_file, save_file
from synopsis.config.training import SegmentTraining
from synopsis.data.sequences import collate_equal
from synopsis.training.callbacks import Metrics, StopOnSignal
from synopsis.training.checkpoints import MANIFEST, Checkpoints, last_good_checkpoint, newest_first
from synopsis.training.trainer import CompressorTrainer
from training_runs import read_metrics
from transformers import TrainerCallback, TrainingArguments

STEPS, STOP = 8, 5
TRAINING = SegmentTraining(
    corpus="none", sequence_length=24, steps=STEPS, batch_size=2, learning_rate=1e-2, substeps=2, segments_per_substep=2
)


class Signal(TrainerCallback):
    """Sends this process a signal after a step."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGUSR1)


def sequences() -> list[dict[str, torch.Tensor]]:
    ids = torch.randint(3, 60, (10, 24), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row, "labels": row} for row in ids]


def trainer(folder: Path, *callbacks: TrainerCallback, accumulation: int = 2, tied: bool = False) -> CompressorTrainer:
    torch.manual_seed(0)
    return CompressorTrainer(
        model=summary_model(attention_dropout=0.1, tie_word_embeddings=tied),
        args=TrainingArguments(
            output_dir=str(folder),
            max_steps=STEPS,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=accumulation,
            learning_rate=1e-2,
            logging_steps=2,
            save_steps=4,
            save_total_limit=2,
            eval_strategy="steps",
            eval_steps=4,
            seed=3,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            remove_unused_columns=False,
        ),
        train_dataset=sequences(),
        eval_dataset=sequences()[:4],
        data_collator=collate_equal,
        segment_training=TRAINING,
        longest=64,
        callbacks=[Metrics(folder / "metrics.jsonl"), Checkpoints("this run"), *callbacks],
    )


def numbers(folder: Path) -> list[dict[str, float]]:
    """The logged numbers without what depends on the clock."""
    clock = ("runtime", "per_second")
    return [
        {key: value for key, value in row.items() if not any(word in key for word in clock)}
        for row in read_metrics(folder / "metrics.jsonl")
    ]


def test_a_stopped_run_ends_as_one_that_never_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Stopped by a signal between two logs and two checkpoints; then killed after steps that no checkpoint holds."""
    whole = trainer(tmp_path / "whole")
    whole.train()

    folder, stop = tmp_path / "stopped", StopOnSignal()
    folder.mkdir()
    (folder / "metrics.jsonl").write_text('{"step": 2, "loss": 9.0}\n')  # of an earlier run
    first = trainer(folder, Signal(STOP), stop)
    first.train()
    assert (first.state.global_step, stop.received) == (STOP, signal.SIGUSR1)
    assert "SIGUSR1 received" in capsys.readouterr().err
    assert [path.name for path in newest_first(folder)] == [f"checkpoint-{STOP}", "checkpoint-4"]
    assert [row["step"] for row in numbers(folder)] == [2, 4, 4]
    with (folder / "metrics.jsonl").open("a") as stream:  # lines of steps that were lost, the last one cut short
        stream.write('{"step": 6, "loss": 1.0}\n{"step": 8, "lo')

    again = trainer(folder)
    checkpoint = last_good_checkpoint(folder, "this run")
    assert checkpoint == folder / f"checkpoint-{STOP}"
    again.train(resume_from_checkpoint=str(checkpoint))
    assert numbers(folder) == numbers(tmp_path / "whole")
    mean = whole.losses.mean(STEPS)
    assert again.losses.mean(STEPS) == mean == numbers(folder)[-1]["train_loss"]
    losses = [row["loss"] for row in numbers(folder) if "loss" in row]
    assert len(losses) == STEPS // 2 and sum(losses) / len(losses) == pytest.approx(mean)
    weights = whole.model.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in again.model.state_dict().items())


@pytest.mark.parametrize(("frozen", "lost"), [(False, "model.norm.weight"), (True, "embed_summary.weight")])
def test_keys_are_missing_only_where_a_checkpoint_should_hold_them(
    frozen: bool, lost: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tied embeddings are saved under one name, and what is frozen is not saved."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)

    def started() -> CompressorTrainer:
        found = trainer(tmp_path, tied=True)
        if frozen:
            found.model.requires_grad_(False)
            found.model.embed_summary.weight.requires_grad_(True)
        return found

    started().train()
    checkpoint = tmp_path / "checkpoint-8"
    weights = load_file(checkpoint / "model.safetensors")
    assert lost in weights and "lm_head.weight" not in weights
    started().train(resume_from_checkpoint=str(checkpoint))
    assert "missing keys" not in caplog.text
    del weights[lost]
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    started().train(resume_from_checkpoint=str(checkpoint))
    assert f"missing keys in the checkpoint model loaded: ['{lost}']" in caplog.text


# -------------------------------------------------------------------------------------------------------- checkpoints


def seal(folder: Path, step: int, fingerprint: str = "abc") -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "weights").write_bytes(b"weights " * 40)
    (checkpoint / "state.json").write_text("{}")
    state = type("State", (), {"global_step": step})()
    Checkpoints(fingerprint).on_save(type("Arguments", (), {"output_dir": str(folder)})(), state, None)
    return checkpoint


def test_the_newest_whole_checkpoint_is_found(tmp_path: Path) -> None:
    assert last_good_checkpoint(tmp_path / "nothing", "abc") is None
    for step in (9, 10, 100):
        seal(tmp_path, step)
    (tmp_path / "checkpoint-final").mkdir()
    assert last_good_checkpoint(tmp_path, "abc") == tmp_path / "checkpoint-100"


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda c: (c / "weights").write_bytes(b"weights "), "weights is missing or damaged"),
        (lambda c: (c / "weights").unlink(), "weights is missing or damaged"),
        (lambda c: (c / "weights").write_bytes(b"w3ights " * 40), "weights is missing or damaged"),
        (lambda c: (c / MANIFEST).unlink(), "incomplete"),
        (lambda c: (c / MANIFEST).write_text('{"fingerprint": "ab'), "incomplete"),
        (lambda c: (c / MANIFEST).write_text("[]"), "incomplete"),
        (lambda c: (c / MANIFEST).write_text('{"fingerprint": "abc", "files": {}}'), "incomplete"),
        (
            lambda c: (c / MANIFEST).write_text((c / MANIFEST).read_text().replace('"abc"', '"abd"')),
            "another configuration",
        ),
    ],
)
def test_a_damaged_checkpoint_is_passed_over(
    damage: Any, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    older, newer = seal(tmp_path, 4), seal(tmp_path, 8)
    damage(newer)
    assert last_good_checkpoint(tmp_path, "abc") == older
    message = capsys.readouterr().err
    assert "warning" in message and str(newer) in message and expected in message
