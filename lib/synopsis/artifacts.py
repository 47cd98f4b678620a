"""What stages hand to each other on disk: paths, formats, atomic writes and provenance.

Every file appears whole or not at all: it is written beside its place, flushed to disk and renamed. Every JSON result
carries its kind, the version of its format and its provenance, with the hashes of what was written: of the result
itself, and of the files that it speaks for. Readers name the file and the fault when one is truncated, of another kind
or of another version, or has changed since it was written.

    layout = Layout(experiment)
    write_json(layout.perplexity("base"), "perplexity", {"rows": rows}, provenance)
    read_json(layout.perplexity("base"), "perplexity")["rows"]
"""

from __future__ import annotations

import contextlib
import csv
import errno
import gzip
import hashlib
import importlib.metadata
import io
import json
import os
import platform
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synopsis.errors import ArtifactError, InputError, SynopsisError
from synopsis.progress import track

if TYPE_CHECKING:
    from synopsis.config.experiment import Experiment

FORMAT_VERSION = 1
LONGEST_VALUE = 2**31 - 1
"""Characters of a value in a table; the limit of the csv module is 131,072 by itself."""
PROVENANCE = "provenance.json"
"""The record of a folder, in it."""
TOKENIZER_FILES = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model", "chat_template*",
)  # fmt: skip
CHECKED_BYTES = 500_000_000
"""Of an artifact, when it is read: less than a second. Larger ones are checked by `synopsis verify`."""
NOT_VERIFIED = ("logs", "checkpoints")
"""Folders of what is still being written; checkpoints have hashes of their own."""
FULL = (errno.ENOSPC, errno.EDQUOT)
PACKAGES = (
    "synopsis", "torch", "transformers", "tokenizers", "datasets", "accelerate", "rouge-score", "numpy", "pandas",
)  # fmt: skip


SLURM = {"slurm_job": "SLURM_JOB_ID", "slurm_array": "SLURM_ARRAY_JOB_ID", "slurm_task": "SLURM_ARRAY_TASK_ID"}
"""Fields of the provenance of a job of Slurm."""


class Layout:
    """Paths of an experiment's artifacts; the one place where they are spelled."""

    def __init__(self, experiment: Experiment):
        self.experiment = experiment
        self.root = Path(os.path.expanduser(experiment.results)) / experiment.name
        self.scores, self.scores_csv = self.root / "scores.parquet", self.root / "scores.csv"
        self.accuracy = self.root / "accuracy.json"
        self.tables, self.figures = self.root / "tables", self.root / "figures"
        self.page, self.pages = self.root / "report.html", self.root / "pages"

    def tokenizer(self, model: str) -> Path:
        """Folder of a model's tokenizer: beside the weights of a loaded model, made by `prepare` otherwise."""
        return self.model(model) if self.experiment.models[model].architecture is None else self.made_tokenizer(model)

    def made_tokenizer(self, model: str) -> Path:
        return self.root / "data" / "tokenizers" / model

    def corpus(self, corpus: str, tokenizer: str) -> Path:
        return self.root / "data" / corpus / tokenizer

    def instructions(self, name: str) -> Path:
        return self.root / "data" / "instructions" / f"{name}.json"

    def task(self, dataset: str) -> Path:
        return self.root / "data" / "tasks" / f"{dataset}.json"

    def model(self, run: str) -> Path:
        return self.root / "models" / run

    def weights(self, run: str) -> Path:
        """The folder that a run's model is loaded from: of a compressor that is not trained, its base's."""
        compressor = self.experiment.compressors.get(self.experiment.name_of(run))
        untrained = compressor is not None and compressor.trained_on is None
        return self.model(self.experiment.base_of(run) if untrained else run)

    def checkpoints(self, run: str) -> Path:
        return self.root / "checkpoints" / run

    def perplexity(self, run: str) -> Path:
        return self.root / "perplexity" / f"{run}.json"

    def icl(self, run: str, dataset: str, seed: int | str) -> Path:
        return self.root / "icl" / run / dataset / f"seed{seed}.json"

    def needle(self, run: str) -> Path:
        return self.root / "needle" / f"{run}.json"

    @staticmethod
    def examples(result: Path) -> Path:
        """The records of single examples beside a result: of icl, needle and, by document, perplexity."""
        return result.with_suffix(".examples.jsonl.gz")

    def generations(self, run: str, split: str) -> Path:
        return self.root / "generations" / run / f"{split}.csv"

    def judgements(self, judge: str, a: str, b: str, split: str) -> Path:
        """The append-only store of judgements; the summary lies beside it with the suffix .json."""
        return self.root / "judgements" / judge / f"{a}-vs-{b}" / f"{split}.jsonl"

    def benchmark(self, run: str) -> Path:
        return self.root / "benchmark" / f"{run}.csv"


# ------------------------------------------------------------------------------------------------- atomic writing


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; at the end of the block flush it to disk and rename it to `path`.

    When the block fails, what was at `path` stays as it was. Raises SynopsisError when the disk is full, InputError
    when the place cannot be written.
    """
    path = Path(path)
    temporary = _beside(path)
    try:
        with report_full_disk(path):
            make_room(path)
            yield temporary
            _flush(temporary)
            os.replace(temporary, path)
            _flush(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """Give a temporary folder beside `path`; at the end of the block it takes the place of `path`, files flushed.

    When the block fails, what was at `path` stays as it was. Raises as `atomic_file` does.
    """
    path = Path(path)
    temporary, former = _beside(path), _beside(path)
    try:
        with report_full_disk(path):
            make_room(path)
            temporary.mkdir()
            yield temporary
            for file in temporary.rglob("*"):
                _flush(file)
            # A folder that is not empty cannot be replaced in one move; the former one goes when the new one is there.
            if path.exists():
                os.replace(path, former)
            try:
                os.replace(temporary, path)
            except OSError:
                if former.exists():
                    os.replace(former, path)  # the former one must not be lost
                raise
            _flush(path.parent)
            shutil.rmtree(former, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def make_room(path: str | Path) -> None:
    """Make the folder that `path` lies in; InputError when it cannot be made or allows no new files."""
    folder = Path(path).parent
    try:
        with report_full_disk(path):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: its folder cannot be made: {error.strerror} ({error.filename})") from None
    if not os.access(folder, os.W_OK):
        raise InputError(f"{path}: cannot be written: {folder} allows no new files")


def _beside(path: Path) -> Path:
    """A free name in the same folder, so that it can be renamed to `path` in one move."""
    return path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.partial"


@contextlib.contextmanager
def report_full_disk(path: str | Path) -> Iterator[None]:
    """Turn "no space left" into a message that names the file; other errors pass.

    Errors of torch, safetensors and Arrow hide that the disk is full, so after one of them a write is tried.
    """
    try:
        yield
    except SynopsisError:
        raise
    except Exception as error:
        reason = error if isinstance(error, OSError) else _try_to_write(Path(path))
        if reason is None or reason.errno not in FULL:
            raise
        raise SynopsisError(
            f"{path}: the disk is full ({reason.strerror}); nothing was written. "
            "Free some space and start again: finished results and checkpoints are kept."
        ) from error


def _try_to_write(path: Path) -> OSError | None:
    """The error with which a megabyte cannot be written to the file system of `path`."""
    folder = next(parent for parent in (path, *path.absolute().parents) if parent.is_dir())
    try:
        with tempfile.TemporaryFile(dir=folder) as stream:
            stream.write(bytes(2**20))
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        return error
    return None


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: str | Path, text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_csv(path: str | Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(columns))
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: str | Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Rows of a CSV that has at least `columns`; values are strings, as written (an empty answer stays "")."""
    advice = "the file is truncated or damaged. Delete it and run again."
    text = _read(path)
    csv.field_size_limit(LONGEST_VALUE)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)  # strict: quotes that never close are an error
    try:
        header, *rows = [row for row in reader if row] or [[]]
    except csv.Error as error:
        raise ArtifactError(f"{path}: line {reader.line_num}: {error}; {advice}") from None
    missing = [column for column in columns if column not in header]
    if missing:
        found = ", ".join(header) or "nothing"
        raise ArtifactError(f"{path}: the column {', '.join(missing)} is missing; found {found}")
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            raise ArtifactError(f"{path}: row {number} does not have {len(header)} values; {advice}")
    if not text.endswith("\n"):
        raise ArtifactError(f"{path}: the last line has no end; {advice}")
    return [dict(zip(header, row, strict=True)) for row in rows]


def write_json_lines(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Rows as JSON lines, compressed when the name ends in .gz (without a time stamp: equal rows, equal bytes)."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    with atomic_file(path) as temporary:
        temporary.write_bytes(gzip.compress(text, mtime=0) if str(path).endswith(".gz") else text)


def write_json(
    path: str | Path,
    kind: str,
    payload: Mapping[str, Any],
    provenance: Mapping[str, Any],
    outputs: Sequence[Path] = (),
) -> None:
    """Write a result of `kind` with its format version and provenance, which gets the hash of the rest.

    outputs: finished files below the folder of `path`, or folders of them, that the result speaks for; their sizes and
    hashes stand in the provenance.
    """
    path, hashes = Path(path), {}
    for output in outputs:
        for file in sorted(output.rglob("*")) if output.is_dir() else [output]:
            if file.is_file() and file != path:
                name = file.relative_to(path.parent).as_posix()
                hashes[name] = {"bytes": file.stat().st_size, "sha256": file_hash(file)}
    record = {**provenance, **({"outputs": hashes} if hashes else {}), "sha256": ""}
    document = {"kind": kind, "format": FORMAT_VERSION, **payload, "provenance": record}
    text = json.dumps(document, indent=2, ensure_ascii=False, default=str) + "\n"
    before, after = text.rsplit('""', 1)
    write_text(path, f'{before}"{_text_hash(text)}"{after}')


def read_json(path: str | Path, kind: str) -> dict[str, Any]:
    """Read a result of `kind`; ArtifactError names the file and what is wrong with it."""
    document = _read_document(path)
    if not isinstance(document, dict) or document.get("kind") != kind:
        found = document.get("kind") if isinstance(document, dict) else type(document).__name__
        raise ArtifactError(f"{path}: holds {found!r}; expected a result of kind {kind!r}")
    if document.get("format") != FORMAT_VERSION:
        raise ArtifactError(
            f"{path}: format {document.get('format')!r}; this version of Synopsis reads format {FORMAT_VERSION}. "
            "Delete it and run again."
        )
    return document


def _read_document(path: str | Path) -> Any:
    """Read JSON of any kind; ArtifactError where it is none, or differs from the hash in its provenance."""
    text = _read(path)
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        where = f"line {error.lineno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise ArtifactError(
            f"{path}: not valid JSON ({where}); the file is truncated or damaged. Delete it and run again."
        ) from None
    digest = _provenance(document).get("sha256")
    if digest is not None and _text_hash(text.replace(str(digest), "", 1)) != digest:
        raise ArtifactError(f"{path}: has changed since it was written. {_advice(Path(path))}")
    return document


def _provenance(document: Any) -> dict[str, Any]:
    """The provenance in a document, {} where it has none."""
    provenance = document.get("provenance") if isinstance(document, dict) else None
    return provenance if isinstance(provenance, dict) else {}


def _text_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _advice(record: Path) -> str:
    """What to do about a damaged file that `record` speaks for."""
    what = f"the folder {record.parent}" if record.name == PROVENANCE else "it"
    return f"Restore it from a copy, or delete {what} and run again."


def _read(path: str | Path) -> str:
    """The text of a file, line breaks as they are; ArtifactError where there is none."""
    try:
        return Path(path).read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise ArtifactError(f"{path}: no such file; the stage that writes it has not run") from None
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{path}: not UTF-8 text ({error.reason}); the file is damaged") from None
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror or error}") from None


# ----------------------------------------------------------------------------------------------------- provenance


@dataclass
class Provenance:
    """Where a result comes from; make one when a stage starts and call `record()` when it writes.

    config: fingerprint of the configuration that the result depends on;
    inputs: files that were read (their hashes are recorded, of folders the hash of their file list).
    """

    config: str
    inputs: Sequence[str | Path] = ()
    seed: int | None = None
    device: str = "cpu"
    dtype: str = "float32"
    started: float = field(default_factory=time.perf_counter)

    def record(self, **extra: Any) -> dict[str, Any]:
        return {
            **git_state(),
            "config": self.config,
            "inputs": {str(path): file_hash(path) for path in self.inputs},
            "packages": package_versions(),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "host": platform.node(),
            **{key: os.environ[name] for key, name in SLURM.items() if name in os.environ},
            "device": self.device,
            "dtype": self.dtype,
            "seed": self.seed,
            "wall_seconds": round(time.perf_counter() - self.started, 3),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            **extra,
        }


@cache
def git_state() -> dict[str, Any]:
    """Commit of the sources and whether they were changed since; None where they are no git checkout."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            answer = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return answer.stdout.strip() if answer.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    return {"commit": commit, "dirty": None if commit is None else bool(git("status", "--porcelain", "."))}


@cache
def package_versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def file_hash(path: str | Path) -> str | None:
    """SHA-256 of a file, or of the names and contents of a folder's files; None when there is nothing."""
    path = Path(path)
    if path.is_dir():
        parts = [f"{file.relative_to(path)}:{file_hash(file)}" for file in sorted(path.rglob("*")) if file.is_file()]
        return _text_hash("\n".join(parts))
    if not path.is_file():
        return None
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# ----------------------------------------------------------------------------------------------- checks of what is read


def _outputs(record: Path, document: Any) -> dict[Path, dict[str, Any]]:
    """Size and hash of the files that the document at `record` speaks for; {} where another program has written it."""
    return {record.parent / name: written for name, written in _provenance(document).get("outputs", {}).items()}


def _fault(path: Path, written: Mapping[str, Any], record: Path, hashed: bool = True) -> str | None:
    """What is wrong with a file, None where nothing is; without `hashed` only its size is looked at."""
    if not path.is_file():
        return f"{path}: is missing. {_advice(record)}"
    if path.stat().st_size == written["bytes"] and (not hashed or file_hash(path) == written["sha256"]):
        return None
    return f"{path}: has changed since it was written. {_advice(record)}"


def check_outputs(record: Path, patterns: Sequence[str] = ("*",)) -> None:
    """Check files that were written with `record`, those whose names match; without a record there is nothing to check.

    patterns: of names as they stand in the record, relative to its folder. All sizes are compared, and hashes of the
    smallest files, up to CHECKED_BYTES together. ArtifactError names the first file that is missing or has changed.
    """
    if not record.is_file():
        return
    read = 0
    outputs = _outputs(record, _read_document(record))
    for path, written in sorted(outputs.items(), key=lambda output: output[1]["bytes"]):
        name = path.relative_to(record.parent).as_posix()
        if any(fnmatch(name, pattern) for pattern in patterns):
            read += written["bytes"]
            if fault := _fault(path, written, record, hashed=read <= CHECKED_BYTES):
                raise ArtifactError(fault)


def verify(folder: Path) -> tuple[int, list[str], list[Path]]:
    """Check every file below a folder, of any size: how many, a line for each fault, and files that have no hash."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected one of results, such as results/demo")
    names = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    names = [name for name in names if not any(part.startswith(".") for part in name.parts)]
    files = [folder / name for name in names if name.parts[0] not in NOT_VERIFIED]
    faults: dict[Path, str] = {}
    outputs: dict[Path, tuple[dict[str, Any], Path]] = {}
    whole = set()
    # Records of folders first: the JSON files that they list need not be parsed.
    for record in sorted(files, key=lambda path: path.name != PROVENANCE):
        if record.suffix == ".json" and record not in outputs:
            try:
                document = _read_document(record)
            except ArtifactError as error:
                faults[record] = str(error)
                continue
            if "sha256" in _provenance(document):
                whole.add(record)
            outputs |= {path: (written, record) for path, written in _outputs(record, document).items()}
    for path, (written, record) in track(sorted(outputs.items()), "verify", unit="files"):
        if fault := _fault(path, written, record):
            faults[path] = fault
    known = whole | set(outputs) | set(faults)
    return len(known), [faults[path] for path in sorted(faults)], [path for path in files if path not in known]
