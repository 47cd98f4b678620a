"""The subcommand judge: a job of an experiment, any two files of outputs, or the released judgements counted again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from synopsis.commands import options
from synopsis.commands.options import measure, show
from synopsis.errors import InputError

WORDS = ("judge", "a", "b", "split")


def judge(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="JUDGE A B SPLIT | FILES", help="With --config a job, with --replay files or folders."),
    ] = None,
    config: Annotated[
        list[Path] | None, typer.Option("--config", "-c", metavar="FILE", help="Experiment file; see above.")
    ] = None,
    change: options.Set = None,
    a: Annotated[Path | None, typer.Option(metavar="CSV", help="Outputs in question (x, y_pred, y_true).")] = None,
    b: Annotated[Path | None, typer.Option(metavar="CSV", help="Outputs that they are compared with.")] = None,
    judge: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="With --a and --b: a judge of config/judges, or its file.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder for what is written.")] = None,
    labels: Annotated[
        Path | None, typer.Option(metavar="CSV", help="With --a and --b: choices to compare with (id, choice).")
    ] = None,
    replay: Annotated[bool, typer.Option("--replay", help="Count released judgements again.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what would be asked, and its price.")] = False,
    as_json: options.Json = False,
) -> None:
    files = {"a": a, "b": b, "judge": judge, "labels": labels}
    given = [f"--{name}" for name, value in {**files, "replay": replay or None}.items() if value is not None]
    words = words or []
    if config:
        if given or out or len(words) != len(WORDS):
            surplus = " ".join([*given, *(["--out"] if out else []), *words]) or "nothing"
            raise InputError(f"judge --config: expected JUDGE A B SPLIT alone; found {surplus}")
        job = dict(zip(WORDS, words, strict=True))
        measure("judge", config, change, as_json, {**job, "dry_run": dry_run})
    elif replay:
        if not words or given != ["--replay"]:
            raise InputError("judge --replay: expected released files or folders of them, and --out alone")
        _replay([Path(word) for word in words], out, as_json)
    elif a and b and judge and out and not words:
        from synopsis.stages.judge.run import headline
        from synopsis.stages.judge.two_files import judge_files

        summary = judge_files(a, b, judge, out, labels, dry_run)
        found: dict[str, Any] = headline(summary)
        if labels and not dry_run:
            found |= {f"labels_{key}": value for key, value in summary["labels"].items()}
        show(found, as_json)
    else:
        raise InputError(
            "judge: expected --config FILE JUDGE A B SPLIT, or --a CSV --b CSV --judge NAME --out DIR, or --replay FILE"
        )


def _replay(places: list[Path], out: Path | None, as_json: bool) -> None:
    from synopsis.reporting.rendering import as_terminal_text
    from synopsis.stages.judge.replay import recount

    result, table = recount(places, out and out / "replay.json")
    if as_json:
        show({"differing": len(result["differing"]), **result["total"]}, as_json)
    else:
        print(as_terminal_text(table, shutil.get_terminal_size((110, 24)).columns))
