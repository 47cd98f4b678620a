"""The figure of in-context learning: accuracy by setting, a panel for each data set and one for their mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from synopsis.config.experiment import Experiment
from synopsis.reporting.estimates import MISSING, Estimate
from synopsis.reporting.style import SubjectStyle, legend_below, new_figure, subject_handles, subject_styles
from synopsis.stages.icl.summaries import Accuracy, accuracies

MEAN_TITLE = "mean of the data sets"
MOST_COLUMNS = 4
CHANCE_LINE: dict[str, Any] = {"color": "#6b6b6b", "linewidth": 1.1, "linestyle": (0, (5, 3))}


def icl_figure(experiment: Experiment, scores: pd.DataFrame) -> Figure:
    """Points with their deviation over draws; an open one is a setting whose budget holds no demonstration."""
    datasets = list(experiment.icl.datasets) if experiment.icl else []
    settings = list(experiment.icl.settings) if experiment.icl else []
    found = accuracies(scores, datasets)
    subjects = list(dict.fromkeys(record.compressor for record in found))
    styles = subject_styles(experiment)
    titles = [*datasets, MEAN_TITLE] if len(datasets) > 1 else datasets
    chance = _chance(experiment, datasets)
    columns = min(len(titles), MOST_COLUMNS)
    rows = -(-len(titles) // columns)
    height = 0.9 + 0.12 * len(settings) * (len(subjects) + 1)
    figure, panels = new_figure(rows, columns, 3.0, max(height, 1.8), share_y=True)
    for number, (panel, title) in enumerate(zip(panels, titles, strict=False)):
        for position, subject in enumerate(subjects):
            shift = 0.8 * ((position + 0.5) / len(subjects) - 0.5)
            of_subject = [record for record in found if record.compressor == subject]
            _accuracy_points(panel, of_subject, title, settings, shift, styles[subject])
        if title in chance:
            panel.axvline(100 * chance[title], zorder=0.8, **CHANCE_LINE)
        _rows_of_settings(panel, settings)
        panel.set_title(title)
        if number >= len(titles) - columns:
            panel.set_xlabel("accuracy (%)")
    for panel in panels[len(titles) :]:
        panel.set_axis_off()
    legend_below(figure, [*subject_handles(styles, subjects, lines=False), *_other_handles(found, chance)])
    return figure


def _chance(experiment: Experiment, datasets: Sequence[str]) -> dict[str, float]:
    """Title of a panel -> accuracy of a draw among the options, each as likely as another, where they are known."""
    tasks = {dataset: experiment.tasks[dataset] for dataset in datasets if dataset in experiment.tasks}
    chance = {dataset: 1 / len(task.options or task.option_fields) for dataset, task in tasks.items()}
    if chance and len(chance) == len(datasets):
        chance[MEAN_TITLE] = sum(chance.values()) / len(chance)
    return chance


def _rows_of_settings(panel: Axes, settings: Sequence[str]) -> None:
    panel.set_yticks(range(len(settings)), [setting.replace("_", " ") for setting in settings])
    panel.set_ylim(len(settings) - 0.5, -0.5)
    panel.grid(axis="y", visible=False)
    for boundary in range(1, len(settings)):
        panel.axhline(boundary - 0.5, color="#e4e4e4", linewidth=0.7)


def _accuracy_points(
    panel: Axes, records: Sequence[Accuracy], title: str, settings: Sequence[str], shift: float, style: SubjectStyle
) -> None:
    for record in records:
        place, estimate = settings.index(record.setting) + shift, _estimate(record, title)
        if estimate.mean is not None:
            panel.errorbar(
                100 * estimate.mean,
                place,
                xerr=100 * (estimate.deviation or 0.0) or None,
                color=style.colour,
                marker=style.marker,
                markerfacecolor="w" if title in record.empty else style.colour,
                linestyle="none",
            )
        elif record.failed.get(title):
            panel.text(
                0.02,
                place,
                "failed",
                color=style.colour,
                fontsize=7,
                va="center",
                transform=panel.get_yaxis_transform(),
            )
    zero_shot = next((_estimate(record, title) for record in records if record.setting == "zero_shot"), MISSING)
    if zero_shot.mean is not None:
        # What demonstrations add is read as the distance from this line.
        panel.axvline(100 * zero_shot.mean, color=style.colour, linewidth=0.8, linestyle=":", alpha=0.8, zorder=0)


def _estimate(record: Accuracy, title: str) -> Estimate:
    return record.by_dataset.get(title, record.mean)


def _other_handles(found: Sequence[Accuracy], chance: dict[str, float]) -> list[Line2D]:
    """Legend entries of what is no model, where the figure shows it."""
    handles = []
    if any(record.empty for record in found):
        label = "no demonstration fits"
        handles.append(Line2D([], [], color="k", marker="o", markerfacecolor="w", linestyle="none", label=label))
    if chance:
        handles.append(Line2D([], [], label="uniform chance", **CHANCE_LINE))
    return handles
