"""Corpora of real text: tokens, boundaries and counts of the artifact, odd documents, and damaged folders."""

from __future__ import annotations

import json
import lzma
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synopsis.artifacts import Layout, read_json
from synopsis.config import Experiment
from synopsis.data.corpora import load_corpus, prepare_text_corpus, write_splits
from synopsis.data.sources import MIRROR_VARIABLE
from synopsis.errors import ArtifactError, DataError

MIRROR = Path(os.environ.get(MIRROR_VARIABLE) or Path(__file__).parents[2].parent / "shared" / "data")
END = "<end>"


@pytest.fixture(autouse=True)
def _no_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MIRROR_VARIABLE, raising=False)


def make_tokenizer(folder: Path) -> Any:
    """A tokenizer of bytes: one token a byte, and one special token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, bos_token=END)
    fast.save_pretrained(folder)
    return fast


def experiment(tmp_path: Path, domains: dict[str, Any], mirror: Path | None = None, **settings: Any) -> Experiment:
    models: Any = {"base": {"path": "nowhere"}}
    corpora: Any = {"texts": {"source": "text", "domains": domains, **settings}}
    results, folder = str(tmp_path / "results"), str(mirror or tmp_path)
    made = Experiment(name="test", results=results, models=models, data_mirror=folder, corpora=corpora)
    make_tokenizer(Layout(made).tokenizer("base"))
    return made


def domain(tmp_path: Path, name: str, **texts: list[Any]) -> dict[str, Any]:
    for split, documents in texts.items():
        lines = "".join(json.dumps({"text": text}) + "\n" for text in documents)
        (tmp_path / f"{name}.{split}.jsonl.xz").write_bytes(lzma.compress(lines.encode()))
    return {"files": {split: f"{name}.{split}.jsonl.xz" for split in texts}}


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


def test_counts_stand_in_the_provenance(tmp_path: Path) -> None:
    path = prepared(tmp_path, max_documents={"train": 2}, max_characters=2)
    record = read_json(path / "provenance.json", "corpus")
    letters = record["splits"]["train"]["letters"]
    counts = {key: letters[key] for key in ("documents", "tokens", "bytes", "cut_characters", "empty_documents")}
    assert counts == {"documents": 2, "tokens": 4, "bytes": 4, "cut_characters": 1, "empty_documents": 0}
    assert record["splits"]["train"]["words"]["cut_characters"] == 2 + len(END)
    assert len(record["provenance"]["inputs"]) == 4 + 2
    assert all(record["provenance"]["inputs"].values())


def test_the_token_hash_sees_tokens_and_boundaries(tmp_path: Path) -> None:
    def hash_of(*documents: list[int]) -> str:
        rows = [{"input_ids": ids, "domain": "d", "bytes": 1, "id": "i"} for ids in documents]
        folder = tmp_path / f"{abs(hash(str(documents)))}"
        folder.mkdir(exist_ok=True)
        return write_splits(folder, {"train": rows})["train"]

    assert hash_of([1, 2], [3]) == hash_of([1, 2], [3])
    assert len({hash_of([1, 2], [3]), hash_of([1], [2, 3]), hash_of([1, 2, 3]), hash_of([1, 2], [4])}) == 4


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


def test_a_missing_column_and_a_missing_file_are_told(tmp_path: Path) -> None:
    texts = {split: ["a"] for split in ("train", "validation", "test")}
    other = {**domain(tmp_path, "bad", **texts), "text_column": "body"}
    with pytest.raises(DataError, match=r"row 0: found only text; expected text in the column 'body'"):
        prepare_text_corpus(experiment(tmp_path, {"bad": other}), "texts", "base")
    with pytest.raises(DataError, match=r"gone\.jsonl: no such file.*SYNOPSIS_DATA or data_mirror"):
        prepare_text_corpus(experiment(tmp_path, {"bad": {"files": {"train": "gone.jsonl"}}}), "texts", "base")


def test_a_missing_tokenizer_is_told(tmp_path: Path) -> None:
    given = experiment(tmp_path, {"a": domain(tmp_path, "a", train=["a"])})
    with pytest.raises(ArtifactError, match=r"models/other: no such folder"):
        prepare_text_corpus(given.model_copy(update={"models": {"other": given.models["base"]}}), "texts", "other")


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    def documents(count: int) -> Iterator[dict[str, Any]]:
        for number in range(count):
            tokens = np.full(50_000, number, dtype=np.int32)
            yield {"input_ids": tokens, "domain": "d", "bytes": 1, "id": str(number)}

    def peak(count: int) -> int:
        (tmp_path / str(count)).mkdir()
        tracemalloc.start()
        try:
            write_splits(tmp_path / str(count), {"train": documents(count)})
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(1)  # imports
    assert peak(200) < 2 * peak(40)


def test_a_damaged_corpus_is_told(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"gone: holds no corpus .*'prepare' has not run"):
        load_corpus(tmp_path / "gone", "train")
    path = prepared(tmp_path)
    with pytest.raises(ArtifactError, match=r"no split 'human'; found train, validation, test"):
        load_corpus(path, "human")
    arrow = next((path / "train").glob("*.arrow"))
    whole = arrow.read_bytes()
    for length in (0, 100, len(whole) // 2, len(whole) - 40):
        arrow.write_bytes(whole[:length])
        with pytest.raises(ArtifactError, match="truncated or damaged"):
            load_corpus(path, "train")
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
