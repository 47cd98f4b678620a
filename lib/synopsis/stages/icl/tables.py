"""The tables of in-context learning: accuracy by data set, and what it took to compute it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import pandas as pd

from synopsis.config.experiment import Experiment
from synopsis.reporting.cells import count_text, errors_column, estimate_cell
from synopsis.reporting.rendering import Cell, Column, Table
from synopsis.stages.icl.summaries import (
    Accuracy,
    Exclusion,
    Failure,
    accuracies,
    exclusions,
    failed_cells,
    speeds,
)

FAILED = "failed"
EMPTY_MARK, PARTIAL_MARK = "†", "‡"
MARKS = {
    EMPTY_MARK: "No demonstration fits the budget: the same as zero-shot.",
    PARTIAL_MARK: "Over the draws that did not fail.",
}
MOST_FAILURES = 6
MOST_CELLS = 3
LONGEST_MESSAGE = 200


def icl_table(experiment: Experiment, scores: pd.DataFrame) -> Table:
    datasets = experiment.icl.datasets if experiment.icl else []
    found, left_out = accuracies(scores, datasets), exclusions(scores)
    # Where the published counts are not followed, or all that they ask for is shown, a column says nothing.
    asks = any(record.asked and record.asked != record.demonstrations for record in found)
    excluded = sum(exclusion.excluded for exclusion in left_out)
    rows = [_icl_row(record, datasets, excluded, asks) for record in found]
    columns = [
        Column("Compressor", key=True),
        Column("Setting", key=True),
        *(Column(dataset, digits=1) for dataset in datasets),
        Column("Mean", digits=1),
        Column("Draws"),
        Column("Examples"),
        errors_column("Excluded", rows, len(datasets) + 5),
        Column("Demonstrations", brief=False),
        *([Column("Asked for", brief=False)] if asks else []),
        Column("Over budget (tokens)", brief=False),
        Column("Unfilled budgets", brief=False),
        errors_column("Failed cells", rows, -1),
    ]
    note = (
        "± is the standard deviation over draws: seeds of the demonstrations (one where none is shown), times "
        "training seeds where there are several. Ranges are over data sets and draws: examples, demonstrations"
        f"{' (asked for: by the published counts)' if asks else ''}, and their tokens beyond the budgets. Counted over "
        "all: examples excluded for all models since they are too long for one, budgets that hold no demonstration, "
        "and cells that failed."
    )
    return Table("icl", "In-context learning: accuracy (%)", columns, rows, note, _remarks(scores, rows, left_out))


def _icl_row(record: Accuracy, datasets: Sequence[str], excluded: int, asks: bool) -> list[Cell]:
    return [
        Cell(record.compressor),
        Cell(record.setting),
        *(_accuracy_cell(record, dataset) for dataset in datasets),
        estimate_cell(record.mean, 100, PARTIAL_MARK if 0 < record.mean.count < record.draws else ""),
        Cell(record.draws),
        Cell(count_text(record.examples)),
        Cell(excluded),
        Cell(count_text(record.demonstrations)),
        *([Cell(count_text(record.asked))] if asks else []),
        Cell(count_text(record.over_budget)),
        Cell(record.unfilled),
        Cell(sum(record.failed.values())),
    ]


def _accuracy_cell(record: Accuracy, dataset: str) -> Cell:
    estimate = record.by_dataset[dataset]
    failed = record.failed[dataset]
    if estimate.mean is None and failed:
        return Cell(FAILED)
    marks = (EMPTY_MARK if dataset in record.empty else "") + (PARTIAL_MARK if failed else "")
    return estimate_cell(estimate, 100, marks)


def _remarks(scores: pd.DataFrame, rows: Sequence[Sequence[Cell]], left_out: Sequence[Exclusion]) -> list[str]:
    """What marks mean, which examples are left out, and why cells failed; nothing where all is well."""
    marks = {mark for row in rows for cell in row for mark in cell.mark}
    failed = failed_cells(scores)
    remarks = [f"{mark} {meaning}" for mark, meaning in MARKS.items() if mark in marks]
    remarks += [_exclusion_text(exclusion) for exclusion in left_out]
    remarks += [_failure_text(failure) for failure in failed[:MOST_FAILURES]]
    if len(failed) > MOST_FAILURES:
        remarks.append(f"{len(failed) - MOST_FAILURES} more reasons of failures stand in the results.")
    return remarks


def _exclusion_text(exclusion: Exclusion) -> str:
    runs = ", ".join(exclusion.runs) or "a model"
    return (
        f"{exclusion.dataset}: {exclusion.excluded} of {exclusion.examples} examples are left out for all, "
        f"since they are longer than the positions of {runs}."
    )


def _failure_text(failure: Failure) -> str:
    cells = [
        f"{run}, {setting}, {'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}"
        for (run, setting), seeds in failure.cells.items()
    ]
    more = [f"{len(cells) - MOST_CELLS} more"] if len(cells) > MOST_CELLS else []
    message = textwrap.shorten(failure.message, LONGEST_MESSAGE, placeholder=" …")
    return f"Failed on {failure.dataset} ({'; '.join([*cells[:MOST_CELLS], *more])}): {message}"


def icl_speed_table(experiment: Experiment, scores: pd.DataFrame) -> Table:
    rows = [
        [
            Cell(speed.compressor),
            Cell(speed.setting),
            Cell(speed.examples),
            Cell(speed.tokens),
            Cell(speed.naive_tokens),
            Cell(speed.saving),
            Cell(speed.seconds),
            Cell(speed.examples_per_second),
        ]
        for speed in speeds(scores)
    ]
    columns = [
        Column("Compressor", key=True),
        Column("Setting", key=True),
        Column("Examples"),
        Column("Tokens computed"),
        Column("Naive tokens"),
        Column("Fewer (×)", digits=1),
        Column("Seconds", digits=1, brief=False),
        Column("Examples/s", digits=1),
    ]
    note = (
        "Over all data sets and draws. Naive tokens: what a loop would compute that reads the demonstrations and the "
        "example again for each of its options. Seconds are those of scoring, without loading the model; device and "
        "dtype stand in the provenance of the results."
    )
    return Table("icl_speed", "In-context learning: tokens computed and speed", columns, rows, note)
