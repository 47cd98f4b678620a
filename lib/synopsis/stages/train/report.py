"""Training curves in the scores and their figure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from synopsis.artifacts import check_outputs
from synopsis.reporting.items import figure
from synopsis.reporting.reading import json_lines
from synopsis.reporting.statistics import distinct, groups
from synopsis.stages.train.section import STAGE

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from synopsis.config.experiment import Experiment

METRICS = ("loss", "eval_loss", "learning_rate")
PANELS = {
    None: "models trained from scratch",
    "corpus": "compressors of text",
    "instructions": "compressors of instructions",
}


def rows(experiment: Experiment) -> Iterator[dict[str, Any]]:
    for job in STAGE.jobs(experiment):
        (folder,) = job.outputs
        check_outputs(job.record, ["metrics.jsonl"])
        # A run that was stopped and resumed may have a step twice; the last one counts.
        found: dict[tuple[int, str], float] = {}
        for record in json_lines(folder / "metrics.jsonl", ("step",), STAGE.name):
            found |= {(record["step"], name): record[name] for name in METRICS if name in record}
        for (step, name), value in found.items():
            yield {**job.wildcards, "step": step, "metric": name, "value": value}


def headline(experiment: Experiment, scores: pd.DataFrame) -> dict[str, float | None]:
    return {}


@figure("training", "loss curves")
def training_figure(experiment: Experiment, scores: pd.DataFrame) -> Figure:
    """
    Training loss by optimizer step, one line for each run; markers are losses on the validation split. Losses of
    different panels are of different tasks and cannot be compared.
    """
    from synopsis.reporting.style import legend_below, new_figure, styles, subject_handles

    kept = scores[scores["metric"].isin(["loss", "eval_loss"]) & scores["value"].notna()]
    curves: dict[str | None, list[Any]] = {}
    for group in groups(kept, STAGE.name, "run", "compressor", "metric"):
        compressor = experiment.compressors.get(group.compressor)
        curves.setdefault(compressor.trained_on if compressor else None, []).append(group)
    looks = styles(experiment)
    drawn, panels = new_figure(len(curves), 3.3, 2.3, most_columns=3)
    for panel, (kind, found) in zip(panels, curves.items(), strict=True):
        for group in found:
            losses = group.rows.sort_values("step")
            style = looks[group.compressor]
            markers: dict[str, Any] = {"linestyle": "none", "marker": style.marker, "zorder": 3}
            look = {"linestyle": style.line, "linewidth": 1.1} if group.metric == "loss" else markers
            panel.plot(losses["step"].astype(int), losses["value"], color=style.colour, **look)
        panel.set_title(PANELS[kind])
        panel.set_xlabel("optimizer step")
        panel.set_ylabel("loss (nats per token)")
    legend_below(drawn, subject_handles(looks, distinct(found for line in curves.values() for found in line)))
    return drawn
