"""Outputs for instructions in the scores, the table of ROUGE and its figure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synopsis.artifacts import read_csv
from synopsis.reporting.items import figure, table
from synopsis.reporting.reading import read_result
from synopsis.reporting.rendering import Cell, Column, Table, counts_text
from synopsis.reporting.statistics import Group, distinct, groups, recovered_percent, together
from synopsis.stages.generate.section import STAGE

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from synopsis.config.experiment import Experiment

TITLES = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L", "rougeLsum": "ROUGE-Lsum"}
METRICS = (*TITLES, "exact_match")
SIDES = ("low", "high")


def rows(experiment: Experiment) -> Iterator[dict[str, Any]]:
    for job in STAGE.jobs(experiment):
        found = read_result(job.record, STAGE.kind)
        common = {**job.wildcards, "dataset": experiment.generate.instructions, "n": found["n"]}
        yield from ({**common, "metric": metric, "value": found[metric]} for metric in METRICS)
        for metric, bounds in found.get("intervals", {}).items():
            yield from ({**common, "metric": f"{metric}_{side}", "value": bounds[i]} for i, side in enumerate(SIDES))


def examples(written: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """ROUGE-L of each output, from what one job wrote."""
    from synopsis.stages.generate.rouge import score_rouge

    found = read_csv(written[1], ["id", "y_pred", "y_true"])
    scored = score_rouge([(row["y_pred"], row["y_true"]) for row in found], ["rougeL"]).rows if found else ()
    for row, score in zip(found, scored, strict=True):
        text = {"id": row["id"], "truth": row["y_true"]}
        yield {**text, "metric": "rougeL", "value": 100 * score["rougeL"].fmeasure}


def outputs(scores: pd.DataFrame) -> list[Group]:
    return together(groups(scores, STAGE.name, "split", "compressor"), "split")


def interval(group: Group) -> tuple[float, float] | None:
    """95 % bootstrap interval of ROUGE-L over examples, its bounds averaged over training seeds."""
    mean, low, high = (group.mean(metric) for metric in ("rougeL", "rougeL_low", "rougeL_high"))
    return None if mean is None or low is None or high is None else (min(low, mean), max(high, mean))


def recovered(experiment: Experiment, found: list[Group], group: Group) -> float | None:
    """Percent of the way of ROUGE-L from the negative to the positive control that share the base model."""
    controls = []
    for condition in ("neg_control", "pos_control"):
        name = _control(experiment, group.compressor, condition)
        same = [other for other in found if (other.split, other.compressor) == (group.split, name)]
        controls.append(same[0].mean("rougeL") if same else None)
    return recovered_percent(group.mean("rougeL"), *controls)


def _control(experiment: Experiment, compressor: str, condition: str) -> str:
    """The first compressor of `condition` with the same base model; "" when there is none."""
    base = experiment.compressors[compressor].base
    for name, other in experiment.compressors.items():
        if getattr(other, "condition", None) == condition and other.base == base:
            return name
    return ""


def headline(experiment: Experiment, scores: pd.DataFrame) -> dict[str, float | None]:
    numbers, found = {}, outputs(scores)
    for group in found:
        key = f"rouge/{group.compressor}/{group.split}"
        numbers[f"{key}/rougeL"] = group.mean("rougeL")
        numbers[f"{key}/recovered_percent"] = recovered(experiment, found, group)
    return numbers


@table("rouge", "ROUGE")
def rouge_table(experiment: Experiment, scores: pd.DataFrame) -> Table:
    """
    Greedy outputs for instructions against the reference outputs. *Recovered* is how far ROUGE-L is on the way from the
    negative control (instruction hidden, 0 %) to the positive control (instruction visible, 100 %).
    """
    found = outputs(scores)

    def rouge(metric: str) -> Column:
        return Column(TITLES[metric], lambda group: cell(group, metric), brief=metric in ("rouge2", "rougeL"))

    def cell(group: Group, metric: str) -> Cell:
        return replace(Cell.of(group.estimate(metric)), interval=interval(group) if metric == "rougeL" else None)

    columns = [
        Column("Split", lambda group: group.split, key=True),
        Column("Compressor", lambda group: group.compressor, key=True),
        *map(rouge, TITLES),
        Column("Recovered (%)", lambda group: recovered(experiment, found, group), digits=1),
        Column("Exact match (%)", lambda group: group.estimate("exact_match"), digits=1),
        Column("Examples", lambda group: counts_text(group.counts("rougeL"))),
        Column("Runs", lambda group: group.estimate("rougeL").count),
    ]
    note = (
        "Recovered: how far ROUGE-L is on the way from the negative control (instruction hidden, 0 %) to the positive "
        "control (instruction visible, 100 %). ± is the standard deviation over training seeds, where there are "
        "several; in brackets the 95 % interval of a bootstrap over examples, averaged over training seeds."
    )
    return Table("Outputs for instructions: ROUGE (0 to 100)", columns, found, note)


@figure("rouge", "ROUGE")
def rouge_figure(experiment: Experiment, scores: pd.DataFrame) -> Figure:
    """
    ROUGE-L of greedy outputs by validation split. Error bars: 95 % interval of a bootstrap over examples, averaged over
    training seeds. Dots, where a compressor has several training seeds: one each.
    """
    from synopsis.reporting.style import legend_below, new_figure, patch, styles

    found, looks = outputs(scores), styles(experiment)
    splits, compressors = distinct(found, "split"), distinct(found)
    drawn, (panel,) = new_figure(1, max(4.5, 0.55 * len(splits) * (len(compressors) + 1)), 3.2)
    width = 0.8 / len(compressors)
    for group in found:
        place = splits.index(group.split) + width * (compressors.index(group.compressor) + 0.5) - 0.4
        rouge = group.estimate("rougeL")
        height = float("nan") if rouge.mean is None else rouge.mean
        bounds, draws = interval(group) or (height, height), list(group.values("rougeL"))
        errors = [[height - bounds[0]], [bounds[1] - height]]
        look: dict[str, Any] = {"color": looks[group.compressor].colour, "ecolor": "#333333"}
        bar = panel.bar([place], [height], 0.92 * width, yerr=errors, **look)
        if len(draws) > 1:
            panel.plot([place] * len(draws), draws, ".", color="#333333", markersize=4)
        panel.bar_label(bar, ["–" if rouge.mean is None else f"{height:.1f}"], padding=2, fontsize=7.5)
    panel.set_xticks(range(len(splits)), splits)
    panel.grid(axis="x", visible=False)
    panel.set_xlabel("validation split")
    panel.set_ylabel("ROUGE-L (0 to 100)")
    panel.margins(y=0.1)
    legend_below(drawn, [patch(name, looks[name].colour) for name in compressors])
    return drawn
