"""The few estimates of the tables: spread over seeds, intervals of a share, the way between two controls."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

Z_95 = 1.959963984540054
"""Quantile of the normal distribution for a two-sided interval of 95 %."""


@dataclass(frozen=True)
class Estimate:
    """A mean, its sample standard deviation (n - 1; None for one value) and how many values it is made of."""

    mean: float | None
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
            return MISSING
        deviation = statistics.stdev(present) if len(present) > 1 else None
        return cls(statistics.fmean(present), deviation, len(present))


MISSING = Estimate(None)


def exists(value: object) -> bool:
    """Whether a value is there: not None, not NaN, not pandas' NA."""
    return value is not None and str(value) != "<NA>" and value == value


def wilson_interval(successes: float, trials: float) -> tuple[float, float] | None:
    """95 % interval of a share (Wilson 1927); None without trials. Ties may count as half a success.

    >>> low, high = wilson_interval(8, 10)
    >>> round(low, 4), round(high, 4)
    (0.4902, 0.9433)
    """
    if trials <= 0:
        return None
    share, square = successes / trials, Z_95**2
    centre = (share + square / (2 * trials)) / (1 + square / trials)
    half = Z_95 / (1 + square / trials) * math.sqrt(share * (1 - share) / trials + square / (4 * trials**2))
    # In exact numbers the share lies within; rounding can leave one of 0 or 1 outside.
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def recovered_percent(value: float | None, negative: float | None, positive: float | None) -> float | None:
    """How far `value` is on the way from the negative to the positive control, in percent (below 0 and over 100 occur).

    None when a number is missing or the controls do not differ.

    >>> recovered_percent(50.0, 20.0, 60.0)
    75.0
    """
    if value is None or negative is None or positive is None or positive == negative:
        return None
    return 100.0 * (value - negative) / (positive - negative)
