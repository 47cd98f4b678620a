"""What is wrong with one cell of the in-context-learning table fails that cell, and the others are made."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import yaml
from running import Finished, Project


def in_task(project: Project, name: str, **fields: Any) -> None:
    """Change the file of a task."""
    path = project.folder / "config" / "tasks" / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **fields}))


def test_a_cell_that_fails_is_told_in_the_table_beside_the_others(finished: Finished, tmp_path: Path) -> None:
    """Two settings of a data set ask for more than the model can read; the third and the other data set stand."""
    project = finished.project.copy(tmp_path / "project")

    def change(content: dict[str, Any]) -> None:
        content["icl"]["datasets"].append("world_visits")
        content["icl"]["settings"]["icl_20"] = {"plain_tokens": 90}

    in_task(project, "world_visits", tokens_per_demonstration=1)  # 90 demonstrations of five tokens
    done = project.snakemake(config=project.experiment(change, "cells"))
    assert done.returncode == 0, done.stderr
    with (project.results / "tables" / "icl.csv").open(newline="") as file:
        cells = {row["Setting"]: (row["world_eats"], row["world_visits"]) for row in csv.DictReader(file)}
    assert cells["icl_20"][1] == "failed"
    assert float(cells["icl_20"][0]) >= 0 and all(float(cell) >= 0 for cell in cells["zero_shot"])
    table = (project.results / "tables" / "icl.md").read_text()
    assert "Failed on world_visits (autocompressor-s0, icl_20, seed 0): no test example fits the model's" in table


def test_a_broken_data_set_stops_no_other(finished: Finished, tmp_path: Path) -> None:
    project = finished.project.copy(tmp_path / "project")

    def change(content: dict[str, Any]) -> None:
        content["icl"]["datasets"].append("world_visits")
        content["evaluation_seeds"] = [0, 1]

    in_task(project, "world_visits", options=["plums", "seeds"])
    done = project.snakemake(config=project.experiment(change, "broken"))
    told = done.stdout + done.stderr
    assert done.returncode != 0 and "synopsis: task 'world_visits': " in told and "Traceback" not in told
    folder = project.results / "icl" / "autocompressor-s0"
    assert (folder / "world_eats" / "seed1.json").is_file() and not (folder / "world_visits").exists()
