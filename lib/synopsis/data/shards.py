"""Tokenised documents in shards on disk, which a killed `prepare` goes on from.

Documents are written in their order to shards of about `SHARD_TOKENS` tokens. A shard counts once its report, a JSON
file beside it, is there. Shards lie beside the corpus under a hidden name until the whole corpus is written; then they
become the files of the corpus without being copied. What is written follows from the documents alone.

    shards = Shards(folder, "train-0", hashlib.sha256())
    shards.resume()                          # takes up what is finished; shards.rows says where the source goes on
    shards.write(documents, rows=lambda: reader.rows)
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from synopsis.artifacts import atomic_file, write_text
from synopsis.data.row_files import read_rows
from synopsis.errors import DataError

if TYPE_CHECKING:
    from datasets import Features

SHARD_TOKENS = 2**25
"""Tokens after which a shard ends: 128 MiB, or half a minute of tokenising."""
BATCH_TOKENS = 2**18
BATCH_DOCUMENTS = 1000
"""Tokens and documents in memory before they are written."""


@dataclass
class Tokenised:
    """A document as it is written. `rows`: rows of the source that were read when this document was complete."""

    ids: np.ndarray
    domain: str
    bytes: int | None
    id: str
    rows: int
    cut_characters: int = 0
    padding_tokens: int = 0


@dataclass
class Counts:
    """What is in a shard, or in several."""

    documents: int = 0
    tokens: int = 0
    bytes: int = 0
    cut_characters: int = 0
    """Characters beyond `max_characters`, which were not read."""
    padding_tokens: int = 0
    """Tokens that the attention mask of a pre-tokenised set leaves out."""

    def add(self, document: Tokenised) -> None:
        self.documents += 1
        self.tokens += len(document.ids)
        self.bytes += document.bytes or 0
        self.cut_characters += document.cut_characters
        self.padding_tokens += document.padding_tokens

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(asdict(self).values(), asdict(other).values(), strict=True)))


def corpus_features() -> Features:
    """The columns of a corpus."""
    from datasets import Features, List, Value

    return Features(
        {"input_ids": List(Value("int32")), "domain": Value("string"), "bytes": Value("int64"), "id": Value("string")}
    )


def digest_document(digest: Any, ids: np.ndarray) -> None:
    """Add a document to a SHA-256: its length and then its tokens, little-endian, so that boundaries count too."""
    digest.update(len(ids).to_bytes(8, "little") + ids.astype("<i4").tobytes())


class Shards:
    """The shards of one source: of one domain of one split.

    `files`, `counts` and `rows` (of the source, read so far) speak of the finished ones; `complete`: the last one is
    among them. `digest`: a SHA-256 of the documents before this source, which goes on with those in finished shards.
    """

    def __init__(self, folder: Path, name: str, digest: Any):
        self.folder, self.name, self.digest = folder, name, digest
        self.files: list[Path] = []
        self.counts = Counts()
        self.rows = 0
        self.complete = False

    def resume(self) -> None:
        """Take up the finished shards, each after its tokens were read again; those that are damaged are made again."""
        while not self.complete:
            file, report = self._next()
            digest = self.digest.copy()
            try:
                told = json.loads(report.read_text(encoding="utf-8"))
                counts = Counts(**told["counts"])
                _digest_shard(file, digest)
                if digest.hexdigest() != told["sha256"]:
                    return
                self._take(file, counts, int(told["rows"]), bool(told["complete"]), digest)
            except (DataError, OSError, ValueError, KeyError, TypeError):
                return

    def write(self, documents: Iterator[Tokenised], rows: Callable[[], int]) -> None:
        """Write what is left of the source; `rows` tells how many of its rows were read, asked at the end."""
        while not self.complete:
            file, report = self._next()
            digest, counts = self.digest.copy(), Counts()
            read, complete = self.rows, True
            with atomic_file(file) as temporary, _Writer(temporary) as writer:
                for document in documents:
                    digest_document(digest, document.ids)
                    writer.add(document)
                    counts.add(document)
                    read = document.rows
                    if counts.tokens >= SHARD_TOKENS:
                        complete = False
                        break
            if complete:
                read = rows()
            told = {"counts": asdict(counts), "rows": read, "complete": complete, "sha256": digest.hexdigest()}
            write_text(report, json.dumps(told) + "\n")
            self._take(file, counts, read, complete, digest)

    def _next(self) -> tuple[Path, Path]:
        """The next shard and its report."""
        name = f"{self.name}-{len(self.files):05d}"
        return self.folder / f"{name}.arrow", self.folder / f"{name}.json"

    def _take(self, file: Path, counts: Counts, rows: int, complete: bool, digest: Any) -> None:
        self.files.append(file)
        self.counts += counts
        self.rows, self.complete, self.digest = rows, complete, digest


class _Writer:
    """Writes documents to an Arrow stream, a batch at a time."""

    def __init__(self, path: Path):
        self.path = path
        self.batch: list[Tokenised] = []
        self.tokens = 0

    def __enter__(self) -> _Writer:
        import pyarrow

        self.schema = corpus_features().arrow_schema
        self.stream = pyarrow.OSFile(str(self.path), "wb")
        self.writer = pyarrow.ipc.new_stream(self.stream, self.schema)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self._flush()
            self.writer.close()
        self.stream.close()

    def add(self, document: Tokenised) -> None:
        self.batch.append(document)
        self.tokens += len(document.ids)
        if self.tokens >= BATCH_TOKENS or len(self.batch) >= BATCH_DOCUMENTS:
            self._flush()

    def _flush(self) -> None:
        import pyarrow

        if not self.batch:
            return
        ends = np.cumsum([0, *(len(document.ids) for document in self.batch)], dtype=np.int32)
        ids = np.concatenate([document.ids for document in self.batch]).astype(np.int32)
        columns = [
            pyarrow.ListArray.from_arrays(pyarrow.array(ends), pyarrow.array(ids)),
            pyarrow.array([document.domain for document in self.batch]),
            pyarrow.array([document.bytes for document in self.batch], pyarrow.int64()),
            pyarrow.array([document.id for document in self.batch]),
        ]
        self.writer.write_batch(pyarrow.RecordBatch.from_arrays(columns, schema=self.schema))
        self.batch, self.tokens = [], 0


def _digest_shard(file: Path, digest: Any) -> None:
    for row in read_rows(file, ["input_ids"]):
        digest_document(digest, row["input_ids"])


# ------------------------------------------------------------------------------------------------ a corpus of shards


def assemble(folder: Path, splits: Mapping[str, Sequence[Path]], hashes: Mapping[str, str]) -> None:
    """Make `folder` what `datasets` reads as a DatasetDict of these shards.

    The shards get a second name in it where the file system can do so, and are copied elsewhere.
    """
    from datasets import Dataset

    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}), encoding="utf-8")
    for split, shards in splits.items():
        # `datasets` writes the description of a data set without rows, which then gets its files.
        with no_library_bars():
            Dataset(corpus_features().arrow_schema.empty_table()).save_to_disk(folder / split)
        names = [f"data-{number:05d}-of-{len(shards):05d}.arrow" for number in range(len(shards))]
        for name, shard in zip(names, shards, strict=True):
            _link(shard, folder / split / name)
        file = folder / split / "state.json"
        state = json.loads(file.read_text(encoding="utf-8"))
        state |= {"_data_files": [{"filename": name} for name in names], "_fingerprint": hashes[split][:16]}
        file.write_text(json.dumps(state, indent=2, sort_keys=True), encoding="utf-8")


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


@contextlib.contextmanager
def no_library_bars() -> Iterator[None]:
    """The bars of `datasets` off: a log file needs one kind of progress line."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    disabled = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not disabled:
            enable_progress_bars()
