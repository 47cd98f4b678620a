"""In-context learning from the tidy scores to the numbers of its tables and its figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import pandas as pd

from synopsis.reporting.estimates import Estimate, exists
from synopsis.reporting.grouping import counts, grouped, total, values
from synopsis.reporting.scores import failures


@dataclass(frozen=True)
class Accuracy:
    """Accuracy (0..1) of one subject and setting.

    by_dataset: over draws, where a draw is one training seed and one seed of demonstrations; what shows no
    demonstration is computed for the first of these alone. mean: over draws of the mean of all data sets, for the
    draws in which no data set is missing; draws: how many there are, those of failed cells among them; examples:
    those of each data set and draw.

    demonstrations, asked, over_budget: of each data set and draw, the demonstrations that were shown, those that the
    published counts ask for, and the tokens beyond the budgets; unfilled: budgets that hold no demonstration, over all
    data sets and draws. empty: data sets for which no draw shows a demonstration though the setting has a budget, so
    that it is zero-shot by another name. failed: data set -> draws that have no accuracy since the cell failed.
    """

    compressor: str
    setting: str
    by_dataset: dict[str, Estimate]
    mean: Estimate
    draws: int
    examples: tuple[int, ...]
    demonstrations: tuple[int, ...]
    asked: tuple[int, ...]
    over_budget: tuple[int, ...]
    unfilled: int
    empty: frozenset[str]
    failed: dict[str, int]


def accuracies(scores: pd.DataFrame, datasets: Sequence[str]) -> list[Accuracy]:
    keys = ["compressor", "setting", "dataset", "metric"]
    groups = grouped(scores, "icl", ["compressor", "setting"])
    totals = dict(scores[scores["stage"] == "icl"].groupby(keys)["value"].sum())
    records = []
    for (compressor, setting), group in groups:
        sums = {dataset: _Sums(totals, compressor, setting, dataset) for dataset in datasets}
        measured = group[group["metric"] == "accuracy"].set_index(["run", "seed", "dataset"])["value"]
        draws = _every_draw(measured, datasets)
        records.append(
            Accuracy(
                compressor=compressor,
                setting=setting,
                by_dataset={data: Estimate.of(measured[measured.index.isin([data], "dataset")]) for data in datasets},
                mean=Estimate.of(draws.mean(axis=1, skipna=False)),
                draws=len(draws),
                examples=counts(group, "accuracy"),
                demonstrations=_whole(group, "demonstrations"),
                asked=_whole(group, "asked"),
                over_budget=_whole(group, "over_budget"),
                unfilled=sum(of["unfilled"] for of in sums.values()),
                empty=frozenset(dataset for dataset, of in sums.items() if _is_empty(of)),
                failed={dataset: of["failed"] for dataset, of in sums.items()},
            )
        )
    return records


def _every_draw(measured: pd.Series, datasets: Sequence[str]) -> pd.DataFrame:
    """A row for each run and seed, a column for each data set.

    What is computed once for a run, since no seed touches it, stands in each of its rows.
    """
    draws = measured.unstack().reindex(columns=list(datasets))
    for key, values_of_run in measured.groupby(level=["run", "dataset"]):
        if len(values_of_run) == 1:
            run, dataset = cast(tuple[str, str], key)
            draws.loc[(run, slice(None)), dataset] = values_of_run.iloc[0]
    return draws


@dataclass(frozen=True)
class _Sums:
    """Sums over the draws of one cell, by metric; 0 where there is none."""

    totals: dict[tuple[str, ...], float]
    compressor: str
    setting: str
    dataset: str

    def __getitem__(self, metric: str) -> int:
        return int(self.totals.get((self.compressor, self.setting, self.dataset, metric), 0))


def _is_empty(of: _Sums) -> bool:
    """Whether budgets hold nothing at all; zero-shot has no budget, so that it leaves none unfilled."""
    return of["unfilled"] > 0 and of["demonstrations"] + of["summary_vectors"] == 0


def _whole(group: pd.DataFrame, metric: str) -> tuple[int, ...]:
    return tuple(int(value) for value in values(group, metric) if exists(value))


@dataclass(frozen=True)
class Speed:
    """Work of one subject and setting over all data sets and draws: examples scored, tokens and seconds.

    naive_tokens: what a loop would compute that reads the whole prompt again for each option of each example.
    """

    compressor: str
    setting: str
    examples: int
    tokens: int
    naive_tokens: int
    seconds: float

    @property
    def saving(self) -> float | None:
        """How many times fewer tokens were computed than without sharing."""
        return self.naive_tokens / self.tokens if self.tokens else None

    @property
    def examples_per_second(self) -> float | None:
        return self.examples / self.seconds if self.seconds else None


def speeds(scores: pd.DataFrame) -> list[Speed]:
    return [
        Speed(
            compressor=compressor,
            setting=setting,
            examples=sum(counts(group, "tokens")),
            tokens=total(group, "tokens"),
            naive_tokens=total(group, "naive_tokens"),
            seconds=float(values(group, "seconds").sum()),
        )
        for (compressor, setting), group in grouped(scores, "icl", ["compressor", "setting"])
    ]


@dataclass(frozen=True)
class Exclusion:
    """Test examples of a data set that are left out for all runs, since they are too long for some `runs`."""

    dataset: str
    excluded: int
    examples: int
    runs: tuple[str, ...]


def exclusions(scores: pd.DataFrame) -> list[Exclusion]:
    """Those data sets of which examples are left out; `examples` counts these examples too."""
    found = []
    for (dataset,), group in grouped(scores, "icl", ["dataset"]):
        excluded = int(values(group, "excluded").max())
        if excluded:
            dropping = group[(group["metric"] == "dropped") & (group["value"] > 0)]
            left = max(counts(group, "accuracy"), default=0)
            found.append(Exclusion(dataset, excluded, excluded + left, tuple(dropping["run"].unique())))
    return found


@dataclass(frozen=True)
class Failure:
    """Cells of a data set that failed with the same message.

    cells: (run, setting) -> seeds of the evaluation.
    """

    dataset: str
    message: str
    cells: dict[tuple[str, str], tuple[int, ...]]


def failed_cells(scores: pd.DataFrame) -> list[Failure]:
    """Failures, of which one fault in the data causes many, by data set and message."""
    found: dict[tuple[str, str], dict[tuple[str, str], list[int]]] = {}
    for told in failures(scores):
        if told["stage"] == "icl":
            cells = found.setdefault((told["dataset"], told["message"]), {})
            cells.setdefault((told["run"], told["setting"]), []).append(int(told["seed"]))
    return [
        Failure(dataset, message, {cell: tuple(seeds) for cell, seeds in cells.items()})
        for (dataset, message), cells in found.items()
    ]
