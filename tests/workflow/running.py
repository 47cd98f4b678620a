"""A project folder of its own for each test: real `snakemake` and `synopsis` processes on an experiment of seconds.

The folder holds what a user's checkout holds (Snakefile, workflow, config), so that nothing that runs in the repository
itself, nor Snakemake's lock there, gets in the way.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
MICRO = Path(__file__).with_name("micro.yaml")
PARTS = ("Snakefile", "profiles", "slurm", "workflow", "config", "envs")
PROGRAMS = Path(sys.executable).parent
WAIT_SECONDS = 120.0
CONFIG = "config/micro.yaml"
TRAINING_SECONDS = re.compile(r"(runtime|_per_second)$")
"""Columns of metrics.jsonl that show how fast the machine is."""


def environment(**changes: str) -> dict[str, str]:
    """One thread a process, no network, no mirror of the machine that runs the tests."""
    kept = {key: value for key, value in os.environ.items() if key not in {"SYNOPSIS_DATA", "SNAKEMAKE_PROFILE"}}
    fixed = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "200"}
    return {**kept, "PATH": f"{PROGRAMS}:{os.environ['PATH']}", **fixed, **changes}


@dataclass
class Project:
    """A copy of the project in `folder`, with the experiment config/micro.yaml."""

    folder: Path
    output: str = ""
    """What Snakemake said when it made the results."""

    @classmethod
    def new(cls, folder: Path) -> Project:
        for part in PARTS:
            source = ROOT / part
            if source.is_dir() and not source.is_symlink():
                shutil.copytree(source, folder / part, symlinks=True)
            else:
                shutil.copy2(source, folder / part, follow_symlinks=False)
        shutil.copy2(MICRO, folder / CONFIG)
        return cls(folder)

    def copy(self, folder: Path) -> Project:
        """The project with its results and what Snakemake knows of them, times of files included."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return Project(folder)

    @property
    def results(self) -> Path:
        return self.folder / "results" / "micro"

    def snakemake(self, *arguments: str, config: str = CONFIG) -> subprocess.CompletedProcess[str]:
        return self.run("snakemake", "--cores", "2", *arguments, "--configfile", config)

    def synopsis(self, stage: str, *arguments: str, config: str = CONFIG) -> subprocess.CompletedProcess[str]:
        return self.run("synopsis", stage, "--config", config, *arguments)

    def run(self, *command: str, **changes: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=self.folder, env=environment(**changes), capture_output=True, text=True, timeout=600
        )

    def start(self, *command: str) -> subprocess.Popen[str]:
        """A process in a group of its own, as a shell starts it; both its outputs go to one pipe."""
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def plan(self, *arguments: str, config: str = CONFIG) -> dict[str, int]:
        """Rule -> number of jobs that Snakemake would run, without the target rule."""
        done = self.snakemake("-n", *arguments, config=config)
        assert done.returncode == 0, done.stdout + done.stderr
        return planned(done.stdout + done.stderr)

    def experiment(self, change: Callable[[dict[str, Any]], Any], name: str = "changed") -> str:
        """Write the experiment with a change to config/<name>.yaml; the results stay where they are."""
        content = json.loads(json.dumps(yaml.safe_load(MICRO.read_text())))  # what an anchor shares becomes two
        change(content)
        path = self.folder / "config" / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return str(path.relative_to(self.folder))


def planned(output: str) -> dict[str, int]:
    """The first table "Job stats" of Snakemake's output."""
    if "Nothing to be done" in output:
        return {}
    _, found, rest = output.partition("Job stats:\n")
    assert found, output
    table = rest.split("\n\n")[0].splitlines()[2:]
    counts = {rule: int(count) for rule, count in (line.split() for line in table)}
    return {rule: count for rule, count in counts.items() if rule not in {"all", "total"}}


def wait_for(path: Path, process: subprocess.Popen[str], seconds: float = WAIT_SECONDS) -> None:
    """Return when a file is there; fails when the process ends before, or after a long time."""
    end = time.monotonic() + seconds
    while not path.exists():
        if process.poll() is not None:
            raise AssertionError(f"the process ended before {path.name} was there:\n{process.communicate()[0]}")
        if time.monotonic() > end:
            process.kill()
            raise AssertionError(f"{path} did not appear within {seconds:.0f} s")
        time.sleep(0.005)


def wait_for_line(text: str, process: subprocess.Popen[str]) -> str:
    """Read the process's output up to the first line that holds `text`; returns what was read."""
    assert process.stdout is not None
    read = ""
    for line in process.stdout:
        read += line
        if text in line:
            return read
    raise AssertionError(f"the process ended before it said {text!r}:\n{read}")


def stopped(process: subprocess.Popen[str], number: signal.Signals) -> tuple[int, str]:
    """Send a signal to the process alone; its exit code (negative: killed by that signal) and output."""
    process.send_signal(number)
    output, _ = process.communicate(timeout=WAIT_SECONDS)
    return process.returncode, output


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Rows of a finished run's metrics.jsonl, without what depends on the speed of the machine."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not TRAINING_SECONDS.search(key)} for row in rows]


def leftovers(folder: Path) -> list[str]:
    """Temporary files that a process should not have left behind."""
    return [str(path.relative_to(folder)) for path in folder.rglob("*.partial*")]


def remove(path: Path) -> None:
    """A file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
