"""The figures of perplexity: loss by context length, and by the number of summary vectors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from synopsis.config.experiment import Experiment
from synopsis.reporting.style import (
    VARIANT_LINES,
    LineStyle,
    SubjectStyle,
    legend_below,
    new_figure,
    subject_handles,
    subject_styles,
)
from synopsis.stages.perplexity.summaries import LossAtContext, losses, most_vectors, overall

TOKEN_TITLES = {
    "all": "all tokens",
    "dependent": "tokens that only context predicts",
    "topic": "topic words",
    "recall": "recalled words",
}
MOST_COLUMNS = 4


def perplexity_figure(experiment: Experiment, scores: pd.DataFrame) -> Figure:
    """Loss by context length, a panel for each class of tokens; the contexts stand at equal distances."""
    found = most_vectors(overall(losses(scores)))
    contexts = sorted({record.context for record in found})
    subjects = list(dict.fromkeys(record.compressor for record in found))
    styles = subject_styles(experiment)
    figure, panels = _panels(found)
    for tokens, panel in panels.items():
        for subject in subjects:
            line = [record for record in found if (record.tokens, record.compressor) == (tokens, subject)]
            line.sort(key=lambda record: record.context)
            style = styles[subject]
            _loss_line(panel, [contexts.index(record.context) for record in line], line, style, style.line)
        panel.set_xticks(range(len(contexts)), [f"{context:,}" for context in contexts])
        panel.set_xlabel("context (tokens)")
    legend_below(figure, subject_handles(styles, subjects))
    return figure


def perplexity_vectors_figure(experiment: Experiment, scores: pd.DataFrame) -> Figure:
    """Loss by the number of summary vectors, a line for each number of summary tokens a step; the small numbers are the
    tokens of context that the vectors stand for, to the right of a point and to the left in turn."""
    found = overall(losses(scores))
    compressing = {record.compressor for record in found if record.summary_vectors.mean}
    found = [record for record in found if record.compressor in compressing]
    styles = subject_styles(experiment)
    variants = list(
        dict.fromkeys((record.compressor, record.summary_length) for record in found if record.summary_vectors.mean)
    )
    lines = _variant_lines(variants, styles)
    figure, panels = _panels(found)
    ticks = sorted({round(record.summary_vectors.mean or 0) for record in found})
    for tokens, panel in panels.items():
        for number, (subject, fewer) in enumerate(variants):
            line = [
                record
                for record in found
                if (record.tokens, record.compressor) == (tokens, subject)
                and (record.summary_length == fewer or not record.context)
            ]
            line.sort(key=lambda record: record.context)
            places = [record.summary_vectors.mean or 0.0 for record in line]
            _loss_line(panel, places, line, styles[subject], lines[subject, fewer])
            _name_contexts(panel, places, line, styles[subject], left=number % 2 == 1)
        panel.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        panel.set_xlabel("summary vectors")
    legend_below(figure, _variant_handles(variants, styles, lines))
    return figure


def _panels(found: Sequence[LossAtContext]) -> tuple[Figure, dict[str, Axes]]:
    """A panel for each class of tokens, with its title and the name of the loss."""
    classes = list(dict.fromkeys(record.tokens for record in found))
    columns = min(len(classes), 2 if len(classes) == MOST_COLUMNS else MOST_COLUMNS)
    figure, panels = new_figure(-(-len(classes) // columns), columns, 4.2, 3.0)
    for panel in panels[len(classes) :]:
        panel.set_axis_off()
    for panel, tokens in zip(panels, classes, strict=False):
        panel.set_title(TOKEN_TITLES.get(tokens, tokens))
        panel.set_ylabel("loss (nats per token)")
    return figure, dict(zip(classes, panels, strict=False))


def _loss_line(
    panel: Axes, places: Sequence[float], line: Sequence[LossAtContext], style: SubjectStyle, dashes: LineStyle
) -> None:
    """Mean loss with its band: spread over training seeds where there are several, else interval over documents."""
    middle = np.array([record.loss.mean for record in line], dtype=float)
    low, high = np.array([_loss_band(record) for record in line], dtype=float).reshape(-1, 2).T
    panel.plot(places, middle, color=style.colour, marker=style.marker, linestyle=dashes)
    panel.fill_between(places, low, high, color=style.colour, alpha=0.18, linewidth=0)


def _loss_band(record: LossAtContext) -> tuple[float | None, float | None]:
    if record.loss.mean is not None and record.loss.deviation is not None:
        return record.loss.mean - record.loss.deviation, record.loss.mean + record.loss.deviation
    return record.low, record.high


def _name_contexts(
    panel: Axes, places: Sequence[float], line: Sequence[LossAtContext], style: SubjectStyle, left: bool
) -> None:
    """The contexts beside their points; those of one number of vectors, which stand close, beside the first of them."""
    named = [(place, r) for place, r in zip(places, line, strict=True) if r.context and r.loss.mean is not None]
    for place in dict.fromkeys(place for place, _ in named):
        records = [record for at, record in named if at == place]
        contexts = [f"{record.context:,}" for record in (records[0], records[-1])]
        panel.annotate(
            "–".join(dict.fromkeys(contexts)),
            (place, records[0].loss.mean or 0.0),
            xytext=(-5, -9) if left else (4, 3),
            textcoords="offset points",
            ha="right" if left else "left",
            fontsize=6.5,
            color=style.colour,
        )


def _variant_lines(
    variants: Sequence[tuple[str, int | None]], styles: dict[str, SubjectStyle]
) -> dict[tuple[str, int | None], LineStyle]:
    """The subject's own line for all its summary tokens, the others in turn for fewer."""
    lines: dict[tuple[str, int | None], LineStyle] = {}
    for subject in dict.fromkeys(subject for subject, _ in variants):
        own = styles[subject].line
        others = [line for line in VARIANT_LINES if line != own]
        numbers = [number for name, number in variants if name == subject]
        fewer = [number for number in numbers if number is not None]
        lines |= {(subject, number): others[place % len(others)] for place, number in enumerate(fewer)}
        lines[subject, None] = own
    return lines


def _variant_handles(
    variants: Sequence[tuple[str, int | None]],
    styles: dict[str, SubjectStyle],
    lines: dict[tuple[str, int | None], LineStyle],
) -> list[Line2D]:
    handles = []
    for subject, fewer in variants:
        style, label = styles[subject], subject if fewer is None else f"{subject}, {fewer} a step"
        line = lines[subject, fewer]
        handles.append(Line2D([], [], color=style.colour, marker=style.marker, linestyle=line, label=label))
    return handles
