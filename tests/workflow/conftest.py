"""The experiment micro.yaml, run once from nothing to the report, and copies of it for tests that change something."""

from __future__ import annotations

from pathlib import Path

import pytest
from running import Finished, Project


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Every stage of micro.yaml, by one command. Tests only look at this one."""
    pytest.importorskip("snakemake", reason="the package snakemake is not installed")
    folder = tmp_path_factory.mktemp("workflow")
    project = Project.new(folder)
    done = project.snakemake()
    assert done.returncode == 0, done.stdout + done.stderr
    return Finished(project, done)


@pytest.fixture
def copied(finished: Finished, tmp_path: Path) -> Project:
    """A finished project of the test's own."""
    return finished.project.copy(tmp_path / "project")
