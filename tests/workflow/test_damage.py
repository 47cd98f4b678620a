"""Inputs that are damaged, missing or empty: one message that names the file, exit code 2, no result."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from running import CONFIG, Finished, Project, leftovers, remove

NOWHERE = "http://127.0.0.1:9"
"""An address at which nothing answers: a machine without a network."""


@dataclass
class Case:
    """What is wrong, the command that meets it, what the message must name, and the result that must not appear."""

    prepare: Callable[[Project], Any]
    command: tuple[str, ...]
    told: tuple[str, ...]
    result: str
    config: str = CONFIG


def cut(path: str, share: float = 0.5) -> Callable[[Project], None]:
    """Truncates a file below results/micro."""

    def damage(project: Project) -> None:
        file = project.results / path
        content = file.read_bytes()
        file.write_bytes(content[: int(len(content) * share)])

    return damage


def flip(*places: tuple[str, float]) -> Callable[[Project], None]:
    """Changes a bit of files below results/micro, each at a share of its length; size and times stay."""

    def damage(project: Project) -> None:
        for path, share in places:
            file = project.results / path
            content, times = bytearray(file.read_bytes()), file.stat()
            content[int(len(content) * share)] ^= 1
            file.write_bytes(content)
            os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))

    return damage


def swap(a: str, b: str) -> Callable[[Project], None]:
    """Puts the file `b` of the results in the place of `a`."""
    return lambda project: (project.results / a).write_bytes((project.results / b).read_bytes())


def empty(path: str) -> Callable[[Project], None]:
    return lambda project: (project.results / path).write_bytes(b"")


def without(path: str) -> Callable[[Project], None]:
    return lambda project: (project.results / path).unlink()


def text_corpus(**domain: Any) -> Callable[[Project], None]:
    def write(project: Project) -> None:
        def change(content: dict[str, Any]) -> None:
            content["corpora"]["books"] = {"source": "text", "domains": {"books": domain}}
            content["data_mirror"] = "mirror" if "files" in domain else None

        project.experiment(change, "text")
        (project.folder / "mirror").mkdir()
        for split in ("train", "validation", "test"):
            (project.folder / "mirror" / f"{split}.jsonl").write_text("")

    return write


def hub_model(project: Project) -> None:
    project.experiment(lambda content: content["models"].update(other={"hub": "somebody/a-model"}), "hub_model")


FILES = {split: f"{split}.jsonl" for split in ("train", "validation", "test")}
CASES = {
    "truncated weights of the base model": Case(
        cut("models/base/model.safetensors"),
        ("train", "autocompressor-s0"),
        ("results/micro/models/base/model.safetensors: has changed since it was written",),
        "models/autocompressor-s0",
    ),
    "truncated weights of a compressor": Case(
        cut("models/autocompressor-s0/model.safetensors"),
        ("perplexity", "autocompressor-s0"),
        ("results/micro/models/autocompressor-s0/model.safetensors: has changed since it was written",),
        "perplexity/autocompressor-s0.json",
    ),
    "base model without a configuration": Case(
        without("models/base/config.json"),
        ("train", "gist-1-s0"),
        ("results/micro/models/base: has no config.json",),
        "models/gist-1-s0",
    ),
    "truncated corpus": Case(
        cut("data/stories/base/train/data-00000-of-00001.arrow"),
        ("train", "autocompressor-s0"),
        ("results/micro/data/stories/base/train/data-00000-of-00001.arrow: has changed since it was written",),
        "models/autocompressor-s0",
    ),
    "truncated instructions": Case(
        cut("data/instructions/translations.json"),
        ("train", "gist-1-s0"),
        ("results/micro/data/instructions/translations.json: not valid JSON",),
        "models/gist-1-s0",
    ),
    "truncated result of icl": Case(
        cut("icl/autocompressor-s0/world_eats/seed0.json"),
        ("score",),
        ("results/micro/icl/autocompressor-s0/world_eats/seed0.json: not valid JSON",),
        "scores.parquet",
    ),
    "truncated result of perplexity": Case(
        cut("perplexity/autocompressor-s0.json"),
        ("score",),
        ("results/micro/perplexity/autocompressor-s0.json: not valid JSON",),
        "scores.parquet",
    ),
    "truncated outputs": Case(
        cut("generations/gist-1-s0/seen.csv", 0.3),
        ("judge", "reference", "gist-1-s0", "pos_control-1-s0", "seen"),
        ("results/micro/generations/gist-1-s0/seen.csv",),
        "judgements/reference/gist-1-s0-vs-pos_control-1-s0/seen.json",
    ),
    "truncated scores": Case(
        cut("scores.parquet"), ("report",), ("results/micro/scores.parquet: has changed",), "tables/icl.csv"
    ),
    "flipped weights": Case(
        flip(("models/autocompressor-s0/model.safetensors", 0.7)),
        ("icl", "autocompressor-s0", "world_eats"),
        ("models/autocompressor-s0/model.safetensors: has changed", "delete the folder results/micro/models/auto"),
        "icl/autocompressor-s0/world_eats/seed0.json",
    ),
    "flipped tokens of a corpus": Case(
        flip(("data/stories/base/test/data-00000-of-00001.arrow", 0.5)),
        ("perplexity", "autocompressor-s0"),
        ("results/micro/data/stories/base/test/data-00000-of-00001.arrow: has changed",),
        "perplexity/autocompressor-s0.json",
    ),
    "tokenizer of another model": Case(
        swap("data/tokenizers/base/tokenizer.json", "models/gist-1-s0/tokenizer.json"),
        ("icl", "autocompressor-s0", "world_eats"),
        ("results/micro/data/tokenizers/base/tokenizer.json: has changed",),
        "icl/autocompressor-s0/world_eats/seed0.json",
    ),
    "tokenizer of another model, for a corpus": Case(
        swap("data/tokenizers/base/tokenizer.json", "models/gist-1-s0/tokenizer.json"),
        ("prepare", "corpus", "stories", "base"),
        ("results/micro/data/tokenizers/base/tokenizer.json: has changed",),
        "data/stories/base",
    ),
    "flipped instructions": Case(
        flip(("data/instructions/translations.json", 0.4)),
        ("generate", "gist-1-s0", "seen"),
        ("results/micro/data/instructions/translations.json: ",),
        "generations/gist-1-s0/seen.csv",
    ),
    "flipped outputs": Case(
        flip(("generations/gist-1-s0/seen.csv", 0.5)),
        ("judge", "reference", "gist-1-s0", "pos_control-1-s0", "seen"),
        ("results/micro/generations/gist-1-s0/seen.csv: has changed",),
        "judgements/reference/gist-1-s0-vs-pos_control-1-s0/seen.json",
    ),
    "training curve without rows": Case(
        empty("models/autocompressor-s0/metrics.jsonl"),
        ("score",),
        ("results/micro/models/autocompressor-s0/metrics.jsonl: has changed",),
        "scores.parquet",
    ),
    "truncated records of examples": Case(
        cut("icl/autocompressor-s0/world_eats/seed0.examples.jsonl.gz"),
        ("score",),
        ("results/micro/icl/autocompressor-s0/world_eats/seed0.examples.jsonl.gz: has changed",),
        "scores.parquet",
    ),
    "flipped scores": Case(
        flip(("scores.parquet", 0.3)), ("report",), ("results/micro/scores.parquet: has changed",), "tables/icl.csv"
    ),
    "file that the mirror lacks": Case(
        text_corpus(files={**FILES, "test": "elsewhere.jsonl"}),
        ("prepare", "corpus", "books", "base"),
        ("mirror/elsewhere.jsonl: no such file",),
        "data/books/base",
        "config/text.yaml",
    ),
    "empty corpus": Case(
        text_corpus(files=FILES),
        ("prepare", "corpus", "books", "base"),
        ("corpus 'books'", "train"),
        "data/books/base",
        "config/text.yaml",
    ),
    "data set of the hub without a network": Case(
        text_corpus(hub="somebody/books"),
        ("prepare", "corpus", "books", "base"),
        ("cannot fetch hub data set 'somebody/books'", "the hub cannot be reached"),
        "data/books/base",
        "config/text.yaml",
    ),
    "model of the hub without a network": Case(
        hub_model, ("prepare", "model", "other"), ("somebody/a-model", "the hub cannot be reached"), "models/other",
        "config/hub_model.yaml",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def outcomes(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Project, Any]]:
    """Every case, two processes at a time."""

    def run(name: str) -> tuple[Project, Any]:
        case = CASES[name]
        project = finished.project.copy(folder / name.replace(" ", "-"))
        remove(project.results / case.result)
        case.prepare(project)
        stage, *arguments = case.command
        command = ("synopsis", stage, "--config", case.config, *arguments)
        return project, project.run(*command, HF_ENDPOINT=NOWHERE, HF_HUB_OFFLINE="0")

    folder = tmp_path_factory.mktemp("damaged")
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(CASES, pool.map(run, CASES), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_a_fault_of_the_input_is_told_in_one_message(outcomes: dict[str, tuple[Project, Any]], name: str) -> None:
    case, (project, done) = CASES[name], outcomes[name]
    assert done.returncode == 2, done.stderr
    (message,) = [line for line in done.stderr.splitlines() if line.startswith("synopsis: ")]
    for words in case.told:
        assert words in message
    assert "Traceback" not in done.stderr
    assert not (project.results / case.result).exists()
    assert leftovers(project.results) == []


def test_verify_names_the_files_that_have_changed(finished: Finished, copied: Project) -> None:
    stores = [path for path in finished.project.results.glob("judgements/**/*.jsonl")]
    done = finished.project.run("synopsis", "verify", "results/micro")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"files are as they were written; {len(stores)} have no hash" in done.stdout
    names = [
        "data/stories/base/train/data-00000-of-00001.arrow",
        "models/base/model.safetensors",
        "needle/autocompressor-s0.examples.jsonl.gz",
        "scores.parquet",
        "tables/icl.csv",
    ]
    flip(*((name, 0.5) for name in names))(copied)
    done = copied.run("synopsis", "verify", "results/micro")
    assert done.returncode == 2, done.stdout + done.stderr
    assert [line.split(": ")[0] for line in done.stdout.splitlines()] == [f"results/micro/{name}" for name in names]
    assert "Traceback" not in done.stderr
