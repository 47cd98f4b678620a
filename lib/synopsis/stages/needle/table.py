"""The table of the needle: which share of the hidden keys is found, by length and depth."""

from __future__ import annotations

import pandas as pd

from synopsis.config.experiment import Experiment
from synopsis.reporting.cells import count_text, estimate_cell
from synopsis.reporting.rendering import Cell, Column, Table
from synopsis.stages.needle.summaries import Retrieval, failed_cells, left_out, retrievals

MOST_FAILURES = 6


def needle_table(experiment: Experiment, scores: pd.DataFrame) -> Table:
    section = experiment.needle
    assert section is not None
    depths = [f"{100 * depth:g} %" for depth in sorted(section.depths)]
    columns = [
        Column("Compressor", key=True),
        Column("Length", key=True),
        *(Column(f"at {depth}", digits=1) for depth in depths),
        Column("Mean", digits=1),
        Column("Mean written", digits=1),
        *(Column(f"Written at {depth}", digits=1, brief=False) for depth in depths),
        Column("Loss of the key", brief=False),
        Column("Summary vectors"),
        Column("Texts"),
        Column("Runs", brief=False),
    ]
    note = (
        "Length: tokens of the context; columns: where in it the key stands. A key is found when it is likelier than "
        f"{section.choices - 1} others (chance: {100 / section.choices:.3g} %), and written when greedy decoding gives "
        "it. Texts are those of one cell of a run. ± is the standard deviation over training seeds, where there are "
        "several."
    )
    rows = [_row(record) for record in retrievals(experiment, scores)]
    return Table("needle", "Needle: keys found in a long context (%)", columns, rows, note, _remarks(scores))


def _remarks(scores: pd.DataFrame) -> list[str]:
    """Why cells are dashes; nothing where all were measured."""
    remarks = [
        f"{found.compressor}: {', '.join(f'{length:,}' for length in found.lengths)} tokens were left out, which need "
        f"more than the model's {found.positions:,} positions."
        for found in left_out(scores)
    ]
    told = failed_cells(scores)
    if len(told) > MOST_FAILURES:
        told = [*told[:MOST_FAILURES], f"{len(told) - MOST_FAILURES} more cells failed; see the results."]
    return [*remarks, *told]


def _row(record: Retrieval) -> list[Cell]:
    return [
        Cell(record.compressor),
        Cell(record.length),
        *(estimate_cell(estimate, 100) for estimate in record.choice.values()),
        Cell(_percent(record.mean_choice)),
        Cell(_percent(record.mean_exact)),
        *(estimate_cell(estimate, 100) for estimate in record.exact.values()),
        Cell(record.mean_loss),
        Cell(None if record.summary_vectors is None else round(record.summary_vectors)),
        Cell(count_text(record.examples)),
        Cell(record.runs),
    ]


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
