"""What the workflow asks of Slurm, by number of GPUs and nodes: lines of an sbatch that notes them and refuses."""

from __future__ import annotations

import re

import pytest
import yaml
from running import CONFIG, ROOT, Project, environment

COMMENTED = re.findall(r"^#   (train: .*)$", (ROOT / "workflow/profiles/slurm/config.yaml").read_text(), re.M)
FOUR, TWO_BY_FOUR = (yaml.safe_load(line)["train"] for line in COMMENTED)
"""The profile's own examples."""
TARGETS = (
    "data/tasks/world_eats.json",
    "data/instructions/translations.json",
    "data/tokenizers/base",
    "data/stories/base",
)
SHAPES = {
    "prepare_task": ({}, "--ntasks=1 --cpus-per-task=1"),
    "prepare_instructions": ({"gpu": 1, "cpus_per_task": 8}, "--cpus-per-task=8 --gpus=1"),
    "pretrain": (FOUR, "--nodes=1 --cpus-per-task=32 --gpus=4"),
    "prepare_tokenizer": (
        TWO_BY_FOUR,
        "--nodes=2 --ntasks-per-node=4 --cpus-per-task=8 --gres=gpu:4",
    ),
    "prepare_corpus": (
        {**TWO_BY_FOUR, "tasks_per_node": None, "tasks": 2, "gres": "gpu:1"},
        "--nodes=2 --ntasks=2 --cpus-per-task=8 --gres=gpu:1",
    ),
}


@pytest.fixture(scope="module")
def submitted(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    pytest.importorskip("snakemake_executor_plugin_slurm", reason="the plugin for Slurm is not installed")
    project = Project.new(tmp_path_factory.mktemp("submission"))
    programs = project.folder / "programs"
    programs.mkdir()
    for name in ("sbatch", "sacct", "sinfo", "squeue", "scontrol", "sacctmgr"):
        program = programs / name
        program.write_text(f'#!/bin/sh\necho "$@" >> "{programs}/{name}.txt"\n[ {name} != sbatch ]\n')
        program.chmod(0o755)
    # Without their inputs, which are no matter of the lines.
    for rules in (project.folder / "workflow" / "rules").glob("*.smk"):
        rules.write_text(re.sub(r"    input:\n        inputs\(.*\n", "", rules.read_text()))
    values = [
        f"{rule}:{name}={value!r}"
        for rule, (shape, _) in SHAPES.items()
        for name, value in shape.items()
        if value is not None
    ]
    targets = ["all", *(f"results/micro/{path}" for path in TARGETS)]
    options = ("--profile", "slurm", "--retries", "0", "--set-resources", *values, "--configfile", CONFIG)
    project.run("snakemake", *targets, *options, PATH=f"{programs}:{environment()['PATH']}")
    return (programs / "sbatch.txt").read_text().splitlines()


@pytest.mark.parametrize("rule", SHAPES)
def test_the_line_of(submitted: list[str], rule: str) -> None:
    (line,) = [line for line in submitted if f"--comment rule_{rule}" in line]
    asked = re.findall(r"--(?:nodes|ntasks|cpus|gpus|gres)[^ ]*", line.partition("--wrap")[0])
    assert " ".join(asked) == SHAPES[rule][1]
    assert "--requeue" in line


def test_a_model_keeps_its_gpu_where_the_command_line_replaces_the_profile(submitted: list[str]) -> None:
    lines = [line for line in submitted if re.search("rule_(train|perplexity|icl|needle|generate|benchmark)", line)]
    assert len(lines) == 9 and all(" --gpus=1 " in line for line in lines)
