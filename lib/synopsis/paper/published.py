"""The published numbers, and each of them beside what comes out here.

    tables = load()["tables"]
    cells(tables)[0].agrees     # None until its value is known

published.yaml says how the numbers are written down, and where they come from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import nan
from pathlib import Path
from typing import Any

from synopsis.reporting.statistics import Estimate

HERE = Path(__file__).parent
DEVIATION = " (standard deviation)"
"""Ends the column of a standard deviation that is printed behind a mean."""
STATES = ("agree", "differ for a known reason", "differ", "ours alone", "published alone", "neither")


@dataclass
class Cell:
    """One number of a table.

    published: as printed; None: unknown. value: ours, with its 95 % interval where there is one. instead: what the
    released data give where it is known not to be the published number; of a percentage that was printed from rounded
    values, what these give. expected: whether value and published number should agree. reason: why they do not, or why
    one is missing. runs: what models and compressors of an experiment have.
    """

    table: str
    row: str
    column: str
    published: str | None
    source: str
    reason: str = ""
    instead: float | None = None
    value: float | None = None
    interval: tuple[float, float] | None = None
    expected: bool = True
    runs: dict[str, Estimate] = field(default_factory=dict)

    def put(self, value: float, interval: tuple[float, float] | None = None, from_printed: float | None = None) -> None:
        """Set our value; from_printed: the same made from rounded numbers, as they are printed."""
        self.value = float(value)
        low, high = map(float, interval or (nan, nan))
        self.interval = (low, high) if low <= high else None  # there is none of numbers that are all equal
        self.expected = self.instead is None or not self._equal(self.value, self.instead)
        if self.agrees is False and from_printed is not None and self._equal(from_printed, float(self.published or 0)):
            self.expected, self.instead, self.reason = False, from_printed, "printed from rounded values"

    @property
    def name(self) -> str:
        return f"{self.table} / {self.row} / {self.column}"

    @property
    def rounding(self) -> float:
        """Half of the last digit that is printed."""
        return 0.5 * 10.0 ** -len((self.published or "").partition(".")[2])

    @property
    def difference(self) -> float | None:
        return None if self.published is None or self.value is None else self.value - float(self.published)

    @property
    def agrees(self) -> bool | None:
        """Whether the value rounds to the published one; None where either is missing."""
        return None if self.difference is None else self._equal(self.difference, 0)

    @property
    def fails(self) -> bool:
        """Whether the cell should agree and does not."""
        return self.agrees is False and self.expected

    def _equal(self, a: float, b: float) -> bool:
        """Up to the rounding. What lies in the middle may have been rounded to either side, and is seldom exact."""
        return abs(a - b) <= self.rounding + 1e-9

    @property
    def state(self) -> str:
        """One of STATES."""
        if self.agrees is not None:
            return STATES[0] if self.agrees else STATES[1] if not self.expected else STATES[2]
        return STATES[3] if self.value is not None else STATES[4] if self.published is not None else STATES[5]

    def record(self) -> dict[str, Any]:
        """The cell as JSON has it, numbers as numbers; without a value of ours it has that of the first run."""
        if self.value is None and self.runs:
            name, run = next(iter(self.runs.items()))
            return replace(self, value=run.mean, reason=f"a run of the experiment: {name}").record()
        names = ("table", "row", "column", "value", "interval", "difference", "agrees", "instead", "source")
        return {
            **{name: getattr(self, name) for name in names},
            "published": float(self.published) if self.published is not None else None,
            "rounding": self.rounding if self.published is not None else None,
            "reason": self.reason or ("no run" if self.value is None else ""),
            "runs": {name: run.mean for name, run in self.runs.items()},
        }


def load() -> dict[str, Any]:
    import yaml

    found: dict[str, Any] = yaml.safe_load((HERE / "published.yaml").read_text(encoding="utf-8"))
    return found


def checksums() -> dict[str, str]:
    """File of the release -> its SHA-256."""
    lines = (HERE / "release.sha256").read_text(encoding="utf-8").splitlines()
    return {file: digest for digest, file in map(str.split, lines)}


def cells(tables: Mapping[str, Any]) -> list[Cell]:
    """Every published number, without values, in the order of the tables."""
    return [
        cell
        for name, table in tables.items()
        for row, entry in table["rows"].items()
        for column, text in zip(table["columns"], str(entry["cells"]).split(), strict=True)
        for cell in _cells(name, row, column, text, {**table, **entry})
    ]


def _cells(table: str, row: str, column: str, text: str, about: Mapping[str, Any]) -> Iterator[Cell]:
    if text == "-":
        return
    text, _, instead = text.partition("~")
    for name, number in zip((column, column + DEVIATION), text.split("±"), strict=False):
        known = number != "?"
        reason = about.get("known", "") if instead else "" if known else about.get("reason", "")
        yield Cell(
            table, row, name, number if known else None, about["source"], reason, float(instead) if instead else None
        )
