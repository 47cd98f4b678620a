"""Preparation of long corpora: equal for any number of processes and after kills, in memory that does not grow."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from synopsis.artifacts import read_json
from synopsis.data import shards as shards_on_disk
from synopsis.data import tokenization
from synopsis.data.corpora import load_corpus, prepare_text_corpus
from synopsis.data.shards import Shards, Tokenised
from synopsis.data.sources import MIRROR_VARIABLE
from synopsis.data.tokenization import Document, Tokenization, available_processes, encoder
from synopsis.errors import InputError, SynopsisError
from text_corpora import END, domain, experiment, make_tokenizer, plain_experiment

SMALL = {"SHARD_TOKENS": 3000, "BATCH_TOKENS": 500}
PROGRAM = """
import json, resource, sys, time
from synopsis.config.experiment import Experiment
from synopsis.data import corpora, shards, sources, tokenization

def stalled(read, at):
    def rows(*arguments, **keywords):
        for number, row in enumerate(read(*arguments, **keywords)):
            if number == at:
                time.sleep(600)
            yield row
    return rows

if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    for module, names in (shards, given["shards"]), (tokenization, given["tokenization"]):
        for name, value in names.items():
            setattr(module, name, value)
    if given["stall"]:
        sources.read_rows = stalled(sources.read_rows, given["stall"])
    for name in given["corpora"]:
        corpora.prepare_text_corpus(Experiment(**given["experiment"]), name, "base", given["processes"])
        print(name, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, flush=True)
"""


@pytest.fixture(autouse=True)
def _no_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MIRROR_VARIABLE, raising=False)


def texts(count: int, length: int = 300) -> list[str]:
    drawn = random.Random(0)
    return ["".join(drawn.choices("abc de\né", k=drawn.randrange(1, length))) for _ in range(count)]


def files_of(path: Path) -> dict[str, bytes]:
    """The content of a corpus; its provenance tells the time."""
    found = {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    assert found.pop("provenance.json")
    return found


def program(tmp_path: Path, settings: dict, processes: int, stall: int | None = None, **more: object) -> list[str]:
    given = {
        "experiment": settings,
        "corpora": ["texts"],
        "processes": processes,
        "stall": stall,
        "shards": SMALL,
        "tokenization": {"UNIT_CHARACTERS": 1000, "UNITS_ALONE": 1},
    }
    file = tmp_path / "program.py"
    file.write_text(PROGRAM)
    return [sys.executable, str(file), json.dumps({**given, **more})]


def until(condition: object, seconds: float = 90.0) -> None:
    ends = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < ends, "it did not come to pass"
        time.sleep(0.02)


def test_a_killed_preparation_goes_on_and_ends_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = texts(200)
    for place in (tmp_path / "killed", tmp_path / "whole"):
        place.mkdir()
        domains = {
            "letters": domain(place, "letters", train=[*documents, " "], validation=["gh"]),
            "words": domain(place, "words", train=documents[:3], test=documents[:9]),
        }
        experiment(place, domains)
    limits = {"max_documents": {"train": 190}}
    for name, value in SMALL.items():
        monkeypatch.setattr(shards_on_disk, name, value)
    whole = prepare_text_corpus(experiment(tmp_path / "whole", domains, **limits), "texts", "base", processes=1)

    settings = plain_experiment(tmp_path / "killed", domains, **limits)
    path = tmp_path / "killed" / "results" / "test" / "data" / "texts" / "base"
    work = path.parent / ".base.shards"
    with subprocess.Popen(program(tmp_path, settings, 2, stall=150)) as running:
        finished = work / "train-0-00004.json"
        until(finished.is_file)
        children = psutil.Process(running.pid).children(recursive=True)
        assert len(children) >= 2, "it works alone"
        running.send_signal(signal.SIGKILL)
    until(lambda: not any(child.is_running() and child.status() != "zombie" for child in children))
    assert not path.exists()
    kept = {file.name: file.stat().st_ino for file in work.glob("train-0-*.arrow")}
    damaged = work / "train-0-00003.arrow"
    damaged.write_bytes(damaged.read_bytes()[:-200])
    (work / ".train-0-00009.arrow.1234.partial").write_bytes(b"of a killed process")

    again = subprocess.run(program(tmp_path, settings, 2), capture_output=True, text=True, check=True)
    assert "train letters: goes on after 3 finished shards" in again.stderr
    assert files_of(path) == files_of(whole)
    for number in range(3):
        (shard,) = (path / "train").glob(f"data-{number:05d}-of-*.arrow")
        assert shard.stat().st_ino == kept[f"train-0-{number:05d}.arrow"], "a finished shard was made again"
    assert [entry.name for entry in path.parent.iterdir()] == ["base"]
    first, second = (read_json(folder / "provenance.json", "corpus") for folder in (path, whole))
    assert first["token_hashes"] == second["token_hashes"]
    assert first["splits"] == {
        split: {name: {**report, "source": first["splits"][split][name]["source"]} for name, report in found.items()}
        for split, found in second["splits"].items()
    }


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    lines = {"small": 200, "large": 3000}
    corpora = {}
    for name, count in lines.items():
        with (tmp_path / f"{name}.jsonl").open("w") as stream:
            for number in range(count):
                stream.write(json.dumps({"text": f"{number:09d} " * 400}) + "\n")
        (tmp_path / "short.jsonl").write_text('{"text": "a"}\n')
        files = {"train": f"{name}.jsonl", "validation": "short.jsonl", "test": "short.jsonl"}
        corpora[name] = {"source": "text", "domains": {"numbers": {"files": files}}}
    settings = {**plain_experiment(tmp_path, {}), "corpora": corpora}
    make_tokenizer(tmp_path / "results" / "test" / "models" / "base")
    sizes = {"shards": {"SHARD_TOKENS": 400_000, "BATCH_TOKENS": 50_000}, "tokenization": {"UNIT_CHARACTERS": 50_000}}
    command = program(tmp_path, settings, 1, **sizes, corpora=["small", "small", "large"])
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    before, after = int(told[3]), int(told[5])
    tokens = load_corpus(tmp_path / "results" / "test" / "data" / "large" / "base", "train").data.nbytes
    assert tokens > 45_000_000
    assert after - before < tokens / 4


def test_a_change_of_the_files_starts_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards_on_disk, "SHARD_TOKENS", 5)
    given = experiment(tmp_path, {"a": domain(tmp_path, "a", train=["abcdef", "gh"], validation=["a"])})
    work = tmp_path / "results" / "test" / "data" / "texts" / ".base.shards"

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("synopsis.data.corpora.say", killed)
        prepare_text_corpus(given, "texts", "base")
    assert (work / "train-0-00001.json").is_file()
    changed = domain(tmp_path, "a", train=["xyz", "abc"], validation=["a"], test=["b"])
    path = prepare_text_corpus(experiment(tmp_path, {"a": changed}), "texts", "base")
    tokenizer = make_tokenizer(tmp_path / "tokenizer")
    assert [tokenizer.decode(ids) for ids in load_corpus(path, "train")["input_ids"]] == ["xyz", "abc"]


def tokenised(*documents: list[int]) -> Iterator[Tokenised]:
    for row, ids in enumerate(documents, start=1):
        yield Tokenised(np.array(ids, dtype=np.int32), "d", 1, str(row), row)


def test_the_token_hash_sees_tokens_and_boundaries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hash_of(*documents: list[int], shard_tokens: int = 100) -> str:
        monkeypatch.setattr(shards_on_disk, "SHARD_TOKENS", shard_tokens)
        shards = Shards(tmp_path, "train", hashlib.sha256())
        shards.write(tokenised(*documents), rows=lambda: len(documents))
        assert shards.counts.tokens == sum(map(len, documents))
        return shards.digest.hexdigest()

    assert hash_of([1, 2], [3]) == hash_of([1, 2], [3]) == hash_of([1, 2], [3], shard_tokens=2)
    assert len({hash_of([1, 2], [3]), hash_of([1], [2, 3]), hash_of([1, 2, 3]), hash_of([1, 2], [4])}) == 4


def test_rows_that_give_no_document_are_counted_once_after_a_resumption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards_on_disk, "SHARD_TOKENS", 2)
    whole = Shards(tmp_path, "train", hashlib.sha256())
    whole.write(tokenised([1, 2], [3, 4]), rows=lambda: 7)
    again = Shards(tmp_path, "train", hashlib.sha256())
    again.resume()
    assert (again.rows, again.complete, again.counts) == (7, True, whole.counts)
    assert again.digest.hexdigest() == whole.digest.hexdigest()


# ------------------------------------------------------------------------------------------------------ tokenisation


def test_ids_are_those_of_the_tokenizer_without_special_tokens(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path)
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(length=9)
    encode = encoder(tokenizer)
    for text in ("abc", f"a long text{END}", "", "é🦊"):
        expected = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert encode(text).tolist() == expected
        assert len(expected) == len(text.encode())
    assert encode("abc").dtype == np.int32


def test_processes_give_the_same_ids_in_the_same_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenization, "UNIT_CHARACTERS", 500)
    monkeypatch.setattr(tokenization, "UNITS_ALONE", 1)
    make_tokenizer(tmp_path)
    drawn = 0

    def documents() -> Iterator[Document]:
        nonlocal drawn
        for number, text in enumerate(texts(60)):
            drawn += 1
            yield Document(number, str(number), text)

    def ids(tokenize: Tokenization) -> list[tuple[str, list[int]]]:
        return [(document.id, found.tolist()) for document, found in tokenize(documents())]

    with Tokenization(tmp_path, 1) as tokenize:
        alone = ids(tokenize)
        assert len(alone) == 60 and tokenize.pool is None
    with Tokenization(tmp_path, 2) as tokenize:
        assert ids(tokenize) == alone
        drawn = 0
        found = tokenize(documents())
        for _ in range(10):
            next(found)
        assert 10 < drawn < 50, "few documents are underway at a time"


def test_the_number_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNOPSIS_THREADS", "3")
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert available_processes() == 3
    monkeypatch.setenv("SYNOPSIS_THREADS", "many")
    with pytest.raises(InputError, match="SYNOPSIS_THREADS is 'many'; expected a number of processes"):
        available_processes()
    monkeypatch.delenv("SYNOPSIS_THREADS")
    assert available_processes() == 5
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert available_processes() == len(os.sched_getaffinity(0))


def test_a_process_that_dies_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenization, "UNIT_DOCUMENTS", 1)
    monkeypatch.setattr(tokenization, "UNITS_ALONE", 0)
    make_tokenizer(tmp_path)
    with (
        Tokenization(tmp_path, 2) as tokenize,
        pytest.raises(SynopsisError, match=r"a process that tokenises was killed, .*fewer processes"),
    ):
        found = tokenize(Document(number, str(number), "abc") for number in range(10_000))
        next(found)
        assert tokenize.pool is not None
        for process in list(tokenize.pool._processes.values()):
            process.kill()
        list(found)
