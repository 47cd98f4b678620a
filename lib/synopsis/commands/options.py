"""What the subcommands of the command line share: their options, and how they read an experiment and print numbers."""

from __future__ import annotations

import gc
import json
import math
import os
import shutil
from collections.abc import Collection
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from synopsis.errors import InputError
from synopsis.stages import subcommands


class Command(TyperCommand):
    """A subcommand whose help names values by words, in the place of Python types: `--seed SEED`."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        for parameter in self.params:
            if not getattr(parameter, "is_flag", False):
                parameter.metavar = parameter.metavar or parameter.name.upper()

    def format_options(self, ctx: Any, formatter: Any) -> None:
        for kind in ("argument", "option"):
            found = [(it, it.get_help_record(ctx)) for it in self.get_params(ctx) if it.param_type_name == kind]
            # The record of an argument has its type behind the word.
            rows = [(it.metavar if kind == "argument" else record[0], record[1]) for it, record in found if record]
            if rows:
                with formatter.section(f"{kind.title()}s"):
                    formatter.write_dl(rows)


Config = Annotated[
    list[Path],
    typer.Option(
        "--config", "-c", metavar="FILE", help="Experiment file; given again, later files win over earlier ones."
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one value, for instance icl.max_examples=50 (YAML)."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the headline numbers as one JSON object on the last line.")]
Results = Annotated[Path, typer.Argument(metavar="FOLDER", help="Results of an experiment, for instance results/demo.")]
RunOrNone = Annotated[str | None, typer.Argument(metavar="RUN", help="A run: a model's name, or <compressor>-s<seed>.")]
CompressorOption = Annotated[
    str | None, typer.Option("--compressor", metavar="NAME", help="Instead of RUN: a compressor of the experiment.")
]
TrainingSeed = Annotated[
    int | None,
    typer.Option("--seed", min=0, help="With --compressor: any training seed; without it the first of its own."),
]
Base = Annotated[str | None, typer.Option(help="Base of a MODEL that is a LoRA adapter or a weight diff.")]
BaseOfDiff = Annotated[
    str | None,
    typer.Option(
        help="Base of a SOURCE that is a LoRA adapter or a weight diff; with --to published, a base to write a weight "
        "diff against."
    ),
]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16.")]
SegmentLength = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Read the text in segments of N tokens. Without it each segment is as long as the model's positions allow "
        "beside the soft prompt so far and the summary tokens. Not for gist models.",
    ),
]
GistTokens = Annotated[
    int | None,
    typer.Option(min=1, metavar="K", help="Gist tokens; without it as many as the model was trained with."),
]
Processes = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Processes on this machine; without it as many as it shows GPUs."),
]
Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="RUN SPLIT | QUESTION", help="With --config a run and a split, else questions."),
]
MaxNewTokens = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Longest answer; 64 where the model has positions for it.")
]
Setting = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="What a published checkpoint does not say: gist_condition, gist_tokens, gist_token_id, "
        "accumulate_summary, max_position_embeddings or segment_gradient_checkpointing.",
    ),
]


def command_line(
    stage: str, config: list[Path], changes: list[str] | None, as_json: bool = False, *words: str
) -> list[str]:
    """The words of a command line that does the same in another process."""
    options = [*(("--config", str(file)) for file in config), *(("--set", change) for change in changes or [])]
    return [stage, *(word for option in options for word in option), *(["--json"] if as_json else []), *words]


def read(config: list[Path], changes: list[str] | None) -> Any:
    """The experiment of a command line."""
    from synopsis.config.experiment import load_experiment

    return load_experiment(*config, overrides=values_of(changes))


def run_to_train(
    config: list[Path], run: str | None, compressor: str | None, seed: int | None, changes: list[str] | None
) -> tuple[str, list[str]]:
    """The run that the words of a command line mean, and their changes with whole keys.

    `training.X` is a key of the run's own training section. A seed that the experiment does not have is added to those
    of the compressor.
    """
    if (run is None) == (compressor is None) or (run is not None and seed is not None):
        raise InputError("name a run, for instance gist-1-s0, or its parts: --compressor gist-1 --seed 0")
    whole = [change for change in changes or [] if not change.startswith("training.")]
    experiment = read(config, whole)
    if compressor is not None:
        check_choice("compressor", compressor, experiment.compressors)
        seeds = experiment.seeds_of(compressor)
        seed = seeds[0] if seed is None else seed
        if seed not in seeds:
            whole.append(f"compressors.{compressor}.training_seeds={[*seeds, seed]}")
        chosen, section = f"{compressor}-s{seed}", f"compressors.{compressor}.training."
    else:
        assert run is not None
        check_choice("run", run, experiment.run_names)
        chosen, trained = run, experiment.trained_runs.get(run)
        section = f"models.{run}.pretraining." if trained is None else f"compressors.{trained[0]}.training."
    own = [section + change.removeprefix("training.") for change in changes or [] if change.startswith("training.")]
    return chosen, [*whole, *own]


def values_of(changes: list[str] | None, option: str = "--set", example: str = "icl.max_examples=50") -> dict[str, Any]:
    """Key -> value of what stands behind an option."""
    from synopsis.config.yaml_files import parse_value

    overrides = {}
    for change in changes or []:
        key, separator, value = change.partition("=")
        if not separator or not key:
            raise InputError(f"{option} {change}: expected KEY=VALUE, for instance {option} {example}")
        overrides[key] = parse_value(value, f"{option} {key}")
    return overrides


def check_choice(kind: str, name: str, known: Collection[str], where: str = "the experiment") -> None:
    """InputError for a name that the experiment does not have, or that a stage is not configured to measure."""
    if name not in known:
        raise InputError(f"{kind} {name!r}: {where} has {', '.join(known) or 'none'}")


def show(values: dict[str, Any], as_json: bool) -> None:
    """Headline numbers on standard output: lines for people, one JSON object for machines."""
    if as_json:
        finite = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in values.items()}
        print(json.dumps(finite, allow_nan=False))  # JSON knows no infinity and no NaN
    else:
        for name, value in values.items():
            print(f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}")


def in_terminal(tables: list[Any]) -> str:
    """Tables as text that fits the terminal."""
    from synopsis.reporting.rendering import as_terminal_text

    width = shutil.get_terminal_size((110, 24)).columns
    return "\n\n\n".join(as_terminal_text(table, width) for table in tables) + "\n"


def offline() -> None:
    """Nothing is downloaded in the middle of a job: `prepare` has fetched what there is to fetch."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
    plain_logs()


def plain_logs() -> None:
    """The libraries' own progress bars stay out of the logs; the stages report theirs."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


STAGES = subcommands()


def measure(stage: str, config: list[Path], change: list[str] | None, as_json: bool, job: dict[str, Any]) -> None:
    """One job of a stage: its module computes, and says which of its numbers are printed."""
    experiment = read(config, change)
    for name, word in STAGES[stage].WORDS.items():
        if word.known is not None:
            check_choice(word.kind or name, job[name], list(word.known(experiment)), word.where)
    offline()
    # Imports leave no garbage. To look for it among their objects, then and at the end, is a third of a short job.
    gc.disable()
    module = import_module(f"{STAGES[stage].__name__}.run")
    gc.freeze()
    gc.enable()
    show(module.headline(getattr(module, stage)(experiment, **job)), as_json)
