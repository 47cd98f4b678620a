"""Inputs that are damaged, missing or empty: one message that names the file, exit code 2, no result."""

from __future__ import annotations

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
        ("results/micro/models/base: cannot be loaded as a model",),
        "models/autocompressor-s0",
    ),
    "truncated weights of a compressor": Case(
        cut("models/autocompressor-s0/model.safetensors"),
        ("perplexity", "autocompressor-s0"),
        ("results/micro/models/autocompressor-s0: cannot be loaded as a model",),
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
        ("results/micro/data/stories/base",),
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
        cut("scores.parquet"), ("report",), ("results/micro/scores.parquet: not a readable parquet",), "tables/icl.csv"
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
