"""What cells of several tables have in common: estimates, counts as a range, columns that tell of trouble."""

from __future__ import annotations

from collections.abc import Iterable

from synopsis.reporting.estimates import Estimate
from synopsis.reporting.rendering import Cell, Column

OVER_TRAINING_SEEDS = "± is the standard deviation over training seeds, where there are several."


def estimate_cell(estimate: Estimate, factor: float = 1.0, mark: str = "") -> Cell:
    if estimate.mean is None:
        return Cell(None, mark=mark)
    deviation = None if estimate.deviation is None else factor * estimate.deviation
    return Cell(factor * estimate.mean, deviation=deviation, mark=mark)


def count_text(counts: Iterable[int]) -> str:
    """Counts that are equal once, others as a range; "" when there is none.

    >>> count_text([100, 100]), count_text([87, 1821])
    ('100', '87–1821')
    """
    found = sorted(set(counts))
    return "" if not found else str(found[0]) if len(found) == 1 else f"{found[0]}–{found[-1]}"


def errors_column(name: str, rows: list[list[Cell]], place: int) -> Column:
    """A column of counts that are zero when all is well; the terminal shows it when one is not."""
    return Column(name, brief=any(row[place].value for row in rows))
