"""Inputs that are damaged, missing or empty: one message that names the file, exit code 2, no result."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from running import CONFIG, Project, leftovers, remove

NOWHERE = "http://127.0.0.1:9"
"""An address at which nothing answers: a machine without a network."""
AUTO, GIST, POS = "autocompressor-s0", "gist-1-s0", "pos_control-1-s0"
WEIGHTS = {run: f"models/{run}/model.safetensors" for run in ("base", AUTO)}
INSTRUCTIONS, TOKENIZER = "data/instructions/translations.json", "data/tokenizers/base/tokenizer.json"
ARROW = {split: f"data/stories/base/{split}/data-00000-of-00001.arrow" for split in ("train", "test")}
ICL, PERPLEXITY, METRICS = f"icl/{AUTO}/world_eats/seed0", f"perplexity/{AUTO}.json", f"models/{AUTO}/metrics.jsonl"
WRITTEN, JUDGED = f"generations/{GIST}/seen.csv", f"judgements/reference/{GIST}-vs-{POS}/seen.json"
TO_TRAIN, TO_MEASURE, TO_CLASSIFY = f"train {AUTO}", f"perplexity {AUTO}", f"icl {AUTO} world_eats"
TO_JUDGE = f"judge reference {GIST} {POS} seen"
FILES = {split: f"{split}.jsonl" for split in ("train", "validation", "test")}


def cut(path: str, share: float = 0.5) -> Callable[[Project], Any]:
    """Truncates a file below results/micro."""

    def damage(project: Project) -> None:
        file = project.results / path
        content = file.read_bytes()
        file.write_bytes(content[: int(len(content) * share)])

    return damage


def flip(path: str, share: float = 0.5) -> Callable[[Project], Any]:
    """Changes a bit of a file below results/micro; size and times stay."""

    def damage(project: Project) -> None:
        file = project.results / path
        content, times = bytearray(file.read_bytes()), file.stat()
        content[int(len(content) * share)] ^= 1
        file.write_bytes(content)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))

    return damage


def other_tokenizer(project: Project) -> None:
    (project.results / TOKENIZER).write_bytes((project.results / f"models/{GIST}/tokenizer.json").read_bytes())


def text_corpus(**domain: Any) -> Callable[[Project], Any]:
    def write(project: Project) -> None:
        def change(content: dict[str, Any]) -> None:
            content["corpora"]["books"] = {"source": "text", "domains": {"books": domain}}
            content["data_mirror"] = "mirror" if "files" in domain else None

        project.experiment(change, "changed")
        (project.folder / "mirror").mkdir()
        for split in FILES:
            (project.folder / "mirror" / f"{split}.jsonl").write_text("")

    return write


def hub_model(project: Project) -> None:
    project.experiment(lambda content: content["models"].update(other={"hub": "somebody/a-model"}), "changed")


def changed(path: str) -> str:
    return f"results/micro/{path}: has changed since it was written"


def not_json(path: str) -> str:
    return f"results/micro/{path}: not valid JSON"


TO_PREPARE, BOOKS = "prepare corpus books base", "data/books/base"
UNREACHABLE = "the hub cannot be reached"
# What is wrong, the command that meets it, the result that must not appear, and what the message must name.
CASES: dict[str, tuple[Callable[[Project], Any], str, str, str | tuple[str, ...]]] = {
    "truncated base model": (cut(WEIGHTS["base"]), TO_TRAIN, f"models/{AUTO}", changed(WEIGHTS["base"])),
    "truncated compressor": (cut(WEIGHTS[AUTO]), TO_MEASURE, PERPLEXITY, changed(WEIGHTS[AUTO])),
    "base model without a configuration": (
        lambda project: (project.results / "models/base/config.json").unlink(),
        f"train {GIST}",
        f"models/{GIST}",
        "results/micro/models/base: has no config.json",
    ),
    "truncated corpus": (cut(ARROW["train"]), TO_TRAIN, f"models/{AUTO}", changed(ARROW["train"])),
    "truncated instructions": (cut(INSTRUCTIONS), f"train {GIST}", f"models/{GIST}", not_json(INSTRUCTIONS)),
    "truncated result of icl": (cut(f"{ICL}.json"), "score", "scores.parquet", not_json(f"{ICL}.json")),
    "truncated result of perplexity": (cut(PERPLEXITY), "score", "scores.parquet", not_json(PERPLEXITY)),
    "truncated outputs": (cut(WRITTEN, 0.3), TO_JUDGE, JUDGED, f"results/micro/{WRITTEN}"),
    "truncated scores": (cut("scores.parquet"), "report", "tables/icl.csv", changed("scores.parquet")),
    "flipped weights": (
        flip(WEIGHTS[AUTO], 0.7),
        TO_CLASSIFY,
        f"{ICL}.json",
        (f"{WEIGHTS[AUTO]}: has changed", "delete the folder results/micro/models/auto"),
    ),
    "flipped tokens of a corpus": (flip(ARROW["test"]), TO_MEASURE, PERPLEXITY, changed(ARROW["test"])),
    "tokenizer of another model": (other_tokenizer, TO_CLASSIFY, f"{ICL}.json", changed(TOKENIZER)),
    "tokenizer of another model, for a corpus": (
        other_tokenizer,
        "prepare corpus stories base",
        "data/stories/base",
        changed(TOKENIZER),
    ),
    "flipped instructions": (
        flip(INSTRUCTIONS, 0.4),
        f"generate {GIST} seen",
        WRITTEN,
        f"results/micro/{INSTRUCTIONS}: ",
    ),
    "flipped outputs": (flip(WRITTEN), TO_JUDGE, JUDGED, changed(WRITTEN)),
    "training curve without rows": (cut(METRICS, 0), "score", "scores.parquet", changed(METRICS)),
    "truncated records of examples": (
        cut(f"{ICL}.examples.jsonl.gz"),
        "score",
        "scores.parquet",
        changed(f"{ICL}.examples.jsonl.gz"),
    ),
    "flipped scores": (flip("scores.parquet", 0.3), "report", "tables/icl.csv", changed("scores.parquet")),
    "file that the mirror lacks": (
        text_corpus(files={**FILES, "test": "elsewhere.jsonl"}),
        TO_PREPARE,
        BOOKS,
        "mirror/elsewhere.jsonl: no such file",
    ),
    "empty corpus": (text_corpus(files=FILES), TO_PREPARE, BOOKS, ("corpus 'books'", "train")),
    "data set of the hub without a network": (
        text_corpus(hub="somebody/books"),
        TO_PREPARE,
        BOOKS,
        ("cannot fetch hub data set 'somebody/books'", UNREACHABLE),
    ),
    "model of the hub without a network": (
        hub_model,
        "prepare model other",
        "models/other",
        ("somebody/a-model", UNREACHABLE),
    ),
}


@pytest.fixture(scope="module")
def outcomes(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Project, Any]]:
    """Every case, two processes at a time."""

    def run(name: str) -> tuple[Project, Any]:
        prepare, command, result, _ = CASES[name]
        project = finished.copy(folder / name.replace(" ", "-"))
        remove(project.results / result)
        prepare(project)
        stage, *arguments = command.split()
        config = CONFIG if not (project.folder / "config/changed.yaml").exists() else "config/changed.yaml"
        words = ("synopsis", stage, "--config", config, *arguments)
        return project, project.run(*words, HF_ENDPOINT=NOWHERE, HF_HUB_OFFLINE="0")

    folder = tmp_path_factory.mktemp("damaged")
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(CASES, pool.map(run, CASES), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_a_fault_of_the_input_is_one_message(outcomes: dict[str, tuple[Project, Any]], name: str) -> None:
    (*_, result, named), (project, done) = CASES[name], outcomes[name]
    assert done.returncode == 2, done.stderr
    (message,) = [line for line in done.stderr.splitlines() if line.startswith("synopsis: ")]
    for words in [named] if isinstance(named, str) else named:
        assert words in message
    assert "Traceback" not in done.stderr
    assert not (project.results / result).exists()
    assert leftovers(project.results) == []


def test_verify_names_the_files_that_have_changed(finished: Project, copied: Project) -> None:
    stores = list(finished.results.glob("judgements/**/*.jsonl"))
    done = finished.run("synopsis", "verify", "results/micro")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"files are as they were written; {len(stores)} have no hash" in done.stdout
    names = [
        "data/stories/base/train/data-00000-of-00001.arrow",
        "models/base/model.safetensors",
        "needle/autocompressor-s0.examples.jsonl.gz",
        "scores.parquet",
        "tables/icl.csv",
    ]
    for name in names:
        flip(name)(copied)
    done = copied.run("synopsis", "verify", "results/micro")
    assert done.returncode == 2, done.stdout + done.stderr
    assert [line.split(": ")[0] for line in done.stdout.splitlines()] == [f"results/micro/{name}" for name in names]
    assert "Traceback" not in done.stderr
