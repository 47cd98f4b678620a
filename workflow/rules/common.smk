# Reads and checks the experiment before the DAG is built, and names what the rules share.
import contextlib
import json
import re
import shlex
import sys

from synopsis.stages import plan
from synopsis.artifacts import Layout, make_room
from synopsis.config.experiment import load_experiment
from synopsis.config.yaml_files import parse_value
from synopsis.errors import InputError, SynopsisError
from synopsis.reporting.files import report_files, report_item, score_inputs

CONFIG_FILES = [str(path) for path in workflow.config_settings.configfiles] or [
    "config/demo.yaml"
]


plan.find_own_commands()


def flat(changes, prefix=""):
    """The values of `snakemake --config`, by dotted key."""
    for key, value in changes.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", typed(value, f"--config {prefix}{key}")


def typed(value, origin):
    """Snakemake leaves numbers inside lists and sections as text; here they are what they would be in a file."""
    if isinstance(value, dict):
        return {key: typed(inner, origin) for key, inner in value.items()}
    if isinstance(value, list):
        return [typed(inner, origin) for inner in value]
    return parse_value(value, origin) if isinstance(value, str) else value


@contextlib.contextmanager
def one_message():
    """What is wrong, without a traceback."""
    try:
        yield
    except SynopsisError as error:
        print(f"synopsis: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


with one_message():
    if set("{}") & set(workflow.basedir):
        raise InputError(
            f"{workflow.basedir}: found braces; expected a folder without them: Snakemake takes them for wildcards"
        )
    make_room(".snakemake/locks")
    OVERRIDES = dict(flat(workflow.config_settings.config))
    EXPERIMENT = load_experiment(*CONFIG_FILES, overrides=OVERRIDES)

# The front page of the HTML report reads these.
config.setdefault("name", EXPERIMENT.name)
config.setdefault("title", EXPERIMENT.title or EXPERIMENT.name)
LAYOUT = Layout(EXPERIMENT)
RESULTS = LAYOUT.root
LOGS = LAYOUT.root / "logs"
REPORT_FILES = report_files(EXPERIMENT)
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
            plan.check_submitted(
                [
                    *(
                        (f"--config {key}", value)
                        for key, value in OVERRIDES.items()
                    ),
                    *(("--configfile", file) for file in CONFIG_FILES),
                    ("--snakefile", str(workflow.main_snakefile)),
                ]
            )
        make_room(LOGS)


def one_of(names):
    """Wildcard constraint that matches these names, and nothing when there are none."""
    return "|".join(re.escape(str(name)) for name in names) or "(?!)"


def shown(path):
    """The file, marked for Snakemake's HTML report where it has a place there."""
    item = report_item(path)
    if item is None:
        return path
    caption = f"../report/{item.caption}"
    return report(path, caption=caption, category=item.category, labels=item.labels)


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
