"""The workflow on a Slurm of its own: what is asked for, and that work which is cut short ends as if it had not been.

Each story is a training in a project of its own. They wait most of the time, so several run at once, beside the rest of
the experiment.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster
from running import CONFIG, Project, metrics, wait_for_line
from through_slurm import OPTIONS, RUN, SECONDS, STEPS, TARGET, ended, held, started

pytestmark = pytest.mark.timeout(2 * SECONDS)


# ------------------------------------------------------------------------------------------------- what stories need


def jobs(project: Project, cluster: Cluster) -> list[str]:
    """Numbers of a project's jobs that wait or run, the oldest first."""
    lines = cluster.call("squeue", "--noheader", "--sort=i", "--format=%i %Z").splitlines()
    return [number for number, folder in (line.split(maxsplit=1) for line in lines) if Path(folder) == project.folder]


def log(project: Project) -> str:
    """What the job said so far; a job that starts again begins it anew."""
    path = project.results / "logs" / "train" / f"{RUN}.log"
    return path.read_text() if path.exists() else ""


# ------------------------------------------------------------------------------------------------- stories


def cancelled(project: Project, cluster: Cluster) -> None:
    controller = started(project, TARGET)
    held(project, controller)
    cluster.call("scancel", *jobs(project, cluster))
    assert "SLURM status is: 'CANCELLED'" in ended(controller)
    assert f"{RUN}: resumes from " in log(project)


def at_its_time_limit(project: Project, cluster: Cluster) -> None:
    controller = started(project, TARGET, "--set-resources", "train:runtime=attempt")
    held(project, controller)
    assert "SLURM status is: 'TIMEOUT'" in ended(controller)
    assert f"{RUN}: resumes from " in log(project)


def killed(project: Project, cluster: Cluster) -> None:
    controller = started(project, TARGET)
    os.kill(held(project, controller), signal.SIGKILL)
    assert "SLURM status is: 'FAILED'" in ended(controller)
    assert f"{RUN}: resumes from " in log(project)


def warned(project: Project, cluster: Cluster) -> None:
    """As before a time limit. Slurm queues the same job again, and Snakemake sees no failure."""
    controller = started(project, TARGET)
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
    controller = started(project, TARGET)
    process = held(project, controller)
    os.killpg(controller.pid, signal.SIGKILL)
    controller.communicate()
    assert project.run("snakemake", *OPTIONS, "--unlock").returncode == 0
    second = started(project, TARGET)
    while "waiting for it to end" not in log(project):
        assert second.poll() is None, second.communicate()[0]
        time.sleep(0.5)
    os.kill(process, signal.SIGCONT)
    ended(second)
    assert f"{RUN}: finished by the other process; taking {TARGET}\n" in log(project)


def of_processes(project: Project, nodes: int) -> None:
    """Two on each node."""
    shape = f"nodes={nodes} tasks_per_node=2 tasks_per_gpu=0 gpu=0 gres='gpu:2' cpus_per_task=2 mem_mb=8000"
    srun = f"srun --nodes={nodes} --ntasks-per-node=2 --gpus-per-node=2 --kill-on-bad-exit=1"
    start = f"start='MASTER_ADDR=127.0.0.1 {srun}'"  # the names of the nodes lead nowhere
    values = [f"train:{value}" for value in ["mpi='srun'", *shape.split(), start]]
    ended(started(project, TARGET, "--set-resources", *values))
    assert f'"processes": {2 * nodes}' in (project.folder / TARGET / "provenance.json").read_text()


def on_one_node(project: Project, cluster: Cluster) -> None:
    of_processes(project, 1)


def on_two_nodes(project: Project, cluster: Cluster) -> None:
    of_processes(project, 2)


def sent_by_submitit(project: Project, cluster: Cluster) -> None:
    """One of a sweep of two gets the signal that comes before a time limit, in all its processes."""
    size = ("account=lab", "cpus_per_task=1", "mem_gb=4", "timeout_min=30")
    sweep = ("train", "--config", CONFIG, "--compressor", "autocompressor", "--seed", "0:2", "--wait")
    sender = project.start("synopsis", "submit", *sweep, *(f"--slurm={value}" for value in size))
    number = wait_for_line(f"train {RUN}", sender).split()[-3]
    process = held(project, sender)
    cluster.call("scancel", "--signal=USR2", number)
    os.kill(process, signal.SIGCONT)
    assert f"train {RUN}: done" in ended(sender)
    assert (project.results / "models" / "autocompressor-s1" / "model.safetensors").exists()
    (log,) = project.results.rglob(f"logs/submit/train-*/{number}_0_log.out")
    assert f"Requeued job {number}" in log.read_text()


def without_slurm(project: Project, cluster: Cluster) -> None:
    done = project.synopsis("train", RUN)
    assert done.returncode == 0, done.stderr


EQUAL = (at_its_time_limit, warned, cancelled, killed, without_its_controller, sent_by_submitit, without_slurm)
"""The slowest first."""
PARALLEL = (on_one_node, on_two_nodes)
Story = Callable[[Project, Cluster], None]


@pytest.fixture(scope="session")
def stories(
    begun: Project, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[Story, tuple[Project, Future[None]]]]:
    """Each story under way, in a project that has data and base model."""
    under_way = {}
    with ThreadPoolExecutor(4) as pool:
        for story in (*EQUAL, *PARALLEL):
            project = begun.copy(tmp_path_factory.mktemp("story") / story.__name__)
            under_way[story] = project, pool.submit(story, project, cluster)
        yield under_way
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("story", EQUAL, ids=lambda story: story.__name__)
def test_a_training_that_was(stories: Any, finished: Project, story: Story) -> None:
    """... has the losses and the weights of one that Slurm ran undisturbed, to the last bit."""
    project, outcome = stories[story]
    outcome.result()
    assert metrics(project.folder / TARGET) == metrics(finished.folder / TARGET)
    weights = [(each.folder / TARGET / "model.safetensors").read_bytes() for each in (project, finished)]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("story", PARALLEL, ids=lambda story: story.__name__)
def test_two_processes_on_each_node_have_the_losses_of_one(stories: Any, finished: Project, story: Story) -> None:
    project, outcome = stories[story]
    outcome.result()
    rows = [[row["loss"] for row in metrics(each.folder / TARGET) if "loss" in row] for each in (project, finished)]
    assert len(rows[0]) == STEPS / 3 and rows[0] == pytest.approx(rows[1], rel=1e-4)


# ------------------------------------------------------------------------------------------------- the whole of it


def test_the_experiment_has_its_tables_and_names_its_machine_and_jobs(finished: Project) -> None:
    assert (finished.results / "report.html").stat().st_size > 10_000
    provenance = (finished.folder / TARGET / "provenance.json").read_text()
    assert re.search(r'"host": "\w', provenance) and re.search(r'"slurm_job": "\d+"', provenance)


def test_a_partition_that_is_not_there_is_reported_before_the_first_job(begun: Project) -> None:
    done = begun.run("snakemake", TARGET, *OPTIONS, "slurm_partition='gpu'")
    assert done.returncode == 2
    assert done.stderr.endswith("synopsis: slurm_partition: found 'gpu'; this cluster has all\n")


def test_slurm_was_asked_for_what_the_profile_says(begun: Project, finished: Project, cluster: Cluster) -> None:
    """One job a group, of which that of cells asks for what one cell does; nothing failed."""
    fields = "--format=State,ReqTRES,SubmitLine"
    lines = cluster.call("sacct", "--noheader", "--parsable2", "--allocations", fields).splitlines()
    asked: dict[str, list[list[str]]] = {}
    for line in lines:
        state, resources, submitted = line.split("|", 2)
        if any(str(project.folder) in submitted for project in (begun, finished)):
            assert state == "COMPLETED"
            rule = re.search(r"--comment rule_([a-z]+)", submitted)
            assert rule is not None, submitted
            asked.setdefault(rule[1], []).append([resources, submitted])
    numbers = {"first": 1, "prepare": 2, "train": 3, "icl": 1, "cells": 1, "last": 1}
    assert {rule: len(jobs) for rule, jobs in asked.items()} == numbers
    for rule in ("train", "icl", "cells"):
        for resources, submitted in asked[rule]:
            assert {"cpu=8", "gres/gpu=1", "mem=62.50G", "node=1"} <= set(resources.split(","))
            assert ("--signal=USR1@300" in submitted) == (rule == "train")
    assert "gpu" not in asked["last"][0][0]
