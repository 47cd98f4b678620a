"""The command line: one subcommand a stage. torch and its like are imported by the stage that needs them."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from synopsis.errors import InputError, SynopsisError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Train, evaluate and benchmark language models that compress their context.

Every subcommand is one stage and does what one job of the workflow does. Runs are named as in the results:
a model by its name, a trained compressor as <compressor>-s<seed>.

\b
  synopsis check --config config/demo.yaml
  synopsis train --config config/demo.yaml autocompressor-s0
  synopsis icl --config config/demo.yaml autocompressor-s0 world_eats --seed 1 --json

The whole grid at once: snakemake --cores 2 --configfile config/demo.yaml
""",
)


@app.callback()
def common(
    log: Annotated[
        Path | None, typer.Option(help="Also write messages and progress to this file, as plain lines.")
    ] = None,
) -> None:
    if log is not None:
        from synopsis.progress import also_log_to

        also_log_to(log)


Config = Annotated[
    list[Path], typer.Option("--config", "-c", help="Experiment file; given again, later files win over earlier ones.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one value, for instance icl.max_examples=50 (YAML)."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the headline figures as one JSON object on the last line.")]
Run = Annotated[str, typer.Argument(help="A run: a model's name, or <compressor>-s<seed>.")]


def read(config: list[Path], changes: list[str] | None) -> Any:
    """The experiment of a command line."""
    from synopsis.config import load_experiment
    from synopsis.config_yaml import parse_value

    overrides = {}
    for change in changes or []:
        key, separator, value = change.partition("=")
        if not separator or not key:
            raise InputError(f"--set {change}: expected KEY=VALUE, for instance --set icl.max_examples=50")
        overrides[key] = parse_value(value, f"--set {key}")
    return load_experiment(*config, overrides=overrides)


def check_run(experiment: Any, run: str, stage: str | None = None) -> None:
    """InputError for a run that does not exist, or that a stage is not configured to measure."""
    known = experiment.run_names if stage is None else experiment.runs_of(stage)
    if run not in known:
        what = "the experiment" if stage is None else f"the stage '{stage}' of the experiment"
        raise InputError(f"run {run!r}: {what} has {', '.join(known) or 'no runs'}")


def check_choice(kind: str, name: str, known: Any) -> None:
    if name not in known:
        raise InputError(f"{kind} {name!r}: the experiment has {', '.join(map(str, known)) or 'none'}")


def figures(values: dict[str, Any], as_json: bool) -> None:
    """Headline figures on standard output: lines for people, one JSON object for machines."""
    if as_json:
        finite = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in values.items()}
        print(json.dumps(finite, allow_nan=False))  # JSON has no word for what is not finite
    else:
        for name, value in values.items():
            print(f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}")


@app.command()
def check(config: Config, change: Set = None) -> None:
    """Check an experiment file and list its runs."""
    experiment = read(config, change)
    print(f"{experiment.name}: no faults")
    for run in experiment.run_names:
        print(f"  {run}  ({experiment.family_of(run)})")


@app.command()
def schema() -> None:
    """Print the JSON schema of experiment files."""
    from synopsis.config import json_schema

    print(json.dumps(json_schema(), indent=2))


@app.command()
def prepare(
    config: Config,
    kind: Annotated[str, typer.Argument(help="model, tokenizer, corpus, instructions or task")],
    name: Annotated[str, typer.Argument(help="Name in the configuration.")],
    model: Annotated[str | None, typer.Argument(help="For a corpus: the model whose tokenizer it is for.")] = None,
    change: Set = None,
) -> None:
    """Fetch, convert or tokenise one input; the only stage that uses the network."""
    if not sys.stderr.isatty():
        plain_logs()
    from synopsis.data.prepare import prepare as make

    print(make(read(config, change), kind, name, model))


@app.command()
def train(config: Config, run: Run, change: Set = None, as_json: Json = False) -> None:
    """Train a run, or go on with it from its last checkpoint."""
    experiment = read(config, change)
    check_run(experiment, run)
    offline()
    from synopsis.training.stage import train as stage

    figures(stage(experiment, run), as_json)


@app.command()
def perplexity(config: Config, run: Run, change: Set = None, as_json: Json = False) -> None:
    """Measure the loss of long documents by the length of the context."""
    experiment = read(config, change)
    check_run(experiment, run, "perplexity")
    offline()
    from synopsis.evaluation.perplexity import perplexity as stage

    rows = stage(experiment, run)["rows"]
    chosen = [row for row in rows if row["domain"] == "all" or len({r["domain"] for r in rows}) == 1]
    figures({f"loss/{row['tokens']}/context={row['context_length']}": row["loss"] for row in chosen}, as_json)


@app.command()
def icl(
    config: Config,
    run: Run,
    dataset: Annotated[str, typer.Argument(help="A data set of the section icl.")],
    seed: Annotated[int, typer.Option(min=0, help="Draw of the demonstrations.")] = 0,
    change: Set = None,
    as_json: Json = False,
) -> None:
    """Measure in-context learning on one data set with one seed, in all settings."""
    experiment = read(config, change)
    check_run(experiment, run, "icl")
    check_choice("dataset", dataset, experiment.icl.datasets)
    offline()
    from synopsis.evaluation.icl import icl as stage

    settings = stage(experiment, run, dataset, seed)["settings"]
    figures({f"accuracy/{name}": result["accuracy"] for name, result in settings.items()}, as_json)


@app.command()
def generate(
    config: Config,
    run: Run,
    split: Annotated[str, typer.Argument(help="A split of the section generate.")],
    change: Set = None,
    as_json: Json = False,
) -> None:
    """Write greedy outputs for a validation split, and their ROUGE."""
    experiment = read(config, change)
    check_run(experiment, run, "generate")
    check_choice("split", split, experiment.generate.splits)
    offline()
    from synopsis.evaluation.generation import generate as stage

    result = stage(experiment, run, split)
    figures({key: result[key] for key in ("rouge1", "rouge2", "rougeL", "exact_match", "n")}, as_json)


@app.command()
def judge(
    config: Config,
    name: Annotated[str, typer.Argument(help="A judge of the section judge.")],
    a: Annotated[str, typer.Argument(help="The run in question.")],
    b: Annotated[str, typer.Argument(help="The run it is compared with.")],
    split: Annotated[str, typer.Argument(help="A split of the section generate.")],
    change: Set = None,
    as_json: Json = False,
) -> None:
    """Judge the outputs of two runs, both orders of each pair; goes on where it stopped."""
    experiment = read(config, change)
    check_choice("judge", name, experiment.judges)
    for run in (a, b):
        check_run(experiment, run, "generate")
    check_choice("split", split, experiment.generate.splits)
    from synopsis.judging.stage import judge as stage

    result = stage(experiment, name, a, b, split)
    figures({key: result[key] for key in ("win", "lose", "tie", "parse_error", "api_error", "win_rate")}, as_json)


@app.command()
def benchmark(config: Config, run: Run, change: Set = None, as_json: Json = False) -> None:
    """Measure time, FLOPs and memory of decoding with and without a compressed context."""
    experiment = read(config, change)
    check_run(experiment, run, "benchmark")
    offline()
    from statistics import median

    from synopsis.benchmarking.stage import benchmark as stage

    rows = stage(experiment, run)
    cases = dict.fromkeys((row["mode"], row["batch_size"], row["context_length"]) for row in rows)
    figures(
        {
            f"wall_seconds/{mode}/batch={batch}/context={length}": median(
                row["wall_seconds"]
                for row in rows
                if (row["mode"], row["batch_size"], row["context_length"]) == (mode, batch, length)
            )
            for mode, batch, length in cases
        },
        as_json,
    )


@app.command()
def score(config: Config, change: Set = None, as_json: Json = False) -> None:
    """Collect every result into scores.parquet and accuracy.json."""
    experiment = read(config, change)
    from synopsis.reporting.scores import score as stage

    figures({"rows": len(stage(experiment))}, as_json)


@app.command()
def report(config: Config, change: Set = None, as_json: Json = False) -> None:
    """Draw the tables and figures, and print the main tables."""
    experiment = read(config, change)
    from synopsis.reporting import report as stage

    stage.report(experiment)
    if as_json:
        print(json.dumps(stage.headline(experiment)))
    else:
        print(stage.main_tables(experiment))


@app.command()
def summary(config: Config, change: Set = None) -> None:
    """Print the main tables of a finished experiment."""
    experiment = read(config, change)
    from synopsis.reporting.report import main_tables

    print(main_tables(experiment))


def offline() -> None:
    """Nothing is downloaded in the middle of a job: `prepare` has fetched what there is to fetch."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
    plain_logs()


def plain_logs() -> None:
    """Progress of the libraries' own small steps stays out of the logs; the stages tell theirs."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


class Stopped(SystemExit):
    """SIGTERM or SIGINT arrived; the code is 128 + its number. No `except Exception` and no command swallows it."""


def stop(number: int, frame: Any) -> NoReturn:
    raise Stopped(128 + number)


def main() -> NoReturn:
    """Run a subcommand; errors that a user can mend are told in one message, without a traceback."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    try:
        app(standalone_mode=True)
    except SynopsisError as error:
        print(f"synopsis: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except Stopped:
        print("synopsis: interrupted; finished results are kept", file=sys.stderr)
        raise
    except BrokenPipeError:
        # Whoever reads the output has seen enough, as in `synopsis check ... | head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"synopsis: the disk is full: {error}; finished results are kept", file=sys.stderr)
        sys.exit(1)
    sys.exit(0)
