"""Reading of local copies and of the hub: what comes back, and what is reported when something is wrong."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from synopsis.config.experiment import Experiment
from synopsis.data import sources
from synopsis.data.sources import find_source, mirror
from synopsis.errors import DataError

ROWS = [{"text": "one", "label": 0}, {"text": "zwei – 2", "label": 1}, {"text": "", "label": 2}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def experiment(**settings: object) -> Experiment:
    return Experiment(name="test", models={"base": {"path": "nowhere"}}, **settings)  # type: ignore[arg-type]


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


def test_a_pattern_names_the_files_of_a_source_in_order(tmp_path: Path) -> None:
    for number in (2, 0, 1):
        rows = pyarrow.table({"text": [f"{number}{letter}" for letter in "abc"], "other": [1, 2, 3]})
        pyarrow.parquet.write_table(rows, tmp_path / f"train-{number}.parquet")
    source = find_source(experiment(data_mirror=str(tmp_path)), ["train-*.parquet"], "train")
    everything = [f"{number}{letter}" for number in range(3) for letter in "abc"]
    assert str(source) == f"{tmp_path}/train-0.parquet to train-2.parquet"
    assert [row["text"] for row in source.rows(["text"])] == everything
    with pytest.raises(DataError, match=r"other-\*\.parquet: no such file"):
        find_source(experiment(data_mirror=str(tmp_path)), ["other-*.parquet"], "train")
    with pytest.raises(DataError, match=r"a folder; name its files, for instance .*/\*\.parquet"):
        find_source(experiment(data_mirror=str(tmp_path.parent)), [tmp_path.name], "train")


def test_a_mirror_without_the_file_is_a_fault_even_beside_a_hub_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        find_source(experiment(data_mirror=str(tmp_path)), ["icl/x/train.jsonl"], "train", hub="some/thing")
    assert str(tmp_path / "icl/x/train.jsonl") in str(caught.value)
    assert "some/thing" in str(caught.value)


def test_an_unreachable_hub_is_reported_within_seconds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # A hub whose port is closed: what a machine without a network sees, on any machine.
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.chdir(tmp_path)
    started = time.monotonic()
    with pytest.raises(DataError) as caught:
        find_source(experiment(), ["icl/cb/train.jsonl"], "train", hub="aps/super_glue", hub_config="cb")
    message = str(caught.value)
    assert "hub data set 'aps/super_glue', configuration 'cb', split 'train'" in message
    assert "the hub cannot be reached" in message
    assert "icl/cb/train.jsonl" in message and "SYNOPSIS_DATA or data_mirror" in message
    assert time.monotonic() - started < 15


def streamed(rows: list[dict[str, object]], calls: list[object]) -> object:
    """In place of `load_dataset`: the rows as the library streams them."""

    def load_dataset(*arguments: object, **keywords: object) -> datasets.IterableDataset:
        calls.append((arguments, keywords))
        return datasets.Dataset.from_list(rows).to_iterable_dataset()

    return load_dataset


def test_hub_rows_stream_at_the_commit_that_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    monkeypatch.setattr(datasets, "load_dataset", streamed(ROWS, calls))
    monkeypatch.setattr(sources, "hub_revision", lambda *_: "abc123")
    source = find_source(experiment(), [], "test", hub="some/thing")
    assert list(source.rows()) == ROWS
    assert calls == [(("some/thing", None), {"split": "test", "revision": "abc123", "streaming": True})]
    assert source.record()["revision"] == "abc123"
