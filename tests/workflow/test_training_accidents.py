"""Training that is stopped, killed, or finds its checkpoints damaged: the same command goes on, and learns the same."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from running import Project, leftovers, metrics, stopped, wait_for, wait_for_line

RUN = "autocompressor-s0"
STEPS = 60


def longer(content: dict[str, Any]) -> None:
    """Long enough that a signal lands in the middle."""
    content["compressors"]["autocompressor"]["training"].update(
        steps=STEPS, warmup_steps=5, checkpoint_every=5, keep_checkpoints=3, log_every=3
    )


@pytest.fixture(scope="module")
def new_project(prepared: Callable[[], Project]) -> Callable[[], Project]:
    def make() -> Project:
        project = prepared()
        project.experiment(longer, "longer")
        return project

    return make


def train(project: Project) -> str:
    """Run the command to its end; what it said."""
    done = project.synopsis("train", RUN, config="config/longer.yaml")
    assert done.returncode == 0, done.stderr
    return done.stderr


def in_the_middle(project: Project, number: signal.Signals) -> tuple[int, str]:
    """Start the same command and send a signal once there are two whole checkpoints."""
    process = project.start("synopsis", "train", "--config", "config/longer.yaml", RUN)
    wait_for(checkpoint(project, 10) / "manifest.json", process)
    code, output = stopped(process, number)
    assert not model(project).exists(), "a model of a run that was stopped"
    assert leftovers(project.results / "models") == []
    return code, output


def checkpoint(project: Project, step: int) -> Path:
    return project.results / "checkpoints" / RUN / f"checkpoint-{step}"


def checkpoints(project: Project) -> list[Path]:
    """The oldest first."""
    found = (project.results / "checkpoints" / RUN).glob("checkpoint-*")
    return sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")))


def model(project: Project) -> Path:
    return project.results / "models" / RUN


@pytest.fixture(scope="module")
def uninterrupted(new_project: Callable[[], Project]) -> Project:
    project = new_project()
    assert "goes on from" not in train(project)
    return project


def assert_same_training(project: Project, uninterrupted: Project) -> None:
    """The same losses, and the same weights, to the last bit; and nothing left of the way there."""
    expected = metrics(model(uninterrupted))
    assert [row["step"] for row in expected if "loss" in row] == list(range(3, STEPS + 1, 3))
    assert metrics(model(project)) == expected
    weights = [(model(p) / "model.safetensors").read_bytes() for p in (project, uninterrupted)]
    assert weights[0] == weights[1]
    assert not checkpoints(project)


def test_a_killed_training_goes_on_from_its_last_checkpoint(
    new_project: Callable[[], Project], uninterrupted: Project
) -> None:
    project = new_project()
    code, _ = in_the_middle(project, signal.SIGKILL)
    assert code == -signal.SIGKILL
    whole = [path for path in checkpoints(project) if (path / "manifest.json").exists()]
    said = train(project)
    assert f"{RUN}: goes on from {whole[-1].relative_to(project.folder)}\n" in said
    assert_same_training(project, uninterrupted)


def test_a_stopped_training_saves_first_and_a_damaged_checkpoint_is_passed_over(
    new_project: Callable[[], Project], uninterrupted: Project
) -> None:
    project = new_project()
    code, output = in_the_middle(project, signal.SIGTERM)
    assert code == 143
    assert "SIGTERM received: saving a checkpoint after this step" in output
    newest, older = checkpoints(project)[-1], checkpoints(project)[-2]
    step = newest.name.removeprefix("checkpoint-")
    assert f"synopsis: {RUN}: stopped at step {step} of {STEPS}; the same command goes on from there" in output
    assert "Traceback" not in output
    weights = newest / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    said = train(project)
    assert f"warning: {newest.relative_to(project.folder)} is passed over: model.safetensors is missing or" in said
    assert f"{RUN}: goes on from {older.relative_to(project.folder)}\n" in said
    assert_same_training(project, uninterrupted)


def test_a_training_without_a_usable_checkpoint_starts_anew(
    new_project: Callable[[], Project], uninterrupted: Project
) -> None:
    project = new_project()
    code, output = in_the_middle(project, signal.SIGINT)
    assert code == 130
    assert "the same command goes on from there" in output and "Traceback" not in output
    kept = checkpoints(project)
    for path in kept:
        (path / "manifest.json").write_text("{")
    said = train(project)
    assert said.count("is passed over: it is incomplete") == len(kept) >= 2
    assert "goes on from" not in said
    assert_same_training(project, uninterrupted)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stage_that_is_stopped_says_so_and_leaves_no_result(
    copied: Project, number: signal.Signals, code: int
) -> None:
    config = copied.experiment(many_contexts)
    target = copied.results / "perplexity" / f"{RUN}.json"
    target.unlink()
    process = copied.start("synopsis", "perplexity", "--config", config, RUN)
    wait_for_line("context 0", process)
    found, output = stopped(process, number)
    assert found == code
    assert "synopsis: interrupted; finished results are kept" in output and "Traceback" not in output
    assert not target.exists() and leftovers(copied.results) == []


def many_contexts(content: dict[str, Any]) -> None:
    content["perplexity"].update(context_lengths=list(range(30)), batch_size=1)


def many_settings(content: dict[str, Any]) -> None:
    content["icl"]["settings"] = {f"icl_{tokens}": {"plain_tokens": tokens} for tokens in range(60)}


@pytest.mark.parametrize(
    ("change", "arguments", "line", "path"),
    [
        (many_contexts, ["perplexity", RUN], "context 0", f"perplexity/{RUN}.json"),
        (many_settings, ["icl", RUN, "world_eats"], "icl_0: accuracy", f"icl/{RUN}/world_eats/seed0.json"),
    ],
)
def test_a_killed_evaluation_leaves_no_result(
    copied: Project, change: Callable[[dict[str, Any]], None], arguments: list[str], line: str, path: str
) -> None:
    config = copied.experiment(change)
    target = copied.results / path
    target.unlink()
    before = {file for file in target.parent.rglob("*")}
    process = copied.start("synopsis", arguments[0], "--config", config, *arguments[1:])
    wait_for_line(line, process)
    assert stopped(process, signal.SIGKILL)[0] == -signal.SIGKILL
    assert {file for file in target.parent.rglob("*")} == before
