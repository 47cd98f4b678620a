"""Make single results again: which files, what follows from them, and the Snakemake that makes exactly these."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

from synopsis.artifacts import Layout
from synopsis.config.experiment import Experiment
from synopsis.errors import InputError
from synopsis.progress import say
from synopsis.stages.record import stages


def rerun(
    experiment: Experiment, config: list[Path], chosen: dict[str, Any], dry_run: bool, words: list[str]
) -> NoReturn:
    """Become the Snakemake that makes the chosen results and what follows again.

    chosen: values of jobs' wildcards. words: for Snakemake's command line. InputError where no job is chosen.
    """
    if importlib.util.find_spec("snakemake") is None:
        raise InputError("Snakemake is not installed: pip install 'synopsis[workflow]'")
    if not Path("Snakefile").is_file():
        raise InputError(f"{Path.cwd()}: no Snakefile; expected the root folder of the project")
    again, follows = files(experiment, chosen)
    summed_up = [path for path in summaries(experiment) if path.exists()]
    lines = [*map(str, follows), *([f"scores and report ({len(summed_up)} files)"] if summed_up else [])]
    say("made again:" + "".join(f"\n  {path}" for path in again))
    say("follows:" + "".join(f"\n  {line}" for line in lines or ["nothing"]))
    options = ["--dry-run"] if dry_run else []
    options += words or ["--cores", "all"]
    targets = [str(path) for path in again + follows + summed_up]
    forced = [str(path) for path in again]
    command = [*targets, "--configfile", *map(str, config), "--forcerun", *forced, *options]
    os.execv(sys.executable, [sys.executable, "-m", "snakemake", *command])


def files(experiment: Experiment, chosen: dict[str, Any]) -> tuple[list[Path], list[Path]]:
    """Outputs of the chosen jobs, and the results there are that follow from them."""
    jobs = [job for stage in stages().values() for job in stage.jobs(experiment)]
    known: dict[str, list[Any]] = {name: [job.wildcards.get(name) for job in jobs] for name in chosen}
    for name, value in chosen.items():
        if value not in known[name]:
            there = ", ".join(dict.fromkeys(str(each) for each in known[name] if each is not None))
            raise InputError(f"--{name} {value}: the experiment has {there or 'none'}")
    again = [job for job in jobs if chosen.items() <= job.wildcards.items()]
    if not chosen or not again:
        asked = " ".join(f"--{name} {value}" for name, value in chosen.items())
        raise InputError(
            f"{asked or 'nothing chosen'}: no job of the experiment; expected --run, --dataset or --seed of one"
        )
    made = [path for job in again for path in job.outputs]
    changed, follows = set(made), []
    left = [job for job in jobs if not chosen.items() <= job.wildcards.items()]
    while new := [path for job in left if changed.intersection(job.inputs) for path in job.outputs]:
        left = [job for job in left if not changed.intersection(job.inputs)]
        follows += new
        changed.update(new)
    return made, [path for path in follows if path.exists()]


def summaries(experiment: Experiment) -> list[Path]:
    """What sums all results up."""
    from synopsis.reporting.items import report_files

    layout, report = Layout(experiment), report_files(experiment)
    return [layout.scores, layout.scores_csv, layout.accuracy, *(path for paths in report.values() for path in paths)]
