"""The experiment micro.yaml, run once from nothing to the report, and copies of it for tests that change something."""

from __future__ import annotations

from pathlib import Path

import pytest
from running import Project


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Every stage of micro.yaml, by one command. Tests only look at this one."""
    pytest.importorskip("snakemake", reason="the package snakemake is not installed")
    folder = tmp_path_factory.mktemp("workflow")
    project = Project.new(folder)
    done = project.snakemake()
    assert done.returncode == 0, done.stdout + done.stderr
    project.output = done.stdout + done.stderr
    return project


@pytest.fixture
def copied(finished: Project, tmp_path: Path) -> Project:
    """A finished project of the test's own."""
    return finished.copy(tmp_path / "project")
