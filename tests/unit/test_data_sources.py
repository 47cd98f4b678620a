"""Reading of local copies and of the hub: what comes back, and what is told when something is wrong."""

from __future__ import annotations

import gzip
import json
import lzma
import time
from pathlib import Path

import pytest
from synopsis.config import Experiment
from synopsis.data import sources
from synopsis.data.sources import find_source, hub_rows, mirror, read_rows
from synopsis.errors import DataError

ROWS = [{"text": "one", "label": 0}, {"text": "zwei – 2", "label": 1}, {"text": "", "label": 2}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def experiment(**settings: object) -> Experiment:
    return Experiment(name="test", models={"base": {"path": "nowhere"}}, **settings)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _no_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(sources.MIRROR_VARIABLE, raising=False)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", LINES),
        ("rows.jsonl.gz", gzip.compress(LINES)),
        ("rows.jsonl.xz", lzma.compress(LINES)),
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


def test_half_a_surrogate_pair_becomes_a_replacement_character(tmp_path: Path) -> None:
    (tmp_path / "odd.jsonl").write_text('{"text": "a\\ud800b \\ud83e\\udd8a"}\n')
    assert list(read_rows(tmp_path / "odd.jsonl")) == [{"text": "a\ufffdb 🦊"}]


def test_rows_before_a_fault_are_streamed(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(LINES + b'{"text": "cut of')
    rows = read_rows(tmp_path / "rows.jsonl")
    assert [next(rows) for _ in ROWS] == ROWS
    with pytest.raises(DataError, match=r"rows\.jsonl:4: not valid JSON"):
        next(rows)


def test_truncated_gzip_names_the_line(tmp_path: Path) -> None:
    text = "".join(json.dumps({"text": f"{index * 7919 % 1000003:x}"}) + "\n" for index in range(20_000)).encode()
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(text)[:20_000])
    with pytest.raises(DataError, match=r"rows\.jsonl\.gz: after line \d{3,}: .*truncated or damaged"):
        list(read_rows(tmp_path / "rows.jsonl.gz"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl.xz", lzma.compress(LINES)[:-20], r"rows\.jsonl\.xz: after line \d: .*truncated or damaged"),
        ("rows.jsonl.gz", LINES, r"rows\.jsonl\.gz: after line 0: .*truncated or damaged"),
        ("rows.jsonl", LINES + b'["a"]\n', r"rows\.jsonl:4: found list; expected a JSON object"),
        ("rows.jsonl", LINES + b'{"text": "\xff"}\n', r"rows\.jsonl:4: not UTF-8 text \(byte 0xff\)"),
        ("book.txt", b"a\nb\nc\xe9\n", r"book\.txt:3: not UTF-8"),
        ("rows.json", b'[\n{"a": 1},\n{"a": 2\n]', r"rows\.json:4: not valid JSON"),
        ("rows.json", b'[{"a": 1}, 7]', r"rows\.json: element 1 is int"),
        ("rows.jsonl", b"1" * 6000 + b"\n", r"rows\.jsonl:1: not valid JSON"),
        ("rows.parquet", b"PAR1", r"rows\.parquet: unknown kind of file; expected \.jsonl"),
    ],
)
def test_faults_name_file_and_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_rows(tmp_path / name))


def test_a_missing_file_and_a_folder_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.jsonl: no such file"):
        list(read_rows(tmp_path / "gone.jsonl"))
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(DataError, match=r"folder\.jsonl: cannot be read: Is a directory"):
        list(read_rows(tmp_path / "folder.jsonl"))


def test_the_environment_comes_before_the_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    named = experiment(data_mirror=str(tmp_path / "a"))
    assert mirror(experiment()) is None
    assert mirror(named) == tmp_path / "a"
    monkeypatch.setenv(sources.MIRROR_VARIABLE, str(tmp_path / "b"))
    assert mirror(named) == tmp_path / "b"
    monkeypatch.setenv(sources.MIRROR_VARIABLE, str(tmp_path / "c"))
    with pytest.raises(DataError, match=r"c: no such folder; the environment variable SYNOPSIS_DATA"):
        mirror(named)
    monkeypatch.delenv(sources.MIRROR_VARIABLE)
    with pytest.raises(DataError, match="data_mirror of the experiment"):
        mirror(experiment(data_mirror=str(tmp_path / "c")))


def test_a_file_of_the_mirror_is_read(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(LINES))
    source = find_source(
        experiment(data_mirror=str(tmp_path)), ["rows.jsonl", "rows.jsonl.gz"], "train", hub="some/thing"
    )
    assert source.record() == {"file": str(tmp_path / "rows.jsonl.gz")}
    assert list(source.rows()) == ROWS


def test_a_mirror_without_the_file_is_a_fault_even_beside_a_hub_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        find_source(experiment(data_mirror=str(tmp_path)), ["icl/x/train.jsonl"], "train", hub="some/thing")
    assert str(tmp_path / "icl/x/train.jsonl") in str(caught.value)
    assert "some/thing" in str(caught.value)


def unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub whose port is closed: what a machine without a network sees, on any machine."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", "http://127.0.0.1:9")


def test_an_unreachable_hub_is_told_within_seconds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    unreachable(monkeypatch)
    monkeypatch.chdir(tmp_path)
    started = time.monotonic()
    with pytest.raises(DataError) as caught:
        find_source(experiment(), ["icl/cb/train.jsonl"], "train", hub="aps/super_glue", hub_config="cb")
    message = str(caught.value)
    assert "hub data set 'aps/super_glue', configuration 'cb', split 'train'" in message
    assert "the hub cannot be reached" in message
    assert "icl/cb/train.jsonl" in message and "SYNOPSIS_DATA or data_mirror" in message
    assert time.monotonic() - started < 15


def test_hub_rows_stream_at_the_commit_that_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    calls = []

    def load_dataset(*arguments: object, **keywords: object) -> list[dict[str, object]]:
        calls.append((arguments, keywords))
        return ROWS

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(sources, "hub_revision", lambda *_: "abc123")
    source = find_source(experiment(), [], "test", hub="some/thing")
    assert list(source.rows()) == ROWS
    assert calls == [(("some/thing", None), {"split": "test", "revision": "abc123", "streaming": True})]
    assert source.record()["revision"] == "abc123"


def test_a_connection_that_breaks_off_is_a_data_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def broken(*_: object, **__: object):
        yield ROWS[0]
        raise ConnectionError("reset by peer")

    monkeypatch.setattr(datasets, "load_dataset", broken)
    rows = hub_rows("some/thing", None, "train", "Name a copy.", revision="abc")
    assert next(rows) == ROWS[0]
    with pytest.raises(
        DataError, match=r"cannot fetch hub data set 'some/thing', split 'train': .*reset by peer.*Name a copy"
    ):
        next(rows)
