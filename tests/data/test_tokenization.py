"""Tokenisation of corpora: equal for any number of threads and after kills, in memory that does not grow."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from synopsis.artifacts import read_json
from synopsis.data import tokenization
from synopsis.data.corpora import load_corpus, prepare_text_corpus, token_hash
from synopsis.data.tokenization import available_threads, encode_texts
from synopsis.errors import InputError
from text_corpora import END, domain, experiment, make_tokenizer, plain_experiment

SMALL = {"DOCUMENTS_AT_ONCE": 2}
PROGRAM = """
import json, sys, threading, time
from synopsis.config.experiment import Experiment
from synopsis.data import corpora, tokenization

def stalled(tokenizer, texts, encode=tokenization.encode_texts):
    if given["stall"] in texts:
        print("stalled", flush=True)
        time.sleep(600)
    return encode(tokenizer, texts)

def watch():
    # Memory of its own: pages of mapped files go when others need the room.
    while True:
        status = open("/proc/self/status").read()
        peak[0] = max(peak[0], int(status.split("RssAnon:")[1].split()[0]))
        time.sleep(0.002)

if __name__ == "__main__":
    peak = [0]
    threading.Thread(target=watch, daemon=True).start()
    given = json.loads(sys.argv[1])
    tokenization.encode_texts = stalled
    for name, value in given["sizes"].items():
        setattr(tokenization, name, value)
    for name in given["corpora"]:
        corpora.prepare_text_corpus(Experiment(**given["experiment"]), name, "base", given["threads"])
        print(name, peak[0] * 1024, flush=True)
"""


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SMALL.items():
        monkeypatch.setattr(tokenization, name, value)


def texts(count: int, length: int = 300) -> list[str]:
    drawn = random.Random(0)
    return ["".join(drawn.choices("abc de\né", k=drawn.randrange(1, length))) for _ in range(count)]


def files_of(path: Path) -> dict[str, bytes]:
    """The content of a corpus; its provenance holds the time."""
    found = {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    assert found.pop("provenance.json")
    return found


def program(tmp_path: Path, settings: dict, threads: int, **more: object) -> list[str]:
    given = {"experiment": settings, "corpora": ["texts"], "threads": threads, "stall": "", "sizes": SMALL, **more}
    file = tmp_path / "program.py"
    file.write_text(PROGRAM)
    return [sys.executable, str(file), json.dumps(given)]


@pytest.mark.usefixtures("small_batches")
def test_a_killed_preparation_resumes_and_ends_as_if_it_had_not_been_killed(tmp_path: Path) -> None:
    documents = texts(200)
    for place in (tmp_path / "killed", tmp_path / "whole"):
        place.mkdir()
        domains = {
            "letters": domain(place, "letters", train=[*documents, " "], validation=["gh"]),
            "words": domain(place, "words", train=documents[:30], test=documents[:9]),
            "late": domain(place, "late", train=documents[50:], test=["a"]),
        }
        experiment(place, domains)
    limits = {"max_documents": {"train": 120}}
    whole = prepare_text_corpus(experiment(tmp_path / "whole", domains, **limits), "texts", "base", threads=1)

    settings = plain_experiment(tmp_path / "killed", domains, **limits)
    path = tmp_path / "killed" / "results" / "test" / "data" / "texts" / "base"
    # The text stands in no other domain: the third one is being tokenised, the first two are finished.
    with subprocess.Popen(program(tmp_path, settings, 2, stall=documents[150]), stdout=subprocess.PIPE) as running:
        assert running.stdout and running.stdout.readline() == b"stalled\n"
        running.send_signal(signal.SIGKILL)
    assert not path.exists()
    (damaged,) = path.parent.glob(".base.*.unfinished/train-1.arrow")
    damaged.write_bytes(damaged.read_bytes()[:-200])

    again = subprocess.run(program(tmp_path, settings, 2), capture_output=True, text=True, check=False)
    assert not again.returncode, again.stderr
    assert "train letters: finished before" in again.stderr and "train words: finished before" not in again.stderr
    assert files_of(path) == files_of(whole)
    assert [entry.name for entry in path.parent.iterdir()] == ["base"]
    first, second = (read_json(folder / "provenance.json", "corpus") for folder in (path, whole))
    assert first["token_hashes"] == second["token_hashes"]
    assert first["splits"] == {
        split: {name: {**report, "source": first["splits"][split][name]["source"]} for name, report in found.items()}
        for split, found in second["splits"].items()
    }


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    lines = {"small": 1000, "large": 4000}
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
    command = program(tmp_path, settings, 1, corpora=["small", "large"])
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    before, after = int(printed[1]), int(printed[3])
    tokens = load_corpus(tmp_path / "results" / "test" / "data" / "large" / "base", "train").data.nbytes
    assert tokens > 60_000_000
    assert after - before < tokens / 4


def test_a_change_of_the_files_starts_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(message: str) -> None:
        if "documents" in message:
            raise KeyboardInterrupt

    given = experiment(tmp_path, {"a": domain(tmp_path, "a", train=["abcdef", "gh"], validation=["a"])})
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("synopsis.data.corpora.say", interrupt)
        prepare_text_corpus(given, "texts", "base")
    assert list(tmp_path.glob("results/test/data/texts/.base.*.unfinished/train-0.json"))
    changed = domain(tmp_path, "a", train=["xyz", "abc"], validation=["a"], test=["b"])
    path = prepare_text_corpus(experiment(tmp_path, {"a": changed}), "texts", "base")
    tokenizer = make_tokenizer(tmp_path / "tokenizer")
    assert [tokenizer.decode(ids) for ids in load_corpus(path, "train")["input_ids"]] == ["xyz", "abc"]
    assert [entry.name for entry in path.parent.iterdir()] == ["base"]


def test_the_token_hash_sees_tokens_and_boundaries() -> None:
    def hash_of(*documents: list[int]) -> str:
        return token_hash(Dataset.from_dict({"input_ids": [np.array(ids, dtype=np.int32) for ids in documents]}))

    assert hash_of([1, 2], [3]) == hash_of([1, 2], [3])
    assert len({hash_of([1, 2], [3]), hash_of([1], [2, 3]), hash_of([1, 2, 3]), hash_of([1, 2], [4])}) == 4


# ------------------------------------------------------------------------------------------------------ tokenisation


def test_ids_are_those_of_the_tokenizer_without_special_tokens(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path)
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(length=9)
    given = ["abc", f"a long text{END}", "", "é🦊"]
    for text, found in zip(given, encode_texts(tokenizer, given), strict=True):
        assert found.tolist() == tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert found.dtype == np.int32 and len(found) == len(text.encode())


def test_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNOPSIS_THREADS", "3")
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert available_threads() == 3
    monkeypatch.setenv("SYNOPSIS_THREADS", "many")
    with pytest.raises(InputError, match="SYNOPSIS_THREADS is 'many'; expected a number of threads"):
        available_threads()
    monkeypatch.delenv("SYNOPSIS_THREADS")
    assert available_threads() == 5
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert available_threads() == len(os.sched_getaffinity(0))


def test_texts_are_taken_in_groups_of_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenization, "CHARACTERS_AT_ONCE", 10)
    given = ["a" * length for length in (4, 6, 1, 30, 0, 9, 2)]
    assert [len(ids) for ids in encode_texts(make_tokenizer(tmp_path), given)] == [4, 6, 1, 30, 0, 9, 2]
    groups = tokenization._groups(given)
    assert [list(map(len, group)) for group in groups] == [[4, 6], [1], [30], [0, 9], [2]]
