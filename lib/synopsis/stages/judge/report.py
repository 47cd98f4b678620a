"""Judgements in the scores, their table and their figure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from synopsis.reporting.items import figure, table
from synopsis.reporting.reading import read_result
from synopsis.reporting.rendering import Cell, Column, Table, counts_text
from synopsis.reporting.statistics import distinct, groups, wilson_interval
from synopsis.stages.judge.section import STAGE

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from synopsis.config.experiment import Experiment

METRICS = (
    "judgements",
    "win",
    "lose",
    "tie",
    "parse_error",
    "api_error",
    "win_rate",
    "consistent",
    "first_position_wins",
    "identical",
)
OUTCOMES = {"first named wins": "#0072b2", "tie": "#cfcfcf", "second named wins": "#e69f00"}


def rows(experiment: Experiment) -> Iterator[dict[str, Any]]:
    for job in STAGE.jobs(experiment):
        found, place = read_result(job.record, STAGE.kind), job.wildcards
        axes = {"run": place["a"], "judge": place["judge"], "against": place["b"], "split": place["split"]}
        common = {**axes, "dataset": experiment.generate.instructions, "n": found["n"]}
        yield from ({**common, "metric": metric, "value": found[metric]} for metric in METRICS)


class Comparison:
    """Judgements of one judge on the outputs of two compressors, counted over training seeds.

    win, tie, lose and the errors count judgements, of which each example has one for each order of the outputs; win is
    for `a`. win_rate: percent of wins and half the ties among judgements without an error. interval: 95 %, in which an
    example counts once, whatever the number of its judgements and of training seeds, since those are not independent.
    consistent: percent of examples whose judgements agree; first_wins: of decisions for the output shown first.
    """

    def __init__(self, group: Any):
        self.judge, self.a, self.b, self.split = group.judge, group.compressor, group.other, group.split
        self.win, self.tie, self.lose = (group.total(metric) for metric in ("win", "tie", "lose"))
        self.parse_errors, self.api_errors = group.total("parse_error"), group.total("api_error")
        self.examples, judgements = group.counts("win"), group.total("judgements")
        self.decided = self.win + self.tie + self.lose
        self.win_rate = _percent(self.win + self.tie / 2, self.decided)
        self.interval = None
        independent = max(self.examples) * self.decided / judgements if judgements else 0.0
        share = (self.win + self.tie / 2) / self.decided if self.decided else 0.0
        bounds = wilson_interval(share * independent, independent)
        if bounds:
            self.interval = (100 * bounds[0], 100 * bounds[1])
        self.consistent = _percent(group.total("consistent"), sum(self.examples))
        self.first_wins = _percent(group.total("first_position_wins"), self.win + self.lose)


def _percent(part: float, whole: float) -> float | None:
    return 100 * (part / whole) if whole else None


def comparisons(experiment: Experiment, scores: pd.DataFrame) -> list[Comparison]:
    judged = scores[scores["stage"] == STAGE.name]
    other = judged["against"].map(lambda run: experiment.trained_runs[run][0])
    found = groups(judged.assign(other=other), STAGE.name, "judge", "compressor", "other", "split")
    return [Comparison(group) for group in found]


def headline(experiment: Experiment, scores: pd.DataFrame) -> dict[str, float | None]:
    return {
        f"judge/{one.judge}/{one.a}-vs-{one.b}/{one.split}/win_rate": one.win_rate and one.win_rate / 100
        for one in comparisons(experiment, scores)
    }


@table("judgements", "judgements")
def judgement_table(experiment: Experiment, scores: pd.DataFrame) -> Table:
    """
    Pairwise judgements, each pair of outputs in both orders. The win rate is that of A and counts ties half; judgements
    without a choice (*unparsed*) or without an answer (*failed*) are left out and never count as ties. The interval is
    a 95 % Wilson interval in which each example counts once. *Consistent* are the examples judged alike in both orders;
    *first wins* is the share of decisions for the answer shown first, 50 % for a judge without a preference for a
    position.
    """
    columns = [
        Column("Judge", lambda one: one.judge, key=True),
        Column("Split", lambda one: one.split, key=True),
        Column("A", lambda one: one.a, key=True),
        Column("B", lambda one: one.b, key=True),
        Column("A wins", lambda one: one.win),
        Column("Ties", lambda one: one.tie),
        Column("B wins", lambda one: one.lose),
        Column("Unparsed", lambda one: one.parse_errors, brief=None),
        Column("Failed", lambda one: one.api_errors, brief=None),
        Column("Win rate of A (%)", lambda one: Cell(one.win_rate, interval=one.interval), digits=1),
        Column("Consistent (%)", lambda one: one.consistent, digits=1, brief=False),
        Column("First wins (%)", lambda one: one.first_wins, digits=1, brief=False),
        Column("Examples", lambda one: counts_text(one.examples)),
    ]
    note = (
        "Judgements in both orders of the answers. Win rate: wins and half the ties, without unparsed and failed "
        "judgements, with a 95 % Wilson interval in which each example counts once. Consistent: examples judged alike "
        "in both orders. First wins: decisions for the answer shown first."
    )
    return Table("Pairwise judgements", columns, comparisons(experiment, scores), note)


@figure("judgements", "judgements")
def judgement_figure(experiment: Experiment, scores: pd.DataFrame) -> Figure:
    """
    Shares of decided judgements. The black line is the win rate of the first named compressor (ties count half) with
    its 95 % Wilson interval, in which each example counts once; the dotted line marks 50 %.
    """
    from synopsis.reporting.style import handle, legend_below, new_figure, patch

    found = comparisons(experiment, scores)
    drawn, (panel,) = new_figure(1, 7.0, 1.2 + 0.34 * len(found))
    for place, one in enumerate(found):
        left = 0.0
        for count, colour in zip((one.win, one.tie, one.lose), OUTCOMES.values(), strict=True):
            share = _percent(count, one.decided) or 0.0
            panel.barh(place, share, 0.7, left=left, color=colour)
            if share >= 6:
                shade = "w" if colour == OUTCOMES["first named wins"] else "k"
                panel.text(left + share / 2, place, f"{share:.0f}", ha="center", va="center", color=shade)
            left += share
        if one.win_rate is not None and one.interval is not None:
            errors = [[one.win_rate - one.interval[0]], [one.interval[1] - one.win_rate]]
            panel.errorbar(one.win_rate, place + 0.42, xerr=errors, color="k", marker="|", linewidth=1.0)
    panel.axvline(50, color="k", linewidth=0.8, linestyle=":")
    several = len(distinct(found, "judge")) > 1
    labels = [f"{f'{one.judge}: ' if several else ''}{one.a} against {one.b}, {one.split}" for one in found]
    panel.set_yticks(range(len(found)), labels)
    panel.set_ylim(len(found) - 0.3, -0.6)
    panel.set_xlim(0, 100)
    panel.grid(visible=False)
    panel.set_xlabel("judgements (%)")
    interval = handle("win rate, 95 % interval", color="k", marker="|", linewidth=1.0)
    legend_below(drawn, [*(patch(label, colour) for label, colour in OUTCOMES.items()), interval])
    return drawn
