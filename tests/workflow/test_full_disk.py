"""A disk that fills up: a message, nothing half-written, and the same command goes on once there is room."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running import Project, leftovers, remove

RUN = "autocompressor-s0"
ROOM = 330
"""KiB beside the inputs: one checkpoint and a half."""


def longer(content: dict[str, Any]) -> None:
    content["compressors"]["autocompressor"]["training"].update(steps=20, checkpoint_every=5)
    content["corpora"]["many"] = {**content["corpora"]["stories"], "documents": 3000}


@pytest.fixture
def small_disk(copied: Project) -> Iterator[Project]:
    """A project whose results lie on a disk of their own, in memory, that is all but full."""
    project = copied
    project.experiment(longer, "longer")
    remove(project.results / "models" / RUN)
    kept, disk = project.folder / "kept", project.folder / "results"
    disk.rename(kept)
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a disk in memory cannot be mounted here (that takes the rights of root)")
    try:
        shutil.copytree(kept, disk, dirs_exist_ok=True, symlinks=True)
        resize(disk, used(disk) + ROOM)
        yield project
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def used(disk: Path) -> int:
    """KiB."""
    state = os.statvfs(disk)
    return (state.f_blocks - state.f_bfree) * state.f_frsize // 1024


def resize(disk: Path, kilobytes: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", str(disk)], check=True)


def test_a_full_disk_is_told_and_the_same_command_goes_on_once_there_is_room(small_disk: Project) -> None:
    disk, log = small_disk.folder / "results", "results/micro/logs/training.log"
    train = ("synopsis", "--log", log, "train", "--config", "config/longer.yaml", RUN)
    prepare = ("synopsis", "prepare", "--config", "config/longer.yaml", "corpus", "many", "base")
    made = {train: small_disk.results / "models" / RUN, prepare: small_disk.results / "data" / "many" / "base"}
    for command, path in made.items():
        done = small_disk.run(*command)
        assert done.returncode == 1, done.stderr
        (message,) = [line for line in done.stderr.splitlines() if line.startswith("synopsis: ")]
        assert "the disk is full" in message and "start again" in message
        assert "Traceback" not in done.stderr
        assert not path.exists() and leftovers(small_disk.results) == []
    resize(disk, 64 * 1024)
    for command, path in made.items():
        done = small_disk.run(*command)
        assert done.returncode == 0, done.stderr
        assert (path / "provenance.json").exists()
        if command == train:
            assert "goes on from results/micro/checkpoints" in done.stderr
