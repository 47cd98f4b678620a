"""From tidy scores to the numbers of tables and figures: one record a cell group, averaged over training seeds.

Tables, figures and headline numbers read the same records, so they cannot disagree. A number that does not exist is
None here, never zero. Runs of one compressor that differ in the training seed alone are one subject; a model that is
loaded or trained from scratch is a subject under its own name.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

from synopsis.config.experiment import Experiment
from synopsis.reporting.estimates import Estimate, recovered_percent, wilson_interval
from synopsis.reporting.grouping import counts, estimate, grouped, together, total
from synopsis.reporting.scores import setting_fields


@dataclass(frozen=True)
class Rouge:
    """ROUGE (0..100) of one compressor on one split.

    recovered: percent of the way of ROUGE-L from the negative to the positive control that share its base model;
    None where a control is missing.
    """

    compressor: str
    condition: str
    split: str
    metrics: dict[str, Estimate]
    recovered: float | None
    examples: tuple[int, ...]


def rouges(scores: pd.DataFrame, experiment: Experiment, metrics: Sequence[str]) -> list[Rouge]:
    groups = dict(grouped(scores, "generate", ["split", "compressor"]))
    rouge_l = {key: estimate(group, "rougeL").mean for key, group in groups.items()}
    records = []
    for (split, compressor), group in groups.items():
        controls = [_control(experiment, compressor, condition) for condition in ("neg_control", "pos_control")]
        negative, positive = (rouge_l.get((split, control)) for control in controls)
        records.append(
            Rouge(
                compressor=compressor,
                condition=experiment.compressors[compressor].look,
                split=split,
                metrics={metric: estimate(group, metric) for metric in metrics},
                recovered=recovered_percent(rouge_l[split, compressor], negative, positive),
                examples=counts(group, "rougeL"),
            )
        )
    return together(records, lambda record: record.split)


def _control(experiment: Experiment, compressor: str, condition: str) -> str:
    """The first compressor of `condition` with the same base model; "" when there is none."""
    base = experiment.compressors[compressor].base
    for name, other in experiment.compressors.items():
        if other.look == condition and other.base == base:
            return name
    return ""


@dataclass(frozen=True)
class Comparison:
    """Judgements of one judge on the answers of two compressors, counted over training seeds.

    win, tie, lose and the errors count judgements, of which each example has one for each order of the answers; win
    is for `a`. win_rate: wins and half the ties among judgements without an error (0..1). interval: 95 %, in which an
    example counts once, whatever the number of its judgements and of training seeds, since those are not independent.
    consistent: share of examples whose judgements agree; first_wins: share of decisions for the answer shown first.
    """

    judge: str
    a: str
    b: str
    split: str
    win: int
    tie: int
    lose: int
    parse_errors: int
    api_errors: int
    win_rate: float | None
    interval: tuple[float, float] | None
    consistent: float | None
    first_wins: float | None
    examples: tuple[int, ...]


def comparisons(scores: pd.DataFrame, experiment: Experiment) -> list[Comparison]:
    judged = scores[scores["stage"] == "judge"].copy()
    fields = judged["setting"].map(setting_fields)
    judged["judge"] = fields.map(lambda found: found["judge"])
    judged["against"] = fields.map(lambda found: experiment.trained_runs[found["against"]][0])
    groups = grouped(judged, "judge", ["judge", "compressor", "against", "split"])
    return [_comparison(judge, a, b, split, group) for (judge, a, b, split), group in groups]


def _comparison(judge: str, a: str, b: str, split: str, group: pd.DataFrame) -> Comparison:
    win, tie, lose = (total(group, metric) for metric in ("win", "tie", "lose"))
    valid, judgements, examples = win + tie + lose, total(group, "judgements"), counts(group, "win")
    win_rate = _share(win + tie / 2, valid)
    independent = max(examples) * valid / judgements if judgements else 0.0
    return Comparison(
        judge=judge,
        a=a,
        b=b,
        split=split,
        win=win,
        tie=tie,
        lose=lose,
        parse_errors=total(group, "parse_error"),
        api_errors=total(group, "api_error"),
        win_rate=win_rate,
        interval=None if win_rate is None else wilson_interval(win_rate * independent, independent),
        consistent=_share(total(group, "consistent"), sum(examples)),
        first_wins=_share(total(group, "first_position_wins"), win + lose),
        examples=examples,
    )


@dataclass(frozen=True)
class Cost:
    """Cost of decoding in one mode (`cached`, `uncached`): medians over samples, averaged over training seeds.

    Seconds for all new tokens of a batch; peak and context in bytes; floor: the least seconds by the
    device's peak rates.
    """

    compressor: str
    mode: str
    batch_size: int
    context: int
    new_tokens: int
    metrics: dict[str, Estimate]
    samples: tuple[int, ...]


def costs(scores: pd.DataFrame, metrics: Sequence[str]) -> list[Cost]:
    records = []
    for (compressor, setting), group in grouped(scores, "benchmark", ["compressor", "setting"]):
        fields = setting_fields(setting)
        records.append(
            Cost(
                compressor=compressor,
                mode=fields["mode"],
                batch_size=int(fields["batch"]),
                context=int(fields["context"]),
                new_tokens=int(fields["new"]),
                metrics={metric: estimate(group, metric) for metric in metrics},
                samples=counts(group, "wall_seconds"),
            )
        )
    return records


@dataclass(frozen=True)
class CostPair:
    """Cached and uncached cost of the same work; either is None when it was not measured."""

    compressor: str
    batch_size: int
    context: int
    new_tokens: int
    cached: Cost | None
    uncached: Cost | None

    def value(self, mode: str, metric: str) -> float | None:
        cost = self.cached if mode == "cached" else self.uncached
        return cost.metrics[metric].mean if cost else None

    def ratio(self, metric: str) -> float | None:
        """Uncached over cached: how many times less the compressed context costs."""
        cached, uncached = self.value("cached", metric), self.value("uncached", metric)
        return uncached / cached if cached and uncached is not None else None


def paired_costs(found: Iterable[Cost]) -> list[CostPair]:
    by_work: dict[tuple[str, int, int, int], dict[str, Cost]] = {}
    for cost in found:
        work = (cost.compressor, cost.batch_size, cost.context, cost.new_tokens)
        by_work.setdefault(work, {})[cost.mode] = cost
    return [CostPair(*work, modes.get("cached"), modes.get("uncached")) for work, modes in by_work.items()]


@dataclass(frozen=True)
class Curve:
    """Loss (nats a token) of one run by optimizer step; `held_out` tells evaluation from training loss."""

    run: str
    compressor: str
    held_out: bool
    steps: tuple[int, ...]
    losses: tuple[float, ...]


def curves(scores: pd.DataFrame) -> list[Curve]:
    records = []
    kept = scores[scores["metric"].isin(["loss", "eval_loss"]) & scores["value"].notna()]
    for (run, compressor, metric), group in grouped(kept, "train", ["run", "compressor", "metric"]):
        # A run that was stopped and went on may tell a step twice; the last telling counts.
        by_step = {
            int(setting_fields(setting)["step"]): float(value)
            for setting, value in zip(group["setting"], group["value"], strict=True)
        }
        steps = tuple(sorted(by_step))
        records.append(Curve(run, compressor, metric == "eval_loss", steps, tuple(by_step[step] for step in steps)))
    return records


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None
