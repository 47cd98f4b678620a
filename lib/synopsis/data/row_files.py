"""Rows of local files, streamed: text, JSON, Parquet and Arrow, compressed or not.

    for row in read_rows("corpus/train.jsonl.zst"):
        row["text"]
    read_rows("pile/train-00000.parquet", columns=["input_ids"], start=5000)

What a file is follows from its name. Every fault is a DataError that names the file and the line or row.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Iterator, Sequence
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, BinaryIO, cast

from synopsis.errors import DataError

KINDS = ".txt, .json or .jsonl (also with .gz, .xz or .zst), .parquet or .arrow"
COMPRESSIONS = (".gz", ".xz", ".zst")
DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError)
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
ROWS_AT_ONCE = 64
"""Rows of a Parquet file that are decoded together."""
READ_AT_ONCE = 2**20
"""Bytes of a Parquet file that are read together."""

Row = dict[str, Any]


def read_rows(path: str | Path, columns: Sequence[str] | None = None, start: int = 0) -> Iterator[Row]:
    """Stream the rows of a file, from row `start` on: JSON lines, a JSON list of objects (read whole), the rows of a
    Parquet or Arrow file, or text, which is one row with the column `text`.

    `columns`: of a Parquet or Arrow file only these are decoded, as far as they are there. Its lists of whole numbers
    come as numpy arrays. Halves of surrogate pairs, which JSON can spell and UTF-8 cannot, become U+FFFD.
    """
    path = Path(path)
    kind = _kind(path)
    if kind == ".txt":
        rows: Iterator[Row] = iter([{"text": _decoded(b"".join(line for _, line in _lines(path)), path, 1)}])
    elif kind == ".json":
        rows = _json_rows(path)
    else:
        # What lies before `start` is not decoded, so that a long file is taken up again at once.
        yield from _table_rows(path, kind, columns, start)
        return
    yield from islice(rows, start, None)


def is_text(path: Path) -> bool:
    """Whether a file is one document and has no columns."""
    return _kind(path) == ".txt"


def count_rows(path: Path) -> int | None:
    """Rows of a Parquet or Arrow file; None for the other kinds, which would have to be read."""
    kind = _kind(path)
    with _readable_table(path):
        if kind == ".parquet":
            return _parquet(path).metadata.num_rows
        return sum(batch.num_rows for batch in _arrow_reader(path)) if kind == ".arrow" else None


def _kind(path: Path) -> str:
    name = path.name
    compressed = next((ending for ending in COMPRESSIONS if name.endswith(ending)), "")
    ending = Path(name.removesuffix(compressed)).suffix
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
        with _opened(path) as stream:
            for line in stream:
                number += 1
                yield number, line
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (*DAMAGED, OSError) as error:
        # The zstd reader tells of damage by an OSError that has no number.
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


# ------------------------------------------------------------------------------------------------- Parquet and Arrow


@contextlib.contextmanager
def _readable_table(path: Path) -> Iterator[None]:
    """What pyarrow raises for a file that is missing, truncated or of another kind becomes a DataError."""
    import pyarrow

    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        kind = path.suffix.removeprefix(".")
        raise DataError(
            f"{path}: cannot be read as {kind}: truncated, damaged or of another kind ({reason}); copy the file again"
        ) from None


def _table_rows(path: Path, kind: str, columns: Sequence[str] | None, start: int) -> Iterator[Row]:
    batches = (_parquet_batches if kind == ".parquet" else _arrow_batches)(path, columns, start)
    while True:
        with _readable_table(path):
            batch = next(batches, None)
            rows = [] if batch is None else rows_of(batch)
        if batch is None:
            return
        yield from rows


def rows_of(table: Any) -> list[Row]:
    """The rows of an Arrow table or record batch; lists of whole numbers come as numpy arrays, which is much faster."""
    columns = [_values(column) for column in table.columns]
    return [dict(zip(table.schema.names, row, strict=True)) for row in zip(*columns, strict=True)]


def _values(column: Any) -> list[Any]:
    from pyarrow import types

    lists = types.is_list(column.type) or types.is_large_list(column.type) or types.is_fixed_size_list(column.type)
    if not lists or not types.is_integer(column.type.value_type):
        return column.to_pylist()
    return [value.values.to_numpy(zero_copy_only=False) if value.is_valid else None for value in column]


def _parquet(path: Path) -> Any:
    from pyarrow.parquet import ParquetFile

    # With a buffer a row group is read as its rows are needed; without one it is held whole.
    return ParquetFile(path, buffer_size=READ_AT_ONCE)


def _parquet_batches(path: Path, columns: Sequence[str] | None, start: int) -> Iterator[Any]:
    file = _parquet(path)
    sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    ends = list(accumulate(sizes))
    groups = [group for group, end in enumerate(ends) if end > start]
    if not groups:
        return
    start -= ends[groups[0]] - sizes[groups[0]]
    wanted = _wanted(file.schema_arrow.names, columns)
    for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=groups, columns=wanted, use_threads=False):
        yield batch.slice(min(start, batch.num_rows))
        start = max(start - batch.num_rows, 0)


def _arrow_batches(path: Path, columns: Sequence[str] | None, start: int) -> Iterator[Any]:
    """Record batches of an Arrow file or stream (`datasets` writes streams), memory-mapped."""
    for batch in _arrow_reader(path):
        yield batch.slice(min(start, batch.num_rows)).select(_wanted(batch.schema.names, columns))
        start = max(start - batch.num_rows, 0)


def _arrow_reader(path: Path) -> Iterator[Any]:
    import pyarrow

    with pyarrow.memory_map(str(path)) as source:
        try:
            file = pyarrow.ipc.open_file(source)
        except pyarrow.ArrowInvalid:
            source.seek(0)
            yield from pyarrow.ipc.open_stream(source)
        else:
            yield from (file.get_batch(index) for index in range(file.num_record_batches))


def _wanted(found: list[str], columns: Sequence[str] | None) -> list[str]:
    """The columns to decode; all where none of those that were asked for is there, so that they can be told."""
    return [name for name in found if columns is None or name in columns] or found
