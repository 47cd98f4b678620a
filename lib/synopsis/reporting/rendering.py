"""A table and its forms: CSV (plain numbers), Markdown, LaTeX (booktabs), HTML, and text for a terminal.

A cell without data is an explicit dash in every form, so that "not measured" never looks like zero or an empty string.
A table that is wider than a page or a terminal is set in blocks of columns, one below the other, each with the keys.
"""

from __future__ import annotations

import csv
import html
import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field

from synopsis.reporting.estimates import exists

DASH = "–"

LATEX_SPECIAL = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "–": "--",
    "†": r"$\dagger$",
    "‡": r"$\ddagger$",
}
GAP = 2
"""Spaces between columns in the terminal."""
MARKDOWN_WIDTH = 150
LATEX_WIDTH = 90
"""Most characters of a line of cells; a page of \\footnotesize text holds about this many."""


HTML_STYLE = (
    "body{font:14px/1.45 system-ui,sans-serif;color:#1c1c1c;background:#fff;margin:1.5rem}"
    "table{border-collapse:collapse}caption{text-align:left;font-weight:600;padding-bottom:.6rem}"
    "th,td{padding:.3rem .7rem;text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}"
    ".text{text-align:left}thead th{border-bottom:2px solid #1c1c1c;position:sticky;top:0;background:#fff}"
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


@dataclass(frozen=True)
class Column:
    """A column; `digits` after the point for numbers that are not whole; a `key` column says what a row is about.

    `brief`: whether the terminal shows it.
    """

    name: str
    digits: int = 2
    key: bool = False
    brief: bool = True


@dataclass(frozen=True)
class Table:
    """Rows of cells under columns. `note` says in one or two sentences how to read the numbers.

    remarks: what is to be known of single cells; each is a paragraph of its own below the note.
    """

    name: str
    title: str
    columns: Sequence[Column]
    rows: list[list[Cell]] = field(default_factory=list)
    note: str = ""
    remarks: Sequence[str] = ()

    def texts(self, columns: Sequence[int] | None = None) -> list[list[str]]:
        """Every cell as it is read by people; only some columns when their numbers are given."""
        chosen = range(len(self.columns)) if columns is None else columns
        return [[cell_text(row[i], self.columns[i].digits) for i in chosen] for row in self.rows]


def cell_text(cell: Cell, digits: int) -> str:
    """A cell for people.

    >>> cell_text(Cell(71.25, deviation=2.5), 1), cell_text(Cell(None), 1), cell_text(Cell(12000), 1)
    ('71.2 ± 2.5', '–', '12,000')
    """
    if isinstance(cell.value, str):
        return (cell.value or DASH) + cell.mark
    if cell.value is None or not exists(cell.value):
        return DASH + cell.mark
    text = f"{cell.value:,}" if isinstance(cell.value, int) else f"{cell.value:.{digits}f}"
    if cell.deviation is not None:
        text += f" ± {cell.deviation:.{digits}f}"
    if cell.interval is not None:
        text += f" [{cell.interval[0]:.{digits}f}, {cell.interval[1]:.{digits}f}]"
    return text + cell.mark


def as_csv(table: Table) -> str:
    """Plain numbers of six significant digits; deviations and intervals have columns of their own."""
    with_deviation = [any(row[i].deviation is not None for row in table.rows) for i in range(len(table.columns))]
    with_interval = [any(row[i].interval is not None for row in table.rows) for i in range(len(table.columns))]
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n")
    header = []
    for column, deviation, interval in zip(table.columns, with_deviation, with_interval, strict=True):
        header.append(column.name)
        header += [f"{column.name} standard deviation"] if deviation else []
        header += [f"{column.name} low", f"{column.name} high"] if interval else []
    writer.writerow(header)
    for row in table.rows:
        line = []
        for cell, deviation, interval in zip(row, with_deviation, with_interval, strict=True):
            line.append(_plain(cell.value))
            line += [_plain(cell.deviation)] if deviation else []
            line += [_plain(bound) for bound in cell.interval or (None, None)] if interval else []
        writer.writerow(line)
    return stream.getvalue()


def _plain(value: float | int | str | None) -> str:
    if isinstance(value, (str, int)):
        return str(value) or DASH
    return f"{value:.6g}" if value is not None and exists(value) else DASH


def as_markdown(table: Table) -> str:
    blocks = (_markdown_block(table, chosen) for chosen in _blocks(table, range(len(table.columns)), MARKDOWN_WIDTH))
    return "\n\n".join(part for part in (f"**{table.title}**", *blocks, table.note, *table.remarks) if part) + "\n"


def _markdown_block(table: Table, chosen: Sequence[int]) -> str:
    left = [_is_text(table, i) for i in chosen]
    rule = [":---" if is_left else "---:" for is_left in left]
    lines = _aligned([[table.columns[i].name for i in chosen], rule, *table.texts(chosen)], left)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def as_latex(table: Table) -> str:
    """A `table` environment for \\input; needs the package booktabs."""
    blocks = _blocks(table, range(len(table.columns)), LATEX_WIDTH)
    lines = [
        r"\begin{table}",
        r"  \centering",
        *([r"  \footnotesize\setlength{\tabcolsep}{4pt}"] if len(blocks) > 1 else []),
        rf"  \caption{{{latex_escaped(table.title)}. {latex_escaped(table.note)}}}",
        rf"  \label{{tab:{table.name.replace('_', '-')}}}",
        "\n  \\par\\medskip\n".join(_latex_block(table, chosen) for chosen in blocks),
        *(rf"  \par\smallskip\footnotesize {latex_escaped(remark)}" for remark in table.remarks),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _latex_block(table: Table, chosen: Sequence[int]) -> str:
    alignment = "".join("l" if _is_text(table, i) else "r" for i in chosen)
    lines = [
        rf"  \begin{{tabular}}{{{alignment}}}",
        r"    \toprule",
        _latex_row([table.columns[i].name for i in chosen]),
        r"    \midrule",
        *(_latex_row(row) for row in table.texts(chosen)),
        r"    \bottomrule",
        r"  \end{tabular}",
    ]
    return "\n".join(lines)


def _latex_row(texts: Sequence[str]) -> str:
    return "    " + " & ".join(latex_escaped(text) for text in texts) + r" \\"


def latex_escaped(text: str) -> str:
    """Text that LaTeX prints as it is.

    >>> latex_escaped("pos_control 50 %")
    'pos\\\\_control 50 \\\\%'
    """
    return "".join(LATEX_SPECIAL.get(character, character) for character in text)


def as_html(table: Table) -> str:
    """A page of its own, without scripts and without anything to load."""
    kinds = [' class="text"' if _is_text(table, i) else "" for i in range(len(table.columns))]

    def row(tag: str, texts: Sequence[str]) -> str:
        cells = (f"<{tag}{kind}>{html.escape(text)}</{tag}>" for kind, text in zip(kinds, texts, strict=True))
        return f"<tr>{''.join(cells)}</tr>"

    title = html.escape(table.title)
    lines = [
        "<!DOCTYPE html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{HTML_STYLE}</style></head><body>',
        f"<table><caption>{title}</caption>",
        f"<thead>{row('th', [column.name for column in table.columns])}</thead>",
        "<tbody>",
        *(row("td", texts) for texts in table.texts()),
        "</tbody></table>",
        *(f"<p>{html.escape(text)}</p>" for text in (table.note, *table.remarks)),
        "</body></html>",
    ]
    return "\n".join(lines) + "\n"


def as_terminal_text(table: Table, width: int) -> str:
    """The brief columns in lines of at most `width` characters, where one column beside the keys is not wider."""
    blocks = _blocks(table, [i for i, column in enumerate(table.columns) if column.brief], width)
    texts = (textwrap.fill(text, width) for text in (table.note, *table.remarks) if text)
    return "\n\n".join([table.title, *(_block(table, block) for block in blocks), *texts])


def _blocks(table: Table, shown: Sequence[int], width: int) -> list[list[int]]:
    """The columns of each block: the keys, and as many of the `shown` ones as `width` characters hold."""
    texts = [[column.name for column in table.columns], *table.texts()]
    widths = [max(len(line[i]) for line in texts) + GAP for i in range(len(table.columns))]
    keys = [i for i in shown if table.columns[i].key]
    numbers = [i for i in shown if i not in keys]
    blocks = _filled(keys, numbers, widths, width + GAP)
    for narrower in range(width, 0, -1):
        # As many blocks in less width: even ones, and no last one of a single column.
        even = _filled(keys, numbers, widths, narrower)
        if len(even) > len(blocks):
            break
        blocks = even
    return blocks


def _filled(keys: list[int], numbers: Sequence[int], widths: Sequence[int], width: int) -> list[list[int]]:
    """Blocks filled one after the other, each with at least one of the numbers' columns."""
    blocks: list[list[int]] = [keys.copy()]
    for number in numbers:
        wider = [*blocks[-1], number]
        if blocks[-1] != keys and sum(widths[i] for i in wider) > width:
            wider = [*keys, number]
            blocks.append(wider)
        blocks[-1] = wider
    return blocks


def _block(table: Table, chosen: Sequence[int]) -> str:
    left = [_is_text(table, i) for i in chosen]
    header, *rows = _aligned([[table.columns[i].name for i in chosen], *table.texts(chosen)], left)
    rule = ["-" * len(text) for text in header]
    return "\n".join((" " * GAP).join(line).rstrip() for line in (header, rule, *rows))


def _is_text(table: Table, column: int) -> bool:
    """Whether a column is set to the left: keys that are words."""
    return table.columns[column].key and all(isinstance(row[column].value, str) for row in table.rows)


def _aligned(lines: Sequence[Sequence[str]], left: Sequence[bool]) -> list[list[str]]:
    """Texts filled with spaces to the width of their column."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(left))]
    return [
        [
            text.ljust(width) if is_left else text.rjust(width)
            for text, width, is_left in zip(line, widths, left, strict=True)
        ]
        for line in lines
    ]
