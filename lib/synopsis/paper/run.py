"""`synopsis paper`: the published tables beside what comes out here.

    made = regenerate(Path("gisting/data"))
    made.failed                         # cells that should agree and do not, and files that are not the released ones
    made.write(Path("results/paper"))

Values are set by `gist` and `runs`; this module sets them out as tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synopsis.artifacts import Layout, Provenance, file_hash, write_json, write_text
from synopsis.paper.published import DEVIATION, HERE, STATES, Cell, cells, checksums, load
from synopsis.paper.release import Release
from synopsis.reporting import rendering
from synopsis.reporting.rendering import Column, Table, at_most

if TYPE_CHECKING:
    from synopsis.config.experiment import Experiment

LATEX_LINES = 15
KNOWN, FAILED = "†", "‡"
HOW_TO_READ = (
    "A number of ours without a sign agrees with the published one to its last printed digit, where there is one. "
    "?: unknown. Brackets: 95 % interval."
)


@dataclass
class Paper:
    """Every cell, and every file of the release with whether it is as released."""

    tables: Mapping[str, Any]
    cells: list[Cell]
    files: dict[str, bool]
    provenance: Provenance

    @property
    def failed(self) -> list[str]:
        """A line for each cell that should agree and does not, and for each file that is not as released."""
        wrong = [f"{cell.name}: {cell.value:.6g}, published {cell.published}" for cell in self.cells if cell.fails]
        return wrong + [f"{file}: differs from the release" for file, same in self.files.items() if not same]

    def rendered(self) -> dict[str, Table]:
        return {name: _table(about, self._of(name)) for name, about in self.tables.items()}

    def _of(self, table: str) -> list[Cell]:
        return [cell for cell in self.cells if cell.table == table]

    def summary(self) -> Table:
        """How many cells of each table agree."""

        def count(state: str) -> Column:
            return Column(state, lambda table: sum(cell.state == state for cell in self._of(table)))

        note = f"{sum(self.files.values())} of {len(self.files)} files are those of the release."
        return Table("Cells", [Column("table", str, key=True), *map(count, STATES)], self.tables, note)

    def markdown(self) -> str:
        return "\n\n".join(rendering.as_markdown(table) for table in [*self.rendered().values(), self.summary()])

    def write_json(self, path: Path) -> None:
        files = [{"file": file, "agrees": same} for file, same in self.files.items()]
        payload = {"cells": [cell.record() for cell in self.cells], "files": files, "failed": self.failed}
        write_json(path, "paper", payload, self.provenance.record())

    def write(self, folder: Path) -> None:
        """Each table as Markdown, CSV, LaTeX and HTML, every cell as paper.json, and the figure."""
        from synopsis.paper.figure import gist_tokens_figure
        from synopsis.reporting.style import drawing, save_figure

        for name, table in {**self.rendered(), "summary": self.summary()}.items():
            write_text(folder / f"{name}.md", rendering.as_markdown(table))
            write_text(folder / f"{name}.csv", rendering.as_csv(table))
            write_text(folder / f"{name}.tex", as_latex(table, name))
            write_text(folder / f"{name}.html", rendering.as_html(table))
        with drawing():
            figure = gist_tokens_figure(self.cells)
        save_figure(figure, [folder / f"gist_tokens.{suffix}" for suffix in ("svg", "pdf", "png")])
        self.write_json(folder / "paper.json")


def regenerate(release: Path, experiment: Experiment | None = None) -> Paper:
    """Every published number beside ours; DataError names what is missing or damaged in the release."""
    from synopsis.paper.gist import fill

    published = load()
    found, data = cells(published["tables"]), Release(release, published["release"], checksums())
    inputs = [release / "results", release / "benchmarking"]
    if experiment is not None:
        from synopsis.paper.runs import add_runs

        add_runs(found, published["tables"], experiment)
        inputs.append(Layout(experiment).scores)
    provenance = Provenance(config=file_hash(HERE / "published.yaml") or "", inputs=inputs)
    fill(found, data)
    return Paper(published["tables"], found, data.same(), provenance)


def as_latex(table: Table, name: str) -> str:
    """A table as LaTeX, long ones in parts that fit a page each."""
    parts = []
    for start in range(0, len(table.rows), LATEX_LINES):
        part = copy(table)
        part.rows = table.rows[start : start + LATEX_LINES]
        if start:
            part.note = "Continued"
        parts.append(rendering.as_latex(part, f"{name}_{start}" if start else name))
    return "\n".join(parts)


@dataclass(frozen=True)
class Line:
    """A line of a table: whose numbers they are, by column."""

    row: str
    whose: str
    numbers: Mapping[str, Any]


def _table(about: Mapping[str, Any], found: list[Cell]) -> Table:
    """Of each row of the paper the published numbers, ours with the difference, and those of runs."""
    lines = [
        line
        for row, entry in about["rows"].items()
        for line in _lines(row, [cell for cell in found if cell.row == row], "of" in entry)
    ]

    def column(name: str) -> Column:
        printed = [cell.published or "" for cell in found if cell.column.removesuffix(DEVIATION) == name]
        digits = max(2, *(len(text.partition(".")[2]) for text in printed))

        def shown(line: Line) -> Any:
            number = line.numbers.get(name)
            return round(number, digits) + 0.0 if isinstance(number, float) else number  # a difference is never -0.00

        return Column(name, shown, digits=digits)

    columns = [Column("row", lambda line: line.row, key=True), Column("numbers", lambda line: line.whose, key=True)]
    reasons = dict.fromkeys(cell.reason for cell in found if cell.agrees is False and not cell.fails)
    remarks = [f"{KNOWN} {reason}." for reason in reasons]
    if any(cell.fails for cell in found):
        remarks.append(f"{FAILED} does not agree with the published number.")
    missing: dict[str, list[str]] = {}
    for cell in found:
        if cell.published is None and cell.reason:
            missing.setdefault(cell.reason, []).append(cell.row)
    remarks += [f"? in {', '.join(at_most(rows, 4, 'more rows'))}: {reason}." for reason, rows in missing.items()]
    note = f"{about.get('note', '')} {HOW_TO_READ} Source: {about['source']}.".strip()
    return Table(about["title"], [*columns, *map(column, about["columns"])], lines, note, remarks)


def _lines(row: str, found: list[Cell], of_runs: bool) -> Iterator[Line]:
    deviations = {cell.column.removesuffix(DEVIATION): cell for cell in found if cell.column.endswith(DEVIATION)}
    means = [cell for cell in found if not cell.column.endswith(DEVIATION)]

    def printed(cell: Cell) -> str:
        deviation = deviations.get(cell.column)
        text = cell.published or "?"
        return f"{text} ± {deviation.published}" if deviation and deviation.published else text

    def ours(cell: Cell) -> rendering.Cell | None:
        deviation = deviations.get(cell.column)
        if cell.value is None:
            return None
        both = [part for part in (cell, deviation) if part]
        mark = FAILED if any(part.fails for part in both) else KNOWN if cell.agrees is False else ""
        return rendering.Cell(cell.value, deviation.value if deviation else None, cell.interval, mark)

    yield Line(row, "published", {cell.column: printed(cell) for cell in means})
    if any(cell.value is not None for cell in means):
        yield Line(row, "ours", {cell.column: ours(cell) for cell in means})
        if any(cell.difference is not None for cell in means):
            yield Line(row, "difference", {cell.column: cell.difference for cell in means})
    names = list(dict.fromkeys(name for cell in means for name in cell.runs))
    for name in names:
        yield Line(row, name, {cell.column: cell.runs.get(name) for cell in means})
    if of_runs and not names and all(cell.value is None for cell in means):
        yield Line(row, "ours", {cell.column: "no run" for cell in means})
