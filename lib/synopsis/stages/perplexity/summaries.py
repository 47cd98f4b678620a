"""Perplexity from the tidy scores to the numbers of its tables and figures."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from synopsis.reporting.estimates import Estimate
from synopsis.reporting.grouping import counts, estimate, grouped, together, values
from synopsis.reporting.scores import failures, setting_fields
from synopsis.stages.perplexity.scores import METRICS, SKIPPED, TOO_SHORT


@dataclass(frozen=True)
class LossAtContext:
    """Loss of one subject after one length of context (tokens), for one domain and class of tokens.

    summary_length: summary tokens a step where they were fewer than the compressor has, else None; loss in nats a
    token; low and high: interval over documents, averaged over training seeds; bits_per_byte: of all tokens alone;
    scored and documents: what is behind the loss of each run.
    """

    compressor: str
    domain: str
    tokens: str
    context: int
    summary_length: int | None
    loss: Estimate
    low: float | None
    high: float | None
    perplexity: Estimate
    bits_per_byte: Estimate
    summary_vectors: Estimate
    scored: tuple[int, ...]
    documents: tuple[int, ...]

    @property
    def setting(self) -> str:
        fewer = "" if self.summary_length is None else f"/summary_length={self.summary_length}"
        return f"context={self.context}/tokens={self.tokens}{fewer}"


def losses(scores: pd.DataFrame) -> list[LossAtContext]:
    """Perplexity results by domain, class of tokens, subject and context length, those of one class together."""
    measured = scores[(scores["stage"] == "perplexity") & scores["metric"].isin(METRICS)]
    records = []
    for (dataset, setting, compressor), group in grouped(measured, "perplexity", ["dataset", "setting", "compressor"]):
        fields = setting_fields(setting)
        fewer = fields.get("summary_length")
        records.append(
            LossAtContext(
                compressor=compressor,
                domain=dataset.split("/", 1)[1],
                tokens=fields["tokens"],
                context=int(fields["context"]),
                summary_length=None if fewer is None else int(fewer),
                loss=estimate(group, "loss"),
                low=estimate(group, "loss_low").mean,
                high=estimate(group, "loss_high").mean,
                perplexity=estimate(group, "perplexity"),
                bits_per_byte=estimate(group, "bits_per_byte"),
                summary_vectors=estimate(group, "summary_vectors"),
                scored=counts(group, "loss"),
                documents=tuple(int(count) for count in values(group, "n_documents")),
            )
        )
    return together(records, lambda record: (record.domain, record.tokens))


def overall(found: list[LossAtContext]) -> list[LossAtContext]:
    """The records over all domains: those of a domain `all`, or every record of a corpus with one domain alone."""
    over_all = [record for record in found if record.domain == "all"]
    return over_all or found


def most_vectors(found: list[LossAtContext]) -> list[LossAtContext]:
    """Of each subject the records with all its summary tokens, or the most that were measured."""
    most: dict[str, int | None] = {}
    for record in found:
        if record.context:
            numbers = (most.get(record.compressor, 0), record.summary_length)
            most[record.compressor] = None if None in numbers else max(filter(None, numbers))
    return [record for record in found if not record.context or record.summary_length == most[record.compressor]]


@dataclass(frozen=True)
class Skipped:
    """Contexts (tokens) that a subject did not read, since they need more positions than its model has."""

    compressor: str
    contexts: tuple[int, ...]
    positions: int


def skipped(scores: pd.DataFrame) -> list[Skipped]:
    rows = scores[(scores["stage"] == "perplexity") & (scores["metric"] == SKIPPED)]
    return [
        Skipped(
            compressor=str(compressor),
            contexts=tuple(sorted({int(setting_fields(setting)["context"]) for setting in group["setting"]})),
            positions=int(group["n"].max()),
        )
        for compressor, group in rows.groupby("compressor", sort=False)
    ]


def too_short(scores: pd.DataFrame) -> tuple[int, int]:
    """Documents that were left out as too short, and those that were measured: the most of all runs."""
    rows = scores[(scores["stage"] == "perplexity") & (scores["metric"] == TOO_SHORT)]
    return (int(rows["value"].max()), int(rows["n"].max())) if len(rows) else (0, 0)


def unusable(scores: pd.DataFrame) -> list[str]:
    """What is known of the readings over all domains that gave no finite losses, one text for each run and reading."""
    found = [record for record in failures(scores) if record["stage"] == "perplexity"]
    texts = (f"{record['run']}, {record['setting'].split('/')[0]}: {record['message']}." for record in found)
    return list(dict.fromkeys(texts))
