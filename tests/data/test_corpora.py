"""Corpora of real text: tokens, boundaries and counts of the artifact, odd documents, and damaged folders."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from damage import flips
from pydantic import ValidationError
from synopsis.artifacts import PROVENANCE, Layout, read_json
from synopsis.config.experiment import Experiment
from synopsis.data.corpora import load_corpus, prepare_text_corpus
from synopsis.data.sources import MIRROR_VARIABLE, FetchError
from synopsis.errors import ArtifactError, DataError
from text_corpora import END, SPLITS, domain, experiment, make_tokenizer, plain_experiment

MIRROR = Path(os.environ.get(MIRROR_VARIABLE) or Path(__file__).parents[2].parent / "shared" / "data")


def prepared(tmp_path: Path, **settings: Any) -> Path:
    domains = {
        "letters": domain(tmp_path, "letters", train=["abc", "de", "f"], validation=["gh"], test=["ij", "k"]),
        "words": domain(tmp_path, "words", train=["one", f"two{END}"]),
    }
    return prepare_text_corpus(experiment(tmp_path, domains, **settings), "texts", "base")


def test_documents_keep_text_boundaries_and_domain(tmp_path: Path) -> None:
    path = prepared(tmp_path)
    train = load_corpus(path, "train")
    assert train["domain"] == ["letters"] * 3 + ["words"] * 2
    assert train["id"][:2] == ["letters-train-0", "letters-train-1"]
    tokenizer = make_tokenizer(tmp_path / "tokenizer")
    assert [tokenizer.decode(ids) for ids in train["input_ids"]] == ["abc", "de", "f", "one", f"two{END}"]
    assert not any(tokenizer.eos_token_id in ids for ids in train["input_ids"])
    assert train["bytes"] == [3, 2, 1, 3, 3 + len(END)]
    assert train.features["input_ids"].feature.dtype == "int32"
    assert load_corpus(path, "test").num_rows == 2
    assert not [entry for entry in path.parent.iterdir() if entry != path], "temporary files were left behind"


def test_results_may_be_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_corpus(prepared(Path()), "train").num_rows == 5


def test_counts_stand_in_the_provenance(tmp_path: Path) -> None:
    path = prepared(tmp_path, max_documents={"train": 2}, max_characters=2)
    record = read_json(path / "provenance.json", "corpus")
    letters = record["splits"]["train"]["letters"]
    counts = {key: letters[key] for key in ("documents", "tokens", "bytes", "cut_characters", "empty_documents")}
    assert counts == {"documents": 2, "tokens": 4, "bytes": 4, "cut_characters": 1, "empty_documents": 0}
    assert record["splits"]["train"]["words"]["cut_characters"] == 2 + len(END)
    assert len(record["provenance"]["inputs"]) == 4 + 2
    assert all(record["provenance"]["inputs"].values())


def test_odd_documents_do_not_crash(tmp_path: Path) -> None:
    odd = ["", " \n\t", "a\x00b", "\ud800x", "🦊", "é" * 3]
    domains = {"odd": domain(tmp_path, "odd", train=odd, validation=["a"], test=["b"])}
    path = prepare_text_corpus(experiment(tmp_path, domains), "texts", "base")
    train = load_corpus(path, "train")
    tokenizer = make_tokenizer(tmp_path / "tokenizer")
    assert [tokenizer.decode(ids) for ids in train["input_ids"]] == ["a\x00b", "\ufffdx", "🦊", "ééé"]
    assert train["bytes"] == [3, 4, 4, 6]
    assert read_json(path / "provenance.json", "corpus")["splits"]["train"]["odd"]["empty_documents"] == 2


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.txt").write_text(f"{split}\ntext")
    files = {split: f"{split}.txt" for split in ("train", "validation", "test")}
    given = experiment(tmp_path, {"plain": {"files": files, "text_column": "content"}})
    assert load_corpus(prepare_text_corpus(given, "texts", "base"), "test")["bytes"] == [9]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"train": ["a"], "validation": ["a"]}, "split 'test' has no documents .no domain names a source"),
        (
            {"train": ["a"], "validation": [" "], "test": ["a"]},
            r"split 'validation' has no documents .*bad\.validation\.jsonl\.xz",
        ),
        (
            {"train": ["a", 7], "validation": ["a"], "test": ["a"]},
            r"bad\.train\.jsonl\.xz: row 1: found 7; expected text",
        ),
    ],
)
def test_faults_leave_nothing_behind(tmp_path: Path, texts: dict[str, list], message: str) -> None:
    given = experiment(tmp_path, {"bad": domain(tmp_path, "bad", **texts)})
    with pytest.raises(DataError, match=message):
        prepare_text_corpus(given, "texts", "base")
    assert not list(Layout(given).corpus("texts", "base").parent.iterdir())


def test_a_missing_column_and_a_missing_file_are_reported(tmp_path: Path) -> None:
    texts = {split: ["a"] for split in ("train", "validation", "test")}
    other = {**domain(tmp_path, "bad", **texts), "text_column": "body"}
    with pytest.raises(DataError, match=r"row 0: found only text; expected text in the column 'body'"):
        prepare_text_corpus(experiment(tmp_path, {"bad": other}), "texts", "base")
    with pytest.raises(DataError, match=r"gone\.jsonl: no such file.*SYNOPSIS_DATA or data_mirror"):
        prepare_text_corpus(experiment(tmp_path, {"bad": {"files": {"train": "gone.jsonl"}}}), "texts", "base")


def test_a_damaged_corpus_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"gone: holds no corpus .*'prepare' has not run"):
        load_corpus(tmp_path / "gone", "train")
    path = prepared(tmp_path)
    with pytest.raises(ArtifactError, match=r"no split 'human'; found train, validation, test"):
        load_corpus(path, "human")
    arrow = next((path / "train").glob("*.arrow"))
    for _ in flips(arrow, 200):
        with pytest.raises(ArtifactError, match=f"{arrow}: has changed since it was written"):
            load_corpus(path, "train")
    (path / "test" / "state.json").unlink()
    with pytest.raises(ArtifactError, match=r"test/state\.json: is missing"):
        load_corpus(path, "test")
    load_corpus(path, "train")


def test_a_damaged_corpus_of_an_earlier_version_is_reported(tmp_path: Path) -> None:
    path = prepared(tmp_path)
    (path / PROVENANCE).unlink()
    arrow = next((path / "train").glob("*.arrow"))
    whole = arrow.read_bytes()
    for length in (0, 100, len(whole) // 2, len(whole) - 40):
        arrow.write_bytes(whole[:length])
        with pytest.raises(ArtifactError, match="truncated or damaged"):
            load_corpus(path, "train")
    arrow.write_bytes(whole)
    found = 0
    for _ in flips(arrow, 200):
        try:
            load_corpus(path, "train")[:]
        except ArtifactError:
            found += 1
    assert found
    (path / "test" / "state.json").unlink()
    with pytest.raises(ArtifactError, match="truncated or damaged"):
        load_corpus(path, "test")


@pytest.mark.skipif(
    not (MIRROR / "lm_corpus").is_dir(), reason=f"no data mirror with lm_corpus/ (set {MIRROR_VARIABLE})"
)
def test_the_mirror_is_read(tmp_path: Path) -> None:
    files = {split: f"lm_corpus/law.{split}.jsonl.xz" for split in ("train", "validation", "test")}
    limits: Any = {"max_documents": {"train": 3}, "max_characters": 5000}
    path = prepare_text_corpus(
        experiment(tmp_path, {"law": {"files": files}}, mirror=MIRROR, **limits), "texts", "base"
    )
    assert load_corpus(path, "train").num_rows == 3
    test = load_corpus(path, "test")
    assert [len(ids) for ids in test["input_ids"]] == test["bytes"][:]


# ------------------------------------------------------------------------------------------------ pre-tokenised sets


def pretokenised(tmp_path: Path, **columns: list[Any]) -> dict[str, Any]:
    """A domain of Parquet files of the published kind: the same rows in every split."""
    for split in SPLITS:
        pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / f"{split}.parquet")
    return {"tokens_column": "input_ids", "files": {split: f"{split}.parquet" for split in SPLITS}}


def test_ids_of_a_pretokenised_set_are_kept(tmp_path: Path) -> None:
    ids, masks = [[1, 2, 256], [], [7, 7, 5, 5]], [[1, 1, 1], [], [0, 0, 1, 1]]
    made = pretokenised(tmp_path, input_ids=ids, attention_mask=masks, other=["x", "y", "z"])
    path = prepare_text_corpus(experiment(tmp_path, {"ids": made}), "texts", "base")
    train = load_corpus(path, "train")
    assert train["input_ids"][:] == [[1, 2, 256], [5, 5]]
    assert train["id"][:] == ["ids-train-0", "ids-train-2"]
    assert train["bytes"][:] == [None, None]
    report = read_json(path / "provenance.json", "corpus")["splits"]["train"]["ids"]
    counts = {key: report[key] for key in ("documents", "tokens", "padding_tokens", "empty_documents")}
    assert counts == {"documents": 2, "tokens": 5, "padding_tokens": 2, "empty_documents": 1}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"input_ids": [[1, 2], [3, 257]]},
            r"train\.parquet: row 1: found id 257 at token 1 of the column 'input_ids'; expected ids from 0 to 256",
        ),
        ({"tokens": [[1, 2]]}, "row 0: found only tokens; expected a list of token ids in the column 'input_ids'"),
        ({"input_ids": ["abc"]}, "row 0: found 'abc'; expected a list of token ids"),
        ({"input_ids": [[1], None]}, "row 1: found None; expected a list of token ids"),
        ({"input_ids": [[1, None]]}, r"row 0: found \[1.0, nan\]; expected a list of token ids"),
        (
            {"input_ids": [[1, 2]], "attention_mask": [[1]]},
            r"row 0: found \[1\] as attention_mask; expected a 0 or 1 for each of the 2 tokens",
        ),
        ({"input_ids": [[]]}, r"split 'train' has no documents .*train\.parquet"),
    ],
)
def test_faults_of_pretokenised_sets_name_the_row(tmp_path: Path, columns: dict[str, list], message: str) -> None:
    given = experiment(tmp_path, {"ids": pretokenised(tmp_path, **columns)})
    with pytest.raises(DataError, match=message):
        prepare_text_corpus(given, "texts", "base")
    assert not list(Layout(given).corpus("texts", "base").parent.iterdir())


def test_text_and_ids_are_not_mixed_up(tmp_path: Path) -> None:
    made = pretokenised(tmp_path, input_ids=[[1]])
    (tmp_path / "train.txt").write_text("abc")
    with pytest.raises(DataError, match=r"train\.txt: a text file has no column of token ids"):
        files = {"files": {"train": "train.txt"}, "tokens_column": "input_ids"}
        prepare_text_corpus(experiment(tmp_path, {"ids": files}), "texts", "base")
    with pytest.raises(DataError, match=r"row 0: found \[1\]; expected text .*'tokens_column'"):
        files = {"files": made["files"], "text_column": "input_ids"}
        prepare_text_corpus(experiment(tmp_path, {"ids": files}), "texts", "base")
    with pytest.raises(ValidationError, match="tokens_column"):
        Experiment(**plain_experiment(tmp_path, {"ids": {**made, "text_column": "text"}}))
    with pytest.raises(ValidationError, match="the domain ids holds token ids"):
        Experiment(**plain_experiment(tmp_path, {"ids": made}, max_characters=10))


def test_hub_splits_take_the_place_of_missing_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def streamed_rows(dataset: str, config: str | None, split: str, **_: Any) -> Iterator[dict[str, Any]]:
        asked.append((dataset, split))
        yield from [{"input_ids": np.array([1, 2])}, {"input_ids": np.array([3])}]

    monkeypatch.setattr("synopsis.data.sources.hub_revision", lambda *_: "abc123")
    monkeypatch.setattr("synopsis.data.sources.streamed_rows", streamed_rows)
    pile = {"hub": "some/pile", "tokens_column": "input_ids", "hub_splits": {"train": "train", "validation": "test"}}
    held_out = {"hub": "some/books", "tokens_column": "input_ids", "hub_splits": {"test": "test"}}
    plain = plain_experiment(tmp_path, {"pile": pile, "books": held_out})
    made = Experiment(**{**plain, "data_mirror": None})
    make_tokenizer(Layout(made).tokenizer("base"))
    path = prepare_text_corpus(made, "texts", "base")
    assert asked == [("some/pile", "train"), ("some/pile", "test"), ("some/books", "test")]
    assert load_corpus(path, "test")["domain"][:] == ["books", "books"]
    source = read_json(path / "provenance.json", "corpus")["splits"]["validation"]["pile"]["source"]
    assert source == {"hub": "some/pile", "hub_config": None, "split": "test", "revision": "abc123"}


def test_what_was_fetched_is_kept_when_the_network_breaks_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, broken = [], True

    def streamed_rows(dataset: str, config: str | None, split: str, **_: Any) -> Iterator[dict[str, Any]]:
        asked.append(split)
        for number in range(6):
            if number == 4 and split == "validation" and broken:
                raise ConnectionError("reset by peer")
            yield {"text": f"{number}" * 3}

    monkeypatch.setattr("synopsis.data.sources.hub_revision", lambda *_: "abc123")
    monkeypatch.setattr("synopsis.data.sources.streamed_rows", streamed_rows)
    made = Experiment(**{**plain_experiment(tmp_path, {"a": {"hub": "some/texts"}}), "data_mirror": None})
    make_tokenizer(Layout(made).tokenizer("base"))
    with pytest.raises(FetchError, match=r"fetch hub data set 'some/texts', split 'validation': .*reset by peer"):
        prepare_text_corpus(made, "texts", "base")
    broken = False
    path = prepare_text_corpus(made, "texts", "base")
    assert asked == ["train", "validation", "validation", "test"]
    assert load_corpus(path, "train")["id"][:] == [f"a-train-{number}" for number in range(6)]
    assert not [entry for entry in path.parent.iterdir() if entry != path]
