"""A run has one owner: the process whose record stands in checkpoints/<run>/lock.json.

Another process that is to train the same run waits until the owner has ended. An owner of the same machine is dead when
its process is gone. Of one on another host nobody can see the process: it is dead when it has not touched the lock for
`DEAD_AFTER` seconds by the clock of the file system, or when Slurm has started its job again. A lock of the operating
system (flock) would be shorter, but some shared file systems have none, or one for each host alone.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from transformers import TrainerCallback

from synopsis.artifacts import write_text
from synopsis.errors import SynopsisError
from synopsis.progress import say
from synopsis.training import distributed

HEARTBEAT = 30.0
"""Seconds between two touches of the lock by its owner."""
DEAD_AFTER = 10 * HEARTBEAT
LOOK_EVERY = 2.0
"""Seconds between two looks of a process that waits."""
SAME_START = 5.0
"""Seconds by which two readings of the start of one process may differ, as the clock is set."""


class RunLock(TrainerCallback):
    """The lock of a run's checkpoint folder. As a callback it ends a training that has lost it, before that one writes.

    That happens to a process that stood still for so long that it was taken for dead.
    """

    def __init__(self, run: str, folder: Path):
        self.run, self.folder, self.path = run, folder, folder / "lock.json"
        self.record: dict[str, Any] | None = None
        self.waited_for: dict[str, Any] | None = None
        self.ended = threading.Event()
        self.heart = threading.Thread(target=self._beat, daemon=True)

    def acquired(self) -> bool:
        """Take the lock if it has no living owner; prints whom this process waits for, or takes over from."""
        if self._is_owned():
            return False
        # One at a time: of two that take the same owner for dead, the second finds the first one's record.
        with _alone(self.folder / "lock.taking") as alone:
            if not alone or self._is_owned():
                return False
            if self.path.exists():
                say(f"{self.run}: {_name(self._read())} is dead; taking over its checkpoints")
            self.record = _this_process()
            write_text(self.path, json.dumps(self.record, indent=2) + "\n")
        self.heart.start()
        return True

    def release(self) -> None:
        """Give the lock up, and remove the folder when nothing else is in it."""
        self.ended.set()
        if self.heart.is_alive():
            self.heart.join()
        with contextlib.suppress(OSError):
            if self._read() == self.record:
                self.path.unlink()
                self.folder.rmdir()

    def remove_checkpoints(self) -> None:
        """Empty the folder; the lock stays until nothing else is there that a next owner could mix its own with."""
        for path in self.folder.glob("*"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path != self.path:
                path.unlink(missing_ok=True)

    def check(self) -> None:
        """SynopsisError when another process has taken the lock over."""
        owner = self._read()
        if owner and owner != self.record:
            raise SynopsisError(
                f"{self.run}: {_name(owner)} has taken over the checkpoints: this process stood still for more than "
                f"{DEAD_AFTER:.0f} s"
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if (control.should_save or control.should_log) and distributed.is_first():
            self.check()

    def _beat(self) -> None:
        while not self.ended.wait(HEARTBEAT):
            with contextlib.suppress(OSError):  # a shared file system may be away for a moment
                if self._read() == self.record:
                    os.utime(self.path)

    def _read(self) -> dict[str, Any]:
        """The owner's record; empty where there is none, or none that can be read."""
        with contextlib.suppress(OSError, ValueError):
            record = json.loads(self.path.read_text())
            return record if isinstance(record, dict) else {}
        return {}

    def _is_owned(self) -> bool:
        owner = self._read()
        if not self._lives(owner):
            return False
        if owner != self.waited_for:
            self.waited_for = owner
            since = owner.get("since", "an unknown time")
            say(f"{self.run}: {_name(owner)} trains it since {since}; waiting for it to end")
        return True

    def _lives(self, owner: dict[str, Any]) -> bool:
        me = _this_process()
        if me["slurm_job"] and me["slurm_job"] == owner.get("slurm_job") and me["restart"] > owner.get("restart", 0):
            return False
        if (owner.get("host"), owner.get("machine")) == (me["host"], me["machine"]):
            running = _runs(owner["process"], owner["process_started"])
            if running is not None:
                return running
        return _untouched_seconds(self.path) < DEAD_AFTER


@contextlib.contextmanager
def owned(run: str, folder: Path) -> Iterator[RunLock]:
    """Wait until the processes of this run own its folder, which they do in the block. The first one holds the lock."""
    lock = RunLock(run, folder)
    try:
        while not distributed.on_first(lock.acquired):
            time.sleep(LOOK_EVERY)
        yield lock
    finally:
        if distributed.is_first():
            lock.release()


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[bool]:
    """Whether this process is the only one in the block, which takes a moment; one killed in it leaves `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if DEAD_AFTER <= _untouched_seconds(path) < math.inf:  # not where there is none: another may make it just now
        path.unlink(missing_ok=True)
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        yield False
        return
    try:
        yield True
    finally:
        path.unlink(missing_ok=True)


def _untouched_seconds(path: Path) -> float:
    """By the clock of the file system, whatever those of the hosts say; infinite for no file."""
    try:
        touched = path.stat().st_mtime
        with tempfile.TemporaryFile(dir=path.parent) as stream:
            return os.fstat(stream.fileno()).st_mtime - touched
    except FileNotFoundError:
        return math.inf


def _this_process() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "machine": _machine(),
        "process": os.getpid(),
        "process_started": psutil.Process().create_time(),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
        "restart": int(os.environ.get("SLURM_RESTART_COUNT", "0")),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
    }


def _machine() -> str:
    """What has the same processes: the running system and, inside of containers, their part of it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + " " + os.readlink("/proc/self/ns/pid")
    except OSError:
        return "unknown"


def _runs(process: int, started: float) -> bool | None:
    """Whether a process of this machine runs; None where its number may have gone to another one."""
    try:
        found = psutil.Process(process)
        if found.status() == psutil.STATUS_ZOMBIE:
            return False
        return True if abs(found.create_time() - started) < SAME_START else None
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return None


def _name(owner: dict[str, Any]) -> str:
    job = f", Slurm job {owner['slurm_job']}" if owner.get("slurm_job") else ""
    return f"process {owner.get('process', '?')} on {owner.get('host', 'an unknown host')}{job}"
