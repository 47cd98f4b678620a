"""Corpora on disk: tokenised documents by split, one row a document.

A corpus is a folder of `datasets` (Arrow, read by memory mapping) with the columns `input_ids` (int32, no special
tokens added), `domain`, `bytes` (UTF-8 bytes of the text that was tokenised, for bits per byte; null where the ids came
from a pre-tokenised set) and `id`. Documents stay whole and apart; `synopsis.data.sequences` lays sequences over them.

    prepare_text_corpus(experiment, "long_documents", tokenizer_model="smollm2")
    load_corpus(layout.corpus("long_documents", "smollm2"), "test")["input_ids"]

Memory does not grow with the corpus (`synopsis.data.tokenization`). A killed `prepare` resumes with the domain of a
split that it was at, and the corpus is equal byte for byte, for any number of threads and of kills.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synopsis.artifacts import (
    PROVENANCE,
    Layout,
    Provenance,
    atomic_directory,
    check_outputs,
    file_hash,
    package_versions,
    read_json,
    write_json,
)
from synopsis.config.data import SPLITS, Split, TextCorpus
from synopsis.config.experiment import Experiment
from synopsis.data.documents import Documents
from synopsis.data.prepare import prepare_fingerprint
from synopsis.data.sources import FetchError, Source, find_source
from synopsis.data.tokenization import DOCUMENTS_AT_ONCE, available_threads, tokenise, tokenizer_threads
from synopsis.errors import ArtifactError, DataError
from synopsis.progress import say

if TYPE_CHECKING:
    from datasets import Dataset

COLUMNS = ["input_ids", "domain", "bytes", "id"]
TOKENIZATION = "each document by itself, no special tokens added, text that looks like one kept as text"
FILE_TOKENS = 2**27
"""Tokens of a file of the corpus: 512 MiB."""


# ----------------------------------------------------------------------------------------------------- making a corpus


def prepare_text_corpus(experiment: Experiment, corpus: str, tokenizer_model: str, threads: int | None = None) -> Path:
    """Read, tokenise and write a corpus of real documents; the model's tokenizer must have been prepared.

    `threads` tokenise; None: as many as `available_threads`. The folder also gets provenance.json (kind "corpus"):
    counts by split and domain, and a hash of each split's tokens. DataError when a file is missing or malformed, or
    when a split stays without documents; nothing is written then.
    """
    from datasets import Dataset, DatasetDict

    from synopsis.compressors.loading import load_tokenizer

    definition, layout = experiment.corpora[corpus], Layout(experiment)
    assert isinstance(definition, TextCorpus), f"'{corpus}' is not read from files"
    path, folder = layout.corpus(corpus, tokenizer_model), layout.tokenizer(tokenizer_model)
    provenance = Provenance(config=prepare_fingerprint(experiment, "corpus", corpus))
    sources = {split: _sources(experiment, definition, split) for split in SPLITS}
    threads = threads or available_threads()
    tokenizer = load_tokenizer(folder)
    work = _work_folder(path, provenance.config, folder, sources)
    splits, hashes, report, files = {}, {}, {}, {}
    with _quiet_datasets(), tokenizer_threads(threads):
        try:
            for split, found in sources.items():
                made, report[split] = _make_split(corpus, definition, split, found, work, tokenizer)
                hashes[split] = token_hash(made)
                # What identifies the data set follows from its tokens, not from the files that it was made of.
                splits[split] = Dataset(made.data, fingerprint=hashes[split][:16])
                tokens = sum(counts["tokens"] for counts in report[split].values())
                files[split] = min(made.num_rows, 1 + tokens // FILE_TOKENS)
        except FetchError:
            raise  # what was fetched is kept
        except DataError:
            shutil.rmtree(work)
            raise
        inputs = [file for found in sources.values() for source in found.values() for file in source.files]
        provenance.inputs = [*inputs, *sorted(folder.glob("tokenizer*"))]
        about = {"splits": report, "token_hashes": hashes, "tokenization": TOKENIZATION, "threads": threads}
        with atomic_directory(path) as temporary:
            DatasetDict(splits).save_to_disk(temporary, num_shards=files)
            write_json(temporary / PROVENANCE, "corpus", about, provenance.record(), [temporary])
    shutil.rmtree(work)
    return path


def _sources(experiment: Experiment, definition: TextCorpus, split: Split) -> dict[str, Source]:
    """Domain -> source, for the domains that have this split."""
    found = {}
    for name, domain in definition.domains.items():
        file, named = domain.files.get(split), domain.hub_splits.get(split) if domain.hub_splits else split
        if file or (domain.hub and named):
            hub = domain.hub if named else None
            found[name] = find_source(experiment, [file] if file else [], named or split, hub, domain.hub_config)
    return found


def _work_folder(path: Path, config: str, tokenizer: Path, sources: dict[Split, dict[str, Source]]) -> Path:
    """The folder of finished domains, named after all that they follow from; others of the corpus are removed."""
    files = {file for found in sources.values() for source in found.values() for file in source.files}
    plan = [
        config,
        package_versions()["tokenizers"],
        {file.name: file_hash(file) for file in sorted(tokenizer.glob("tokenizer*"))},
        {split: {name: source.record() for name, source in found.items()} for split, found in sources.items()},
        # Hashes would take as long as reading does; make goes by time and size too.
        {str(file): [file.stat().st_size, file.stat().st_mtime_ns] for file in sorted(files)},
    ]
    work = path.parent / f".{path.name}.{hashlib.sha256(json.dumps(plan).encode()).hexdigest()[:16]}.unfinished"
    for other in path.parent.glob(f".{path.name}.*.unfinished"):
        if other != work:
            shutil.rmtree(other)
    work.mkdir(parents=True, exist_ok=True)
    return work


def _make_split(
    corpus: str, definition: TextCorpus, split: Split, sources: dict[str, Source], work: Path, tokenizer: Any,
) -> tuple[Dataset, dict[str, dict[str, Any]]]:  # fmt: skip
    """The documents of a split, and the counts of each domain; what is finished in `work` is not made again."""
    from datasets import Dataset, concatenate_datasets

    made: list[Dataset] = []
    report: dict[str, dict[str, Any]] = {}
    limits = definition.max_documents.get(split), definition.max_characters
    vocabulary = max(tokenizer.get_vocab().values(), default=-1) + 1
    for number, (name, source) in enumerate(sources.items()):
        record, label = work / f"{split}-{number}.json", f"corpus {corpus}: {split} {name}"
        try:
            found = read_json(record, "tokenised")
            check_outputs(record)
            say(f"{label}: finished before")
        except ArtifactError:
            documents = Documents(source, name, definition.domains[name], *limits, vocabulary)
            found = tokenise(documents, record, tokenizer, label)
        made += [Dataset.from_file(str(work / file)).select_columns(COLUMNS) for file in found["files"]]
        report[name] = {**found["counts"], "source": source.record()}
    count, tokens = (sum(counts[key] for counts in report.values()) for key in ("documents", "tokens"))
    if not count:
        origin = ", ".join(map(str, sources.values())) or "no domain names a source for it"
        raise DataError(f"corpus '{corpus}': split '{split}' has no documents ({origin})")
    say(f"corpus {corpus}: {split}: {count} documents, {tokens} tokens")
    return concatenate_datasets(made), report


def token_hash(documents: Dataset) -> str:
    """SHA-256 of documents: of each its length and then its tokens, little-endian, so that boundaries count too."""
    digest = hashlib.sha256()
    for table in documents.select_columns("input_ids").with_format("arrow").iter(DOCUMENTS_AT_ONCE):
        for ids in table["input_ids"]:
            digest.update(len(ids).to_bytes(8, "little") + ids.values.to_numpy().astype("<i4").tobytes())
    return digest.hexdigest()


@contextlib.contextmanager
def _quiet_datasets() -> Iterator[None]:
    """Bars and log lines of `datasets` off: a log file needs one kind of progress line, and errors are raised."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, logging

    disabled, level = are_progress_bars_disabled(), logging.get_verbosity()
    disable_progress_bars()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if not disabled:
            enable_progress_bars()


# ------------------------------------------------------------------------------------------------- the folder on disk


def load_corpus(path: str | Path, split: str) -> Dataset:
    """One split of a corpus, memory-mapped; ArtifactError when the folder is missing, damaged or lacks the split."""
    import pyarrow
    from datasets import load_from_disk

    path = Path(path)
    names = path / "dataset_dict.json"
    if not names.is_file():
        raise ArtifactError(f"{path}: holds no corpus (dataset_dict.json is missing); the stage 'prepare' has not run")
    check_outputs(path / PROVENANCE, [names.name, f"{split}/*"])
    remedy = "the corpus is truncated or damaged. Delete the folder and run again."
    try:
        splits = json.loads(names.read_text(encoding="utf-8"))["splits"]
        if split not in splits:
            raise ArtifactError(f"{path}: has no split '{split}'; found {', '.join(splits)}")
        dataset = load_from_disk(path / split)
        # Offsets and texts, not the tokens: a list that ends outside of the file would crash the process.
        dataset.data.validate(full=True)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, pyarrow.ArrowException) as error:
        raise ArtifactError(f"{path}: {remedy} ({type(error).__name__}: {str(error)[:200]})") from None
    missing = [column for column in COLUMNS if column not in dataset.column_names]
    if missing:
        raise ArtifactError(f"{path}: split '{split}' lacks the column {', '.join(missing)}; {remedy}")
    return dataset
