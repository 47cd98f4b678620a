# Reads and checks the experiment before the DAG is built, and names what the rules share.
import json
import shlex
from pathlib import Path

from synopsis.artifacts import Layout, make_room
from synopsis.config.experiment import load_experiment
from synopsis.errors import InputError
from synopsis.reporting.items import places_in_report, report_files
from synopsis.stages.prepare.section import PREPARE
from synopsis.stages.record import stages
from synopsis.stages.workflow import (
    check_slurm,
    check_submitted,
    find_own_commands,
    leave_warnings_to_jobs,
    one_message,
    on_one_volume,
    one_of,
    overrides,
)

CONFIG_FILES = [str(path) for path in workflow.config_settings.configfiles] or [
    "config/demo.yaml"
]
STAGES = stages()

find_own_commands()
leave_warnings_to_jobs()
with one_message():
    if set("{}") & set(workflow.basedir):
        raise InputError(
            f"{workflow.basedir}: found braces; expected a folder without them: Snakemake takes them for wildcards"
        )
    workflow.storage_settings = on_one_volume(workflow.storage_settings)
    make_room(".snakemake/locks")
    OVERRIDES = overrides(workflow.config_settings.config)
    EXPERIMENT = load_experiment(*CONFIG_FILES, overrides=OVERRIDES)
    PLACES = places_in_report(EXPERIMENT, Path(".snakemake/captions").absolute())

# The front page of the HTML report reads these.
config.setdefault("name", EXPERIMENT.name)
config.setdefault("title", EXPERIMENT.title or EXPERIMENT.name)
LAYOUT = Layout(EXPERIMENT)
LOGS = LAYOUT.root / "logs"
REPORT_FILES = [path for paths in report_files(EXPERIMENT).values() for path in paths]
# How a job's command names the experiment: the same files and changes as on Snakemake's own command line.
CONFIG = shlex.join(
    [word for file in CONFIG_FILES for word in ("--config", file)]
    + [
        word
        for key, value in OVERRIDES.items()
        for word in ("--set", f"{key}={json.dumps(value, ensure_ascii=False)}")
    ]
)


# Before the first job, and not in a dry run or where nothing is to be done: finished results may be read-only.
onstart:
    with one_message():
        if workflow.non_local_exec:
            changes = [
                (f"--config {key}", value) for key, value in OVERRIDES.items()
            ]
            files = [("--configfile", file) for file in CONFIG_FILES]
            snakefile = ("--snakefile", str(workflow.main_snakefile))
            check_submitted([*changes, *files, snakefile])
        if workflow.executor_plugin.name == "slurm":
            jobs = {
                job.rule.name: job for job in workflow.dag.needrun_jobs()
            }.values()
            check_slurm({job.resources.get("slurm_partition") for job in jobs})
        make_room(LOGS)


def inputs(jobs):
    return lambda wildcards: jobs.inputs(EXPERIMENT, **dict(wildcards.items()))


def fingerprint(jobs):
    """Kept as a parameter of a job: a changed setting makes exactly those jobs run again that it touches."""
    return lambda wildcards: jobs.fingerprint(EXPERIMENT, **dict(wildcards.items()))


def outputs(jobs):
    return jobs.patterns(LAYOUT)


def grows(first):
    """A resource of which each attempt at a job gets as much again as the first one had."""
    return lambda wildcards, attempt: first * attempt


def shown(path):
    """The file, marked for Snakemake's HTML report where it has a place there."""
    return report(path, **PLACES[path]) if path in PLACES else path


LOADED = [
    name for name, model in EXPERIMENT.models.items() if model.architecture is None
]
SCRATCH = [name for name in EXPERIMENT.models if name not in LOADED]


wildcard_constraints:
    model=one_of(EXPERIMENT.models),
    run=one_of(EXPERIMENT.run_names),
    corpus=one_of(EXPERIMENT.corpora),
    instructions=one_of(EXPERIMENT.instructions),
    dataset=one_of(EXPERIMENT.tasks),
    seed=r"\d+",
    split=one_of(EXPERIMENT.generate.splits if EXPERIMENT.generate else []),
    judge=one_of(EXPERIMENT.judges),
    a=one_of(EXPERIMENT.run_names),
    b=one_of(EXPERIMENT.run_names),
