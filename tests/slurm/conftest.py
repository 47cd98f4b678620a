"""One Slurm for all tests of this folder, and the micro experiment run through the profile on it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from cluster import Cluster, missing
from running import Project
from through_slurm import SNAKEMAKE, ended, longer


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    pytest.importorskip("snakemake_executor_plugin_slurm", reason="the plugin for Slurm is not installed")
    if reason := missing():
        pytest.skip(reason)
    with Cluster(tmp_path_factory.mktemp("slurm")) as started:
        yield started


@pytest.fixture(scope="session")
def finished(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The micro experiment, through the profile to its tables. Tests only look at this one."""
    project = Project.new(tmp_path_factory.mktemp("workflow"))
    project.experiment(longer, "micro")
    ended(project.start(*SNAKEMAKE, "--groups", "generate=cells", "--group-components", "cells=2"))
    return project
