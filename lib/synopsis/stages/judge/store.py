"""The append-only store of judgements: JSON lines, written as they come and flushed to the disk beside the asking.

Judgements cost money and time, so nothing is ever overwritten: a judgement that holds no longer (another prompt,
other outputs, an error that was retried) is superseded by a later line, and a killed run loses only the answers that
were on their way. A store has one writer: a second process waits for the first, and then finds what that one stored.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from synopsis.artifacts import make_room, report_full_disk
from synopsis.errors import ArtifactError
from synopsis.progress import say
from synopsis.stages.judge.records import Judgement

FLUSH_SECONDS = 0.01
"""Lines that come within this time are flushed together."""


class JudgementStore:
    """Locked and read when opened, then appended to; use it as a context manager.

    latest: by its key, the latest judgement of each question by each judge, whatever its state.
    Raises InputError where the folder allows no files, ArtifactError where the store cannot be read.
    """

    def __init__(self, path: Path):
        self.path = path
        self._flushing = ThreadPoolExecutor(1, thread_name_prefix="flush")
        self._waiting = False
        self._failure: OSError | None = None

    def __enter__(self) -> JudgementStore:
        make_room(self.path)
        try:
            # Unbuffered: after a failed write nothing is left over that closing would try to write again.
            self._stream = self.path.open("ab+", buffering=0)
        except OSError as error:
            raise ArtifactError(f"{self.path}: cannot be opened: {error.strerror}") from None
        try:
            self._lock()
            # Cut off in place: a file that is replaced would leave another process with the former one.
            judgements, length = parse(self.path, _content(self._stream))
            if length < os.fstat(self._stream.fileno()).st_size:
                what = "the end is truncated (a run was killed); it is dropped and asked again"
                say(f"{self.path}: warning: {what}")
                self._stream.truncate(length)
        except BaseException:
            self._stream.close()
            raise
        self.latest = {judgement.key: judgement for judgement in judgements}
        # A judgement that a better parser has read again was paid for once.
        self._prices = {(judgement.key, judgement.time): judgement.price for judgement in judgements}
        return self

    def __exit__(self, *error: object) -> None:
        with self._stream, report_full_disk(self.path):  # closing the stream gives the lock up
            self._flushing.shutdown()
            self._raise_failure()

    def spent(self, judge_hash: str) -> float:
        """What this judge's judgements have cost, those included that hold no longer."""
        return sum(price or 0.0 for (key, _), price in self._prices.items() if key[2] == judge_hash)

    def append(self, judgements: Sequence[Judgement]) -> None:
        """Add lines, which a killed process leaves behind; what a power cut could take is flushed in the background."""
        if not judgements:
            return
        with report_full_disk(self.path):
            rest = b"".join(json.dumps(judgement.model_dump()).encode() + b"\n" for judgement in judgements)
            while rest:
                rest = rest[self._stream.write(rest) :]
            self._raise_failure()
            if not self._waiting:
                self._waiting = True
                self._flushing.submit(self._flush)
        self.latest |= {judgement.key: judgement for judgement in judgements}

    def _flush(self) -> None:
        """Once for all lines that come within a moment."""
        time.sleep(FLUSH_SECONDS)
        self._waiting = False
        try:
            os.fsync(self._stream.fileno())
        except OSError as error:
            self._failure = error

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _lock(self) -> None:
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{self.path}: another process judges these outputs; waiting for it to end")
            fcntl.flock(self._stream, fcntl.LOCK_EX)
        except OSError as error:  # some shared file systems have no locks
            say(f"{self.path}: warning: cannot be locked ({error.strerror}); start no second process for it")


def read_judgements(path: Path) -> list[Judgement]:
    """The judgements of a store that nobody need hold, the latest of each question; none where there is no store."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror}") from None
    return list({judgement.key: judgement for judgement in parse(path, content)[0]}.values())


def parse(path: Path, content: bytes) -> tuple[list[Judgement], int]:
    """The judgements in a store's content, and how many of its bytes hold them: a killed run may leave half a line."""
    judgements: list[Judgement] = []
    length = 0
    lines = content.splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        if not line.endswith(b"\n"):
            break
        try:
            judgements.append(Judgement.model_validate_json(line))
        except ValueError:
            # After a power cut the last block of a file may be of the right length and hold nothing.
            if number == len(lines) and not line.strip(b"\0\n"):
                break
            again = "Delete that line: its judgement is asked again, the others are kept."
            raise ArtifactError(f"{path}: line {number} is no judgement. {again}") from None
        length += len(line)
    return judgements, length


def _content(stream: BinaryIO) -> bytes:
    stream.seek(0)
    return stream.read()
