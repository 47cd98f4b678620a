"""Perplexity in the tidy scores: the losses of every run, the readings that it skipped, the documents left out.

A reading (context, class of tokens, summary tokens a step) without finite losses has no number (never zero), and its
message is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from synopsis.artifacts import Layout, read_json
from synopsis.config.experiment import Experiment
from synopsis.reporting.reading import required

METRICS = ("loss", "loss_low", "loss_high", "perplexity", "bits_per_byte", "summary_vectors", "n_documents")
SKIPPED, TOO_SHORT = "skipped", "too_short"

Row = dict[str, Any]


def perplexity_rows(experiment: Experiment) -> Iterator[tuple[str, Row]]:
    """(run, row) of every number, without what follows from the run; what is not a number has a `message` beside.

    skipped: the positions that a reading would have needed; its count is those that the model has. too_short: documents
    that were left out; its count is those that were measured. ArtifactError when a result is missing or damaged.
    """
    for run in experiment.runs_of("perplexity"):
        path = Layout(experiment).perplexity(run)
        document = read_json(path, "perplexity")
        corpus, common = required(path, document, "corpus"), {"split": required(path, document, "split"), "seed": None}
        unusable = required(path, document, "not_finite")
        for found in required(path, document, "rows"):
            place = {"dataset": f"{corpus}/{required(path, found, 'domain')}", "setting": _setting(path, found)}
            for row in _numbers(path, found, unusable):
                yield run, {**common, **place, **row}
        of_all = {**common, "dataset": f"{corpus}/all"}
        for found in required(path, document, "skipped"):
            row = {"setting": _setting(path, {**found, "tokens": "all"}), "metric": SKIPPED}
            needed, limit = required(path, found, "positions"), required(path, found, "model_positions")
            yield run, {**of_all, **row, "value": needed, "n": limit}
        short, measured = required(path, document, "too_short"), required(path, document, "documents")
        yield run, {**of_all, "setting": "", "metric": TOO_SHORT, "value": short, "n": measured}


def _setting(path: Path, found: Mapping[str, Any]) -> str:
    """The path of a reading; summary tokens stand in it where they are fewer than the compressor has."""
    fewer = required(path, found, "summary_length")
    setting = f"context={required(path, found, 'context_length')}/tokens={required(path, found, 'tokens')}"
    return setting if fewer is None else f"{setting}/summary_length={fewer}"


def _numbers(path: Path, found: Mapping[str, Any], unusable: list[Mapping[str, Any]]) -> Iterator[Row]:
    count = required(path, found, "n_tokens")
    for metric in METRICS:
        value = required(path, found, metric)
        row = {"metric": metric, "value": value, "n": count}
        if metric == "loss" and value is None:
            yield {**row, "message": _message(found, unusable)}
        elif metric != "bits_per_byte" or value is not None:  # bytes are known of all tokens together alone
            yield row


def _message(found: Mapping[str, Any], unusable: list[Mapping[str, Any]]) -> str:
    keys = ("context_length", "summary_length")
    of_row = [
        record
        for record in unusable
        if found["domain"] in ("all", record["domain"]) and all(record[key] == found[key] for key in keys)
    ]
    first = f", the first in document {of_row[0]['document']} (domain {of_row[0]['domain']})" if of_row else ""
    return f"losses that are not finite in {len(of_row)} of its documents{first}"
