"""Subcommands that look after the workflow: results made again, and what this machine has."""

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
