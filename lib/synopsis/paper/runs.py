"""Runs of an experiment beside the published numbers, from its scores."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from synopsis.artifacts import Layout
from synopsis.compressors.architectures import ENCODER_DECODERS
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
    by_row: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        by_row.setdefault((cell.table, cell.row), []).append(cell)
    measured = {name: _chosen(scores, experiment, about.get("scores", {})) for name, about in tables.items()}
    for (name, row), of_row in by_row.items():
        entry, columns = tables[name]["rows"][row], tables[name]["columns"]
        if "of" not in entry:
            continue
        kind = tables[name]["scores"].get("as")
        for whose, found in _named(measured[name], experiment, entry["of"]):
            found = _chosen(found, experiment, entry.get("scores", {}))
            for cell in of_row:
                if where := columns.get(cell.column):
                    estimate = _estimate(_chosen(found, experiment, where), kind)
                    if estimate.count:
                        cell.runs[whose] = estimate


def _named(scores: pd.DataFrame, experiment: Experiment, of: Mapping[str, Any]) -> Iterator[tuple[str, pd.DataFrame]]:
    """The scores of each model and compressor with these keys, with all its summary tokens, and by each judge."""
    for name, subject in experiment.subjects.items():
        base = experiment.models.get(experiment.base_named(name))
        two_sided = base is not None and base.model_type in ENCODER_DECODERS
        if _has(subject, of) and of.get("encoder_decoder", two_sided) == two_sided:
            length = scores["summary_length"]
            whole = length.isna() | (length == getattr(subject, "summary_length", None)).fillna(False)
            found = scores[(scores["compressor"] == name) & whole]
            for judge in found["judge"].unique():
                yield f"{name} ({judge})" if judge else name, found[found["judge"] == judge]


def _has(subject: Any, keys: Mapping[str, Any]) -> bool:
    return all(getattr(subject, key, None) == value for key, value in keys.items() if key != "encoder_decoder")


def _chosen(scores: pd.DataFrame, experiment: Experiment, where: Mapping[str, Any]) -> pd.DataFrame:
    """The rows with these values; none of them where a value of a list has no row."""
    for column, value in where.items():
        if isinstance(value, dict):
            runs = {run for run in scores[column].unique() if run and _has(experiment.subject(run), value)}
            scores = scores[scores[column].isin(runs)]
        elif value == ["all"] and scores[column].nunique() == 1:
            continue  # a corpus of one domain has no rows of all domains
        elif column != "as":
            values = value if isinstance(value, list) else [value]
            scores = scores[scores[column].isin(values)]
            if set(values) - set(scores[column]):
                return scores.iloc[:0]
    return scores


def _estimate(scores: pd.DataFrame, kind: str | None) -> Estimate:
    """Over runs and draws; of each the mean over its rows, which does not exist where one of these has no number."""
    means = [group["value"].mean(skipna=False) for _, group in scores.groupby(["run", "seed"], dropna=False)]
    return Estimate.of(AS[kind](mean) for mean in means)
