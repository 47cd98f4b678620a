"""Corpora on disk: tokenised documents by split, one row a document.

A corpus is a folder of `datasets` (Arrow, read by memory mapping) with the columns `input_ids` (int32, no special
tokens added), `domain`, `bytes` (UTF-8 bytes of the text that was tokenised, for bits per byte) and `id`. Memory does
not grow with the corpus: documents are read, tokenised and written one by one.

    prepare_text_corpus(experiment, "long_documents", tokenizer_model="smollm2")
    load_corpus(layout.corpus("long_documents", "smollm2"), "test")["input_ids"]
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from synopsis.artifacts import Layout, Provenance, atomic_directory, write_json
from synopsis.config import Experiment
from synopsis.config_data import TextCorpus, TextDomain
from synopsis.data.sources import Row, Source, find_source
from synopsis.errors import ArtifactError, DataError
from synopsis.progress import say, track

if TYPE_CHECKING:
    from datasets import Dataset, Features

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
DOCUMENTS_HELD = 16
"""Documents in memory before they are written: one of a million tokens takes 4 MB."""


@dataclass
class SplitReport:
    """What one domain gave to one split."""

    documents: int = 0
    tokens: int = 0
    bytes: int = 0
    cut_characters: int = 0
    """Characters beyond `max_characters`, which were not read."""
    empty_documents: int = 0
    """Documents of nothing but whitespace, which were left out."""
    source: dict[str, str | None] = field(default_factory=dict)


# ----------------------------------------------------------------------------------------------------- making a corpus


def prepare_text_corpus(experiment: Experiment, corpus: str, tokenizer_model: str) -> Path:
    """Read, tokenise and write a corpus of real text; the model's tokenizer must have been prepared.

    The folder also gets provenance.json (kind "corpus"): counts by split and domain, and a hash of each split's tokens.
    DataError when a file is missing or malformed, or when a split stays without documents; nothing is written then.
    """
    definition, layout = experiment.corpora[corpus], Layout(experiment)
    assert isinstance(definition, TextCorpus), f"'{corpus}' is not read from files"
    path, tokenizer_folder = layout.corpus(corpus, tokenizer_model), layout.tokenizer(tokenizer_model)
    provenance = Provenance(config=experiment.facts(definition, tokenizer_model))
    sources = {split: _sources(experiment, definition, split) for split in SPLITS}
    tokenizer = _tokenizer(tokenizer_folder)
    reports: dict[str, dict[str, SplitReport]] = {split: {} for split in SPLITS}

    def documents(split: Split) -> Iterator[Row]:
        for domain, source in sources[split].items():
            report = reports[split][domain] = SplitReport(source=source.record())
            read = _texts(definition, domain, source, report, definition.max_documents.get(split))
            for identity, text in track(read, f"{corpus} {split} {domain}", unit="documents"):
                yield _document(tokenizer, domain, identity, text, report)
        if not any(report.documents for report in reports[split].values()):
            origin = ", ".join(map(str, sources[split].values())) or "no domain names a source for it"
            raise DataError(f"corpus '{corpus}': split '{split}' has no documents ({origin})")

    with atomic_directory(path) as folder:
        hashes = write_splits(folder, {split: documents(split) for split in SPLITS})
        provenance.inputs = [source.file for split in sources.values() for source in split.values() if source.file]
        provenance.inputs += sorted(tokenizer_folder.glob("tokenizer*"))
        counts = {split: {name: asdict(report) for name, report in found.items()} for split, found in reports.items()}
        write_json(
            folder / "provenance.json", "corpus", {"splits": counts, "token_hashes": hashes}, provenance.record()
        )
    for split, found in reports.items():
        total = sum(report.tokens for report in found.values())
        say(f"corpus {corpus}: {split}: {sum(r.documents for r in found.values())} documents, {total} tokens")
    return path


def _sources(experiment: Experiment, definition: TextCorpus, split: Split) -> dict[str, Source]:
    """Domain -> source, for the domains that have this split: a hub data set is taken to have all three."""
    found = {}
    for name, domain in definition.domains.items():
        file = domain.files.get(split)
        if file or domain.hub:
            found[name] = find_source(experiment, [file] if file else [], split, domain.hub, domain.hub_config)
    return found


def _texts(
    definition: TextCorpus, domain: str, source: Source, report: SplitReport, limit: int | None
) -> Iterator[tuple[str, str]]:
    """Name and text of the documents that are kept; what is cut or left out is counted in `report`."""
    column = _column(definition.domains[domain], source)
    kept = 0
    for index, row in enumerate(source.rows()):
        if kept == limit:
            return
        text = row.get(column)
        if not isinstance(text, str):
            found = repr(text) if column in row else f"only {', '.join(row)}"
            raise DataError(f"{source}: row {index}: found {found}; expected text in the column '{column}'")
        if definition.max_characters is not None and len(text) > definition.max_characters:
            report.cut_characters += len(text) - definition.max_characters
            text = text[: definition.max_characters]
        if not text.strip():
            report.empty_documents += 1
            continue
        kept += 1
        yield str(row.get("id") or f"{domain}-{source.split}-{index}"), text


def _column(domain: TextDomain, source: Source) -> str:
    """A .txt file has one column of its own; `text_column` speaks of rows."""
    plain = source.file is not None and source.file.name.removesuffix(".gz").removesuffix(".xz").endswith(".txt")
    return "text" if plain else domain.text_column


def _document(tokenizer: Any, domain: str, identity: str, text: str, report: SplitReport) -> Row:
    # Text that looks like a special token stays text: a document must not end where it quotes an end-of-text token.
    encoded = tokenizer(
        text, add_special_tokens=False, split_special_tokens=True, return_attention_mask=False, verbose=False
    )
    tokens = np.asarray(encoded["input_ids"], dtype=np.int32)
    size = len(text.encode("utf-8"))
    report.documents += 1
    report.tokens += len(tokens)
    report.bytes += size
    return {"input_ids": tokens, "domain": domain, "bytes": size, "id": identity}


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    if not folder.is_dir():
        raise ArtifactError(f"{folder}: no such folder; the stage 'prepare' of its model has not run")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder}: holds no tokenizer that can be read: {error}") from None


# ------------------------------------------------------------------------------------------------- the folder on disk


def corpus_features() -> Features:
    """The columns of a corpus."""
    from datasets import Features, List, Value

    return Features(
        {"input_ids": List(Value("int32")), "domain": Value("string"), "bytes": Value("int64"), "id": Value("string")}
    )


def write_splits(folder: Path, splits: Mapping[str, Iterable[Row]]) -> dict[str, str]:
    """Write documents (rows of `corpus_features`) as a DatasetDict into `folder`.

    Returns the SHA-256 of each split's tokens: of the length of each document and then its tokens, little-endian, so
    that two corpora agree only when their document boundaries do.
    """
    from datasets import Dataset, DatasetDict
    from datasets.arrow_writer import ArrowWriter

    hashes = {}
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".tokens.") as temporary, _no_library_bars():
        read = DatasetDict()
        for split, documents in splits.items():
            digest = hashlib.sha256()
            file = f"{temporary}/{split}.arrow"
            with ArrowWriter(path=file, features=corpus_features(), writer_batch_size=DOCUMENTS_HELD) as writer:
                for document in documents:
                    tokens = np.asarray(document["input_ids"], dtype="<i4")
                    digest.update(len(tokens).to_bytes(8, "little") + tokens.tobytes())
                    writer.write(document)
                writer.finalize()
            read[split] = Dataset.from_file(file)
            hashes[split] = digest.hexdigest()
        read.save_to_disk(folder)
    return hashes


@contextlib.contextmanager
def _no_library_bars() -> Iterator[None]:
    """The bars of `datasets` off: a log file needs one kind of progress line."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    disabled = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not disabled:
            enable_progress_bars()


def load_corpus(path: str | Path, split: str) -> Dataset:
    """One split of a corpus, memory-mapped; ArtifactError when the folder is missing, truncated or lacks the split."""
    import pyarrow
    from datasets import load_from_disk

    path = Path(path)
    names = path / "dataset_dict.json"
    if not names.is_file():
        raise ArtifactError(f"{path}: holds no corpus (dataset_dict.json is missing); the stage 'prepare' has not run")
    mend = "the corpus is truncated or damaged. Delete the folder and run again."
    try:
        splits = json.loads(names.read_text(encoding="utf-8"))["splits"]
        if split not in splits:
            raise ArtifactError(f"{path}: has no split '{split}'; found {', '.join(splits)}")
        dataset = load_from_disk(path / split)
    except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException) as error:
        raise ArtifactError(f"{path}: {mend} ({type(error).__name__}: {str(error)[:200]})") from None
    missing = [column for column in corpus_features() if column not in dataset.column_names]
    if missing:
        raise ArtifactError(f"{path}: split '{split}' lacks the column {', '.join(missing)}; {mend}")
    return dataset
