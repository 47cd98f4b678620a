"""A disk that fills up: a message, nothing half-written, and the same command resumes once there is room.

And folders that cannot be written at all.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running import CONFIG, Project, leftovers, remove

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


def test_a_full_disk_is_reported_and_the_same_command_resumes_once_there_is_room(small_disk: Project) -> None:
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
            assert "resumes from results/micro/checkpoints" in done.stderr


def test_a_context_that_does_not_fit_is_one_message_and_no_file(small_disk: Project) -> None:
    disk = small_disk.folder / "results"
    resize(disk, used(disk))
    model, out = "results/micro/models/gist-1-s0", "results/noric.safetensors"
    done = small_disk.run("synopsis", "compress", model, "Say these in Noric", "--out", out)
    assert done.returncode == 1
    *_, message = done.stderr.splitlines()
    assert message.startswith(f"synopsis: {out}: the disk is full") and "Traceback" not in done.stderr
    assert not (small_disk.folder / out).exists() and leftovers(disk) == []


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    command = ["mount", "--bind", str(folder), str(folder)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a folder cannot be made read-only here (that takes the rights of root)")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def refused(project: Project, config: str) -> str:
    """The one message of a Snakemake that starts no job."""
    done = project.snakemake(config=config)
    output = done.stdout + done.stderr
    assert done.returncode == 2, output
    assert "Traceback" not in output and "Error" not in output
    (message,) = [line for line in output.splitlines() if line.startswith("synopsis: ")]
    assert not list((project.folder / ".snakemake").glob("locks/*")), "a lock that stays"
    return message


def test_read_only_results_are_reported_before_the_first_job(copied: Project) -> None:
    for part in ("tables", "figures", "pages"):
        shutil.rmtree(copied.results / part)
    (copied.results / "report.html").unlink()
    new = copied.experiment(lambda content: content.update(name="new"), "new")
    with read_only(copied.folder / "results"):
        assert (
            refused(copied, CONFIG)
            == "synopsis: results/micro/logs: cannot be written: results/micro allows no new files"
        )
        message = "results/new/logs: its folder cannot be made: Read-only file system (results/new)"
        assert refused(copied, new) == f"synopsis: {message}"
        assert copied.plan() == {"report": 1}, "a dry run writes no results"


def test_a_read_only_working_folder_is_reported(tmp_path: Path) -> None:
    project = Project.new(tmp_path)
    with read_only(tmp_path):
        message = ".snakemake/locks: its folder cannot be made: Read-only file system (.snakemake)"
        assert refused(project, CONFIG) == f"synopsis: {message}"
