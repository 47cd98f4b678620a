"""The needle in the tidy scores: the shares of every run, the lengths that it left out, the cells that failed.

A cell that failed has no share (never zero), and its message is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from synopsis.artifacts import Layout, read_json
from synopsis.config.experiment import Experiment
from synopsis.reporting.reading import required

METRICS = ("choice", "exact", "loss", "summary_vectors")
SKIPPED = "skipped"

Row = dict[str, Any]


def needle_rows(experiment: Experiment) -> Iterator[tuple[str, Row]]:
    """(run, row) of every number, without what follows from the run; a failed cell's row has its `message` beside.

    skipped: the positions that a length would have needed; its count is those that the model has.
    Raises ArtifactError when a result is missing or damaged.
    """
    for run in experiment.runs_of("needle"):
        path = Layout(experiment).needle(run)
        document = read_json(path, "needle")
        for found in required(path, document, "rows"):
            common = {"setting": _setting(required(path, found, "length"), required(path, found, "depth"))}
            common["n"] = required(path, found, "n")
            yield from ((run, {**common, "metric": name, "value": required(path, found, name)}) for name in METRICS)
        for found in required(path, document, "failed"):
            setting = _setting(required(path, found, "length"), required(path, found, "depth"))
            told = {"dataset": "", "seed": None, "message": required(path, found, "error")}
            yield run, {"setting": setting, "metric": "choice", "value": None, **told}
        for found in required(path, document, SKIPPED):
            needed, there = required(path, found, "positions"), required(path, found, "model_positions")
            setting = f"length={required(path, found, 'length')}"
            yield run, {"setting": setting, "metric": SKIPPED, "value": needed, "n": there}


def _setting(length: int, depth: float) -> str:
    return f"length={length}/depth={depth:g}"
