"""A table and its forms: CSV (plain numbers), Markdown, LaTeX (booktabs), HTML, and text for a terminal.

A cell without data is an explicit dash in every form, so that "not measured" never looks like zero or an empty string.
A table that is wider than a page or a terminal is set in blocks of columns, one below the other, each with the keys.
"""

from __future__ import annotations

import csv
import html
import io
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from synopsis.reporting.statistics import Estimate, exists

DASH = "–"
LATEX_SYMBOLS = str.maketrans({"±": r"$\pm$", "×": r"$\times$", "–": "--", "†": r"$\dagger$", "‡": r"$\ddagger$"})
GAP = 2
"""Spaces between columns in the terminal."""
MARKDOWN_WIDTH = 150
LATEX_WIDTH = 90
"""Most characters of a line of cells; 5.5 inches of \\footnotesize text hold about this many."""
HTML_STYLE = (
    "body{font:14px/1.45 system-ui,sans-serif;color:#1c1c1c;background:#fff;margin:1.5rem}"
    "h1{font-size:1em}table{border-collapse:collapse}"
    "th,td{padding:.3rem .7rem;white-space:nowrap;font-variant-numeric:tabular-nums}"
    "thead th{border-bottom:2px solid #1c1c1c;position:sticky;top:0;background:#fff}"
    "tbody tr:nth-child(even){background:#f4f4f4}p{max-width:60rem}"
)


@dataclass(frozen=True)
class Cell:
    """One cell: text or a number, with a standard deviation or an interval where there is one.

    mark: a sign that people see after it, explained by a remark of the table; CSV has numbers alone.
    """

    value: float | int | str | None
    deviation: float | None = None
    interval: tuple[float, float] | None = None
    mark: str = ""

    @classmethod
    def of(cls, value: Any) -> Cell:
        if isinstance(value, Estimate):
            return cls(value.mean, value.deviation)
        return value if isinstance(value, Cell) else cls(value)


@dataclass(frozen=True)
class Column:
    """A column: its name, and what it shows of a record (a text, a number, an estimate or a cell).

    digits: after the point, for numbers that are not whole. key: it says what a row is about. brief: whether the
    terminal shows it; None: where one of its numbers is not zero.
    """

    name: str
    value: Callable[[Any], Any]
    digits: int = 2
    key: bool = False
    brief: bool | None = True


class Table:
    """A row of cells for each record.

    remarks: what is to be known of single cells; each is a paragraph of its own below the note, which says how to read
    the numbers (the caption, where none is given).
    """

    def __init__(
        self, title: str, columns: Sequence[Column], records: Iterable[Any], note: str = "", remarks: Sequence[str] = ()
    ):
        self.title, self.columns, self.note, self.remarks = title, columns, note, list(remarks)
        self.rows = [[Cell.of(column.value(record)) for column in columns] for record in records]

    @property
    def names(self) -> list[str]:
        return [column.name for column in self.columns]

    def texts(self) -> list[list[str]]:
        """Every cell as it is read by people."""
        digits = [column.digits for column in self.columns]
        return [[cell_text(cell, places) for cell, places in zip(row, digits, strict=True)] for row in self.rows]

    def brief(self) -> list[int]:
        """The columns that the terminal shows."""
        shown = ((i, column.brief) for i, column in enumerate(self.columns))
        return [i for i, brief in shown if (any(row[i].value for row in self.rows) if brief is None else brief)]

    def grid(self, form: str, chosen: Sequence[int] | None = None) -> str:
        """Columns in a form of tabulate; keys that are words are set to the left."""
        import tabulate

        tabulate.MIN_PADDING = 0  # its own two spaces more for headers would make lines longer than is counted
        chosen = range(len(self.columns)) if chosen is None else chosen
        words = [all(isinstance(row[i].value, str) for row in self.rows) for i in chosen]
        return tabulate.tabulate(
            [[row[i] for i in chosen] for row in self.texts()],
            [self.names[i] for i in chosen],
            tablefmt=form,
            disable_numparse=True,
            colalign=[
                "left" if self.columns[i].key and text else "right" for i, text in zip(chosen, words, strict=True)
            ],
        )


def cell_text(cell: Cell, digits: int) -> str:
    """A cell for people.

    >>> cell_text(Cell(71.25, deviation=2.5), 1), cell_text(Cell(None), 1), cell_text(Cell(12000), 1)
    ('71.2 ± 2.5', '–', '12,000')
    >>> cell_text(Cell(-0.04), 1)
    '0.0'
    """
    if isinstance(cell.value, str):
        return (cell.value or DASH) + cell.mark
    if cell.value is None or not exists(cell.value):
        return DASH + cell.mark
    text = f"{cell.value:,}" if isinstance(cell.value, int) else f"{cell.value:z.{digits}f}"
    if cell.deviation is not None:
        text += f" ± {cell.deviation:.{digits}f}"
    if cell.interval is not None:
        text += f" [{cell.interval[0]:z.{digits}f}, {cell.interval[1]:z.{digits}f}]"
    return text + cell.mark


def at_most(texts: Iterable[str], most: int, more: str) -> list[str]:
    """Texts, each once; of those beyond `most` their number, with `more` after it."""
    distinct = list(dict.fromkeys(texts))
    return distinct if len(distinct) <= most else [*distinct[:most], f"{len(distinct) - most} {more}"]


def counts_text(counts: Iterable[int]) -> str:
    """Counts that are equal once, others as a range; "" when there is none.

    >>> counts_text([100, 100]), counts_text([87, 1821])
    ('100', '87–1821')
    """
    found = sorted(set(counts))
    return "" if not found else str(found[0]) if len(found) == 1 else f"{found[0]}–{found[-1]}"


def as_csv(table: Table) -> str:
    """Plain numbers of six significant digits; deviations and intervals have columns of their own."""
    columns: list[list[Any]] = []
    for name, cells in zip(table.names, zip(*table.rows, strict=True), strict=False):
        columns.append([name, *(cell.value for cell in cells)])
        if any(cell.deviation is not None for cell in cells):
            columns.append([f"{name} standard deviation", *(cell.deviation for cell in cells)])
        if any(cell.interval is not None for cell in cells):
            bounds = [cell.interval or (None, None) for cell in cells]
            columns += [[f"{name} {side}", *(bound[i] for bound in bounds)] for i, side in enumerate(("low", "high"))]
    stream = io.StringIO(newline="")
    csv.writer(stream, lineterminator="\n").writerows(
        [_plain(value) for value in line] for line in zip(*columns, strict=True)
    )
    return stream.getvalue()


def _plain(value: float | int | str | None) -> str:
    if isinstance(value, (str, int)):
        return str(value) or DASH
    return f"{value:.6g}" if value is not None and exists(value) else DASH


def as_markdown(table: Table) -> str:
    grids = [table.grid("pipe", block) for block in _blocks(table, range(len(table.columns)), MARKDOWN_WIDTH)]
    return "\n\n".join(part for part in (f"**{table.title}**", *grids, table.note, *table.remarks) if part) + "\n"


def as_latex(table: Table, name: str) -> str:
    """A `table` environment for \\input; needs the package booktabs."""
    blocks = _blocks(table, range(len(table.columns)), LATEX_WIDTH)
    lines = [
        r"\begin{table}",
        r"\centering",
        r"\footnotesize\setlength{\tabcolsep}{4pt}",
        rf"\caption{{{_latex(table.title)}. {_latex(table.note)}}}",
        rf"\label{{tab:{name.replace('_', '-')}}}",
        "\n\\par\\medskip\n".join(table.grid("latex_booktabs", block).translate(LATEX_SYMBOLS) for block in blocks),
        *(rf"\par\smallskip\footnotesize {_latex(remark)}" for remark in table.remarks),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _latex(text: str) -> str:
    from tabulate import LATEX_ESCAPE_RULES

    return "".join(LATEX_ESCAPE_RULES.get(character, character) for character in text).translate(LATEX_SYMBOLS)


def as_html(table: Table) -> str:
    """A page of its own, without scripts and without anything to load."""
    title = html.escape(table.title)
    paragraphs = "\n".join(f"<p>{html.escape(text)}</p>" for text in (table.note, *table.remarks))
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{HTML_STYLE}</style></head><body>\n<h1>{title}</h1>\n{table.grid('html')}\n{paragraphs}\n</body></html>\n"
    )


def as_terminal_text(table: Table, width: int) -> str:
    """The brief columns in lines of at most `width` characters, where one column beside the keys is not wider."""
    grids = [table.grid("simple", block) for block in _blocks(table, table.brief(), width)]
    texts = (textwrap.fill(text, width) for text in (table.note, *table.remarks) if text)
    return "\n\n".join([table.title, *grids, *texts])


def _blocks(table: Table, shown: Sequence[int], width: int) -> list[list[int]]:
    """The columns of each block: the keys, and as many of the `shown` ones as `width` characters hold.

    As few blocks as that needs, of about as many columns each; a block has one number's column at least.
    """
    lines = [table.names, *table.texts()]
    widths = [max(len(line[i]) for line in lines) + GAP for i in range(len(table.columns))]
    keys = [i for i in shown if table.columns[i].key]
    numbers = [i for i in shown if i not in keys]
    found, blocks = None, [keys]
    for size in range(len(numbers), 0, -1):
        blocks = [[*keys, *numbers[start : start + size]] for start in range(0, len(numbers), size)]
        if found and len(blocks) > len(found):
            break
        if all(sum(widths[i] for i in block) <= width + GAP for block in blocks):
            found = blocks
    return found or blocks
