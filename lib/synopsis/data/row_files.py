"""Rows of local files, streamed: text, JSON, Parquet and Arrow, the first two also compressed.

    for row in read_rows("corpus/train.jsonl.zst"):
        row["text"]

What a file is follows from its name. Every fault is a DataError that names the file and the line or row. JSON is read
line by line here: `datasets` infers types, so that a date would no longer be text and a bad line would have no number.
"""

from __future__ import annotations

import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

from synopsis.errors import DataError

KINDS = ".txt, .json or .jsonl (also with .gz, .xz or .zst), .parquet or .arrow"
COMPRESSIONS = (".gz", ".xz", ".zst")
DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError)
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
ROWS_AT_ONCE = 64
"""Rows of a table that become Python objects together."""

Row = dict[str, Any]


def read_rows(path: str | Path, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """Stream the rows of a file: JSON lines, a JSON list of objects (read whole), the rows of a Parquet or Arrow file,
    or text, which is one row with the column `text`.

    `columns`: see `streamed_rows`. Halves of surrogate pairs, which JSON can spell and UTF-8 cannot, become U+FFFD.
    """
    path = Path(path)
    kind = _kind(path)
    if kind == ".txt":
        yield {"text": _decoded(b"".join(line for _, line in _lines(path)), path, 1)}
    elif kind == ".json":
        yield from _json_rows(path)
    else:
        yield from _table_rows(path, columns)


def is_text(path: Path) -> bool:
    """Whether a file is one document and has no columns."""
    return _kind(path) == ".txt"


def _kind(path: Path) -> str:
    compressed = path.suffix if path.suffix in COMPRESSIONS else ""
    ending = Path(path.name.removesuffix(compressed)).suffix
    if ending in (".parquet", ".arrow") and not compressed:
        return ending
    if ending not in (".txt", ".json", ".jsonl"):
        raise DataError(f"{path}: unknown kind of file; expected {KINDS}")
    return ".txt" if ending == ".txt" else ".json"


# ---------------------------------------------------------------------------------------------------- text and JSON


def _json_rows(path: Path) -> Iterator[Row]:
    lines = _lines(path)
    for number, line in lines:
        if not line.strip():
            continue
        if number == 1 and line.removeprefix(BYTE_ORDER_MARK).lstrip().startswith(b"["):
            listed = _parsed(line + b"".join(rest for _, rest in lines), path, 1)
            rows = [(f": element {index} is {type(row).__name__}", row) for index, row in enumerate(listed)]
        else:
            row = _parsed(line, path, number)
            rows = [(f":{number}: found {type(row).__name__}", row)]
        for found, row in rows:
            if not isinstance(row, dict):
                raise DataError(f"{path}{found}; expected a JSON object on each line, or a list of JSON objects")
            yield {k: LONE_SURROGATE.sub("\ufffd", v) if isinstance(v, str) else v for k, v in row.items()}


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines with their 1-based number; every failure to read becomes a DataError."""
    number = 0
    try:
        with _opened(path) as stream:
            for number, line in enumerate(stream, start=1):
                yield number, line
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (*DAMAGED, OSError) as error:
        # The zstd reader reports damage by an OSError that has no number.
        if isinstance(error, OSError) and error.errno is not None:
            raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
        raise DataError(
            f"{path}: after line {number}: the compressed data are truncated or damaged ({error}); copy the file again"
        ) from None


def _opened(path: Path) -> BinaryIO:
    if path.suffix == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    if path.suffix == ".xz":
        return cast(BinaryIO, lzma.open(path, "rb"))
    if path.suffix == ".zst":
        import pyarrow

        return cast(BinaryIO, io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd")))
    return path.open("rb")


def _decoded(content: bytes, path: Path, first_line: int) -> str:
    try:
        return content.decode("utf-8-sig" if first_line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        line = first_line + content[: error.start].count(b"\n")
        raise DataError(f"{path}:{line}: not UTF-8 text (byte 0x{content[error.start]:02x})") from None


def _parsed(content: bytes, path: Path, first_line: int) -> Any:
    try:
        return json.loads(_decoded(content, path, first_line))
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise DataError(f"{path}:{line}: not valid JSON ({error.msg}, column {error.colno})") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}:{first_line}: not valid JSON ({error})") from None


# ------------------------------------------------------------------------------------------------------------- tables


def _table_rows(path: Path, columns: Sequence[str] | None) -> Iterator[Row]:
    kind = path.suffix.removeprefix(".")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        yield from streamed_rows(kind, data_files=str(path.resolve()), split="train", columns=columns)
    except Exception as error:  # what the libraries raise for damaged files has no common class
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        raise DataError(
            f"{path}: cannot be read as {kind}: truncated, damaged or of another kind ({reason}); copy the file again"
        ) from None


def streamed_rows(*arguments: Any, columns: Sequence[str] | None = None, **options: Any) -> Iterator[Row]:
    """The rows of what `datasets.load_dataset` streams for the other arguments.

    `columns`: only these, as far as they are there; all where none of them is, so that a message can name what is.
    Lists of whole numbers come as numpy arrays, which is much faster.
    """
    from datasets import load_dataset

    stream = load_dataset(*arguments, streaming=True, **options)
    chosen = [name for name in stream.column_names or () if columns is None or name in columns]
    stream = stream.select_columns(chosen) if chosen else stream
    for table in stream.with_format("arrow").iter(ROWS_AT_ONCE):
        values = [_values(column) for column in table.columns]
        yield from (dict(zip(table.schema.names, row, strict=True)) for row in zip(*values, strict=True))


def _values(column: Any) -> list[Any]:
    from pyarrow import types

    lists = types.is_list(column.type) or types.is_large_list(column.type) or types.is_fixed_size_list(column.type)
    if not lists or not types.is_integer(column.type.value_type):
        return column.to_pylist()
    return [value.values.to_numpy(zero_copy_only=False) if value.is_valid else None for value in column]
