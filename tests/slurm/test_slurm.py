"""The workflow on a Slurm of its own: what is asked for, and that work which is cut short ends as if it had not been.

Each story is a training in a project of its own; they wait most of the time, so four of them run at once.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster
from running import Project, metrics, remove, wait_for
from through_slurm import RUN, SECONDS, SNAKEMAKE, STEPS, TARGET, ended

pytestmark = [pytest.mark.timeout(2 * SECONDS), pytest.mark.xdist_group("slurm")]


# ------------------------------------------------------------------------------------------------- what stories need


def jobs(project: Project, cluster: Cluster) -> list[str]:
    """Numbers of a project's jobs that wait or run, the oldest first."""
    lines = cluster.call("squeue", "--noheader", "--sort=i", "--format=%i %Z").splitlines()
    return [number for number, folder in (line.split(maxsplit=1) for line in lines) if Path(folder) == project.folder]


def started(project: Project, *words: str) -> subprocess.Popen[str]:
    return project.start(SNAKEMAKE[0], TARGET, *SNAKEMAKE[1:], *words)


def held(project: Project, controller: subprocess.Popen[str]) -> int:
    """The process that trains, standing still after its second checkpoint."""
    folder = project.results / "checkpoints" / RUN
    wait_for(folder / "checkpoint-10" / "manifest.json", controller)
    process = int(re.findall(r'"process": (\d+)', (folder / "lock.json").read_text())[0])
    os.kill(process, signal.SIGSTOP)
    return process


def log(project: Project) -> str:
    """What the job said so far; a job that starts again begins it anew."""
    path = project.results / "logs" / "train" / f"{RUN}.log"
    return path.read_text() if path.exists() else ""


# ------------------------------------------------------------------------------------------------- stories


def cancelled(project: Project, cluster: Cluster) -> None:
    controller = started(project)
    held(project, controller)
    cluster.call("scancel", *jobs(project, cluster))
    assert "SLURM status is: 'CANCELLED'" in ended(controller)
    assert f"{RUN}: resumes from " in log(project)


def at_its_time_limit(project: Project, cluster: Cluster) -> None:
    controller = started(project, "--set-resources", "train:runtime=attempt")
    held(project, controller)
    assert "SLURM status is: 'TIMEOUT'" in ended(controller)
    assert f"{RUN}: resumes from " in log(project)


def killed(project: Project, cluster: Cluster) -> None:
    controller = started(project)
    os.kill(held(project, controller), signal.SIGKILL)
    assert "SLURM status is: 'FAILED'" in ended(controller)
    assert f"{RUN}: resumes from " in log(project)


def warned(project: Project, cluster: Cluster) -> None:
    """As before a time limit. Slurm queues the same job again, and Snakemake sees no failure."""
    controller = started(project)
    process = held(project, controller)
    number = jobs(project, cluster)[0]
    cluster.call("scancel", "--signal=USR1", number)
    os.kill(process, signal.SIGCONT)
    assert "SLURM status" not in ended(controller)
    assert f"{RUN}: resumes from " in log(project)
    states = cluster.call("sacct", "--noheader", "--duplicates", "--allocations", "--format=State", f"--jobs={number}")
    assert states.split() == ["REQUEUED", "COMPLETED"]


def without_its_controller(project: Project, cluster: Cluster) -> None:
    """The job runs on. That of the next Snakemake waits for it, and takes its model."""
    controller = started(project)
    process = held(project, controller)
    os.killpg(controller.pid, signal.SIGKILL)
    controller.communicate()
    assert project.run(*SNAKEMAKE, "--unlock").returncode == 0
    second = started(project)
    while "waiting for it to end" not in log(project):
        assert second.poll() is None, second.communicate()[0]
        time.sleep(0.5)
    os.kill(process, signal.SIGCONT)
    ended(second)
    assert f"{RUN}: finished by the other process; taking {TARGET}\n" in log(project)


def of_processes(project: Project, nodes: int) -> None:
    """Two on each node."""
    shape = f"nodes={nodes} tasks_per_node=2 tasks_per_gpu=0 gpu=0 gres='gpu:2' cpus_per_task=2 mem_mb=8000"
    start = f"start='srun --nodes={nodes} --ntasks-per-node=2 --gpus-per-node=2 --kill-on-bad-exit=1'"
    ended(started(project, "--set-resources", *(f"train:{value}" for value in ["mpi='srun'", *shape.split(), start])))
    assert f'"processes": {2 * nodes}' in (project.folder / TARGET / "provenance.json").read_text()


def on_one_node(project: Project, cluster: Cluster) -> None:
    of_processes(project, 1)


def on_two_nodes(project: Project, cluster: Cluster) -> None:
    of_processes(project, 2)


RESUMED = (at_its_time_limit, warned, cancelled, killed, without_its_controller)
"""The slowest first."""
Story = Callable[[Project, Cluster], None]


@pytest.fixture(scope="module")
def stories(
    finished: Project, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[Story, tuple[Project, Future[None]]]]:
    """Each story under way, in a project that has data and base model and nothing else."""
    under_way = {}
    with ThreadPoolExecutor(4) as pool, pytest.MonkeyPatch.context() as patch:
        patch.setenv("MASTER_ADDR", "127.0.0.1")  # the names of the nodes lead nowhere
        for story in (*RESUMED, on_one_node, on_two_nodes):
            project = finished.copy(tmp_path_factory.mktemp("story") / story.__name__)
            remove(project.folder / TARGET)
            shutil.rmtree(project.results / "logs" / "train")
            under_way[story] = project, pool.submit(story, project, cluster)
        yield under_way
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("story", RESUMED, ids=lambda story: story.__name__)
def test_a_training_that_was(stories: Any, finished: Project, story: Story) -> None:
    """... has the losses and the weights of one that was not, to the last bit."""
    project, outcome = stories[story]
    outcome.result()
    assert metrics(project.folder / TARGET) == metrics(finished.folder / TARGET)
    weights = [(each.folder / TARGET / "model.safetensors").read_bytes() for each in (project, finished)]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("story", (on_one_node, on_two_nodes), ids=lambda story: story.__name__)
def test_two_processes_on_each_node_have_the_losses_of_one(stories: Any, finished: Project, story: Story) -> None:
    project, outcome = stories[story]
    outcome.result()
    rows = [[row["loss"] for row in metrics(each.folder / TARGET) if "loss" in row] for each in (project, finished)]
    assert len(rows[0]) == STEPS / 3 and rows[0] == pytest.approx(rows[1], rel=1e-4)


# ------------------------------------------------------------------------------------------------- the whole of it


def test_the_experiment_has_its_tables_and_the_numbers_of_this_machine(finished: Project, cluster: Cluster) -> None:
    assert (finished.results / "report.html").stat().st_size > 10_000
    provenance = (finished.folder / TARGET / "provenance.json").read_text()
    assert re.search(r'"host": "\w', provenance) and re.search(r'"slurm_job": "\d+"', provenance)
    undisturbed = finished.copy(finished.folder.with_name("local"))
    remove(undisturbed.folder / TARGET)
    assert undisturbed.synopsis("train", RUN).returncode == 0
    weights = [(each.folder / TARGET / "model.safetensors").read_bytes() for each in (undisturbed, finished)]
    assert weights[0] == weights[1]


def test_slurm_was_asked_for_what_the_profile_says(finished: Project, cluster: Cluster) -> None:
    """One job a group of cells, which asks for what one cell does; nothing failed."""
    fields = "--format=State,ReqTRES,SubmitLine"
    lines = cluster.call("sacct", "--noheader", "--parsable2", "--allocations", fields).splitlines()
    asked: dict[str, list[list[str]]] = {}
    for line in lines:
        state, resources, submitted = line.split("|", 2)
        if str(finished.folder) in submitted:
            assert state == "COMPLETED"
            rule = re.search(r"--comment rule_(\w+?)(?:_wildcards|\s)", submitted)
            assert rule is not None, submitted
            asked.setdefault(rule[1], []).append([resources, submitted])
    assert len(asked["train"]) == 3 and len(asked["cells_generate"]) == 1, asked.keys()
    for rule in ("train", "pretrain", "cells_generate", "icl"):
        for resources, submitted in asked[rule]:
            assert {"cpu=8", "gres/gpu=1", "mem=62.50G", "node=1"} <= set(resources.split(","))
            assert ("--signal=USR1@300" in submitted) == ("train" in rule)
    assert "gpu" not in asked["score"][0][0]
