"""Any text that the configuration allows in a path, and what a shell would make of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from running import Project, environment

FOLDER = """it's "a" $(touch MARK) `touch MARK` ü日本 ;&|*?[a]~#%!<>\\"""
"""Of the project, of its results, and the name of its configuration."""


def one_model(content: dict[str, Any]) -> None:
    for section in ("instructions", "compressors", "icl", "needle", "generate", "judge", "benchmark"):
        del content[section]
    content["perplexity"]["runs"] = ["base"]
    content["results"] = FOLDER
    content["title"] = "$(touch MARK)"


def test_folders_of_any_name_hold_a_whole_run_and_none_of_it_is_a_command(tmp_path: Path) -> None:
    pytest.importorskip("snakemake", reason="the package snakemake is not installed")
    folder = tmp_path / FOLDER
    folder.mkdir()
    project = Project.new(folder)
    config = project.experiment(one_model, FOLDER)
    done = project.snakemake(config=config)
    assert done.returncode == 0, done.stdout + done.stderr
    results = folder / FOLDER / "micro"
    assert "base" in (results / "tables" / "perplexity.md").read_text()
    assert "step 12/12" in (results / "logs" / "train" / "base.log").read_text()
    done = project.snakemake("--report", "report.html", config=config)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "$(touch MARK)" in (folder / "report.html").read_text()
    other = "it's $(touch MARK) 😀"
    done = project.snakemake("--config", f"results={other}", "--until", "prepare_tokenizer", config=config)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / other / "micro" / "data" / "tokenizers" / "base").is_dir()
    assert not list(tmp_path.rglob("MARK"))


def test_braces_of_the_project_folder_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "{run}"
    folder.mkdir()
    done = Project.new(folder).snakemake("-n")
    assert done.returncode == 2
    assert f"synopsis: {folder}: found braces; expected a folder without them" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_text_that_the_shells_of_a_cluster_would_run_is_not_submitted(tmp_path: Path) -> None:
    pytest.importorskip("snakemake_executor_plugin_slurm", reason="the plugin for Slurm is not installed")
    project = Project.new(tmp_path)
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, code in {"sbatch": 1, "sacct": 0, "sinfo": 0, "squeue": 0, "scontrol": 0, "sacctmgr": 0}.items():
        program = programs / name
        program.write_text(f'#!/bin/sh\necho "$@" >> "{programs}/{name}.txt"\nexit {code}\n')
        program.chmod(0o755)
    options = "--profile slurm --retries 0 --slurm-init-seconds-before-status-checks 1"
    command = ["snakemake", *options.split(), "--configfile", "config/micro.yaml", "--config"]
    path = f"{programs}:{environment()['PATH']}"
    done = project.run(*command, "results=r$(touch MARK)", PATH=path)
    assert done.returncode == 2
    assert "synopsis: --config results: found 'r$(touch MARK)'; expected a text without quotes" in done.stderr
    assert not (programs / "sbatch.txt").exists() and not list(tmp_path.rglob("MARK"))
    done = project.run(*command, "results=my results", "icl={max_examples: 4}", PATH=path)
    assert "synopsis: " not in done.stderr
    submitted = (programs / "sbatch.txt").read_text()
    assert "'results=my results'" in submitted and "'icl={max_examples: 4}'" in submitted
