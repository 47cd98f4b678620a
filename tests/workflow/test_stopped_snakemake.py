"""Snakemake itself stopped or killed in the middle of a training: the next call goes on."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from running import CONFIG, Project, wait_for

RUN = "autocompressor-s0"
TARGET = f"results/micro/models/{RUN}"


def longer(content: dict[str, Any]) -> None:
    content["compressors"]["autocompressor"]["training"].update(steps=60, checkpoint_every=5)


@pytest.fixture
def training(prepared: Callable[[], Project]) -> tuple[Project, subprocess.Popen[str]]:
    """A project, and Snakemake in the middle of a training job."""
    project = prepared()
    project.experiment(longer, "micro")
    process = project.start("snakemake", "--cores", "2", TARGET, "--configfile", CONFIG)
    wait_for(project.results / "checkpoints" / RUN / "checkpoint-10" / "manifest.json", process)
    return project, process


def test_ctrl_c_saves_a_checkpoint_and_the_next_call_goes_on(
    training: tuple[Project, subprocess.Popen[str]],
) -> None:
    project, process = training
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does it: to Snakemake and its jobs alike
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "SIGINT received: saving a checkpoint after this step" in output
    assert "the same command goes on from there" in output
    assert "Traceback" not in output
    assert not (project.folder / TARGET).exists()
    done = project.snakemake(TARGET)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{RUN}: goes on from" in done.stdout + done.stderr
    assert (project.folder / TARGET / "model.safetensors").exists()


def test_a_killed_snakemake_says_how_to_unlock_and_then_goes_on(
    training: tuple[Project, subprocess.Popen[str]],
) -> None:
    """As after a power loss: nobody could tidy up."""
    project, process = training
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    locked = project.snakemake(TARGET)
    assert locked.returncode == 1
    assert "cannot be locked" in locked.stderr and "--unlock" in locked.stderr
    assert "Traceback" not in locked.stderr
    assert project.snakemake("--unlock").returncode == 0
    assert project.plan(TARGET) == {"train": 1}, "a half-done job is planned without further options"
