"""Groups of rows of the tidy scores, and the few numbers that a group is summed up by."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar

import pandas as pd

from synopsis.errors import ArtifactError
from synopsis.reporting.estimates import Estimate, exists

Record = TypeVar("Record")


def grouped(scores: pd.DataFrame, stage: str, keys: list[str]) -> list[tuple[tuple[str, ...], pd.DataFrame]]:
    """Groups of a stage's rows, in the order in which they first appear: that of the configuration."""
    rows = scores[scores["stage"] == stage]
    if rows.empty:
        raise ArtifactError(f"the scores hold nothing of the stage '{stage}'; run `score` again for this configuration")
    return [(tuple(str(part) for part in key), group) for key, group in rows.groupby(keys, sort=False)]


def values(group: pd.DataFrame, metric: str) -> pd.Series:
    return group.loc[group["metric"] == metric, "value"]


def estimate(group: pd.DataFrame, metric: str) -> Estimate:
    return Estimate.of(values(group, metric))


def total(group: pd.DataFrame, metric: str) -> int:
    """The sum of counts, those that are missing left out."""
    return int(values(group, metric).sum())


def counts(group: pd.DataFrame, metric: str) -> tuple[int, ...]:
    """How many examples or tokens stand behind each number of a metric."""
    return tuple(int(count) for count in group.loc[group["metric"] == metric, "n"] if exists(count))


def together(records: list[Record], key: Callable[[Record], Hashable]) -> list[Record]:
    """Records of one key beside each other, keys and records in the order in which they came."""
    order = {found: place for place, found in enumerate(dict.fromkeys(key(record) for record in records))}
    return sorted(records, key=lambda record: order[key(record)])
