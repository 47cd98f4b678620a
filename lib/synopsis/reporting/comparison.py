"""Two runs or compressors over the same examples, stage by stage, from the records of single examples.

    synopsis compare results/demo autocompressor base

A stage whose `report.py` has `examples(outputs)` takes part. It yields a record for each example that a job measured:
its place (dataset, split, setting, the stage's axes), `id`, `truth` (equal where the id is), `metric`, `value`, and
where they are needed `weight` (of the value in the mean) and `cluster` (of examples that are not independent).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pandas as pd

from synopsis.artifacts import Layout, check_outputs
from synopsis.errors import ArtifactError, InputError
from synopsis.reporting.rendering import Cell, Column, Table
from synopsis.reporting.scores import COLUMNS, read_scores
from synopsis.reporting.statistics import Difference, holm, paired_difference
from synopsis.stages.record import Stage, stages

LEVEL = 0.05
MARK = "*"
NOTE = (
    "Means over the examples that both have; of an example over its draws (training seeds and seeds of demonstrations, "
    "those that both have). ± is the standard deviation over draws. In brackets: 95 % interval of a bootstrap over "
    "examples. p: McNemar's test where each example is right or wrong, else a paired t test; corrected by Holm over "
    "all comparisons shown. Detectable: the smallest difference that so many examples show in 80 % of experiments."
)
REMARK = f"{MARK} They differ: p < {LEVEL:g} after the correction."


def comparison(folder: Path, a: str, b: str, stage: str | None = None) -> list[Table]:
    """A table for each stage that has measured examples of both; InputError where none has."""
    scores = read_scores(folder / "scores.parquet")
    known = list(dict.fromkeys([*scores["compressor"], *scores["run"]]))
    for name in (a, b):
        if name not in known:
            raise InputError(f"{folder}: has no run or compressor {name!r}; found {', '.join(known)}")
    found: dict[str, list[dict[str, Any]]] = {}
    for one in stages().values():
        if stage in (None, one.name) and hasattr(one.report, "examples"):
            sides = [_examples(folder, one, scores, name) for name in (a, b)]
            if not any(side.empty for side in sides) and (rows := list(_rows(one, *sides))):
                found[one.name] = rows
    if not found:
        raise InputError(f"{folder}: {a!r} and {b!r} have no examples in common{f' in {stage!r}' if stage else ''}")
    rows = [row for of_stage in found.values() for row in of_stage]
    for row, p in zip(rows, holm([row["found"].p for row in rows]), strict=True):
        row["p"] = p
    tables = [_table(stages()[name], a, b, of_stage) for name, of_stage in found.items()]
    tables[-1].note = NOTE
    return tables


def _examples(folder: Path, stage: Stage, scores: pd.DataFrame, name: str) -> pd.DataFrame:
    """Records of a run, or of all runs of a compressor."""
    # Paths follow from the folder alone.
    layout = Layout(cast(Any, SimpleNamespace(results=str(folder.parent), name=folder.name)))
    rows = scores[(scores["stage"] == stage.name) & ((scores["run"] == name) | (scores["compressor"] == name))]
    records = []
    for row in rows[list(stage.wildcards)].drop_duplicates().to_dict("records"):
        job = {str(name): value for name, value in row.items()}
        outputs = stage.outputs(layout, **job)
        check_outputs(outputs[0])
        records += [{**job, "weight": 1, **record} for record in stage.report.examples(outputs)]
    frame = pd.DataFrame(records, dtype=object).fillna("")
    if not frame.empty:
        numbers = {"value": frame["value"].astype(float), "seed": frame.get("seed", 0)}
        frame = frame.assign(**numbers, cluster=frame.get("cluster", frame["id"]))
    return frame


def _rows(stage: Stage, a: pd.DataFrame, b: pd.DataFrame) -> Iterator[dict[str, Any]]:
    place = [column for column in COLUMNS if column in a and column not in ("run", "seed", "value")]
    example = [*place, "id"]
    # Runs that differ in the training seed are averaged first, so that draws of demonstrations can be paired.
    sides = [
        side.groupby([*example, "seed"], sort=False, dropna=False)
        .agg(
            value=("value", "mean"), weight=("weight", "first"), cluster=("cluster", "first"), truth=("truth", "first")
        )
        .reset_index()
        for side in (a, b)
    ]
    both = sides[0].merge(sides[1], on=[*example, "seed"], suffixes=("", "_b"))
    other = both[both["truth"] != both["truth_b"]]
    if len(other):
        first = other.iloc[0]
        where = ", ".join(f"{name} {first[name]}" for name in example)
        raise ArtifactError(
            f"{stage.name}: {where}: the two were measured on different examples, of the truths {first['truth']!r} and "
            f"{first['truth_b']!r}. Delete the older results and run again."
        )
    paired = both.groupby(example, sort=False, dropna=False).agg(
        a=("value", "mean"), b=("value_b", "mean"), weight=("weight", "first"), cluster=("cluster", "first")
    )
    everything = pd.concat([a, b]).groupby(place, sort=False, dropna=False)["id"].nunique().to_dict()
    draws = [_draws(side, both, place) for side in (a, b)]
    for key, pairs in paired.groupby(level=place, sort=False, dropna=False):
        found = paired_difference(pairs)
        spread = [of_side.get(key) for of_side in draws]
        left_out = int(everything[key]) - found.examples
        yield {**dict(zip(place, key, strict=True)), "found": found, "spread": spread, "left_out": left_out}


def _draws(side: pd.DataFrame, both: pd.DataFrame, place: list[str]) -> dict[Any, float]:
    """Standard deviation over runs and seeds, where there are several, of the mean over the examples that both have."""
    keys = [*place, "id", "seed"]
    kept = side.merge(both[keys], on=keys)
    kept["sum"] = kept["value"] * kept["weight"]
    sums = kept.groupby([*place, "run", "seed"], sort=False, dropna=False)[["sum", "weight"]].sum()
    means = sums["sum"] / sums["weight"]
    return means.groupby(level=place, sort=False, dropna=False).std().dropna().to_dict()


def _table(stage: Stage, a: str, b: str, rows: list[dict[str, Any]]) -> Table:
    def side(name: str, index: int) -> Column:
        return Column(name, lambda row: Cell((row["found"].a, row["found"].b)[index], row["spread"][index]), 3)

    def difference(row: dict[str, Any]) -> Cell:
        found: Difference = row["found"]
        mark = MARK if row["p"] is not None and row["p"] < LEVEL else ""
        return Cell(found.value, interval=found.interval, mark=mark)

    def key(name: str) -> Column:
        return Column(name, lambda row: row[name], key=True)

    names = [name for name in rows[0] if name not in ("found", "spread", "left_out", "p")]
    columns = [
        *map(key, names),
        side(a, 0),
        side(b, 1),
        Column("difference", difference, 3),
        Column("p", lambda row: row["p"], 4),
        Column("detectable", lambda row: row["found"].smallest, 3),
        Column("examples", lambda row: row["found"].examples),
        Column("clusters", lambda row: row["found"].clusters, brief=_varies(rows)),
        Column("left out", lambda row: row["left_out"], brief=None),
    ]
    marked = any(row["p"] is not None and row["p"] < LEVEL for row in rows)
    return Table(f"{stage.title}: {a} against {b}", columns, rows, remarks=[REMARK] if marked else [])


def _varies(rows: Sequence[dict[str, Any]]) -> bool:
    return any(row["found"].clusters != row["found"].examples for row in rows)
