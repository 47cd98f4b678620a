"""Outputs for instructions in the scores, the table of ROUGE and its figure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synopsis.artifacts import Layout, read_csv
from synopsis.reporting.items import figure, table
from synopsis.reporting.reading import read_result
from synopsis.reporting.rendering import Cell, Column, Table, cell_text, counts_text
from synopsis.reporting.statistics import Group, distinct, groups, recovered_percent, together
from synopsis.stages.generate.rouge import exact_match
from synopsis.stages.generate.section import STAGE

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from synopsis.config.experiment import Experiment

TITLES = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L", "rougeLsum": "ROUGE-Lsum"}
SIDES = ("low", "high")
EQUAL, NOT_SHARED = "equal_outputs", "examples_of_one"


def rows(experiment: Experiment) -> Iterator[dict[str, Any]]:
    """Scores of each run, and how often two runs write the same."""
    for job in STAGE.jobs(experiment):
        found = read_result(job.record, STAGE.kind)
        common = {**job.wildcards, "dataset": experiment.generate.instructions, "n": found["n"]}
        for metric, published in found["published"].items():
            values = (found[metric], published, *found["intervals"][metric])
            names = (metric, f"{metric}_published", *(f"{metric}_{side}" for side in SIDES))
            yield from ({**common, "metric": name, "value": value} for name, value in zip(names, values, strict=True))
        yield {**common, "metric": "exact_match", "value": found["exact_match"]}
    for (a, b), split in product(_pairs(experiment), experiment.generate.splits):
        yield from _equal(experiment, a, b, split)


def _pairs(experiment: Experiment) -> list[tuple[str, str]]:
    """Pairs of runs of one base."""
    runs = experiment.runs_of(STAGE.name)
    pairs = [
        pair
        for a, b in combinations(dict.fromkeys(map(experiment.name_of, runs)), 2)
        if experiment.base_named(a) == experiment.base_named(b)
        for pair in experiment.paired_runs(a, b)
    ]
    return [pair for pair in pairs if set(pair) <= set(runs)]


def _equal(experiment: Experiment, a: str, b: str, split: str) -> Iterator[dict[str, Any]]:
    """Percent of the examples of both runs with equal outputs, and how many examples only one of them has."""
    paths = [Layout(experiment).generations(run, split) for run in (a, b)]
    one, other = ({row["id"]: row["y_pred"] for row in read_csv(path, ["id", "y_pred"])} for path in paths)
    pairs = [(one[id], other[id]) for id in one if id in other]
    common = {"run": a, "split": split, "dataset": experiment.generate.instructions, "against": b}
    if pairs:
        yield {**common, "metric": EQUAL, "value": exact_match(pairs), "n": len(pairs)}
    yield {**common, "metric": NOT_SHARED, "value": len(one) + len(other) - 2 * len(pairs)}


def examples(written: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """ROUGE-L of each output, from what one job wrote."""
    from synopsis.stages.generate.rouge import score_rouge

    found = read_csv(written[1], ["id", "y_pred", "y_true"])
    scored = score_rouge([(row["y_pred"], row["y_true"]) for row in found], ["rougeL"]).rows if found else ()
    for row, score in zip(found, scored, strict=True):
        text = {"id": row["id"], "truth": row["y_true"]}
        yield {**text, "metric": "rougeL", "value": 100 * score["rougeL"].fmeasure}


def outputs(scores: pd.DataFrame) -> list[Group]:
    alone = scores[scores["against"] == ""]
    return together(groups(alone, STAGE.name, "split", "compressor"), "split")


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
    """The first compressor of `condition` with the same base model, or with a plain model as base; "" for none."""
    own = experiment.compressors.get(compressor)
    base = compressor if own is None else own.base
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


def findings(experiment: Experiment, scores: pd.DataFrame) -> list[str]:
    """ROUGE-L of each compressor, split by split."""
    found, texts = outputs(scores), dict[str, list[str]]()
    for group in found:
        rouge, way = Cell.of(group.estimate("rougeL")), recovered(experiment, found, group)
        text = cell_text(rouge if rouge.deviation is not None else replace(rouge, interval=interval(group)), 1)
        share = "" if way is None else f" ({way:.0f} % recovered)"
        texts.setdefault(group.compressor, []).append(f"{text} on {group.split}{share}")
    return [f"{compressor}: ROUGE-L {', '.join(parts)}." for compressor, parts in texts.items()]


@table("rouge", "ROUGE")
def rouge_table(experiment: Experiment, scores: pd.DataFrame) -> Table:
    """
    Outputs for instructions against the reference outputs. *Recovered* is how far ROUGE-L is on the way from the
    negative control (instruction hidden, 0 %) to the positive control (instruction visible, 100 %).
    """
    found = outputs(scores)
    titles = {metric: title for metric, title in TITLES.items() if any(len(group.values(metric)) for group in found)}

    def rouge(metric: str) -> Column:
        return Column(TITLES[metric], lambda group: cell(group, metric), brief=metric in ("rouge2", "rougeL"))

    def published(metric: str) -> Column:
        return Column(f"{TITLES[metric]}, published", lambda group: group.estimate(f"{metric}_published"), brief=False)

    def cell(group: Group, metric: str) -> Cell:
        return replace(Cell.of(group.estimate(metric)), interval=interval(group) if metric == "rougeL" else None)

    columns = [
        Column("Split", lambda group: group.split, key=True),
        Column("Compressor", lambda group: group.compressor, key=True),
        *map(rouge, titles),
        Column("Recovered (%)", lambda group: recovered(experiment, found, group), digits=1),
        Column("Exact match (%)", lambda group: group.estimate("exact_match"), digits=1),
        Column("Examples", lambda group: counts_text(group.counts("rougeL"))),
        Column("Runs", lambda group: group.estimate("rougeL").count),
        *map(published, titles),
    ]
    note = (
        "Recovered: how far ROUGE-L is on the way from the negative control (instruction hidden, 0 %) to the positive "
        "control (instruction visible, 100 %). ± is the standard deviation over training seeds, where there are "
        "several; in brackets the 95 % interval of a bootstrap over examples, averaged over training seeds. Published: "
        "by the recipe of the gist paper, the median of 1,000 seeded bootstrap samples in the place of the mean. "
    )
    note += (
        "ROUGE-Lsum compares line by line, and is that of outputs with line breaks alone."
        if "rougeLsum" in titles
        else "No ROUGE-Lsum: it compares line by line, and no output has a line break."
    )
    return Table("Outputs for instructions: ROUGE (0 to 100)", columns, found, note)


@table("equal_outputs", "Equal outputs", when=lambda experiment: bool(_pairs(experiment)))
def equal_outputs(experiment: Experiment, scores: pd.DataFrame) -> Table:
    """
    How often two compressors of one base write the same, white space at both ends aside. Only examples that both have
    are compared; those that one of them alone has are counted beside.
    """
    pairs = scores[(scores["stage"] == STAGE.name) & (scores["against"] != "")]
    named = pairs.assign(other=pairs["against"].map(experiment.name_of))
    found = together(groups(named, STAGE.name, "split", "compressor", "other"), "split")
    columns = [
        Column("Split", lambda group: group.split, key=True),
        Column("A", lambda group: group.compressor, key=True),
        Column("B", lambda group: group.other, key=True),
        Column("Equal outputs (%)", lambda group: group.estimate(EQUAL), digits=1),
        Column("Examples", lambda group: counts_text(group.counts(EQUAL))),
        Column("Examples of one alone", lambda group: group.total(NOT_SHARED)),
        Column("Pairs of runs", lambda group: group.estimate(NOT_SHARED).count),
    ]
    return Table("Equal outputs of two compressors", columns, found)


@figure("rouge", "ROUGE")
def rouge_figure(experiment: Experiment, scores: pd.DataFrame) -> Figure:
    """
    ROUGE-L of outputs by validation split. Error bars: 95 % interval of a bootstrap over examples, averaged over
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
