"""A sweep that submitit sends to Slurm."""

from __future__ import annotations

import os
import signal

import pytest
from cluster import Cluster
from running import CONFIG, Project, metrics, wait_for_line
from through_slurm import RUN, SECONDS, TARGET, ended, held

pytestmark = [pytest.mark.timeout(2 * SECONDS), pytest.mark.xdist_group("slurm")]
SIZE = ("account=lab", "cpus_per_task=1", "mem_gb=4", "timeout_min=30")


def test_a_job_that_gets_the_signal_of_its_time_limit_is_queued_again(
    begun: Project, finished: Project, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """It has the losses and the weights of one that ran undisturbed; the other one of the sweep runs beside it."""
    project = begun.copy(tmp_path_factory.mktemp("submit") / "project")
    sweep = ("train", "--config", CONFIG, "--compressor", "autocompressor", "--seed", "0:2", "--wait")
    sender = project.start("synopsis", "submit", *sweep, *(f"--slurm={value}" for value in SIZE))
    number = wait_for_line(f"train {RUN}", sender).split()[-3]
    process = held(project, sender)
    cluster.call("scancel", "--signal=USR2", number)
    os.kill(process, signal.SIGCONT)
    assert f"train {RUN}: done" in ended(sender)
    assert (project.results / "models" / "autocompressor-s1" / "model.safetensors").exists()
    assert metrics(project.folder / TARGET) == metrics(finished.folder / TARGET)
    weights = [(each.folder / TARGET / "model.safetensors").read_bytes() for each in (project, finished)]
    assert weights[0] == weights[1]
    fields = ("--noheader", "--duplicates", "--allocations", "--format=State")
    assert cluster.call("sacct", *fields, f"--jobs={number}").split() == ["REQUEUED", "COMPLETED"]
