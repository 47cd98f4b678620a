"""Where rows come from: local copies of data sets, or the Hugging Face hub.

A *mirror* is a folder of local copies. When one is named, by the environment variable SYNOPSIS_DATA or by `data_mirror`
of the experiment, its files are used and nothing is fetched, so that a run is the same with and without a network:

    source = find_source(experiment, ["icl/cb/train.jsonl"], split="train", hub="aps/super_glue", hub_config="cb")
    for row in source.rows():
        ...

Every fault is a DataError that names the file and the line, or what was to be fetched and how to name a local copy.
"""

from __future__ import annotations

import gzip
import json
import lzma
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from synopsis.config import Experiment
from synopsis.errors import DataError

MIRROR_VARIABLE = "SYNOPSIS_DATA"
HUB_SECONDS = 10.0
OPENERS = {".gz": gzip.open, ".xz": lzma.open}
DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError)
LONE_SURROGATE = re.compile("[\ud800-\udfff]")

Row = dict[str, Any]


# ---------------------------------------------------------------------------------------------------- local files


def mirror(experiment: Experiment) -> Path | None:
    """The folder of local copies, or None when none is named; DataError when it is named and does not exist."""
    from_environment = os.environ.get(MIRROR_VARIABLE)
    named = from_environment or experiment.data_mirror
    if not named:
        return None
    folder = Path(named).expanduser()
    if not folder.is_dir():
        origin = f"the environment variable {MIRROR_VARIABLE}" if from_environment else "data_mirror of the experiment"
        raise DataError(f"{folder}: no such folder; {origin} should name the folder with local copies of the data sets")
    return folder


def read_rows(path: str | Path) -> Iterator[Row]:
    """Stream the rows of a file: JSON lines, a JSON list of objects, or text (one row with the column `text`).

    Names end in .jsonl, .json or .txt, and may go on with .gz or .xz. Halves of surrogate pairs, which JSON can spell
    and UTF-8 cannot, become U+FFFD. DataError names the file and the line of what is missing, damaged or malformed.
    """
    path = Path(path)
    name = path.name.removesuffix(".gz").removesuffix(".xz")
    if name.endswith(".txt"):
        content = b"".join(line for _, line in _lines(path))
        yield {"text": _decoded(content, path, 1)}
    elif name.endswith((".json", ".jsonl")):
        yield from _json_rows(path)
    else:
        raise DataError(f"{path}: unknown kind of file; expected .jsonl, .json or .txt, plain or with .gz or .xz")


def _json_rows(path: Path) -> Iterator[Row]:
    lines = _lines(path)
    for number, line in lines:
        if not line.strip():
            continue
        if number == 1 and line.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
            yield from _listed(line + b"".join(rest for _, rest in lines), path)
            return
        row = _parsed(_decoded(line, path, number), path, number)
        if not isinstance(row, dict):
            raise DataError(f"{path}:{number}: found {type(row).__name__}; expected a JSON object on each line")
        yield _without_surrogates(row)


def _listed(content: bytes, path: Path) -> Iterator[Row]:
    for index, row in enumerate(_parsed(_decoded(content, path, 1), path, 1)):
        if not isinstance(row, dict):
            raise DataError(f"{path}: element {index} is {type(row).__name__}; expected a list of JSON objects")
        yield _without_surrogates(row)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines with their 1-based number; every failure to read becomes a DataError."""
    number = 0
    try:
        with OPENERS.get(path.suffix, open)(path, "rb") as stream:  # type: ignore[operator]
            for line in stream:
                number += 1
                yield number, line
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except DAMAGED as error:
        raise DataError(
            f"{path}: after line {number}: the compressed data are truncated or damaged ({error}); copy the file again"
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def _decoded(content: bytes, path: Path, first_line: int) -> str:
    try:
        return content.decode("utf-8-sig" if first_line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        line = first_line + content[: error.start].count(b"\n")
        raise DataError(f"{path}:{line}: not UTF-8 text (byte 0x{content[error.start]:02x})") from None


def _parsed(text: str, path: Path, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise DataError(f"{path}:{line}: not valid JSON ({error.msg}, column {error.colno})") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}:{first_line}: not valid JSON ({error})") from None


def _without_surrogates(row: Row) -> Row:
    return {key: LONE_SURROGATE.sub("\ufffd", value) if isinstance(value, str) else value for key, value in row.items()}


# ---------------------------------------------------------------------------------------------------------- the hub


def hub_revision(kind: Literal["dataset", "model"], name: str, wanted: str, remedy: str) -> str:
    """The commit that a hub repository stands at; DataError when it cannot be reached within seconds.

    Asked once before anything is fetched: without a network the libraries that fetch would try again for minutes.
    `wanted` and `remedy` complete the message: what was to be fetched, and how to name a local copy instead.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        return HfApi().repo_info(name, repo_type=kind, timeout=HUB_SECONDS).sha or "main"
    except GatedRepoError:
        reason = "its owner gives access on request: accept the conditions on its page and log in with `hf auth login`"
    except RepositoryNotFoundError:
        reason = "the hub has no repository of this name that you may read"
    except Exception as error:  # every other failure, of whatever library, means that the hub did not answer
        reason = f"the hub cannot be reached ({_short(error)})"
    raise DataError(f"cannot fetch {wanted}: {reason}. {remedy}")


def hub_rows(dataset: str, config: str | None, split: str, remedy: str, revision: str | None = None) -> Iterator[Row]:
    """Stream the rows of a hub data set; DataError says what was to be fetched and, by `remedy`, what to do instead."""
    wanted = describe_hub(dataset, config, split)
    revision = revision or hub_revision("dataset", dataset, wanted, remedy)
    from datasets import load_dataset

    try:
        yield from load_dataset(dataset, config, split=split, revision=revision, streaming=True)
    except Exception as error:  # unknown configurations and splits, unreadable formats, a network that breaks off
        raise DataError(f"cannot fetch {wanted}: {_short(error)}. {remedy}") from error


def describe_hub(dataset: str, config: str | None, split: str) -> str:
    return f"hub data set '{dataset}'{f', configuration {config!r}' if config else ''}, split '{split}'"


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


# ------------------------------------------------------------------------------------------------------- either one


@dataclass(frozen=True)
class Source:
    """The rows of one split: a local `file`, or, when it is None, a split of the hub data set `hub`."""

    split: str
    file: Path | None = None
    hub: str | None = None
    hub_config: str | None = None
    revision: str | None = None
    remedy: str = ""

    def __str__(self) -> str:
        return str(self.file) if self.file else describe_hub(self.hub or "", self.hub_config, self.split)

    def rows(self) -> Iterator[Row]:
        if self.file is not None:
            return read_rows(self.file)
        return hub_rows(self.hub or "", self.hub_config, self.split, self.remedy, self.revision)

    def record(self) -> dict[str, str | None]:
        """What provenance tells of a source; the hashes of files stand among its inputs."""
        if self.file is not None:
            return {"file": str(self.file)}
        return {"hub": self.hub, "hub_config": self.hub_config, "split": self.split, "revision": self.revision}


def find_source(
    experiment: Experiment, files: Sequence[str], split: str, hub: str | None = None, hub_config: str | None = None
) -> Source:
    """The first of `files` that exists, else the hub data set.

    Relative names start at the mirror, else at the working directory. A mirror that lacks the file is a fault even when
    a hub data set is named: what a run reads must not depend on a file being forgotten. DataError otherwise too, when
    there is neither a file nor a hub data set, and when the hub cannot be reached.
    """
    folder = mirror(experiment)
    places = [(folder or Path()) / Path(file).expanduser() for file in files]
    for place in places:
        if place.is_file():
            return Source(split, file=place)
    choice = " or ".join(files)
    remedy = f"Put a copy at {choice} below a folder and name that folder with {MIRROR_VARIABLE} or data_mirror"
    local_only = folder is not None or any(place.is_absolute() for place in places)
    if hub is None or (places and local_only):
        instead = (
            f"; without {MIRROR_VARIABLE} and data_mirror, {describe_hub(hub, hub_config, split)} is read"
            if hub
            else ""
        )
        missing = " or ".join(map(str, places)) if places else f"split '{split}'"
        raise DataError(f"{missing}: no such file. {remedy}{instead}.")
    remedy = f"{remedy}." if files else "No local file is configured for it."
    revision = hub_revision("dataset", hub, describe_hub(hub, hub_config, split), remedy)
    return Source(split, None, hub, hub_config, revision, remedy)
