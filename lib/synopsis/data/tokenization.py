"""Documents to Arrow files of token ids, by `datasets`, with memory that does not grow with their number.

A text becomes the ids that its tokenizer gives without special tokens, neither at its beginning nor at its end. Text
that looks like a special token stays text: a document must not end where it quotes an end-of-text token.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from synopsis.artifacts import write_json
from synopsis.data.documents import Documents
from synopsis.data.sequences import document_lengths
from synopsis.errors import InputError
from synopsis.progress import track

if TYPE_CHECKING:
    from datasets import Dataset, Features

COUNTED = ("bytes", "cut_characters", "padding_tokens")
"""Columns whose sums are reported."""
THREADS_VARIABLE = "SYNOPSIS_THREADS"
PARALLEL_VARIABLE = "TOKENIZERS_PARALLELISM"
DOCUMENTS_AT_ONCE = 100
"""In memory; a book has half a megabyte."""
CHARACTERS_AT_ONCE = 2**21
"""Of texts whose ids are being made: a tokenizer keeps about 30 bytes a character until they are."""


def available_threads() -> int:
    """How many threads may run: SYNOPSIS_THREADS, else OMP_NUM_THREADS (which Snakemake sets to the threads of a
    job), else the processors that this process may use. InputError when the variable holds no whole number."""
    for variable in (THREADS_VARIABLE, "OMP_NUM_THREADS"):
        given = os.environ.get(variable, "").strip()
        if given.isdecimal() and int(given) > 0:
            return int(given)
        if given and variable == THREADS_VARIABLE:
            raise InputError(f"the environment variable {variable} is {given!r}; expected a number of threads")
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def tokenizer_threads(count: int) -> Iterator[None]:
    """Let fast tokenizers work in `count` threads. They start once in a process: a later count is 1 or the first."""
    os.environ.setdefault("RAYON_NUM_THREADS", str(count))
    before = os.environ.get(PARALLEL_VARIABLE)
    os.environ[PARALLEL_VARIABLE] = "true" if count > 1 else "false"
    try:
        yield
    finally:
        os.environ.pop(PARALLEL_VARIABLE)
        if before is not None:
            os.environ[PARALLEL_VARIABLE] = before


def tokenise(documents: Documents, record: Path, tokenizer: Any, label: str) -> dict[str, Any]:
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
        made = _tokenised(made, ids, tokenizer)
    files = [record.with_name(Path(file["filename"]).name) for file in made.cache_files] if len(made) else []
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


def _tokenised(documents: Dataset, file: Path, tokenizer: Any) -> Dataset:
    return documents.map(
        lambda texts: {"input_ids": encode_texts(tokenizer, texts)},
        input_columns="text",
        remove_columns="text",
        batched=True,
        batch_size=DOCUMENTS_AT_ONCE,
        writer_batch_size=DOCUMENTS_AT_ONCE,
        features=_features("input_ids"),
        cache_file_name=str(file),
        load_from_cache_file=False,
        new_fingerprint=file.stem,
    )


def encode_texts(tokenizer: Any, texts: list[str]) -> list[np.ndarray]:
    """The ids of each text, (tokens,) int32. A fast tokenizer serves this purpose alone from then on."""
    if not tokenizer.is_fast:
        # One call a text: with several, a slow tokenizer warns of padding that nobody asked for.
        found = [tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False) for text in texts]
        return [np.asarray(encoded["input_ids"], dtype=np.int32) for encoded in found]
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    # Without the offsets that a call of the tokenizer computes: a quarter less time, and less memory.
    return [
        np.asarray(encoding.ids, dtype=np.int32)
        for group in _groups(texts)
        for encoding in backend.encode_batch_fast(group, add_special_tokens=False)
    ]


def _groups(texts: list[str]) -> Iterator[list[str]]:
    """The texts in order, in lists of at most CHARACTERS_AT_ONCE, or of one text."""
    group: list[str] = []
    for text in texts:
        if group and sum(map(len, group)) + len(text) > CHARACTERS_AT_ONCE:
            yield group
            group = []
        group.append(text)
    yield group
