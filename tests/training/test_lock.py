"""A run has one owner: who waits, who takes over from whom, and what is left of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from synopsis.artifacts import Layout
from synopsis.errors import SynopsisError
from synopsis.training import lock as module
from synopsis.training import stage
from synopsis.training.lock import RunLock, owned
from training_runs import autocompressor, experiment, read_metrics

RUN = "it-s0"
JOB = "4711"


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setattr(module, "HEARTBEAT", 0.02)
    monkeypatch.setattr(module, "DEAD_AFTER", 1.0)
    monkeypatch.setattr(module, "LOOK_EVERY", 0.02)


@pytest.fixture
def other() -> Iterator[subprocess.Popen[bytes]]:
    """A process that lives until the test ends it."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


def written(folder: Path, age: float = 0.0, **changes: Any) -> Path:
    """The lock of another owner, which touched it `age` seconds ago."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "lock.json"
    path.write_text(json.dumps({**module._this_process(), **changes}))
    touched = time.time() - age
    os.utime(path, (touched, touched))
    return path


def of(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    return {"process": process.pid, "process_started": psutil.Process(process.pid).create_time()}


def acquired(folder: Path) -> bool:
    lock = RunLock(RUN, folder)
    try:
        return lock.acquired()
    finally:
        lock.release()


# ----------------------------------------------------------------------------------------------------- one process


def test_an_owner_says_who_it_is_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", JOB)
    folder = tmp_path / "checkpoints" / RUN
    with owned(RUN, folder) as lock:
        assert lock.waited_for is None
        record = json.loads((folder / "lock.json").read_text())
        assert record["host"] == os.uname().nodename
        assert (record["process"], record["slurm_job"]) == (os.getpid(), JOB)
        assert record["process_started"] == pytest.approx(psutil.Process().create_time(), abs=1)
        assert [path.name for path in folder.iterdir()] == ["lock.json"]
        (folder / "checkpoint-2").mkdir()
    assert [path.name for path in folder.iterdir()] == ["checkpoint-2"], "a stopped run keeps its checkpoints"
    with owned(RUN, folder) as lock:
        (folder / "metrics.jsonl").touch()
        lock.remove_checkpoints()
    assert not folder.exists()


def test_an_owner_touches_its_lock(tmp_path: Path) -> None:
    with owned(RUN, tmp_path / RUN) as lock:
        os.utime(lock.path, (0, 0))
        end = time.monotonic() + 10
        while lock.path.stat().st_mtime < time.time() - 60:
            assert time.monotonic() < end
            time.sleep(0.01)


def test_of_many_that_find_a_dead_owner_one_takes_over(tmp_path: Path) -> None:
    for attempt in range(20):
        folder = tmp_path / str(attempt) / RUN
        written(folder, age=60, host="elsewhere")
        locks = [RunLock(RUN, folder) for _ in range(8)]
        with ThreadPoolExecutor(len(locks)) as pool:
            assert sorted(pool.map(RunLock.acquired, locks)) == [False] * 7 + [True]
        for lock in locks:
            lock.release()


def test_one_that_is_killed_while_it_takes_the_lock_is_in_the_way_for_a_while(tmp_path: Path) -> None:
    (tmp_path / "lock.taking").touch()
    assert not acquired(tmp_path)
    os.utime(tmp_path / "lock.taking", (0, 0))
    assert acquired(tmp_path)


# --------------------------------------------------------------------------------------------- who is taken for dead


def test_owners_of_this_machine(tmp_path: Path, other: subprocess.Popen[bytes]) -> None:
    who = of(other)
    written(tmp_path, age=60, **who)
    assert not acquired(tmp_path), "it lives, however long it stands still"
    written(tmp_path, **{**who, "process_started": 0.0})
    assert not acquired(tmp_path), "whose process that is, nobody knows; the lock was just touched"
    written(tmp_path, age=60, **{**who, "process_started": 0.0})
    assert acquired(tmp_path), "its process ended, and another one has its number"
    other.kill()
    written(tmp_path, **who)
    while psutil.Process(other.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert acquired(tmp_path), "killed, and nobody has asked for its exit code"
    other.wait()
    written(tmp_path, **who)
    assert acquired(tmp_path)


@pytest.mark.parametrize("changes", [{"host": "elsewhere"}, {"machine": "another container of this host"}])
def test_a_dead_owner_on_another_host(changes: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Its process number says nothing here, neither that it lives (this one does) nor that it is dead."""
    written(tmp_path, age=60, slurm_job=JOB, **changes)
    (tmp_path / "checkpoint-2").mkdir()
    assert acquired(tmp_path)
    host = changes.get("host", os.uname().nodename)
    said = f"{RUN}: process {os.getpid()} on {host}, Slurm job {JOB} is dead; taking over its checkpoints\n"
    assert capsys.readouterr().err == said
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]


def test_a_living_owner_on_another_host_is_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The number of its process is that of none here. It lives for three times the time after which one is dead."""
    path = written(tmp_path, host="elsewhere", process=2**22 + 1, since="noon", slurm_job=JOB)
    (tmp_path / "checkpoint-2").mkdir()
    text, touched = path.read_text(), []

    def live() -> None:
        end = time.monotonic() + 3 * module.DEAD_AFTER
        while time.monotonic() < end:
            os.utime(path)
            touched.append(time.monotonic())
            assert path.read_text() == text and (tmp_path / "checkpoint-2").is_dir()
            time.sleep(0.02)

    with ThreadPoolExecutor(1) as pool:
        living = pool.submit(live)
        with owned(RUN, tmp_path):
            assert time.monotonic() - touched[-1] >= module.DEAD_AFTER * 0.9
        living.result()
    waiting, taking = capsys.readouterr().err.splitlines()
    owner = f"process {2**22 + 1} on elsewhere, Slurm job {JOB}"
    assert waiting == f"{RUN}: {owner} trains it since noon; waiting for it to end"
    assert taking == f"{RUN}: {owner} is dead; taking over its checkpoints"


def test_a_requeued_job_takes_over_from_its_former_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", JOB)
    written(tmp_path, host="elsewhere")
    assert not acquired(tmp_path), "another process of this start of the job"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert acquired(tmp_path)
    written(tmp_path, host="elsewhere", slurm_job="12", restart=0)
    assert not acquired(tmp_path), "another job"


def test_a_record_that_cannot_be_read_is_judged_by_its_age(tmp_path: Path) -> None:
    path = written(tmp_path)
    for text in ("", "[]", "\x00"):
        path.write_text(text)
        assert not acquired(tmp_path)
    os.utime(path, (0, 0))
    assert acquired(tmp_path)


# ----------------------------------------------------------------------------------------------------- whole trainings


def test_a_training_that_was_taken_for_dead_ends_before_it_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: subprocess.Popen[bytes]
) -> None:
    found = experiment(tmp_path, autocompressor())
    folder = Layout(found).checkpoints(RUN)
    monkeypatch.setattr(stage, "Tracked", _taken_over(folder, of(other)))
    with pytest.raises(SynopsisError, match=f"process {other.pid} on .* has taken over the checkpoints"):
        stage.train(found, RUN)
    assert json.loads((folder / "lock.json").read_text())["process"] == other.pid
    assert read_metrics(folder / "metrics.jsonl") == []
    assert not list(folder.glob("checkpoint-*")) and not Layout(found).model(RUN).exists()


def _taken_over(folder: Path, owner: dict[str, Any]) -> Any:
    """In place of the tracking, which begins when a training has its lock."""

    @module.contextlib.contextmanager
    def begin(*_: Any) -> Iterator[Any]:
        written(folder, **owner)
        yield SimpleNamespace(log=lambda *_: None)

    return begin


@pytest.mark.parametrize("steps", [4, 6], ids=["same configuration", "another one"])
def test_only_a_model_of_the_same_configuration_is_taken(
    steps: int, tmp_path: Path, other: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    whole = stage.train(experiment(tmp_path, autocompressor()), RUN)
    found = experiment(tmp_path, autocompressor(steps=steps))
    record = Layout(found).model(RUN) / "provenance.json"
    before = record.stat().st_ino
    written(Layout(found).checkpoints(RUN), **of(other))
    ending = threading.Timer(0.5, lambda: other.send_signal(signal.SIGKILL))
    ending.start()
    figures = stage.train(found, RUN)
    ending.join()
    taken = record.stat().st_ino == before
    assert taken == (steps == 4)
    assert figures["steps"] == steps
    assert (figures["train_loss"] == whole["train_loss"]) == taken
    assert ("finished by the other process; taking" in capsys.readouterr().err) == taken
    assert not Layout(found).checkpoints(RUN).exists()
