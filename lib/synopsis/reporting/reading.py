"""Reading of results for the scores: what is missing or damaged is reported with its file."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from synopsis.artifacts import read_json
from synopsis.errors import ArtifactError

AGAIN = "Delete it and run again."


class Result(dict[str, Any]):
    """An object in the JSON document at `path`; ArtifactError for a key that it does not have."""

    def __init__(self, path: Path, values: dict[str, Any]):
        super().__init__(values)
        self.path = path

    def __missing__(self, key: str) -> Any:
        raise ArtifactError(f"{self.path}: the key {key!r} is missing; found {', '.join(self)}. {AGAIN}")

    def part(self, key: str) -> Result:
        return Result(self.path, self[key])

    def parts(self, key: str) -> list[Result]:
        return [Result(self.path, value) for value in self[key]]


def read_result(path: Path, kind: str) -> Result:
    return Result(path, read_json(path, kind))


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
        raise ArtifactError(f"{path}: after line {number}: truncated or damaged ({error}). {AGAIN}") from None
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
        raise ArtifactError(f"{path}: line {number} is no JSON object with the {names} {listed}. {AGAIN}")
    return record
