"""Runs of an experiment beside the published numbers, from its scores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from synopsis.artifacts import Layout
from synopsis.paper.published import Cell
from synopsis.reporting.scores import read_scores
from synopsis.reporting.statistics import Estimate

if TYPE_CHECKING:
    import pandas as pd

    from synopsis.config.experiment import Experiment

AS = {"percent": lambda mean: 100 * mean, "perplexity": math.exp, None: float}


def add_runs(cells: list[Cell], tables: Mapping[str, Any], experiment: Experiment) -> None:
    """Give each cell the models and compressors that its row speaks of, by the means of their runs and draws.

    A run stands beside a cell where its scores have the length, domains, setting, data set or split of that name; its
    base model and data may be others. ArtifactError where the experiment has no scores.
    """
    scores = read_scores(Layout(experiment).scores)
    for cell in cells:
        table = tables[cell.table]
        row, column = table["rows"][cell.row], table["columns"].get(cell.column)
        if not column or "of" not in row:
            continue
        where = {**table["scores"], **row.get("scores", {}), **column}
        kind = where.pop("as", None)
        for name, found in _named(scores, experiment, row["of"]):
            for judge in found["judge"].unique():
                estimate = _estimate(_chosen(found[found["judge"] == judge], experiment, where), kind)
                if estimate.count:
                    cell.runs[f"{name} ({judge})" if judge else name] = estimate


def _named(scores: pd.DataFrame, experiment: Experiment, of: Mapping[str, Any]) -> list[tuple[str, pd.DataFrame]]:
    """The scores of each model and compressor with these keys, with all its summary tokens."""
    found = []
    for name, subject in experiment.subjects.items():
        if _has(subject, of):
            length = scores["summary_length"]
            whole = length.isna() | (length == getattr(subject, "summary_length", None)).fillna(False)
            found.append((name, scores[(scores["compressor"] == name) & whole]))
    return found


def _has(subject: Any, keys: Mapping[str, Any]) -> bool:
    return all(getattr(subject, key, None) == value for key, value in keys.items())


def _chosen(scores: pd.DataFrame, experiment: Experiment, where: Mapping[str, Any]) -> pd.DataFrame:
    """The rows with these values; none of them where a value of a list has no row."""
    for column, value in where.items():
        if isinstance(value, dict):
            runs = {run for run in scores[column].unique() if run and _has(experiment.subject(run), value)}
            scores = scores[scores[column].isin(runs)]
        else:
            values = value if isinstance(value, list) else [value]
            scores = scores[scores[column].isin(values)]
            if set(values) - set(scores[column]):
                return scores.iloc[:0]
    return scores


def _estimate(scores: pd.DataFrame, kind: str | None) -> Estimate:
    """Over runs and draws; of each the mean over its rows, which does not exist where one of these has no number."""
    means = [group["value"].mean(skipna=False) for _, group in scores.groupby(["run", "seed"], dropna=False)]
    return Estimate.of(AS[kind](mean) for mean in means)
