"""Rows of local files: what comes back from each kind, and what is reported when one is damaged."""

from __future__ import annotations

import gzip
import json
import lzma
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from synopsis.data.row_files import read_rows
from synopsis.errors import DataError

ROWS = [{"text": "one", "label": 0}, {"text": "zwei – 2", "label": 1}, {"text": "", "label": 2}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def zstandard(content: bytes) -> bytes:
    return pyarrow.compress(content, codec="zstd", asbytes=True)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", LINES),
        ("rows.jsonl.gz", gzip.compress(LINES, mtime=0)),  # a name of the test that stays the same
        ("rows.jsonl.xz", lzma.compress(LINES)),
        ("rows.jsonl.zst", zstandard(LINES)),
        ("rows.json", json.dumps(ROWS, indent=1).encode()),
        ("rows.json", LINES),
        ("bom.jsonl", b"\xef\xbb\xbf" + LINES),
        ("blank.jsonl", LINES.replace(b"\n", b"\r\n\r\n")),
    ],
)
def test_every_form_gives_the_same_rows(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert list(read_rows(tmp_path / name)) == ROWS


def test_text_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "book.txt.xz").write_bytes(lzma.compress("a\nb\x00 🦊\n".encode()))
    assert list(read_rows(tmp_path / "book.txt.xz")) == [{"text": "a\nb\x00 🦊\n"}]


def test_truncated_gzip_names_the_line(tmp_path: Path) -> None:
    text = "".join(json.dumps({"text": f"{index * 7919 % 1000003:x}"}) + "\n" for index in range(20_000)).encode()
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(text)[:20_000])
    with pytest.raises(DataError, match=r"rows\.jsonl\.gz: after line \d{3,}: .*truncated or damaged"):
        list(read_rows(tmp_path / "rows.jsonl.gz"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl.xz", lzma.compress(LINES)[:-20], r"rows\.jsonl\.xz: after line \d: .*truncated or damaged"),
        ("rows.jsonl.zst", zstandard(LINES)[:-9], r"rows\.jsonl\.zst: after line \d: .*truncated or damaged"),
        ("rows.jsonl.gz", LINES, r"rows\.jsonl\.gz: after line 0: .*truncated or damaged"),
        ("rows.jsonl", LINES + b'["a"]\n', r"rows\.jsonl:4: found list; expected a JSON object"),
        ("rows.jsonl", LINES + b'{"text": "\xff"}\n', r"rows\.jsonl:4: not UTF-8 text \(byte 0xff\)"),
        ("book.txt", b"a\nb\nc\xe9\n", r"book\.txt:3: not UTF-8"),
        ("rows.json", b'[\n{"a": 1},\n{"a": 2\n]', r"rows\.json:4: not valid JSON"),
        ("rows.json", b'[{"a": 1}, 7]', r"rows\.json: element 1 is int"),
        ("rows.jsonl", b"1" * 6000 + b"\n", r"rows\.jsonl:1: not valid JSON"),
        (
            "rows.csv",
            b"a,b",
            r"rows\.csv: unknown kind of file; expected \.txt, \.json or \.jsonl .*\.parquet or \.arrow",
        ),
        ("rows.parquet.gz", b"", r"rows\.parquet\.gz: unknown kind of file"),
        ("rows.parquet", LINES, r"rows\.parquet: cannot be read as parquet: truncated, damaged or of another kind"),
        ("rows.arrow", b"", r"rows\.arrow: cannot be read as arrow: truncated, damaged or of another kind"),
    ],
)
def test_faults_name_file_and_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_rows(tmp_path / name))


def test_a_missing_file_and_a_folder_are_reported(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.jsonl: no such file"):
        list(read_rows(tmp_path / "gone.jsonl"))
    for kind in ("parquet", "arrow", "jsonl.zst"):
        with pytest.raises(DataError, match=rf"gone\.{kind}: no such file"):
            list(read_rows(tmp_path / f"gone.{kind}"))
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(DataError, match=r"folder\.jsonl: cannot be read: Is a directory"):
        list(read_rows(tmp_path / "folder.jsonl"))


# ------------------------------------------------------------------------------------------------ Parquet and Arrow


def write_table(path: Path, table: pyarrow.Table) -> None:
    """As Parquet with small row groups, or as the Arrow stream that `datasets` writes, or as an Arrow file."""
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(table, path, row_group_size=30)
        return
    new = pyarrow.ipc.new_file if path.stem == "file" else pyarrow.ipc.new_stream
    with pyarrow.OSFile(str(path), "wb") as stream, new(stream, table.schema) as writer:
        writer.write_table(table, max_chunksize=30)


@pytest.mark.parametrize("name", ["rows.parquet", "stream.arrow", "file.arrow"])
def test_tables_are_streamed(tmp_path: Path, name: str) -> None:
    ids = [list(range(number % 5)) for number in range(100)]
    texts = [f"text {number}" if number % 7 else None for number in range(100)]
    write_table(tmp_path / name, pyarrow.table({"input_ids": ids, "text": texts, "other": [1.5] * 100}))
    rows = list(read_rows(tmp_path / name))
    assert [row["input_ids"].tolist() for row in rows] == ids
    assert [row["text"] for row in rows] == texts
    assert list(rows[0]) == ["input_ids", "text", "other"]
    assert isinstance(rows[4]["input_ids"], np.ndarray)
    assert list(read_rows(tmp_path / name, ["text", "gone"])) == [{"text": text} for text in texts]
    assert list(next(read_rows(tmp_path / name, ["gone"]))) == ["input_ids", "text", "other"]


@pytest.mark.parametrize("name", ["rows.parquet", "stream.arrow", "file.arrow"])
def test_truncated_tables_are_reported(tmp_path: Path, name: str) -> None:
    write_table(tmp_path / name, pyarrow.table({"input_ids": [list(range(50))] * 100}))
    whole = (tmp_path / name).read_bytes()
    for length in (4, len(whole) // 2, len(whole) - (1000 if name == "stream.arrow" else 5)):
        (tmp_path / name).write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"truncated, damaged or of another kind .*; copy the file again"):
            list(read_rows(tmp_path / name))


def test_text_that_is_not_utf8_in_a_table_is_reported(tmp_path: Path) -> None:
    array = pyarrow.StringArray.from_buffers(
        1, pyarrow.py_buffer(bytes([0, 0, 0, 0, 1, 0, 0, 0])), pyarrow.py_buffer(b"\xff")
    )
    write_table(tmp_path / "rows.arrow", pyarrow.table({"text": array}))
    with pytest.raises(DataError, match=r"rows\.arrow: .*Invalid UTF8"):
        list(read_rows(tmp_path / "rows.arrow"))
