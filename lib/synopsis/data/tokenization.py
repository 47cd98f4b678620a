"""Documents to Arrow files of token ids, by `datasets`, with memory that does not grow with their number.

A text becomes the ids that its tokenizer gives without special tokens, neither at its beginning nor at its end. Text
that looks like a special token stays text: a document must not end where it quotes an end-of-text token.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from synopsis.artifacts import write_json
from synopsis.data.documents import Documents
from synopsis.data.sequences import document_lengths
from synopsis.errors import InputError, SynopsisError
from synopsis.progress import track

if TYPE_CHECKING:
    from datasets import Dataset, Features

COUNTED = ("bytes", "cut_characters", "padding_tokens")
"""Columns whose sums are reported."""
THREADS_VARIABLE = "SYNOPSIS_THREADS"
SMALL_BYTES = 2**21
"""Of texts that one process tokenises sooner than others start."""
DOCUMENTS_AT_ONCE = 100
"""In memory; a book has half a megabyte."""


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


def tokenise(documents: Documents, record: Path, tokenizer: Any, processes: int, label: str) -> dict[str, Any]:
    """Write the ids of documents to files beside `record`, then their record: the names of the `files`, and `counts`
    of documents, tokens, empty documents and of COUNTED."""
    import pyarrow.compute as pc
    from datasets import Dataset
    from datasets.arrow_writer import ArrowWriter

    text, ids = record.with_suffix(".text"), record.with_suffix(".arrow")
    file, features = (text, _features("text")) if documents.of_text else (ids, _features("input_ids"))
    with ArrowWriter(path=str(file), features=features, writer_batch_size=DOCUMENTS_AT_ONCE) as writer:
        for document in track(documents, label, unit="documents"):
            writer.write(document)
        writer.finalize()
    made = Dataset.from_file(str(file))
    if documents.of_text and len(made):
        made = _tokenised(made, ids, tokenizer, processes)
    files = [Path(file["filename"]) for file in made.cache_files] if len(made) else []
    tokens = int(document_lengths(made).sum()) if files else 0
    counts = {"documents": len(made), "tokens": tokens, "empty_documents": documents.rows - len(made)}
    counts |= {key: pc.sum(made.data[key]).as_py() or 0 for key in COUNTED}
    part = {"files": [file.name for file in files], "counts": counts}
    write_json(record, "tokenised", part, {}, files)
    text.unlink(missing_ok=True)
    return part


def _features(content: str) -> Features:
    from datasets import Features, List, Value

    kinds = {"text": Value("string"), "input_ids": List(Value("int32"))}
    others = {"domain": "string", "id": "string", **dict.fromkeys(COUNTED, "int64")}
    return Features({content: kinds[content], **{name: Value(kind) for name, kind in others.items()}})


def _tokenised(documents: Dataset, file: Path, tokenizer: Any, processes: int) -> Dataset:
    global _tokenising
    _tokenising = True
    try:
        return documents.map(
            partial(_ids_of, tokenizer=tokenizer),
            input_columns="text",
            remove_columns="text",
            batched=True,
            batch_size=DOCUMENTS_AT_ONCE,
            writer_batch_size=DOCUMENTS_AT_ONCE,
            features=_features("input_ids"),
            num_proc=processes if processes > 1 and documents.data.nbytes > SMALL_BYTES else None,
            cache_file_name=str(file),
            load_from_cache_file=False,
            new_fingerprint=file.stem,
        )
    except RuntimeError as error:
        if "subprocesses" not in str(error):
            raise
        raise SynopsisError(
            "a process that tokenises was killed, most often for want of memory; start again with more of it or with "
            f"fewer processes ({THREADS_VARIABLE}): finished domains are kept"
        ) from None
    finally:
        _tokenising = False


def encode_text(tokenizer: Any, text: str) -> np.ndarray:
    """The ids of a text, (tokens,) int32. A fast tokenizer serves this purpose alone from then on."""
    if not tokenizer.is_fast:
        encoded = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
        return np.asarray(encoded["input_ids"], dtype=np.int32)
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    # Without the offsets that a call of the tokenizer computes: a quarter less time, and less memory. One text at a
    # time: the library's threads, which a batch would start, take processors that nobody gave.
    (encoding,) = backend.encode_batch_fast([text], add_special_tokens=False)
    return np.asarray(encoding.ids, dtype=np.int32)


def _ids_of(texts: list[str], tokenizer: Any) -> dict[str, list[np.ndarray]]:
    return {"input_ids": [encode_text(tokenizer, text) for text in texts]}


_tokenising = False


def _after_fork() -> None:
    """In a process that `datasets` starts: leave Ctrl-C to the parent, and end with it, even by SIGKILL."""
    if _tokenising:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


os.register_at_fork(after_in_child=_after_fork)
