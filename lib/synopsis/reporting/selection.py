"""Scores on the terminal: the rows that are asked for, or a table of one metric by some of their columns.

synopsis scores results/demo --metric accuracy --rows compressor,setting --columns dataset
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from synopsis.errors import InputError
from synopsis.reporting.rendering import Cell, Column, Table, at_most
from synopsis.reporting.scores import COLUMNS, TYPES
from synopsis.reporting.statistics import Estimate, exists, plain

if TYPE_CHECKING:
    import pandas as pd

    from synopsis.config.files import TableDefinition

MOST_ROWS, MOST_NAMED = 200, 12
BEST = "†"
FOLLOW_FROM_OTHERS = ("compressor", "method", "stage", "metric", "value", "n")
"""Columns that are not named among those that a mean is over."""


def selected(scores: pd.DataFrame, conditions: Sequence[str]) -> pd.DataFrame:
    """The rows for which all conditions `column=value` hold; of several on one column one must hold.

    InputError for a column or a value that the scores do not have.
    """
    wanted: dict[str, list[str]] = {}
    for condition in conditions:
        column, separator, value = condition.partition("=")
        if not separator:
            raise InputError(f"--where {condition}: expected COLUMN=VALUE")
        _check_column("--where", column)
        wanted.setdefault(column, []).append(value)
    for column, values in wanted.items():
        texts = _texts(scores, column)
        for value in values:
            if value not in set(texts):
                found = ", ".join(at_most(filter(None, texts), MOST_NAMED, "more")) or "none"
                raise InputError(f"{column}={value}: no such row among those asked for; found {found}")
        scores = scores[texts.isin(values)]
    return scores


def _check_column(option: str, column: str) -> None:
    if column not in COLUMNS:
        raise InputError(f"{option} {column}: expected one of the columns {', '.join(COLUMNS)}")


def _texts(scores: pd.DataFrame, column: str) -> pd.Series:
    """A column as it is written on a command line; "" where there is no value."""
    written = "{:g}" if TYPES[column] is float else "{}"
    return scores[column].map(lambda value: written.format(value) if exists(value) else "").astype("str")


def listed(scores: pd.DataFrame) -> Table:
    """The first rows as they are, without the columns that none of them has."""

    def column(name: str) -> Column:
        return Column(name, lambda row: plain(row[name]), 4)

    columns = [column(name) for name in COLUMNS if any(_texts(scores, name))]
    left = len(scores) - MOST_ROWS
    note = f"{left:,} more rows; --csv prints all of them, --stage and --where fewer." if left > 0 else ""
    return Table(f"{len(scores):,} scores", columns, scores.head(MOST_ROWS).to_dict("records"), note)


def pivoted(
    scores: pd.DataFrame,
    rows: Sequence[str],
    columns: str | None,
    title: str = "",
    caption: str = "",
    factor: float = 1.0,
    digits: int = 4,
    best: str | None = None,
) -> Table:
    """Means of the values times `factor`, a row for each combination of `rows`, a column for each value of `columns`.

    best: `highest` or `lowest`, which is marked in each column. InputError where the scores hold several metrics,
    or `rows` or `columns` are no columns of theirs.
    """
    for option, names in (("--rows", rows), ("--columns", [columns] if columns else [])):
        for name in names:
            _check_column(option, name)
    metrics = list(scores["metric"].unique())
    if len(metrics) > 1 and "metric" not in (*rows, columns):
        raise InputError(f"--metric: expected one of {', '.join(metrics)}; a table shows one metric")
    named = scores.assign(shown=_texts(scores, columns) if columns else "value")
    found = named.groupby([*rows, "shown"], sort=False, dropna=False)["value"]
    cells = {tuple(map(plain, key)): Cell.of(Estimate.of(values) * factor) for key, values in found}
    keys, heads = list(dict.fromkeys(key[:-1] for key in cells)), list(dict.fromkeys(key[-1] for key in cells))
    if best:
        for head in heads:
            _mark([key for key in cells if key[-1] == head], cells, max if best == "highest" else min)
    others = [name for name in COLUMNS if name not in (*rows, columns, *FOLLOW_FROM_OTHERS)]
    over = [name for name in others if scores[name].nunique() > 1]
    notes = [caption, f"Means over {', '.join(over)}; ± is the standard deviation of the values." if over else ""]
    notes += [f"{BEST} marks the {best} mean of a column."] if best else []

    def key_column(place: int, name: str) -> Column:
        return Column(name, lambda key: key[place], key=True)

    def value_column(head: str) -> Column:
        return Column(head or f"no {columns}", lambda key: cells.get((*key, head)), digits)

    shown = [*(key_column(*pair) for pair in enumerate(rows)), *map(value_column, heads)]
    return Table(title or " and ".join(metrics), shown, keys, " ".join(filter(None, notes)))


def _mark(keys: list[Any], cells: dict[Any, Cell], better: Callable[[Iterable[Any]], Any]) -> None:
    means = [cells[key].value for key in keys if cells[key].value is not None]
    for key in keys:
        if means and cells[key].value == better(means):
            cells[key] = replace(cells[key], mark=BEST)


def defined(definition: TableDefinition, scores: pd.DataFrame) -> Table:
    """The table of a file in config/tables. InputError where its `where` names values that the scores do not have."""
    given = {"stage": definition.stage, "metric": definition.metric, **definition.where}
    values = {column: found if isinstance(found, list) else [found] for column, found in given.items()}
    chosen = selected(scores, [f"{column}={value}" for column, found in values.items() for value in found])
    settings = definition.model_dump(exclude={"stage", "metric", "where"})
    return pivoted(chosen, **settings)
