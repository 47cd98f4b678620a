"""One Slurm for all tests of this folder, and the micro experiment run through the profile on it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from cluster import Cluster, missing
from running import Project
from through_slurm import BEGIN, END, ended, longer, started


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    pytest.importorskip("snakemake_executor_plugin_slurm", reason="the plugin for Slurm is not installed")
    if reason := missing():
        pytest.skip(reason)
    with Cluster(tmp_path_factory.mktemp("slurm")) as running:
        yield running


@pytest.fixture(scope="session")
def begun(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Data and base model, by one job of Slurm. Tests copy this one."""
    project = Project.new(tmp_path_factory.mktemp("begun"))
    project.experiment(longer, "micro")
    ended(started(project, *BEGIN))
    return project


@pytest.fixture(scope="session")
def finished(begun: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The same to its tables. Tests only look at this one."""
    project = begun.copy(tmp_path_factory.mktemp("finished") / "project")
    ended(started(project, *END))
    return project
