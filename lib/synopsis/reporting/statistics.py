"""Groups of rows of the scores, and the few numbers that a group is summed up by.

A number that does not exist is None here, never zero. Runs of one compressor that differ in the training seed alone
are one subject; a model that is loaded or trained from scratch is a subject under its own name.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from synopsis.errors import ArtifactError

if TYPE_CHECKING:
    import pandas as pd

SKIPPED = "skipped"
"""Metric: the positions that a length would have needed; its count is those that the model has."""
FAILURES = "failures"
"""Beside the rows of the scores, which have no room for messages."""


RESAMPLES, DRAWN_AT_ONCE = 2000, 2_000_000
"""Bootstrap samples, and numbers drawn in one piece."""
ROUNDING = 1e-9
"""Differences that are the same but for this share have no spread to test or to bound anything with."""


def exists(value: object) -> bool:
    """Whether a value is there: not None, not NaN, not pandas' NA."""
    return value is not None and str(value) != "<NA>" and value == value


@dataclass(frozen=True)
class Estimate:
    """A mean, its sample standard deviation (n - 1; None for one value) and how many values it is made of."""

    mean: float | None = None
    deviation: float | None = None
    count: int = 0

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Estimate:
        """The estimate from the values that exist; None and NaN are left out.

        >>> Estimate.of([1.0, 3.0, None])
        Estimate(mean=2.0, deviation=1.4142135623730951, count=2)
        >>> Estimate.of([])
        Estimate(mean=None, deviation=None, count=0)
        """
        present = [float(value) for value in values if value is not None and exists(value)]
        if not present:
            return cls()
        return cls(statistics.fmean(present), statistics.stdev(present) if len(present) > 1 else None, len(present))

    def __mul__(self, factor: float) -> Estimate:
        mean, deviation = (None if value is None else factor * value for value in (self.mean, self.deviation))
        return Estimate(mean, deviation, self.count)


@dataclass(frozen=True, eq=False)
class Group:
    """Rows of the scores that agree in some columns, whose values are attributes: `group.compressor`."""

    key: Mapping[str, Any]
    rows: pd.DataFrame

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["key"][name]
        except KeyError:
            raise AttributeError(name) from None

    def values(self, metric: str) -> pd.Series:
        return self.rows.loc[self.rows["metric"] == metric, "value"]

    def estimate(self, metric: str) -> Estimate:
        return Estimate.of(self.values(metric))

    def mean(self, metric: str) -> float | None:
        return self.estimate(metric).mean

    def total(self, metric: str) -> int:
        """The sum of counts, those that are missing left out."""
        return int(self.values(metric).sum())

    def whole(self, metric: str) -> list[int]:
        return [int(value) for value in self.values(metric) if exists(value)]

    def counts(self, metric: str) -> list[int]:
        """How many examples or tokens stand behind each number of a metric."""
        return [int(count) for count in self.rows.loc[self.rows["metric"] == metric, "n"] if exists(count)]


def groups(scores: pd.DataFrame, stage: str, *keys: str) -> list[Group]:
    """Groups of a stage's rows, in the order in which they first appear: that of the configuration."""
    rows = scores[scores["stage"] == stage]
    if rows.empty:
        raise ArtifactError(f"the scores hold nothing of the stage '{stage}'; run `score` again for this configuration")
    found = rows.groupby(list(keys), sort=False, dropna=False)
    return [Group({name: plain(part) for name, part in zip(keys, key, strict=True)}, group) for key, group in found]


def failures(scores: pd.DataFrame, stage: str) -> list[dict[str, Any]]:
    """Cells of a stage that could not be measured: what names their row, and the `message` of the error."""
    return [found for found in scores.attrs.get(FAILURES, []) if found["stage"] == stage]


def skipped(scores: pd.DataFrame, stage: str, axis: str) -> list[tuple[str, str, str]]:
    """Compressor, the lengths along `axis` that it has no positions for, and the positions of its model, as texts."""
    rows = scores[(scores["stage"] == stage) & (scores["metric"] == SKIPPED)]
    return [
        (str(compressor), ", ".join(f"{length:,}" for length in sorted(set(found[axis]))), f"{found['n'].max():,}")
        for compressor, found in rows.groupby("compressor", sort=False)
    ]


def plain(part: Any) -> Any:
    """A key as Python has it; None where there is none."""
    return None if not exists(part) else part.item() if hasattr(part, "item") else part


def together(found: Iterable[Any], *names: str) -> list[Any]:
    """Groups that agree in these columns beside each other, in the order in which they came."""
    found = list(found)
    keys = [tuple(getattr(group, name) for name in names) for group in found]
    order = {key: place for place, key in enumerate(dict.fromkeys(keys))}
    return [group for _, group in sorted(zip(keys, found, strict=True), key=lambda pair: order[pair[0]])]


def distinct(found: Iterable[Any], name: str = "compressor") -> list[Any]:
    """The values of a column in groups, each once."""
    return list(dict.fromkeys(getattr(group, name) for group in found))


def wilson_interval(successes: float, trials: float) -> tuple[float, float] | None:
    """95 % interval of a share (Wilson 1927); None without trials. Ties may count as half a success.

    >>> low, high = wilson_interval(8, 10)
    >>> round(low, 4), round(high, 4)
    (0.4902, 0.9433)
    """
    if trials <= 0:
        return None
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(successes, trials, method="wilson")
    # In exact numbers the share lies within; rounding can leave one of 0 or 1 outside.
    return min(float(low), successes / trials), max(float(high), successes / trials)


@dataclass(frozen=True)
class Difference:
    """Two means over the same examples, and what their difference is worth; None is what the examples do not give.

    interval: 95 % bootstrap of `a - b`. p: two-sided, by McNemar's exact test where each example is right or wrong in
    both, else by the t test of paired differences. smallest: the difference that so many examples, spread as these are,
    show in 80 % of experiments at the level of 5 %. examples, clusters: how many of them.
    """

    a: float
    b: float
    interval: tuple[float, float] | None
    p: float | None
    smallest: float | None
    examples: int
    clusters: int

    @property
    def value(self) -> float:
        return self.a - self.b


def paired_difference(pairs: pd.DataFrame, resamples: int = RESAMPLES) -> Difference:
    """`a` against `b`, numbers of the same example in columns of one row, and `weight`, how much it counts in the mean.

    Rows of one `cluster` (questions about one document) are not independent: the bootstrap draws clusters again, and
    the t test is over their sums. Draws are those of a fixed seed; without `resamples` there is no interval.
    """
    import numpy as np
    from scipy import stats
    from statsmodels.stats.contingency_tables import mcnemar
    from statsmodels.stats.power import TTestPower

    weights = pairs["weight"].to_numpy(float)
    difference = weights * (pairs["a"] - pairs["b"])
    weighed = pairs[["cluster"]].assign(difference=difference, weight=weights)
    sums = weighed.groupby("cluster", sort=False)[["difference", "weight"]].sum().to_numpy(float)
    total, count = weights.sum(), len(sums)
    a, b = (float((weights * pairs[side]).sum() / total) for side in ("a", "b"))
    interval, p, smallest = None, None, None
    if count > 1 and resamples:
        drawn = stats.bootstrap(
            (sums[:, 0], sums[:, 1]),
            lambda differences, counts, axis: differences.sum(axis) / counts.sum(axis),
            paired=True,
            vectorized=True,
            n_resamples=resamples,
            batch=max(1, DRAWN_AT_ONCE // count),
            method="percentile",
            rng=0,
        ).confidence_interval
        interval = float(drawn.low), float(drawn.high)
    if count > 1 and np.ptp(sums[:, 0]) > ROUNDING * np.abs(sums).max():
        spread = float(sums[:, 0].std(ddof=1) * count / total)
        smallest = spread * float(np.squeeze(TTestPower().solve_power(nobs=count, alpha=0.05, power=0.8)))
        p = float(stats.ttest_1samp(sums[:, 0], 0).pvalue)
    elif count > 1 and abs(a - b) <= ROUNDING:
        p = 1.0
    if count == len(pairs) and pairs[["a", "b"]].isin([0.0, 1.0]).all(axis=None):
        only_a, only_b = (int((pairs[one] > pairs[other]).sum()) for one, other in (("a", "b"), ("b", "a")))
        p = float(mcnemar(np.array([[0, only_a], [only_b, 0]]), exact=True).pvalue)
    return Difference(a, b, interval, p, smallest, len(pairs), count)


def holm(p: Sequence[float | None]) -> list[float | None]:
    """p values of one family of tests, corrected as by Holm (1979); None stays None.

    >>> holm([0.01, None, 0.04])
    [0.02, None, 0.04]
    """
    from statsmodels.stats.multitest import multipletests

    known = [value for value in p if value is not None]
    corrected = iter(multipletests(known, method="holm")[1].tolist() if known else [])
    return [None if value is None else next(corrected) for value in p]


def recovered_percent(value: float | None, negative: float | None, positive: float | None) -> float | None:
    """How far `value` is on the way from the negative to the positive control, in percent (below 0 and over 100 occur).

    None when a number is missing or the controls do not differ.

    >>> recovered_percent(50.0, 20.0, 60.0)
    75.0
    """
    if value is None or negative is None or positive is None or positive == negative:
        return None
    return 100.0 * (value - negative) / (positive - negative)
