"""The figures: loss by context length, ICL accuracy, ROUGE, judgements, time and memory, training curves.

Each function takes the tidy scores and the experiment and returns a matplotlib figure that is not tied to a window.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from synopsis.config.experiment import Experiment
from synopsis.reporting.estimates import MISSING, Estimate
from synopsis.reporting.scores import BENCHMARK_METRICS
from synopsis.reporting.style import (
    COLOURS,
    RC,
    SubjectStyle,
    legend_below,
    new_figure,
    save_figure,
    subject_handles,
    subject_styles,
)
from synopsis.reporting.summaries import (
    Comparison,
    Cost,
    Curve,
    comparisons,
    costs,
    curves,
    rouges,
)
from synopsis.stages.icl.figure import icl_figure
from synopsis.stages.needle.figure import needle_figure
from synopsis.stages.perplexity.figures import perplexity_figure, perplexity_vectors_figure

__all__ = ["build_figure", "save_figure"]

MEBIBYTE = 2**20


def build_figure(name: str, experiment: Experiment, scores: pd.DataFrame) -> Figure:
    with matplotlib.rc_context(RC):
        return FIGURES[name](experiment, scores)


# --------------------------------------------------------------------------------------- outputs for instructions


def rouge_figure(experiment: Experiment, scores: pd.DataFrame) -> Figure:
    """ROUGE-L by split, a bar for each compressor."""
    found = rouges(scores, experiment, ["rougeL"])
    splits = list(dict.fromkeys(record.split for record in found))
    subjects = list(dict.fromkeys(record.compressor for record in found))
    styles = subject_styles(experiment)
    figure, (panel,) = new_figure(1, 1, max(4.5, 0.55 * len(splits) * (len(subjects) + 1)), 3.2)
    width = 0.8 / len(subjects)
    for position, subject in enumerate(subjects):
        values = {record.split: record.metrics["rougeL"] for record in found if record.compressor == subject}
        places = [index + width * (position + 0.5) - 0.4 for index in range(len(splits))]
        estimates = [values.get(split, MISSING) for split in splits]
        bars = panel.bar(
            places,
            [_number(estimate.mean) for estimate in estimates],
            0.92 * width,
            color=styles[subject].colour,
            yerr=_error_bars(estimates),
            ecolor="#333333",
        )
        panel.bar_label(bars, ["–" if e.mean is None else f"{e.mean:.1f}" for e in estimates], padding=2, fontsize=7.5)
    panel.set_xticks(range(len(splits)), splits)
    panel.grid(axis="x", visible=False)
    panel.set_xlabel("validation split")
    panel.set_ylabel("ROUGE-L (0 to 100)")
    panel.margins(y=0.1)
    legend_below(figure, [Patch(color=styles[subject].colour, label=subject) for subject in subjects])
    return figure


def _error_bars(estimates: Sequence[Estimate]) -> list[float] | None:
    """Deviations for matplotlib; None when there is not one, so that no empty bars are drawn."""
    if all(estimate.deviation is None for estimate in estimates):
        return None
    return [estimate.deviation or 0.0 for estimate in estimates]


def judgement_figure(experiment: Experiment, scores: pd.DataFrame) -> Figure:
    """Shares of wins, ties and losses, one bar for each judge, pair and split; errors are no part of them."""
    found = comparisons(scores, experiment)
    figure, (panel,) = new_figure(1, 1, 7.0, 1.2 + 0.34 * len(found))
    for place, record in enumerate(found):
        left = 0.0
        decided = record.win + record.tie + record.lose
        for count, colour in zip((record.win, record.tie, record.lose), _OUTCOME_COLOURS.values(), strict=True):
            share = 100 * count / decided if decided else 0.0
            panel.barh(place, share, 0.7, left=left, color=colour)
            if share >= 6:
                dark = colour == COLOURS["full_attention"]
                panel.text(
                    left + share / 2, place, f"{share:.0f}", ha="center", va="center", color="w" if dark else "k"
                )
            left += share
        if record.win_rate is not None and record.interval is not None:
            low, high = record.interval
            errors = [[100 * (record.win_rate - low)], [100 * (high - record.win_rate)]]
            panel.errorbar(100 * record.win_rate, place + 0.42, xerr=errors, color="k", marker="|", linewidth=1.0)
    panel.axvline(50, color="k", linewidth=0.8, linestyle=":")
    panel.set_yticks(range(len(found)), [_comparison_label(record, found) for record in found])
    panel.set_ylim(len(found) - 0.3, -0.6)
    panel.set_xlim(0, 100)
    panel.grid(visible=False)
    panel.set_xlabel("judgements (%)")
    handles: list[Patch | Line2D] = [Patch(color=colour, label=label) for label, colour in _OUTCOME_COLOURS.items()]
    handles.append(Line2D([], [], color="k", marker="|", linewidth=1.0, label="win rate, 95 % interval"))
    legend_below(figure, handles)
    return figure


_OUTCOME_COLOURS = {
    "first named wins": COLOURS["full_attention"],
    "tie": "#cfcfcf",
    "second named wins": COLOURS["rmt"],
}


def _comparison_label(record: Comparison, found: Sequence[Comparison]) -> str:
    judge = f"{record.judge}: " if len({other.judge for other in found}) > 1 else ""
    return f"{judge}{record.a} against {record.b}, {record.split}"


# ------------------------------------------------------------------------------------------------ time and memory


def benchmark_figure(experiment: Experiment, scores: pd.DataFrame) -> Figure:
    """Wall time, peak memory and bytes of context by context length; a row of panels for each batch size."""
    found = costs(scores, BENCHMARK_METRICS)
    batches = sorted({record.batch_size for record in found})
    contexts = sorted({record.context for record in found})
    subjects = list(dict.fromkeys(record.compressor for record in found))
    styles = subject_styles(experiment)
    figure, panels = new_figure(len(batches), len(_COST_PANELS), 3.1, 2.6)
    for number, batch in enumerate(batches):
        for column, (metric, label, factor) in enumerate(_COST_PANELS):
            panel = panels[number * len(_COST_PANELS) + column]
            for position, subject in enumerate(subjects):
                line = [r for r in found if (r.compressor, r.batch_size) == (subject, batch)]
                # Compressors of one base model cost almost the same: side by side, none hides another.
                places = {
                    context: at + 0.05 * (position - (len(subjects) - 1) / 2) for at, context in enumerate(contexts)
                }
                _cost_lines(panel, line, places, metric, factor, styles[subject])
            panel.set_xticks(range(len(contexts)), [f"{context:,}" for context in contexts])
            panel.set_ylabel(label)
            panel.set_xlabel("context (tokens)")
            panel.set_title(f"batch size {batch}")
            _from_zero(panel)
    modes = [
        Line2D([], [], color="k", linestyle="-", marker="o", label="cached"),
        Line2D([], [], color="k", linestyle="--", marker="o", markerfacecolor="w", label="uncached"),
    ]
    colours = [Patch(color=styles[subject].colour, label=subject) for subject in subjects]
    legend_below(figure, [*colours, *modes], most_columns=7)
    return figure


_COST_PANELS = (
    ("wall_seconds", "wall time (milliseconds)", 1e3),
    ("peak_bytes", "peak memory (MiB)", 1 / MEBIBYTE),
    ("context_bytes", "context kept (MiB)", 1 / MEBIBYTE),
)


def _cost_lines(
    panel: Axes, records: list[Cost], places: Mapping[int, float], metric: str, factor: float, style: SubjectStyle
) -> None:
    for mode, line, face in (("cached", "-", style.colour), ("uncached", "--", "w")):
        chosen = sorted((record for record in records if record.mode == mode), key=lambda record: record.context)
        panel.plot(
            [places[record.context] for record in chosen],
            [factor * _number(record.metrics[metric].mean) for record in chosen],
            color=style.colour,
            linestyle=line,
            marker=style.marker,
            markerfacecolor=face,
        )


def _from_zero(panel: Axes) -> None:
    """Start the axis at zero, so that heights can be compared; say so where nothing was measured."""
    values = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in panel.get_lines()])
    if np.isfinite(values).any():
        panel.set_ylim(0, 1.08 * max(float(np.nanmax(values)), 1e-9))
    else:
        panel.text(0.5, 0.5, "not measured", ha="center", va="center", transform=panel.transAxes)


# ------------------------------------------------------------------------------------------------ training curves


def training_figure(experiment: Experiment, scores: pd.DataFrame) -> Figure:
    """Training loss by step, a panel for each kind of training; points are losses on the validation split."""
    found = curves(scores)
    kinds: dict[str, list[Curve]] = {}
    for curve in found:
        kinds.setdefault(_training_kind(experiment, curve.run), []).append(curve)
    styles = subject_styles(experiment)
    figure, panels = new_figure(1, len(kinds), 4.0, 3.0)
    for panel, (kind, chosen) in zip(panels, kinds.items(), strict=True):
        for curve in chosen:
            style = styles[curve.compressor]
            if curve.held_out:
                panel.plot(
                    curve.steps, curve.losses, color=style.colour, linestyle="none", marker=style.marker, zorder=3
                )
            else:
                panel.plot(curve.steps, curve.losses, color=style.colour, linestyle=style.line, linewidth=1.1)
        panel.set_title(kind)
        panel.set_xlabel("optimizer step")
        panel.set_ylabel("loss (nats per token)")
    legend_below(figure, subject_handles(styles, list(dict.fromkeys(curve.compressor for curve in found))))
    return figure


def _training_kind(experiment: Experiment, run: str) -> str:
    kinds = {"base": "models trained from scratch", "gist": "compressors of instructions"}
    return kinds.get(experiment.method_of(run), "compressors of text")


def _number(value: float | None) -> float:
    """A gap in a line where a number is missing."""
    return float("nan") if value is None else value


def _hide(panels: Sequence[Axes]) -> None:
    for panel in panels:
        panel.set_axis_off()


FIGURES: dict[str, Callable[[Experiment, pd.DataFrame], Figure]] = {
    "perplexity": perplexity_figure,
    "perplexity_vectors": perplexity_vectors_figure,
    "icl": icl_figure,
    "needle": needle_figure,
    "rouge": rouge_figure,
    "judgements": judgement_figure,
    "benchmark": benchmark_figure,
    "training": training_figure,
}
"""Name of a figure -> the function that draws it."""
