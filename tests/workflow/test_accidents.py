"""Work that is stopped or killed half-way: the same command resumes, and makes what it would have made.

Each story is a test; since they wait for processes most of the time, two of them run at once.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from running import (
    CONFIG,
    PROGRAMS,
    ROOT,
    WAIT_SECONDS,
    Project,
    leftovers,
    metrics,
    remove,
    stopped,
    wait_for,
    wait_for_line,
)

RUN = "autocompressor-s0"
STEPS = 60
TARGET = f"results/micro/models/{RUN}"


# ------------------------------------------------------------------------------------------------- what stories need


def longer(content: dict[str, Any]) -> None:
    """Long enough that a signal lands in the middle."""
    content["compressors"]["autocompressor"]["training"].update(
        steps=STEPS, warmup_steps=5, checkpoint_every=5, keep_checkpoints=3, log_every=3
    )


def many_contexts(content: dict[str, Any]) -> None:
    content["perplexity"].update(context_lengths=list(range(30)), batch_size=1, runs=["base"])


def many_settings(content: dict[str, Any]) -> None:
    settings = {f"icl_{tokens}": {"plain_tokens": tokens} for tokens in range(60)}
    content["icl"].update(settings=settings, runs=["base"])


def train(project: Project) -> str:
    """Run the command to its end; what it said."""
    done = project.synopsis("train", RUN)
    assert done.returncode == 0, done.stderr
    return done.stderr


def stopped_training(project: Project, number: signal.Signals) -> tuple[int, str]:
    """Start the same command and send a signal once there are two whole checkpoints."""
    process = project.start("synopsis", "train", "--config", CONFIG, RUN)
    wait_for(checkpoint(project, 10) / "manifest.json", process)
    code, output = stopped(process, number)
    assert not (project.folder / TARGET).exists(), "a model of a run that was stopped"
    assert leftovers(project.results / "models") == []
    return code, output


def stopped_evaluation(project: Project, command: list[str], line: str, number: signal.Signals) -> tuple[int, str]:
    """Start a stage and send a signal once it has said `line`; nothing that looks like a result may be there."""
    before = set(project.results.rglob("*"))
    process = project.start("synopsis", command[0], "--config", CONFIG, *command[1:])
    wait_for_line(line, process)
    code, output = stopped(process, number)
    assert {path for path in project.results.rglob("*") if path not in before and path.is_file()} == set()
    return code, output


def two_trainings(project: Project, *command: str) -> tuple[subprocess.Popen[str], subprocess.Popen[str], str]:
    """A training that owns the run, the same one by `command`, which waits, and what that one said."""
    owner = project.start("synopsis", "train", "--config", CONFIG, RUN)
    wait_for(checkpoint(project, 5) / "manifest.json", owner)
    owner.send_signal(signal.SIGSTOP)  # it would end while the other one still starts
    kept = checkpoints(project)
    second = project.start(*command)
    try:
        said = wait_for_line("waiting for it to end", second)
        assert f"{RUN}: process {owner.pid} on {os.uname().nodename} trains it since " in said
        assert checkpoints(project) == kept
    finally:
        owner.send_signal(signal.SIGCONT)
    return owner, second, said


def snakemake_in_training(project: Project) -> subprocess.Popen[str]:
    process = project.start("snakemake", "--cores", "2", TARGET, "--configfile", CONFIG)
    wait_for(checkpoint(project, 10) / "manifest.json", process)
    return process


def checkpoint(project: Project, step: int) -> Path:
    return project.results / "checkpoints" / RUN / f"checkpoint-{step}"


def checkpoints(project: Project) -> list[Path]:
    """The oldest first."""
    found = (project.results / "checkpoints" / RUN).glob("checkpoint-*")
    return sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")))


# ------------------------------------------------------------------------------------------------- stories


def training_without_a_usable_checkpoint_starts_anew(project: Project) -> None:
    code, output = stopped_training(project, signal.SIGINT)
    assert code == 130
    assert "the same command resumes there" in output and "Traceback" not in output
    kept = checkpoints(project)
    for path in kept:
        (path / "manifest.json").write_text("{")
    said = train(project)
    assert said.count("is passed over: it is incomplete") == len(kept) >= 2
    assert "resumes from" not in said


def killed_training_resumes_from_its_last_checkpoint(project: Project) -> None:
    code, _ = stopped_training(project, signal.SIGKILL)
    assert code == -signal.SIGKILL
    whole = [path for path in checkpoints(project) if (path / "manifest.json").exists()]
    said = train(project)
    assert f"{RUN}: resumes from {whole[-1].relative_to(project.folder)}\n" in said


def stopped_training_saves_first_and_a_damaged_checkpoint_is_passed_over(project: Project) -> None:
    code, output = stopped_training(project, signal.SIGTERM)
    assert code == 143
    assert "SIGTERM received: saving a checkpoint after this step" in output
    newest, older = checkpoints(project)[-1], checkpoints(project)[-2]
    step = newest.name.removeprefix("checkpoint-")
    assert f"synopsis: {RUN}: stopped at step {step} of {STEPS}; the same command resumes there" in output
    assert "Traceback" not in output
    weights = newest / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    said = train(project)
    assert f"warning: {newest.relative_to(project.folder)} is passed over: model.safetensors is missing or" in said
    assert f"{RUN}: resumes from {older.relative_to(project.folder)}\n" in said


def ctrl_c_in_snakemake_saves_a_checkpoint_and_the_next_call_resumes(project: Project) -> None:
    process = snakemake_in_training(project)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does it: to Snakemake and its jobs alike
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "SIGINT received: saving a checkpoint after this step" in output
    assert "the same command resumes there" in output
    assert "Traceback" not in output
    assert not (project.folder / TARGET).exists()
    done = project.snakemake(TARGET)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{RUN}: resumes from" in done.stdout + done.stderr


def killed_snakemake_says_how_to_unlock_and_plans_the_rest(project: Project) -> None:
    """As after a power loss: nobody could tidy up."""
    process = snakemake_in_training(project)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    locked = project.snakemake(TARGET)
    assert locked.returncode == 1
    assert "cannot be locked" in locked.stderr and "--unlock" in locked.stderr
    assert "Traceback" not in locked.stderr
    # The same with what `make demo` prints and hides.
    shutil.copy2(ROOT / "Makefile", project.folder)
    shutil.copy2(project.folder / CONFIG, project.folder / "config/demo.yaml")
    (project.folder / ".venv").symlink_to(PROGRAMS.parent)
    made = project.run("make", "--old-file", ".venv/ready", "demo")
    assert made.returncode == 2 and "cannot be locked" in made.stderr and "Traceback" not in made.stderr
    typed = ".venv/bin/snakemake --unlock --configfile config/demo.yaml && make demo"
    assert made.stderr.splitlines()[-2].endswith(f"type: {typed}"), made.stderr
    assert project.snakemake("--unlock").returncode == 0
    assert project.plan(TARGET) == {"train": 1}, "a half-done job is planned without further options"


def second_training_waits_and_takes_the_finished_model(project: Project) -> None:
    """As after a kill of Snakemake alone: its job runs on, and the next Snakemake starts the same run again."""
    owner, second, said = two_trainings(project, "snakemake", "--cores", "1", TARGET, "--configfile", CONFIG)
    output, _ = owner.communicate(timeout=WAIT_SECONDS)
    assert owner.returncode == 0, output
    inode = (project.folder / TARGET).stat().st_ino
    said += second.communicate(timeout=WAIT_SECONDS)[0]
    assert second.returncode == 0, said
    assert f"{RUN}: finished by the other process; taking {TARGET}\n" in said
    assert (project.folder / TARGET).stat().st_ino == inode
    assert "resumes from" not in output + said and f"step {STEPS}/{STEPS}" not in said, "trained once"


def second_training_takes_over_when_the_first_is_killed(project: Project) -> None:
    owner, second, said = two_trainings(project, "synopsis", "train", "--config", CONFIG, RUN)
    assert stopped(owner, signal.SIGKILL)[0] == -signal.SIGKILL
    whole = [path for path in checkpoints(project) if (path / "manifest.json").exists()]
    said += second.communicate(timeout=WAIT_SECONDS)[0]
    assert second.returncode == 0, said
    assert f"{RUN}: process {owner.pid} on {os.uname().nodename} is dead; taking over its checkpoints\n" in said
    assert f"{RUN}: resumes from {whole[-1].relative_to(project.folder)}\n" in said


def stopped_evaluation_keeps_what_is_finished(project: Project) -> None:
    """After a signal it says so; after a kill nothing that looks like a result is there either."""
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        icl = number == signal.SIGINT
        project.experiment(many_settings if icl else many_contexts, "micro")
        command = ["icl", "base", "world_eats"] if icl else ["perplexity", "base"]
        line = "icl_0: accuracy" if icl else "documents of"
        found, output = stopped_evaluation(project, command, line, number)
        assert found == code and "Traceback" not in output
        assert number == signal.SIGKILL or "synopsis: interrupted; finished results are kept" in output


ANEW = training_without_a_usable_checkpoint_starts_anew
RESUMED = (
    killed_training_resumes_from_its_last_checkpoint,
    stopped_training_saves_first_and_a_damaged_checkpoint_is_passed_over,
    ctrl_c_in_snakemake_saves_a_checkpoint_and_the_next_call_resumes,
    second_training_waits_and_takes_the_finished_model,
    second_training_takes_over_when_the_first_is_killed,
)
OTHERS = (
    killed_snakemake_says_how_to_unlock_and_plans_the_rest,
    stopped_evaluation_keeps_what_is_finished,
)
Story = Callable[[Project], None]


@pytest.fixture(scope="module")
def stories(
    finished: Project, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[Story, tuple[Project, Future[None]]]]:
    """Each story under way, in a project that has data and base model and nothing else."""
    folder = tmp_path_factory.mktemp("accidents")
    started = {}
    with ThreadPoolExecutor(2) as pool:
        for story in (ANEW, *RESUMED, *OTHERS):
            project = prepared(finished, folder / story.__name__)
            started[story] = project, pool.submit(story, project)
        yield started
        pool.shutdown(cancel_futures=True)


def prepared(finished: Project, folder: Path) -> Project:
    project = finished.copy(folder)
    project.experiment(longer, "micro")
    for path in [*project.results.iterdir(), *(project.results / "models").iterdir()]:
        if path.name not in {"data", "models", "base"}:
            remove(path)
    return project


@pytest.mark.parametrize("story", (ANEW, *RESUMED, *OTHERS), ids=lambda story: story.__name__)
def test_accident(stories: dict[Story, tuple[Project, Future[None]]], story: Story) -> None:
    stories[story][1].result()


@pytest.mark.parametrize("story", RESUMED, ids=lambda story: story.__name__)
def test_a_training_with_a_stop_in_it_learns_what_one_without_learns(
    stories: dict[Story, tuple[Project, Future[None]]], story: Story
) -> None:
    """The same losses and the same weights to the last bit, and nothing left of the way there."""
    for _, outcome in (stories[story], stories[ANEW]):
        outcome.result()
    project, whole = (stories[which][0] for which in (story, ANEW))
    expected = metrics(whole.folder / TARGET)
    assert [row["step"] for row in expected if "loss" in row] == list(range(3, STEPS + 1, 3))
    assert metrics(project.folder / TARGET) == expected
    weights = [(p.folder / TARGET / "model.safetensors").read_bytes() for p in (project, whole)]
    assert weights[0] == weights[1]
    assert not checkpoints(project)
