"""Subcommands that read results: scores, tables, comparisons, exports, and the tables of the gist paper."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from synopsis.commands import options
from synopsis.commands.options import command_line, read, show
from synopsis.errors import ArtifactError, InputError, SynopsisError


def score(config: options.Config, change: options.Set = None, as_json: options.Json = False) -> None:
    """Collect every result into scores.parquet and accuracy.json.

    \b
      synopsis score --config config/demo.yaml
    """
    experiment = read(config, change)
    from synopsis.reporting.scores import score as stage

    show({"rows": len(stage(experiment))}, as_json)


def report(config: options.Config, change: options.Set = None, as_json: options.Json = False) -> None:
    """Write the tables, the figures and report.html, and print the main tables.

    \b
      synopsis report --config config/demo.yaml

    Before anything is scored, report.html says which results are missing.
    """
    experiment = read(config, change)
    from synopsis.reporting import report as stage

    stage.report(experiment, command_line("report", config, change)[1:])
    print(json.dumps(stage.headline(experiment)) if as_json else stage.main_tables(experiment))


def summary(config: options.Config, change: options.Set = None) -> None:
    """Print the main tables of a finished experiment.

    \b
      synopsis summary --config config/demo.yaml
    """
    experiment = read(config, change)
    from synopsis.reporting.report import main_tables

    print(main_tables(experiment))


def scores(
    folder: options.Results,
    stage: Annotated[str | None, typer.Option(metavar="NAME", help="Scores of this stage alone.")] = None,
    where: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN=VALUE", help="Rows with this value; may be given again.")
    ] = None,
    rows: Annotated[str | None, typer.Option(metavar="COLUMN,...", help="A table with a row for each value.")] = None,
    columns: Annotated[str | None, typer.Option(metavar="COLUMN", help="Its columns.")] = None,
    metric: Annotated[str | None, typer.Option(metavar="NAME", help="What it shows.")] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> None:
    """Print scores of an experiment: rows, or a table of means.

    \b
      synopsis scores results/demo --stage needle --where run=base --metric choice
      synopsis scores results/demo --metric accuracy --rows compressor,setting --columns dataset
    """
    from synopsis.reporting import rendering, selection
    from synopsis.reporting.scores import read_scores

    named = {"stage": stage, "metric": metric}
    conditions = [*(f"{column}={name}" for column, name in named.items() if name is not None), *(where or [])]
    found = selection.selected(read_scores(folder / "scores.parquet"), conditions)
    if rows is None and columns is None:
        print(found.to_csv(index=False) if as_csv else options.in_terminal([selection.listed(found)]), end="")
    else:
        table = selection.pivoted(found, rows.split(",") if rows else [], columns)
        print(rendering.as_csv(table) if as_csv else options.in_terminal([table]), end="")


def compare(
    folder: options.Results,
    a: Annotated[str | None, typer.Argument(metavar="A", help="A run or a compressor.")] = None,
    b: Annotated[str | None, typer.Argument(metavar="B", help="Another one; without A and B all are compared.")] = None,
    stage: Annotated[str | None, typer.Option(metavar="NAME", help="Of this stage alone.")] = None,
) -> None:
    """Compare two runs or compressors on the examples that both were measured on.

    \b
      synopsis compare results/demo autocompressor base
      synopsis compare results/demo gist-1-s0 gist-1-s1 --stage generate
      synopsis compare results/demo

    Differences are paired by example, with bootstrap intervals, p values corrected for their number, and the smallest
    difference that so many examples could have shown. Without A and B: all in one table, the best of each row marked.
    """
    from synopsis.reporting.comparison import comparison, ranking

    if a is not None and b is None:
        raise InputError(f"compare {a}: expected another run or compressor to compare it with")
    found = ranking(folder, stage) if a is None or b is None else comparison(folder, a, b, stage)
    print(options.in_terminal(found), end="")


def export(
    results: Annotated[Path | None, typer.Argument(metavar="RESULTS", help="Results of a reported experiment.")] = None,
    to: Annotated[Path | None, typer.Option("--to", metavar="FOLDER", help="Folder of the paper.")] = None,
    check: Annotated[
        Path | None, typer.Option("--check", metavar="FOLDER", help="Instead: whether an export is still true.")
    ] = None,
    paper: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also typeset this LaTeX file there, with tectonic or latexmk.")
    ] = None,
) -> None:
    """Copy tables (LaTeX) and figures (PDF) to a folder for a paper, with a manifest of hashes.

    \b
      synopsis export results/demo --to paper
      synopsis export --check paper

    --check fails (exit code 1) when an exported file, or a result that its numbers come from, has changed; it names
    each. A table or figure that was edited in the folder is never overwritten.
    """
    from synopsis.reporting import export as exporting

    if check is not None and results is None and to is None and paper is None:
        exporting.check_export(check)
    elif check is None and results is not None and to is not None:
        exporting.export(results, to)
        if paper is not None:
            exporting.build(paper, to)
    else:
        raise InputError("name results and a folder, or a folder to check: RESULTS --to FOLDER, or --check FOLDER")


def verify(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Results of an experiment, or a part of them.")],
) -> None:
    """Check that the files of an experiment are as they were written; names those that are missing or have changed.

    \b
      synopsis verify results/demo
      synopsis verify results/demo/models/autocompressor-s0

    Stages check what they read up to 500 MB an artifact, and the sizes of the rest; this reads everything. Files
    without a hash (stores of judgements, what an earlier version wrote) are counted.
    """
    from synopsis.artifacts import verify as check_all

    checked, faults, unknown = check_all(folder)
    print("".join(f"{fault}\n" for fault in faults), end="")
    without = f"; {len(unknown)} have no hash" if unknown else ""
    if faults:
        raise ArtifactError(f"{folder}: {len(faults)} of {checked} files have changed or are missing{without}")
    print(f"{folder}: {checked} files are as they were written{without}")


def paper(
    release: Annotated[
        Path, typer.Option(metavar="DIR", help="Released data of the gist paper: the folder data of its repository.")
    ],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Write the tables and the figure here.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write every cell here.")] = None,
    config: Annotated[
        list[Path] | None,
        typer.Option("--config", "-c", metavar="FILE", help="An experiment with scores, whose runs stand beside."),
    ] = None,
    change: options.Set = None,
) -> None:
    """Regenerate the tables of the gist paper from its released data; print them beside the published numbers.

    \b
      git clone https://github.com/jayelm/gisting
      synopsis paper --release gisting/data --out results/paper
      synopsis paper --release gisting/data --config config/demo.yaml --json cells.json

    The tables of the AutoCompressor paper stand below, with the runs of the experiment where there is one. Ends with 1
    and names the cells where a number that should agree does not, or a file is not the released one; with 2 where a
    file or a row is missing.
    """
    from synopsis.paper.run import regenerate

    if json_file is not None and json_file.is_dir():
        raise InputError(f"--json {json_file}: is a folder; expected the name of a file")
    made = regenerate(release, read(config, change) if config else None)
    if out is not None:
        made.write(out)
    if json_file is not None:
        made.write_json(json_file)
    print(made.markdown())
    if made.failed:
        raise SynopsisError(
            "\n  ".join([f"{release}: {len(made.failed)} numbers or files do not agree:", *made.failed])
        )
