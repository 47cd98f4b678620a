"""Texts to token ids, on several processors: the same ids in the same order for any number of processes.

A text becomes the ids that its tokenizer gives without special tokens, neither at its beginning nor at its end. Text
that looks like a special token stays text: a document must not end where it quotes an end-of-text token.

    with Tokenization(folder, processes=4) as tokenize:
        for document, ids in tokenize((Document(0, "a", "some text"), ...)):
            ...
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from synopsis.artifacts import PROVENANCE, TOKENIZER_FILES, check_outputs
from synopsis.compressors.auto_classes import reason_of
from synopsis.errors import ArtifactError, InputError, SynopsisError

THREADS_VARIABLE = "SYNOPSIS_THREADS"
UNIT_CHARACTERS = 500_000
"""Characters that a process gets at once; a longer document goes by itself."""
UNIT_DOCUMENTS = 1000
UNITS_ALONE = 4
"""Units that are tokenised before further processes start, which takes them some seconds."""
UNITS_WAITING = 2
"""Units underway for each process, so that none waits for the next one."""


@dataclass(frozen=True)
class Document:
    """A text that was read. `rows`: rows of the source that were read when it was complete."""

    rows: int
    id: str
    text: str
    cut_characters: int = 0


def available_processes() -> int:
    """How many processes may run: SYNOPSIS_THREADS, else OMP_NUM_THREADS (which Snakemake sets to the threads of a
    job), else the processors that this process may use. InputError when the variable holds no whole number."""
    for variable in (THREADS_VARIABLE, "OMP_NUM_THREADS"):
        given = os.environ.get(variable, "").strip()
        if given.isdecimal() and int(given) > 0:
            return int(given)
        if given and variable == THREADS_VARIABLE:
            raise InputError(f"the environment variable {variable} is {given!r}; expected a number of processes")
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a prepared folder; ArtifactError when there is none, or it has changed."""
    from transformers import AutoTokenizer

    if not folder.is_dir():
        raise ArtifactError(f"{folder}: no such folder; the stage 'prepare' of its model has not run")
    check_outputs(folder / PROVENANCE, TOKENIZER_FILES)
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder}: holds no tokenizer that can be read: {reason_of(error)}") from None


def vocabulary_size(tokenizer: Any) -> int:
    """One more than the largest id of a tokenizer, added tokens included."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def encoder(tokenizer: Any) -> Callable[[str], np.ndarray]:
    """What turns a text into its ids, (tokens,) int32. From then on the tokenizer serves this purpose alone."""
    if not tokenizer.is_fast:

        def slow(text: str) -> np.ndarray:
            encoded = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
            return np.asarray(encoded["input_ids"], dtype=np.int32)

        return slow
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True

    def fast(text: str) -> np.ndarray:
        # Without the offsets that a call of the tokenizer computes: a quarter less time, and less memory. One text at
        # a time: the library's threads, which a batch would start, take processors that nobody gave.
        (encoding,) = backend.encode_batch_fast([text], add_special_tokens=False)
        return np.asarray(encoding.ids, dtype=np.int32)

    return fast


class Tokenization:
    """Tokenises documents in order; further processes start once there is work enough for them.

    `folder`: of the tokenizer. `processes`: at most so many work at once; 1 works in this process alone. Few units are
    underway at a time, so that memory does not grow with the number of documents.
    """

    def __init__(self, folder: Path, processes: int):
        self.folder, self.processes = folder, processes
        self.tokenizer = load_tokenizer(folder)
        self.encode = encoder(self.tokenizer)
        self.done = 0
        self.pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Tokenization:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=True)
            self.pool = None

    def __call__(self, documents: Iterable[Document]) -> Iterator[tuple[Document, np.ndarray]]:
        """Documents with their ids, (tokens,) int32, in the order in which they came."""
        units = _units(documents)
        for unit in units:
            if self.processes > 1 and self.done >= UNITS_ALONE:
                yield from self._in_parallel(unit, units)
                return
            self.done += 1
            for document in unit:
                yield document, self.encode(document.text)

    def _in_parallel(
        self, first: list[Document], units: Iterator[list[Document]]
    ) -> Iterator[tuple[Document, np.ndarray]]:
        pool = self.pool = self.pool or _pool(self.folder, self.processes)
        underway: deque[tuple[list[Document], Future[list[np.ndarray]]]] = deque()

        def begin(unit: list[Document]) -> None:
            underway.append((unit, pool.submit(_encode_here, [document.text for document in unit])))

        try:
            begin(first)
            while underway:
                while len(underway) < UNITS_WAITING * self.processes and (unit := next(units, None)):
                    begin(unit)
                unit, future = underway.popleft()
                yield from zip(unit, future.result(), strict=True)
        except BrokenProcessPool:
            raise SynopsisError(
                "a process that tokenises was killed, most often for want of memory; start again with more of it or "
                f"with fewer processes ({THREADS_VARIABLE}): finished shards are kept"
            ) from None


def _units(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Documents in lists that are worth sending to another process."""
    unit: list[Document] = []
    characters = 0
    for document in documents:
        unit.append(document)
        characters += len(document.text)
        if characters >= UNIT_CHARACTERS or len(unit) >= UNIT_DOCUMENTS:
            yield unit
            unit, characters = [], 0
    if unit:
        yield unit


# --------------------------------------------------------------------------------------------------- other processes

_encode: Callable[[str], np.ndarray]


def _pool(folder: Path, processes: int) -> ProcessPoolExecutor:
    # Fresh processes: a copy of this one would hold copies of the locks of threads that it does not have.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(processes, mp_context=context, initializer=_begin, initargs=(str(folder),))


def _begin(folder: str) -> None:
    """Make this process ready to tokenise, and end it when its parent ends, however that ended."""
    global _encode
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is told too, and ends this process
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with contextlib.redirect_stderr(None):
        _encode = encoder(load_tokenizer(Path(folder)))


def _end_with(sentinel: Any) -> None:
    wait([sentinel])
    os._exit(1)


def _encode_here(texts: list[str]) -> list[np.ndarray]:
    return [_encode(text) for text in texts]
