"""Subcommands that look after the workflow, or do without: results made again, a sweep, and what this machine has."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Annotated

import typer

from synopsis.commands import options


def rerun(
    config: options.Config,
    run: Annotated[
        str | None, typer.Option(help="Results of this run; without DATASET and SEED its training too.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="A data set of in-context learning.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="An evaluation seed.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Only show what would be made again.")] = False,
    words: Annotated[
        list[str] | None, typer.Argument(metavar="-- WORDS", help="For Snakemake; without them --cores all.")
    ] = None,
) -> None:
    """Make single results again with Snakemake, and those files that follow from them and are there.

    \b
      synopsis rerun --config config/demo.yaml --run autocompressor-s0 --dataset world_eats --seed 1
      synopsis rerun --config config/demo.yaml --run gist-1-s0 --dry-run
      synopsis rerun --config FILE --seed 3 -- --profile slurm
    """
    from synopsis.commands.rerun import rerun as make_again

    chosen = {name: value for name, value in (("run", run), ("dataset", dataset), ("seed", seed)) if value is not None}
    make_again(options.read(config, None), config, chosen, dry_run, words or [])


def submit(
    stage: Annotated[str, typer.Argument(help=f"One of {', '.join(['train', *options.STAGES])}.")],
    config: options.Config,
    compressor: Annotated[
        str | None, typer.Option(metavar="NAME,...", help="Jobs of these models or compressors.")
    ] = None,
    run: Annotated[str | None, typer.Option(metavar="RUN,...", help="Jobs of these runs.")] = None,
    dataset: Annotated[str | None, typer.Option(metavar="NAME,...", help="Jobs on these data sets.")] = None,
    seed: Annotated[
        str | None,
        typer.Option(metavar="A:B or N,...", help="Evaluation seeds of icl; else training seeds of --compressor, any."),
    ] = None,
    cluster: Annotated[
        str, typer.Option(help="slurm; local: all at once on this machine; debug: one after the other, waited for.")
    ] = "slurm",
    slurm: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="A parameter of submitit, such as partition=gpu; may be given again."),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Return when the jobs have ended, with exit code 1 where one failed.")
    ] = False,
    change: options.Set = None,
) -> None:
    """Submit jobs of a stage to Slurm with submitit, without Snakemake, and print their numbers.

    \b
      synopsis submit train --config FILE --compressor gist-1,pos_control-1,neg_control-1 --seed 0:3
      synopsis submit icl --config FILE --dataset sst2,boolq --seed 0:7 --slurm account=lab --slurm timeout_min=60
      synopsis submit train --config config/demo.yaml --compressor gist-1 --seed 0:2 --cluster debug

    Without --compressor, --run, --dataset and --seed: all jobs of the stage. Jobs whose result is there and was made
    with this configuration are left out. Inputs must be there; those that are not are named, with the commands that
    make them. Training seeds that the experiment does not have are used too (0:3 is 0, 1, 2).

    A job has 1440 minutes, a GPU, 8 cores and 64 GB: timeout_min, gpus_per_node, cpus_per_task, mem_gb. A training
    saves a checkpoint signal_delay_s (300) seconds before its time limit, and submitit queues its job again.
    """
    from synopsis.commands.submit import seeds
    from synopsis.commands.submit import submit as send

    words = {"compressor": compressor, "run": run, "dataset": dataset}
    chosen = {name: value.split(",") for name, value in words.items() if value is not None}
    if seed is not None:
        chosen["seed"] = seeds(seed)
    send(stage, config, change or [], chosen, cluster, slurm or [], wait)


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Say what this machine has of what the workflow needs, and what to do about the rest.

    \b
      synopsis doctor

    Exit code 1 where something is wrong; a note is what only some experiments need.
    """
    from synopsis.commands.doctor import examine

    findings = examine()
    lines = [f"{it.state:<6}{it.subject:<32}{it.text}" for it in findings]
    print(json.dumps([asdict(it) for it in findings]) if as_json else "\n".join(lines))
    sys.exit(any(it.state == "fault" for it in findings))
