"""Judgements in the scores, their table and their figure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from synopsis.artifacts import Layout
from synopsis.reporting.items import Item, figure, page, table
from synopsis.reporting.reading import read_result
from synopsis.reporting.rendering import Cell, Column, Table, cell_text, counts_text
from synopsis.reporting.statistics import distinct, groups
from synopsis.stages.judge.section import STAGE
from synopsis.stages.judge.statistics import agreement

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from synopsis.config.experiment import Experiment

COUNTS = ("judgements", "scored", "win", "tie", "lose", "parse_error", "api_error", "unmatched", "identical")
PAIRED = ("both_orders", "consistent", "decided", "first_position_wins")
SHARES = ("win_rate", "tie_rate", "length_controlled", "sign_test", "longer_wins", "length_a", "length_b")
METRICS = (*COUNTS, *PAIRED, *SHARES)
SIDES = ("low", "high")
AGREEMENT = ("agreement", "kappa")
OUTCOMES = {"first named wins": "#0072b2", "tie": "#cfcfcf", "second named wins": "#e69f00"}


def rows(experiment: Experiment) -> Iterator[dict[str, Any]]:
    scored: dict[tuple[str, str, str], dict[str, Any]] = {}
    for job in STAGE.jobs(experiment):
        found, place = read_result(job.record, STAGE.kind), job.wildcards
        axes = {"run": place["a"], "judge": place["judge"], "against": place["b"], "split": place["split"]}
        common = {**axes, "dataset": experiment.generate.instructions, "n": found["n"]}
        yield from ({**common, "metric": metric, "value": found[metric]} for metric in METRICS)
        bounds = zip(SIDES, found["interval"] or (None, None), strict=True)
        yield from ({**common, "metric": f"win_rate_{side}", "value": bound} for side, bound in bounds)
        others = scored.setdefault((place["a"], place["b"], place["split"]), {})
        for other, scores in others.items():
            both = agreement(found["scores"], scores)
            beside = {**common, "setting": other, "n": both["examples"]}
            yield from ({**beside, "metric": metric, "value": both[metric]} for metric in AGREEMENT)
        others[place["judge"]] = found["scores"]


class Comparison:
    """Judgements of one judge on the outputs of two compressors, counted over training seeds.

    win, tie, lose count the judgements of scored examples; win is for `a`. Examples are scored when all their
    judgements are valid. win_rate: percent of wins and half the ties. interval: 95 %, its bounds averaged over training
    seeds, since their outputs for one example are not independent. consistent: percent of examples judged alike in both
    orders; first_wins: of decisions between different outputs for the one shown first; longer_wins: for the longer one.
    """

    def __init__(self, group: Any):
        self.judge, self.a, self.b, self.split = group.judge, group.compressor, group.other, group.split
        self.win, self.tie, self.lose = (group.total(metric) for metric in ("win", "tie", "lose"))
        self.parse_errors, self.api_errors = group.total("parse_error"), group.total("api_error")
        self.examples, self.unmatched = group.counts("win"), group.total("unmatched")
        self.unscored = sum(self.examples) - group.total("scored")
        self.decided = self.win + self.tie + self.lose
        self.win_rate = _percent(self.win + self.tie / 2, self.decided)
        low, high = (group.mean(f"win_rate_{side}") for side in SIDES)
        self.interval = None
        if self.win_rate is not None and low is not None and high is not None:
            self.interval = (min(100 * low, self.win_rate), max(100 * high, self.win_rate))
        self.length_controlled = group.estimate("length_controlled") * 100
        self.longer_wins = group.estimate("longer_wins") * 100
        self.sign_test = group.mean("sign_test") if len(self.examples) == 1 else None
        self.lengths = (group.mean("length_a"), group.mean("length_b"))
        self.consistent = _percent(group.total("consistent"), group.total("both_orders"))
        self.first_wins = _percent(group.total("first_position_wins"), group.total("decided"))


def _percent(part: float, whole: float) -> float | None:
    return 100 * (part / whole) if whole else None


def comparisons(experiment: Experiment, scores: pd.DataFrame) -> list[Comparison]:
    return [Comparison(group) for group in _groups(experiment, scores)]


def _groups(experiment: Experiment, scores: pd.DataFrame, *more: str) -> list[Any]:
    judged = scores[scores["stage"] == STAGE.name]
    judged = judged[judged["metric"].isin(AGREEMENT) == bool(more)]
    other = judged["against"].map(experiment.name_of)
    return groups(judged.assign(other=other), STAGE.name, "judge", *more, "compressor", "other", "split")


def headline(experiment: Experiment, scores: pd.DataFrame) -> dict[str, float | None]:
    return {
        f"judge/{one.judge}/{one.a}-vs-{one.b}/{one.split}/win_rate": one.win_rate and one.win_rate / 100
        for one in comparisons(experiment, scores)
    }


def findings(experiment: Experiment, scores: pd.DataFrame) -> list[str]:
    """The win rate of each comparison."""
    return [
        f"{one.a} against {one.b} on {one.split}: win rate {cell_text(Cell(one.win_rate, interval=one.interval), 1)} % "
        f"(judge: {one.judge}, ties half)."
        for one in comparisons(experiment, scores)
        if one.win_rate is not None
    ]


@table("judgements", "judgements")
def judgement_table(experiment: Experiment, scores: pd.DataFrame) -> Table:
    """
    Pairwise judgements, each pair of outputs in both orders. An example is scored when both its judgements are valid:
    one without a choice (*unparsed*) or without an answer (*failed*) is never a tie. The win rate is that of A and
    counts ties half, with the 95 % interval of a bootstrap over examples. *Equal lengths* is the win rate that a
    logistic regression on the difference in length predicts for outputs of equal length.
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
        Column("Not scored", lambda one: one.unscored, brief=None),
        Column("Of one run only", lambda one: one.unmatched, brief=None),
        Column("Win rate of A (%)", lambda one: Cell(one.win_rate, interval=one.interval), digits=1),
        Column("Equal lengths (%)", lambda one: one.length_controlled, digits=1),
        Column("Sign test p", lambda one: one.sign_test, digits=3, brief=False),
        Column("Consistent (%)", lambda one: one.consistent, digits=1, brief=False),
        Column("First wins (%)", lambda one: one.first_wins, digits=1, brief=False),
        Column("Longer wins (%)", lambda one: one.longer_wins, digits=1, brief=False),
        Column("Length of A", lambda one: one.lengths[0], digits=0, brief=False),
        Column("Length of B", lambda one: one.lengths[1], digits=0, brief=False),
        Column("Examples", lambda one: counts_text(one.examples)),
    ]
    note = (
        "Judgements of scored examples: those whose judgements in both orders are valid; unparsed and failed are the "
        "others. Win rate: wins and half the ties, in brackets the 95 % interval of a bootstrap over examples, "
        "averaged over training seeds. Equal lengths: the win rate that a logistic regression on the tanh of the "
        "standardised difference in length predicts for outputs of equal length. Sign test: two-sided, over examples, "
        "of a single training seed. Consistent: examples judged alike in both orders. First wins, longer wins: "
        "decisions between different outputs for the one shown first, or for the longer one. Lengths: mean characters."
    )
    return Table("Pairwise judgements", columns, comparisons(experiment, scores), note)


@table("judge_agreement", "agreement of judges", when=lambda experiment: len(experiment.judge.judges) > 1)
def agreement_table(experiment: Experiment, scores: pd.DataFrame) -> Table:
    """
    How far two judges agree about the winner (A, B or a tie) of an example that both have scored: share of equal
    verdicts, and Cohen's kappa, which is 0 for the agreement of chance; means over training seeds.
    """
    columns = [
        Column("Judge", lambda group: group.judge, key=True),
        Column("Other judge", lambda group: group.setting, key=True),
        Column("Split", lambda group: group.split, key=True),
        Column("A", lambda group: group.compressor, key=True),
        Column("B", lambda group: group.other, key=True),
        Column("Agreement (%)", lambda group: group.estimate("agreement") * 100, digits=1),
        Column("Kappa", lambda group: group.estimate("kappa")),
        Column("Examples", lambda group: counts_text(group.counts("agreement"))),
    ]
    return Table("Agreement of judges", columns, _groups(experiment, scores, "setting"))


@figure("judgements", "judgements")
def judgement_figure(experiment: Experiment, scores: pd.DataFrame) -> Figure:
    """
    Shares of the judgements of scored examples. The black line is the win rate of the first named compressor (ties
    count half) with the 95 % interval of a bootstrap over examples; the dotted line marks 50 %.
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


def pages(experiment: Experiment) -> Iterator[Item]:
    """A page to read the judgements of each comparison."""
    several = len(experiment.judge.judges) > 1
    for job in STAGE.jobs(experiment):
        judge, a, b, split = job.wildcards.values()
        label = f"judgements{f' of {judge}' if several else ''}: {a} against {b}, {split}"
        yield page(f"{judge}-{a}-vs-{b}-{split}", label)(_page_of(judge, a, b, split))


def _page_of(judge: str, a: str, b: str, split: str) -> Callable[..., str]:
    def build(experiment: Experiment, scores: pd.DataFrame) -> str:
        """
        Every judgement to read: the task, both outputs, and what the judge said in each order. The list can be narrowed
        to a winner, and to examples judged differently in the two orders.
        """
        from synopsis.stages.judge.page import judgement_page
        from synopsis.stages.judge.pairs import read_pairs
        from synopsis.stages.judge.run import stored_judgements

        pairs, _, _ = read_pairs(experiment, a, b, split, with_instructions=True)
        path = Layout(experiment).judgements(judge, a, b, split)
        judgements = stored_judgements(experiment.judges[judge], pairs, path)
        return judgement_page(f"Judgements of {judge}, {split}", (a, b), pairs, judgements)

    return build
