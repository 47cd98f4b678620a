"""Which jobs run again: those that `synopsis rerun` names, and none for a text that is only laid out anew."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from running import CONFIG, MICRO, Project, planned
from synopsis.commands.rerun import summaries
from synopsis.config.experiment import load_experiment

SUMMED_UP = {"score": 1, "report": 1}
SEED = "icl/autocompressor-s0/world_eats/seed0.json"


@pytest.mark.parametrize(
    ("options", "jobs"),
    [
        ("--run autocompressor-s0 --dataset world_eats --seed 0", {"icl": 1}),
        ("--seed 0", {"icl": 1}),
        ("--run gist-1-s0", {"train": 1, "generate": 1, "judge": 1, "benchmark": 1}),
    ],
)
def test_the_jobs_of_a_rerun(finished: Project, options: str, jobs: dict[str, int]) -> None:
    done = finished.synopsis("rerun", *options.split(), "--dry-run")
    assert done.returncode == 0, done.stderr
    assert planned(done.stdout + done.stderr) == {**jobs, **SUMMED_UP}
    assert "  scores and report (" in done.stderr


def test_a_single_seed_is_made_again_before_there_are_tables(copied: Project) -> None:
    for path in summaries(load_experiment(MICRO)):
        (copied.folder / path).unlink()
    before = (copied.results / SEED).stat().st_mtime_ns
    done = copied.synopsis("rerun", "--run", "autocompressor-s0", "--dataset", "world_eats", "--", "--cores", "1")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(f"made again:\n  results/micro/{SEED}\n")
    assert "follows:\n  nothing\n" in done.stderr
    assert planned(done.stdout + done.stderr) == {"icl": 1}
    assert (copied.results / SEED).stat().st_mtime_ns > before


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ([], "nothing chosen: no job of the experiment; expected --run, --dataset or --seed of one"),
        (["--run", "gist"], "--run gist: the experiment has autocompressor-s0, gist-1-s0, pos_control-1-s0, base"),
        (["--run", "gist-1-s0", "--seed", "0"], "--run gist-1-s0 --seed 0: no job of the experiment"),
    ],
)
def test_what_is_no_job_is_refused(call: Callable[..., tuple[int, str, str]], options: list[str], fault: str) -> None:
    code, _, err = call("rerun", "--config", MICRO, *options)
    assert code == 2 and f"synopsis: {fault}" in err


def test_a_rule_that_is_laid_out_anew_and_a_moved_comment_run_nothing(copied: Project) -> None:
    for path in (copied.folder / "workflow" / "rules").glob("*.smk"):
        text = path.read_text().replace('"synopsis --log', '"synopsis  --log')
        path.write_text("# Moved.\n" + re.sub("^# .*\n", "", text))
    assert copied.plan() == {}
    assert planned_on_a_cluster(copied) == {}


def test_a_new_table_makes_the_report_alone(copied: Project) -> None:
    (copied.results / "tables" / "icl.md").unlink()
    assert copied.plan() == {"report": 1}


def planned_on_a_cluster(project: Project) -> dict[str, int]:
    pytest.importorskip("snakemake_executor_plugin_slurm", reason="the plugin for Slurm is not installed")
    done = project.run("snakemake", "--profile", "slurm", "-n", "--configfile", CONFIG)
    assert done.returncode == 0, done.stdout + done.stderr
    return planned(done.stdout + done.stderr)
