"""How figures look: colours, markers, sizes, and saving that gives equal bytes for equal numbers.

matplotlib is imported by the functions, since every start of the workflow reads the modules that use this one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synopsis.artifacts import atomic_file

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from synopsis.config.experiment import Experiment

# The palette of Okabe and Ito (2008), which people with any common colour blindness can distinguish.
BLUE, VERMILION, GREEN, SKY, PINK, ORANGE = "#0072b2", "#d55e00", "#009e73", "#56b4e9", "#cc79a7", "#e69f00"
COLOURS = (VERMILION, BLUE, GREEN, PINK, SKY, ORANGE)
MARKERS = ("o", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":")
GREYS = ("#4d4d4d", "#8c8c8c", "#b3b3b3")
"""Of models without compression."""

PAGE_WIDTH = 6.75
"""Inches; the widest text of a paper. Figures are no wider, so that they are printed in the size that they were made
in; a panel of 3.3 inches is as wide as a column."""

RC: dict[Any, Any] = {
    "font.size": 8.0,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "errorbar.capsize": 2.0,
    "figure.constrained_layout.w_pad": 0.06,
    "figure.constrained_layout.h_pad": 0.05,
    "figure.dpi": 100.0,
    "savefig.dpi": 200.0,
    "pdf.fonttype": 42,
    "svg.fonttype": "path",
    "svg.hashsalt": "synopsis",
}
WITHOUT_DATES = {
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "ModDate": None, "Creator": None, "Producer": None},
    "png": {"Software": None},
}


@dataclass(frozen=True)
class Style:
    colour: str
    marker: str
    line: str


def styles(experiment: Experiment) -> dict[str, Style]:
    """Model or compressor -> style, by its place in the configuration, so that it looks the same in every figure."""
    found = {
        name: Style(GREYS[place % len(GREYS)], "s", LINES[place // len(GREYS) % len(LINES)])
        for place, name in enumerate(experiment.models)
    }
    for place, name in enumerate(experiment.compressors):
        turn, place = divmod(place, len(COLOURS))
        found[name] = Style(COLOURS[place], MARKERS[(place + turn) % len(MARKERS)], LINES[turn % len(LINES)])
    return found


@contextmanager
def drawing() -> Iterator[None]:
    """Figures that are made in this block have the sizes and fonts of the report."""
    import matplotlib

    with matplotlib.rc_context(RC):
        yield


def new_figure(
    count: int, width: float, height: float, most_columns: int = 4, share_y: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels of `height` inches, without pyplot's global state.

    Panels are `width` inches wide, or narrower where a row would be wider than a page. Rows are of about equal length;
    of five panels, three stand above two.
    """
    from matplotlib.figure import Figure

    rows = -(-count // most_columns)
    columns = -(-count // rows)
    figure = Figure(figsize=(min(columns * width, PAGE_WIDTH), rows * height), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, sharey=share_y).ravel())
    for panel in axes[count:]:
        panel.set_axis_off()
    return figure, axes[:count]


def handle(label: str, **look: Any) -> Line2D:
    """A legend entry: a line, or a marker alone with linestyle "none"."""
    from matplotlib.lines import Line2D

    return Line2D([], [], label=label, **look)


def patch(label: str, colour: str) -> Artist:
    """A legend entry: a coloured rectangle."""
    from matplotlib.patches import Patch

    return Patch(color=colour, label=label)


def subject_handles(looks: dict[str, Style], subjects: Sequence[str], lines: bool = True) -> list[Line2D]:
    """Legend entries of models and compressors, with their line or with the marker alone."""
    return [
        handle(
            subject,
            color=looks[subject].colour,
            marker=looks[subject].marker,
            linestyle=looks[subject].line if lines else "none",
        )
        for subject in subjects
    ]


def legend_below(figure: Figure, handles: Sequence[Artist], most_columns: int = 5) -> None:
    """One legend for all panels, under them, in as few rows of about equal length as the figure's width holds."""
    for rows in range(-(-len(handles) // most_columns), len(handles) + 1):
        legend = figure.legend(handles=handles, loc="outside lower center", ncols=-(-len(handles) // rows))
        if legend.get_window_extent().width <= figure.bbox.width or rows == len(handles):
            break
        legend.remove()


def save_figure(figure: Figure, paths: Sequence[Path]) -> None:
    """Write the figure in the formats that the paths' suffixes name."""
    with drawing():
        # The layout takes as long as a drawing; done once, it also is the same in every format.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        for path in paths:
            suffix = path.suffix.removeprefix(".")
            with atomic_file(path) as temporary:
                figure.savefig(temporary, format=suffix, metadata=WITHOUT_DATES[suffix])
