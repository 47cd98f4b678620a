"""Progress of long work: a bar on a terminal, plain lines with time left in a log file."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator
from io import RawIOBase
from pathlib import Path
from typing import TextIO, TypeVar, cast

from tqdm import tqdm

T = TypeVar("T")
SECONDS_BETWEEN_LINES = 10.0


class _Both:
    """Standard error and a log file at once; not a terminal, so that progress comes as lines in both."""

    def __init__(self, stream: TextIO, log: RawIOBase):
        self.stream, self.log = stream, log

    def write(self, text: str) -> int:
        # A full disk must not silence what is said about the full disk.
        with contextlib.suppress(OSError):
            self.log.write(text.encode(errors="backslashreplace"))
        return self.stream.write(text)

    def flush(self) -> None:
        self.stream.flush()

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        return self.stream.fileno()


def also_log_to(path: Path) -> None:
    """From now on what goes to standard error also goes to a file, tracebacks included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stderr = cast(TextIO, _Both(sys.stderr, path.open("wb", buffering=0)))


def say(message: str) -> None:
    """One line for the person who watches, on standard error: standard output is for results."""
    print(message, file=sys.stderr, flush=True)


def track(items: Iterable[T], label: str, total: int | None = None, unit: str = "it") -> Iterator[T]:
    """Yield `items` and show how far the work is.

    On a terminal a tqdm bar; elsewhere a line at most every ten seconds and one at the end.
    """
    if total is None and hasattr(items, "__len__"):
        total = len(items)  # type: ignore[arg-type]
    if sys.stderr.isatty():
        yield from tqdm(items, desc=label, total=total, unit=unit, dynamic_ncols=True)
        return
    start = reported = time.monotonic()
    done = 0
    for item in items:
        yield item
        done += 1
        now = time.monotonic()
        if now - reported >= SECONDS_BETWEEN_LINES:
            reported = now
            say(_line(label, done, total, unit, now - start))
    say(_line(label, done, total, unit, time.monotonic() - start))


def _line(label: str, done: int, total: int | None, unit: str, seconds: float) -> str:
    rate = done / seconds if seconds else 0.0
    if total is None:
        return f"{label}: {done} {unit}, {rate:.1f} {unit}/s"
    left = (total - done) / rate if rate else 0.0
    return f"{label}: {done}/{total} {unit}, {rate:.1f} {unit}/s, {left:.0f} s left"
