"""The needle in the scores, the table and the figure.

A cell that failed has no share (never zero), and its message is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synopsis.reporting.items import figure, table
from synopsis.reporting.reading import json_lines, read_result
from synopsis.reporting.rendering import DASH, Cell, Column, Table, at_most, cell_text, counts_text
from synopsis.reporting.statistics import SKIPPED, Estimate, Group, failures, groups, skipped, wilson_interval
from synopsis.stages.needle.section import STAGE

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

    from synopsis.config.experiment import Experiment

SHARES = ("choice", "exact")
METRICS = (*SHARES, "loss", "summary_vectors")
MOST_FAILURES = 6
SHADES = ("#eef4f8", "#7fb8d8", "#0072b2", "#00395a")
"""From 0 to 100 %: light to dark, so that it also reads in grey and with any colour blindness."""
NOT_MEASURED = "#dcdcdc"
DARK = 55.0
"""Cells with a larger share (%) are written on in white."""
CELL_WIDTH, CELL_HEIGHT = 0.56, 0.42
"""Inches."""


def rows(experiment: Experiment) -> Iterator[dict[str, Any]]:
    """Every number of every run; a failed cell's row has its `message` beside.

    skipped: the positions that a length would have needed; its count is those that the model has.
    Raises ArtifactError when a result is missing or damaged.
    """
    for job in STAGE.jobs(experiment):
        document = read_result(job.record, STAGE.kind)
        for found in document.parts("rows"):
            common = {**job.wildcards, "length": found["length"], "depth": found["depth"], "n": found["n"]}
            yield from ({**common, "metric": metric, "value": found[metric]} for metric in METRICS)
        for found in document.parts("failed"):
            place = {"length": found["length"], "depth": found["depth"]}
            yield {**job.wildcards, **place, "metric": "choice", "value": None, "message": found["error"]}
        for found in document.parts(SKIPPED):
            number = {"metric": SKIPPED, "value": found["positions"], "n": found["model_positions"]}
            yield {**job.wildcards, "length": found["length"], **number}


def examples(outputs: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Whether each key was found and written, from what one job wrote; texts of all depths stand for their length."""
    for record in json_lines(outputs[1], ("length", "depth", "example", "key", *SHARES), STAGE.name):
        text = {"length": record["length"], "id": f"{record['depth']}/{record['example']}", "truth": record["key"]}
        yield from ({**text, "metric": metric, "value": record[metric]} for metric in SHARES)


class Retrieval:
    """Keys that one compressor finds in contexts of one length; each metric is an estimate for every depth."""

    def __init__(self, compressor: str, length: int, depths: list[float], cells: dict[float, Group]):
        self.compressor, self.length, self.cells = compressor, length, cells
        self.by_depth = {
            metric: {depth: cells[depth].estimate(metric) if depth in cells else Estimate() for depth in depths}
            for metric in METRICS
        }

    def mean(self, metric: str) -> float | None:
        """Over the depths."""
        return Estimate.of(estimate.mean for estimate in self.by_depth[metric].values()).mean

    def percent(self, metric: str) -> float | None:
        mean = self.mean(metric)
        return None if mean is None else 100 * mean


def retrievals(experiment: Experiment, scores: pd.DataFrame) -> list[Retrieval]:
    """Every compressor with every length of the configuration, shortest first."""
    cells: dict[str, dict[int, dict[float, Group]]] = {}
    for group in groups(scores[scores["metric"] != SKIPPED], STAGE.name, "compressor", "length", "depth"):
        cells.setdefault(group.compressor, {}).setdefault(group.length, {})[group.depth] = group
    lengths, depths = sorted(experiment.needle.lengths), sorted(experiment.needle.depths)
    return [
        Retrieval(compressor, length, depths, found.get(length, {}))
        for compressor, found in cells.items()
        for length in lengths
    ]


def headline(experiment: Experiment, scores: pd.DataFrame) -> dict[str, float | None]:
    return {
        f"needle/{found.compressor}/length={found.length}/{metric}": found.mean(metric)
        for found in retrievals(experiment, scores)
        for metric in ("choice", "exact")
    }


def findings(experiment: Experiment, scores: pd.DataFrame) -> list[str]:
    """The share of keys that each compressor finds in the longest contexts that it was measured with.

    The 95 % Wilson interval counts the texts of one run, since all training seeds read the same.
    """
    sentences = {}
    for found in retrievals(experiment, scores):
        mean = found.mean("choice")
        texts = sum(max(cell.counts("choice"), default=0) for cell in found.cells.values())
        bounds = wilson_interval((mean or 0.0) * texts, texts)
        if mean is not None and bounds is not None:
            share = cell_text(Cell(100 * mean, interval=(100 * bounds[0], 100 * bounds[1])), 0)
            vectors = _rounded(found.mean("summary_vectors"))
            as_vectors = f", read as {vectors:,} summary vectors" if vectors else ""
            sentences[found.compressor] = (
                f"{found.compressor} finds {share} % of the keys in contexts of {found.length:,} tokens{as_vectors} "
                f"(chance: {100 / experiment.needle.choices:.3g} %)."
            )
    return list(sentences.values())


@table("needle", "keys found")
def needle_table(experiment: Experiment, scores: pd.DataFrame) -> Table:
    """
    One sentence of a long text holds a key, and the question after the text asks for it: does the context, compressed
    or whole, still hold the fact? Length: tokens of the context; columns: where in it the key stands. A key is found
    when it is likelier than all other choices, and written when greedy decoding gives it. Texts are those of one cell
    of a run. ± is the standard deviation over training seeds, where there are several.
    """
    section = experiment.needle

    def at(metric: str, depth: float, name: str, brief: bool = True) -> Column:
        return Column(f"{name} {100 * depth:g} %", lambda found: found.by_depth[metric][depth] * 100, 1, brief=brief)

    depths = sorted(section.depths)
    columns = [
        Column("Compressor", lambda found: found.compressor, key=True),
        Column("Length", lambda found: found.length, key=True),
        *(at("choice", depth, "at") for depth in depths),
        Column("Mean", lambda found: found.percent("choice"), digits=1),
        Column("Mean written", lambda found: found.percent("exact"), digits=1),
        *(at("exact", depth, "Written at", brief=False) for depth in depths),
        Column("Loss of the key", lambda found: found.mean("loss"), brief=False),
        Column("Summary vectors", lambda found: _rounded(found.mean("summary_vectors"))),
        Column("Texts", lambda found: counts_text(n for cell in found.cells.values() for n in cell.counts("choice"))),
        Column("Runs", lambda found: max(cell.count for cell in found.by_depth["choice"].values()), brief=False),
    ]
    title = f"Needle: keys found in a long context (%; chance: {100 / section.choices:.3g} %)"
    return Table(title, columns, retrievals(experiment, scores), remarks=_remarks(scores))


def _rounded(value: float | None) -> int | None:
    return None if value is None else round(value)


def _remarks(scores: pd.DataFrame) -> list[str]:
    """Why cells are dashes; nothing where all were measured."""
    failed = (
        f"{found['run']}, length={found['length']}/depth={found['depth']:g}: {found['message']}."
        for found in failures(scores, STAGE.name)
    )
    return [
        *(
            f"{compressor}: {lengths} tokens were left out, which need more than the model's {positions} positions."
            for compressor, lengths, positions in skipped(scores, STAGE.name, "length")
        ),
        *at_most(failed, MOST_FAILURES, "more cells failed; see the results."),
    ]


@figure("needle", "keys found")
def needle_figure(experiment: Experiment, scores: pd.DataFrame) -> Figure:
    """
    Share of hidden keys that are found, by length of the context and by where in it the key stands (0: at its
    beginning). A key is found when the model holds it for likelier than all other choices; the mark at the colours is
    what guessing gives. Compressors answer from the compressed context alone. Grey: not measured; the table says why.
    """
    from synopsis.reporting.style import PAGE_WIDTH, new_figure

    section, by_compressor = experiment.needle, dict[str, list[Retrieval]]()
    for one in retrievals(experiment, scores):
        by_compressor.setdefault(one.compressor, []).append(one)
    width = max(1.9, 0.7 + CELL_WIDTH * len(section.depths))
    height = max(1.55, 0.8 + CELL_HEIGHT * len(section.lengths))
    drawn, panels = new_figure(len(by_compressor), width, height, most_columns=max(1, round(PAGE_WIDTH / width)))
    for panel, (compressor, found) in zip(panels, by_compressor.items(), strict=True):
        shares = _heatmap(panel, found)
        panel.set_title(compressor)
        panel.set_xlabel("depth of the key (%)")
        panel.set_ylabel("context (tokens)")
    bar = drawn.colorbar(shares, ax=panels, fraction=0.035, pad=0.02, ticks=[0, 25, 50, 75, 100])
    bar.set_label("keys found (%)")
    bar.outline.set_visible(False)
    chance = 100 / section.choices
    bar.ax.axhline(chance, color="k", linewidth=1.0, linestyle=(0, (2, 1)))
    bar.ax.text(-0.25, chance, "chance", ha="right", va="center", fontsize=7, transform=bar.ax.get_yaxis_transform())
    return drawn


def _heatmap(panel: Axes, found: list[Retrieval]) -> AxesImage:
    """Lengths from above, shortest first, as in the table."""
    import numpy as np
    from matplotlib.colors import LinearSegmentedColormap

    depths = list(found[0].by_depth["choice"])
    shares = 100 * np.array([[cell.mean for cell in one.by_depth["choice"].values()] for one in found], dtype=float)
    panel.set_facecolor(NOT_MEASURED)
    colours = LinearSegmentedColormap.from_list("shares", SHADES)
    image = panel.imshow(np.ma.masked_invalid(shares), cmap=colours, vmin=0, vmax=100, aspect="auto")
    for (row, column), share in np.ndenumerate(shares):
        text, colour = (DASH, "#6b6b6b") if np.isnan(share) else (f"{share:.0f}", "w" if share > DARK else "k")
        panel.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
    panel.set_xticks(range(len(depths)), [f"{100 * depth:g}" for depth in depths])
    panel.set_yticks(range(len(found)), [f"{one.length:,}" for one in found])
    panel.spines[:].set_visible(False)
    # White lines between the cells.
    panel.set_xticks(np.arange(len(depths) - 1) + 0.5, minor=True)
    panel.set_yticks(np.arange(len(found) - 1) + 0.5, minor=True)
    panel.grid(visible=False)
    panel.grid(which="minor", color="w", linewidth=1.5)
    panel.tick_params(which="both", length=0)
    return image
