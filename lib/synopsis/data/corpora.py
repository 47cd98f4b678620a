"""Corpora on disk: tokenised documents by split, one row a document.

A corpus is a folder of `datasets` (Arrow, read by memory mapping) with the columns `input_ids` (int32, no special
tokens added), `domain`, `bytes` (UTF-8 bytes of the text that was tokenised, for bits per byte; null where the ids came
from a pre-tokenised set) and `id`. Documents stay whole and apart: how training lays sequences over them is told in
`synopsis.data.sequences`.

    prepare_text_corpus(experiment, "long_documents", tokenizer_model="smollm2")
    load_corpus(layout.corpus("long_documents", "smollm2"), "test")["input_ids"]

How text becomes ids is told in `synopsis.data.tokenization`; as many processes work at it as the job has threads.
Memory does not grow with the corpus: documents are read, tokenised and written one after the other. A killed `prepare`
goes on from the shards that it finished (`synopsis.data.shards`), and the files are equal byte for byte, for any number
of processes and of kills.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from synopsis.artifacts import (
    PROVENANCE,
    Layout,
    Provenance,
    atomic_directory,
    check_outputs,
    file_hash,
    package_versions,
    write_json,
    write_text,
)
from synopsis.config.data import TextCorpus, TextDomain
from synopsis.config.experiment import Experiment
from synopsis.data import shards as shards_on_disk
from synopsis.data.documents import IdReader, TextReader
from synopsis.data.shards import Shards, assemble, corpus_features
from synopsis.data.sources import FetchError, Source, find_source
from synopsis.data.tokenization import Tokenization, available_processes, vocabulary_size
from synopsis.errors import ArtifactError, DataError
from synopsis.progress import say, track
from synopsis.stages.prepare.section import prepare_fingerprint

if TYPE_CHECKING:
    from datasets import Dataset

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
TOKENIZATION = "each document by itself, no special tokens added, text that looks like one kept as text"


# ----------------------------------------------------------------------------------------------------- making a corpus


def prepare_text_corpus(
    experiment: Experiment, corpus: str, tokenizer_model: str, processes: int | None = None
) -> Path:
    """Read, tokenise and write a corpus of real documents; the model's tokenizer must have been prepared.

    `processes` at work; None: as many as `available_processes`. The folder also gets provenance.json (kind "corpus"):
    counts by split and domain, and a hash of each split's tokens. DataError when a file is missing or malformed, or
    when a split stays without documents; nothing is written then.
    """
    definition, layout = experiment.corpora[corpus], Layout(experiment)
    assert isinstance(definition, TextCorpus), f"'{corpus}' is not read from files"
    path, tokenizer_folder = layout.corpus(corpus, tokenizer_model), layout.tokenizer(tokenizer_model)
    provenance = Provenance(config=prepare_fingerprint(experiment, "corpus", corpus))
    sources = {split: _sources(experiment, definition, split) for split in SPLITS}
    processes = processes or available_processes()
    with Tokenization(tokenizer_folder, processes) as tokenization:
        work = _work_folder(path, provenance.config, tokenizer_folder, sources)
        try:
            maker = _Maker(corpus, definition, work, tokenization)
            made = {split: maker.split(split, found) for split, found in sources.items()}
        except FetchError:
            raise  # what was fetched is kept
        except DataError:
            shutil.rmtree(work)
            raise
    provenance.inputs = [file for found in sources.values() for source in found.values() for file in source.files]
    provenance.inputs += sorted(tokenizer_folder.glob("tokenizer*"))
    hashes: dict[str, str] = {split: found.hash for split, found in made.items()}
    report = {
        "splits": {split: found.report for split, found in made.items()},
        "token_hashes": hashes,
        "tokenization": TOKENIZATION,
        "processes": processes,
    }
    with atomic_directory(path) as folder:
        assemble(folder, {split: found.files for split, found in made.items()}, hashes)
        write_json(folder / PROVENANCE, "corpus", report, provenance.record(), [folder])
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


def _work_folder(path: Path, facts: str, tokenizer: Path, sources: dict[Split, dict[str, Source]]) -> Path:
    """The folder of the shards, beside the corpus; emptied when what it holds came from something else."""
    folder = path.parent / f".{path.name}.shards"
    files = {file for found in sources.values() for source in found.values() for file in source.files}
    plan = {
        "facts": facts,
        "shard_tokens": shards_on_disk.SHARD_TOKENS,
        "tokenizers": package_versions()["tokenizers"],
        "tokenizer": {file.name: file_hash(file) for file in sorted(tokenizer.glob("tokenizer*"))},
        "sources": {
            split: {name: source.record() for name, source in found.items()} for split, found in sources.items()
        },
        # Hashes would take as long as reading does; make goes by time and size too.
        "files": {str(file): [file.stat().st_size, file.stat().st_mtime_ns] for file in sorted(files)},
    }
    text = json.dumps(plan, indent=2) + "\n"
    told = folder / "plan.json"
    if told.is_file() and told.read_text(encoding="utf-8") == text:
        for unfinished in folder.glob(".*.partial"):
            unfinished.unlink()
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    write_text(told, text)
    return folder


@dataclass
class _Made:
    """A split in shards: their files, the hash of all its tokens, and the counts of each domain."""

    files: list[Path]
    hash: str
    report: dict[str, dict[str, Any]]


@dataclass
class _Maker:
    """Makes the shards of a corpus in the folder `work`, or goes on with them."""

    corpus: str
    definition: TextCorpus
    work: Path
    tokenization: Tokenization

    def split(self, split: Split, sources: dict[str, Source]) -> _Made:
        made = _Made([], "", {})
        digest: Any = hashlib.sha256()
        for number, (domain, source) in enumerate(sources.items()):
            shards = Shards(self.work, f"{split}-{number}", digest)
            shards.resume()
            if shards.files:
                say(f"corpus {self.corpus}: {split} {domain}: goes on after {len(shards.files)} finished shards")
            if not shards.complete:
                self._write(shards, split, domain, source)
            digest = shards.digest
            made.files += shards.files
            empty = shards.rows - shards.counts.documents
            made.report[domain] = asdict(shards.counts) | {"empty_documents": empty, "source": source.record()}
        made.hash = digest.hexdigest()
        documents, tokens = (sum(report[key] for report in made.report.values()) for key in ("documents", "tokens"))
        if not documents:
            origin = ", ".join(map(str, sources.values())) or "no domain names a source for it"
            raise DataError(f"corpus '{self.corpus}': split '{split}' has no documents ({origin})")
        say(f"corpus {self.corpus}: {split}: {documents} documents, {tokens} tokens")
        return made

    def _write(self, shards: Shards, split: Split, domain: str, source: Source) -> None:
        settings, limit = self.definition.domains[domain], self.definition.max_documents.get(split)
        left = None if limit is None else limit - shards.counts.documents
        reader = self._reader(domain, settings, source, shards.rows, left)
        count = source.count()
        total = None if count is None else min(count - shards.rows, count if left is None else left)
        documents = iter(reader) if isinstance(reader, IdReader) else reader.tokenised(self.tokenization)
        told = track(documents, f"{self.corpus} {split} {domain}", total, "documents")
        shards.write(told, rows=lambda: reader.rows)

    def _reader(
        self, domain: str, settings: TextDomain, source: Source, start: int, limit: int | None
    ) -> IdReader | TextReader:
        if settings.tokens_column is None:
            column = "text" if source.is_text else settings.text_column
            return TextReader(source, domain, column, start, limit, self.definition.max_characters)
        vocabulary = vocabulary_size(self.tokenization.tokenizer)
        return IdReader(source, domain, settings.tokens_column, start, limit, vocabulary)


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
    mend = "the corpus is truncated or damaged. Delete the folder and run again."
    try:
        splits = json.loads(names.read_text(encoding="utf-8"))["splits"]
        if split not in splits:
            raise ArtifactError(f"{path}: has no split '{split}'; found {', '.join(splits)}")
        dataset = load_from_disk(path / split)
        # Offsets and texts, not the tokens: a list that ends outside of the file would crash the process.
        dataset.data.validate(full=True)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, pyarrow.ArrowException) as error:
        raise ArtifactError(f"{path}: {mend} ({type(error).__name__}: {str(error)[:200]})") from None
    missing = [column for column in corpus_features() if column not in dataset.column_names]
    if missing:
        raise ArtifactError(f"{path}: split '{split}' lacks the column {', '.join(missing)}; {mend}")
    return dataset
