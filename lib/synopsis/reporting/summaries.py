"""From tidy scores to the numbers of tables and figures: one record a cell group, averaged over training seeds.

Tables, figures and headline numbers read the same records, so they cannot disagree. A number that does not exist is
None here, never zero. Runs of one compressor that differ in the training seed alone are one subject; a model that is
loaded or trained from scratch is a subject under its own name.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import pandas as pd

from synopsis.config import Experiment, GistCompressor
from synopsis.errors import ArtifactError
from synopsis.reporting.estimates import Estimate, exists, recovered_percent, wilson_interval
from synopsis.reporting.scores import setting_fields

Record = TypeVar("Record")


@dataclass(frozen=True)
class LossAtContext:
    """Loss of one subject after one length of context (tokens), for one domain and class of tokens.

    loss in nats a token; low and high: interval over documents, averaged over training seeds; scored: tokens behind
    the loss of each run.
    """

    compressor: str
    domain: str
    tokens: str
    context: int
    loss: Estimate
    low: float | None
    high: float | None
    perplexity: Estimate
    summary_vectors: Estimate
    scored: tuple[int, ...]


def losses(scores: pd.DataFrame) -> list[LossAtContext]:
    """Perplexity results by domain, class of tokens, subject and context length, those of one class together."""
    records = []
    for (dataset, setting, compressor), group in _grouped(scores, "perplexity", ["dataset", "setting", "compressor"]):
        fields = setting_fields(setting)
        records.append(
            LossAtContext(
                compressor=compressor,
                domain=dataset.split("/", 1)[1],
                tokens=fields["tokens"],
                context=int(fields["context"]),
                loss=_estimate(group, "loss"),
                low=_estimate(group, "loss_low").mean,
                high=_estimate(group, "loss_high").mean,
                perplexity=_estimate(group, "perplexity"),
                summary_vectors=_estimate(group, "summary_vectors"),
                scored=_counts(group, "loss"),
            )
        )
    return _together(records, lambda record: (record.domain, record.tokens))


def overall(found: list[LossAtContext]) -> list[LossAtContext]:
    """The records over all domains: those of a domain `all`, or every record of a corpus with one domain alone."""
    over_all = [record for record in found if record.domain == "all"]
    return over_all or found


@dataclass(frozen=True)
class Accuracy:
    """Accuracy (0..1) of one subject and setting.

    by_dataset: over draws, where a draw is one training seed and one seed of demonstrations; mean: over draws of the
    mean of all data sets, for the draws in which no data set is missing; examples: those of each data set; dropped:
    examples left out, over all data sets and draws; truncated: budgets that no demonstration fitted into, likewise.
    """

    compressor: str
    setting: str
    by_dataset: dict[str, Estimate]
    mean: Estimate
    draws: int
    demonstrations: float | None
    examples: tuple[int, ...]
    dropped: int
    truncated: int


def accuracies(scores: pd.DataFrame, datasets: Sequence[str]) -> list[Accuracy]:
    records = []
    for (compressor, setting), group in _grouped(scores, "icl", ["compressor", "setting"]):
        measured = group[group["metric"] == "accuracy"]
        draws = measured.pivot_table(index=["run", "seed"], columns="dataset", values="value", dropna=False)
        draws = draws.reindex(columns=list(datasets))
        records.append(
            Accuracy(
                compressor=compressor,
                setting=setting,
                by_dataset={dataset: Estimate.of(draws[dataset]) for dataset in datasets},
                mean=Estimate.of(draws.mean(axis=1, skipna=False)),
                draws=len(measured[["run", "seed"]].drop_duplicates()),
                demonstrations=_estimate(group, "demonstrations").mean,
                examples=_counts(group, "accuracy"),
                dropped=_total(group, "dropped"),
                truncated=_total(group, "truncated"),
            )
        )
    return records


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
    groups = dict(_grouped(scores, "generate", ["split", "compressor"]))
    rouge_l = {key: _estimate(group, "rougeL").mean for key, group in groups.items()}
    records = []
    for (split, compressor), group in groups.items():
        controls = [_control(experiment, compressor, condition) for condition in ("neg_control", "pos_control")]
        negative, positive = (rouge_l.get((split, control)) for control in controls)
        records.append(
            Rouge(
                compressor=compressor,
                condition=condition_of(experiment, compressor),
                split=split,
                metrics={metric: _estimate(group, metric) for metric in metrics},
                recovered=recovered_percent(rouge_l[split, compressor], negative, positive),
                examples=_counts(group, "rougeL"),
            )
        )
    return _together(records, lambda record: record.split)


def condition_of(experiment: Experiment, compressor: str) -> str:
    subject = experiment.compressors.get(compressor)
    return subject.condition if isinstance(subject, GistCompressor) else ""


def _control(experiment: Experiment, compressor: str, condition: str) -> str:
    """The first compressor of `condition` with the same base model; "" when there is none."""
    base = experiment.compressors[compressor].base
    for name, other in experiment.compressors.items():
        if isinstance(other, GistCompressor) and other.condition == condition and other.base == base:
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
    groups = _grouped(judged, "judge", ["judge", "compressor", "against", "split"])
    return [_comparison(judge, a, b, split, group) for (judge, a, b, split), group in groups]


def _comparison(judge: str, a: str, b: str, split: str, group: pd.DataFrame) -> Comparison:
    win, tie, lose = (_total(group, metric) for metric in ("win", "tie", "lose"))
    valid, judgements, examples = win + tie + lose, _total(group, "judgements"), _counts(group, "win")
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
        parse_errors=_total(group, "parse_error"),
        api_errors=_total(group, "api_error"),
        win_rate=win_rate,
        interval=None if win_rate is None else wilson_interval(win_rate * independent, independent),
        consistent=_share(_total(group, "consistent"), sum(examples)),
        first_wins=_share(_total(group, "first_position_wins"), win + lose),
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
    for (compressor, setting), group in _grouped(scores, "benchmark", ["compressor", "setting"]):
        fields = setting_fields(setting)
        records.append(
            Cost(
                compressor=compressor,
                mode=fields["mode"],
                batch_size=int(fields["batch"]),
                context=int(fields["context"]),
                new_tokens=int(fields["new"]),
                metrics={metric: _estimate(group, metric) for metric in metrics},
                samples=_counts(group, "wall_seconds"),
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
    for (run, compressor, metric), group in _grouped(kept, "train", ["run", "compressor", "metric"]):
        # A run that was stopped and went on may tell a step twice; the last telling counts.
        by_step = {
            int(setting_fields(setting)["step"]): float(value)
            for setting, value in zip(group["setting"], group["value"], strict=True)
        }
        steps = tuple(sorted(by_step))
        records.append(Curve(run, compressor, metric == "eval_loss", steps, tuple(by_step[step] for step in steps)))
    return records


def _grouped(scores: pd.DataFrame, stage: str, keys: list[str]) -> list[tuple[tuple[str, ...], pd.DataFrame]]:
    """Groups of a stage's rows, in the order in which they first appear: that of the configuration."""
    rows = scores[scores["stage"] == stage]
    if rows.empty:
        raise ArtifactError(f"the scores hold nothing of the stage '{stage}'; run `score` again for this configuration")
    return [(tuple(str(part) for part in key), group) for key, group in rows.groupby(keys, sort=False)]


def _together(records: list[Record], key: Callable[[Record], Hashable]) -> list[Record]:
    """Records of one key beside each other, keys and records in the order in which they came."""
    order = {found: place for place, found in enumerate(dict.fromkeys(key(record) for record in records))}
    return sorted(records, key=lambda record: order[key(record)])


def _values(group: pd.DataFrame, metric: str) -> pd.Series:
    return group.loc[group["metric"] == metric, "value"]


def _estimate(group: pd.DataFrame, metric: str) -> Estimate:
    return Estimate.of(_values(group, metric))


def _total(group: pd.DataFrame, metric: str) -> int:
    return int(_values(group, metric).sum())


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _counts(group: pd.DataFrame, metric: str) -> tuple[int, ...]:
    return tuple(int(count) for count in group.loc[group["metric"] == metric, "n"] if exists(count))
