"""The figure of the needle: a heatmap for each model and compressor, by length of the context and depth of the key."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from synopsis.config.experiment import Experiment
from synopsis.reporting.rendering import DASH
from synopsis.reporting.style import COLOURS, new_figure
from synopsis.stages.needle.summaries import Retrieval, retrievals

MOST_COLUMNS = 4
SHARES = LinearSegmentedColormap.from_list("shares", ["#eef4f8", "#7fb8d8", COLOURS["full_attention"], "#00395a"])
"""From 0 to 100 %: light to dark, so that it also reads in grey and with any colour blindness."""
NOT_MEASURED = "#dcdcdc"
DARK = 55.0
"""Cells with a larger share (%) are written on in white."""
CELL_WIDTH, CELL_HEIGHT = 0.56, 0.42
"""Inches."""


def needle_figure(experiment: Experiment, scores: pd.DataFrame) -> Figure:
    """Share of keys found (%) in each cell; grey cells were left out or failed."""
    found = retrievals(experiment, scores)
    assert experiment.needle is not None
    subjects = list(dict.fromkeys(record.compressor for record in found))
    columns = min(len(subjects), MOST_COLUMNS)
    rows = -(-len(subjects) // columns)
    width = max(1.7, 0.5 + CELL_WIDTH * len(experiment.needle.depths)) + 0.75 / columns
    height = max(1.55, 0.8 + CELL_HEIGHT * len(experiment.needle.lengths))
    figure, panels = new_figure(rows, columns, width, height, share_y=True)
    for number, (panel, subject) in enumerate(zip(panels, subjects, strict=False)):
        shares = _heatmap(panel, [record for record in found if record.compressor == subject])
        panel.set_title(subject)
        if number >= len(subjects) - columns:
            panel.set_xlabel("depth of the key (%)")
        if number % columns == 0:
            panel.set_ylabel("context (tokens)")
    for panel in panels[len(subjects) :]:
        panel.set_axis_off()
    chance = 100 / experiment.needle.choices
    bar = figure.colorbar(shares, ax=panels, fraction=0.035, pad=0.02, ticks=[0, 25, 50, 75, 100])
    bar.set_label("keys found (%)")
    bar.outline.set_visible(False)
    bar.ax.axhline(chance, color="k", linewidth=1.0, linestyle=(0, (2, 1)))
    bar.ax.text(-0.25, chance, "chance", ha="right", va="center", fontsize=7, transform=bar.ax.get_yaxis_transform())
    return figure


def _heatmap(panel: Axes, records: Sequence[Retrieval]) -> AxesImage:
    """Lengths from above, shortest first, as in the table."""
    depths = list(records[0].choice)
    shares = np.array([[_percent(record.choice[depth].mean) for depth in depths] for record in records])
    panel.set_facecolor(NOT_MEASURED)
    image = panel.imshow(np.ma.masked_invalid(shares), cmap=SHARES, vmin=0, vmax=100, aspect="auto")
    for (row, column), share in np.ndenumerate(shares):
        text, colour = (DASH, "#6b6b6b") if np.isnan(share) else (f"{share:.0f}", "w" if share > DARK else "k")
        panel.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
    panel.set_xticks(range(len(depths)), [f"{100 * depth:g}" for depth in depths])
    panel.set_yticks(range(len(records)), [f"{record.length:,}" for record in records])
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)
    # White lines between the cells.
    panel.set_xticks(np.arange(len(depths) - 1) + 0.5, minor=True)
    panel.set_yticks(np.arange(len(records) - 1) + 0.5, minor=True)
    panel.grid(visible=False)
    panel.grid(which="minor", color="w", linewidth=1.5)
    panel.tick_params(which="minor", length=0)
    return image


def _percent(share: float | None) -> float:
    return float("nan") if share is None else 100 * share
