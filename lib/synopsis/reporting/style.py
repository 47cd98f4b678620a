"""How figures look: colours by run method, markers, sizes, and saving that gives equal bytes for equal numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from synopsis.artifacts import atomic_file
from synopsis.config.experiment import Experiment
from synopsis.reporting.files import FIGURE_FORMATS

# The palette of Okabe and Ito (2008), which people with any common colour blindness can tell apart.
COLOURS = {
    "base": "#4d4d4d",
    "full_attention": "#0072b2",
    "autocompressor": "#d55e00",
    "rmt": "#e69f00",
    "gist": "#009e73",
    "pos_control": "#56b4e9",
    "neg_control": "#cc79a7",
}
MARKERS = {
    "base": "s",
    "full_attention": "D",
    "autocompressor": "o",
    "rmt": "^",
    "gist": "o",
    "pos_control": "D",
    "neg_control": "v",
}
MORE_COLOURS = ("#882255", "#332288", "#999933", "#44aa99")
"""Of methods that have none of their own, in the order of the experiment (Paul Tol's muted colours)."""
MORE_MARKERS = ("P", "X", "*", "p")
LineStyle = Literal["-", "--", "-.", ":"]
VARIANT_LINES: tuple[LineStyle, ...] = ("-", "--", "-.", ":")
LIGHTER_BY_VARIANT = 0.3
"""How far each further compressor of one method goes towards white."""

RC: dict[Any, Any] = {
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 5.0,
    "errorbar.capsize": 2.0,
    "figure.constrained_layout.w_pad": 0.08,
    "figure.constrained_layout.h_pad": 0.06,
    "figure.dpi": 100.0,
    "savefig.dpi": 160.0,
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
class SubjectStyle:
    colour: str
    marker: str
    line: LineStyle


def subject_styles(experiment: Experiment) -> dict[str, SubjectStyle]:
    """Model or compressor -> style: the colour of its method, lighter for each further one of the same method.

    The styles follow from the configuration, so a subject looks the same in every figure.
    """
    colours, markers = dict(COLOURS), dict(MARKERS)
    seen: dict[str, int] = {}
    styles = {}
    for subject in [*experiment.models, *experiment.compressors]:
        key = "base" if subject in experiment.models else experiment.compressors[subject].look
        if key not in colours:
            place = len(colours) - len(COLOURS)
            colours[key] = MORE_COLOURS[place % len(MORE_COLOURS)]
            markers[key] = MORE_MARKERS[place % len(MORE_MARKERS)]
        variant = seen.get(key, 0)
        seen[key] = variant + 1
        lighter = 1 - 1 / (1 + LIGHTER_BY_VARIANT * variant)
        styles[subject] = SubjectStyle(
            colour=_lightened(colours[key], lighter),
            marker=markers[key],
            line=VARIANT_LINES[variant % len(VARIANT_LINES)],
        )
    return styles


def _lightened(colour: str, share: float) -> str:
    red, green, blue = (channel + (1 - channel) * share for channel in to_rgb(colour))
    return to_hex((red, green, blue))


def new_figure(
    rows: int, columns: int, width: float, height: float, share_y: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure of `rows` x `columns` panels, `width` x `height` inches each, without pyplot's global state."""
    figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=share_y)
    return figure, list(axes.ravel())


def subject_handles(styles: dict[str, SubjectStyle], subjects: Sequence[str], lines: bool = True) -> list[Line2D]:
    """Legend entries of models and compressors, with their line or with the marker alone."""
    return [
        Line2D(
            [],
            [],
            color=styles[subject].colour,
            marker=styles[subject].marker,
            linestyle=styles[subject].line if lines else "none",
            label=subject,
        )
        for subject in subjects
    ]


def legend_below(figure: Figure, handles: Sequence[Artist], most_columns: int = 5) -> None:
    """One legend for all panels, under them, in rows of about equal length."""
    rows = -(-len(handles) // most_columns)
    figure.legend(handles=handles, loc="outside lower center", ncols=-(-len(handles) // rows))


def save_figure(figure: Figure, path: Path) -> None:
    """Write `path` with each suffix of FIGURE_FORMATS."""
    with matplotlib.rc_context(RC):
        # The layout takes as long as a drawing; done once, it also is the same in every format.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
    for suffix in FIGURE_FORMATS:
        target = path.with_name(f"{path.name}.{suffix}")
        with matplotlib.rc_context(RC), atomic_file(target) as temporary:
            figure.savefig(temporary, format=suffix, metadata=WITHOUT_DATES[suffix])
