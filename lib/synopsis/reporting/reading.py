"""Reading of results by the score stage: what is missing or damaged is told with its file."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from synopsis.errors import ArtifactError

MEND = "Delete it and run again."


def required(path: Path, document: Mapping[str, Any], key: str) -> Any:
    """`document[key]` of a result that lies at `path`; ArtifactError where there is no such key."""
    if key not in document:
        raise ArtifactError(f"{path}: the key {key!r} is missing; found {', '.join(document)}. {MEND}")
    return document[key]


def json_lines(path: Path, keys: tuple[str, ...], stage: str) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines, unpacked where its name ends in .gz, one at a time.

    ArtifactError where the file that `stage` writes is missing or damaged, or a line is no object with all `keys`.
    """
    number = 0
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                yield _object(path, number, line, keys)
    except FileNotFoundError:
        raise ArtifactError(f"{path}: no such file; the stage `{stage}` writes it") from None
    except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path}: after line {number}: truncated or damaged ({error}). {MEND}") from None
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror}); the stage `{stage}` writes it") from None


def _object(path: Path, number: int, line: str, keys: tuple[str, ...]) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        record = None
    if not isinstance(record, dict) or any(key not in record for key in keys):
        names = "key" if len(keys) == 1 else "keys"
        listed = ", ".join(map(repr, keys))
        raise ArtifactError(f"{path}: line {number} is no JSON object with the {names} {listed}. {MEND}")
    return record
