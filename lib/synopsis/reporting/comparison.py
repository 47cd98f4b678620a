"""Runs and compressors over the same examples, stage by stage, from the records of single examples.

    synopsis compare results/demo autocompressor base
    synopsis compare results/demo                           # all, the best marked

A stage whose `report.py` has `examples(outputs)` takes part. It yields a record for each example that a job measured:
its place (dataset, split, setting, the stage's axes), `id`, `truth` (equal where the id is), `metric`, `value`, and
where they are needed `weight` (of the value in the mean) and `cluster` (of examples that are not independent).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pandas as pd

from synopsis.artifacts import Layout, check_outputs
from synopsis.errors import ArtifactError, InputError
from synopsis.reporting.rendering import Cell, Column, Table
from synopsis.reporting.scores import COLUMNS, read_scores
from synopsis.reporting.statistics import ROUNDING, Difference, holm, paired_difference, plain
from synopsis.stages.record import AMOUNT, Stage, stages

LEVEL = 0.05
MARK = "*"
BEST, EVEN = "*", "+"
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
    for one in _with_examples(stage):
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


def ranking(folder: Path, stage: str | None = None) -> list[Table]:
    """A table for each stage, of all models and compressors over the examples that all of a row have.

    The best of each row is marked, and what is not worse by the examples. InputError where no stage has two to compare.
    """
    scores, tables = read_scores(folder / "scores.parquet"), []
    for one in _with_examples(stage):
        found = {name: _examples(folder, one, scores, name) for name in scores["compressor"].unique()}
        sides = {name: side for name, side in found.items() if not side.empty}
        if len(sides) > 1:
            place = _place(sides.values())
            joined = pd.concat([_averaged(side, place).assign(name=name) for name, side in sides.items()])
            _check_examples(one, joined, place)
            records = [
                {**{name: plain(rows[name].iloc[0]) for name in place}, **_ranked(one, rows)}
                for _, rows in joined.groupby(place, sort=False)
            ]
            columns = [*map(_key, place), *map(_ranked_column, sides), Column("examples", lambda row: row["examples"])]
            remarks = [f"{BEST} The best. {EVEN} Not worse (p ≥ {LEVEL:g}, corrected by Holm within the row)."]
            tables.append(Table(f"{one.title}: over the examples that all have", columns, records, remarks=remarks))
    if not tables:
        raise InputError(f"{folder}: no stage has measured the same examples of two models or compressors")
    return tables


def _ranked(stage: Stage, rows: pd.DataFrame) -> dict[str, Any]:
    """The cells of one place, and how many examples they are over."""
    draws = rows.pivot(index=["id", "seed"], columns="name", values="value").dropna()
    values = draws.groupby(level="id", sort=False).mean()
    about = rows.drop_duplicates("id").set_index("id").loc[values.index, ["weight", "cluster"]]
    weights = about["weight"].astype(float)
    means = values.mul(weights, axis=0).sum() / weights.sum()
    cells = {str(name): Cell(float(mean)) for name, mean in means.items()}
    if len(values) and len(means) > 1:
        lower = stage.metrics.get(rows["metric"].iloc[0], AMOUNT).lower_is_better
        best = str(means.idxmin() if lower else means.idxmax())
        others = [name for name in cells if name != best]
        pairs = [about.assign(a=values[best], b=values[name]) for name in others]
        p = holm([paired_difference(of_pair, resamples=0).p for of_pair in pairs])
        even = [name for name, value in zip(others, p, strict=True) if value is not None and value >= LEVEL]
        equal = [name for name in cells if abs(means[name] - means[best]) <= ROUNDING]
        marks = {**dict.fromkeys(even, EVEN), **dict.fromkeys(equal, BEST)}
        cells = {name: replace(cell, mark=marks.get(name, "")) for name, cell in cells.items()}
    return {"cells": cells, "examples": len(values)}


def _ranked_column(name: str) -> Column:
    return Column(name, lambda row: row["cells"].get(name), 3)


def _key(name: str) -> Column:
    return Column(name, lambda row: row[name], key=True)


def _with_examples(stage: str | None) -> list[Stage]:
    found = [one for one in stages().values() if hasattr(one.report, "examples")]
    names = [one.name for one in found]
    if stage not in (None, *names):
        raise InputError(f"--stage {stage}: expected a stage with records of examples: {', '.join(names)}")
    return [one for one in found if stage in (None, one.name)]


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


def _place(sides: Iterable[pd.DataFrame]) -> list[str]:
    """The columns of a place that some record fills."""
    rows = pd.concat(sides)
    names = [name for name in COLUMNS if name in rows and name not in ("run", "seed", "value")]
    return [name for name in names if (rows[name] != "").any()]


def _averaged(side: pd.DataFrame, place: list[str]) -> pd.DataFrame:
    """Over runs that differ in the training seed, so that draws of demonstrations can be paired."""
    first = {name: (name, "first") for name in ("weight", "cluster", "truth")}
    return side.groupby([*place, "id", "seed"], sort=False).agg(value=("value", "mean"), **first).reset_index()


def _check_examples(stage: Stage, sides: pd.DataFrame, place: list[str]) -> None:
    """ArtifactError where examples of one id are not the same."""
    known = sides.drop_duplicates([*place, "id", "truth"])
    other = known[known.duplicated([*place, "id"], keep=False)]
    if len(other):
        first = other.iloc[0]
        where = ", ".join(f"{name} {first[name]}" for name in [*place, "id"])
        truths = other.loc[(other[[*place, "id"]] == first[[*place, "id"]]).all(axis=1), "truth"]
        raise ArtifactError(
            f"{stage.name}: {where}: measured on different examples, of the truths {' and '.join(map(repr, truths))}. "
            "Delete the older results and run again."
        )


def _rows(stage: Stage, a: pd.DataFrame, b: pd.DataFrame) -> Iterator[dict[str, Any]]:
    place = _place([a, b])
    example = [*place, "id"]
    sides = [_averaged(side, place) for side in (a, b)]
    _check_examples(stage, pd.concat(sides), place)
    both = sides[0].merge(sides[1], on=[*example, "seed"], suffixes=("", "_b"))
    paired = both.groupby(example, sort=False).agg(
        a=("value", "mean"), b=("value_b", "mean"), weight=("weight", "first"), cluster=("cluster", "first")
    )
    everything = pd.concat([a, b]).groupby(place, sort=False)["id"].nunique().to_dict()
    draws = [_draws(side, both, place) for side in (a, b)]
    for key, pairs in paired.groupby(level=place, sort=False):
        found = paired_difference(pairs)
        spread = [of_side.get(key) for of_side in draws]
        left_out = int(everything[key]) - found.examples
        yield {**dict(zip(place, map(plain, key), strict=True)), "found": found, "spread": spread, "left_out": left_out}


def _draws(side: pd.DataFrame, both: pd.DataFrame, place: list[str]) -> dict[Any, float]:
    """Standard deviation over runs and seeds, where there are several, of the mean over the examples that both have."""
    keys = [*place, "id", "seed"]
    kept = side.merge(both[keys], on=keys)
    kept["sum"] = kept["value"] * kept["weight"]
    sums = kept.groupby([*place, "run", "seed"], sort=False)[["sum", "weight"]].sum()
    means = sums["sum"] / sums["weight"]
    return means.groupby(level=place, sort=False).std().dropna().to_dict()


def _table(stage: Stage, a: str, b: str, rows: list[dict[str, Any]]) -> Table:
    def side(name: str, index: int) -> Column:
        return Column(name, lambda row: Cell((row["found"].a, row["found"].b)[index], row["spread"][index]), 3)

    def difference(row: dict[str, Any]) -> Cell:
        found: Difference = row["found"]
        mark = MARK if row["p"] is not None and row["p"] < LEVEL else ""
        return Cell(found.value, interval=found.interval, mark=mark)

    names = [name for name in rows[0] if name not in ("found", "spread", "left_out", "p")]
    columns = [
        *map(_key, names),
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
