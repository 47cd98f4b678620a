"""The tables of perplexity: by context length, by domain, and in detail by the number of summary vectors."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from synopsis.config.experiment import Experiment
from synopsis.reporting.cells import OVER_TRAINING_SEEDS, count_text, estimate_cell
from synopsis.reporting.estimates import MISSING
from synopsis.reporting.files import domains_of
from synopsis.reporting.rendering import Cell, Column, Table
from synopsis.stages.perplexity.summaries import (
    LossAtContext,
    losses,
    most_vectors,
    overall,
    skipped,
    too_short,
    unusable,
)

MOST_UNUSABLE = 6


def perplexity_table(experiment: Experiment, scores: pd.DataFrame) -> Table:
    found = most_vectors(overall(losses(scores)))
    groups = [(record.tokens, record.compressor) for record in found]
    return _by_context(
        "perplexity",
        "Perplexity by context length",
        ("Tokens", "Compressor"),
        [(key, [r for r in found if (r.tokens, r.compressor) == key]) for key in dict.fromkeys(groups)],
        _remarks(scores),
    )


def perplexity_domain_table(experiment: Experiment, scores: pd.DataFrame) -> Table:
    domains = domains_of(experiment)
    found = [record for record in losses(scores) if record.domain in domains and record.tokens == "all"]
    found = most_vectors(found)
    groups = [(record.domain, record.compressor) for record in found]
    return _by_context(
        "perplexity_domains",
        "Perplexity by domain and context length",
        ("Domain", "Compressor"),
        [(key, [r for r in found if (r.domain, r.compressor) == key]) for key in dict.fromkeys(groups)],
        _remarks(scores),
    )


def _by_context(
    name: str,
    title: str,
    keys: tuple[str, str],
    groups: Sequence[tuple[tuple[str, str], list[LossAtContext]]],
    remarks: Sequence[str],
) -> Table:
    contexts = sorted({record.context for _, records in groups for record in records})
    rows = []
    for key, records in groups:
        by_context = {record.context: record for record in records}
        cells = [estimate_cell(by_context[c].perplexity if c in by_context else MISSING) for c in contexts]
        scored = [count for record in records for count in record.scored]
        seeds = max(record.perplexity.count for record in records)
        rows.append([*(Cell(part) for part in key), *cells, Cell(count_text(scored)), Cell(seeds)])
    columns = [
        *(Column(key, key=True) for key in keys),
        *(Column(f"{context:,} tokens") for context in contexts),
        Column("Scored tokens", digits=0),
        Column("Runs", digits=0),
    ]
    note = f"Columns: tokens of context read before the scored tokens. {OVER_TRAINING_SEEDS}"
    return Table(name, title, columns, rows, note, remarks)


def perplexity_detail_table(experiment: Experiment, scores: pd.DataFrame) -> Table:
    """All tokens and domains together, one row for each reading."""
    found = [record for record in overall(losses(scores)) if record.tokens == "all"]
    rows = []
    for compressor in dict.fromkeys(record.compressor for record in found):
        of_subject = [record for record in found if record.compressor == compressor]
        rows += [_detail_row(record) for record in sorted(of_subject, key=lambda r: (r.context, r.summary_length or 0))]
    columns = [
        Column("Compressor", key=True),
        Column("Context", key=True),
        Column("Summary vectors", digits=0),
        Column("Loss", digits=3),
        Column("Perplexity"),
        Column("Bits per byte", digits=3),
        Column("Scored tokens", brief=False),
        Column("Documents", brief=False),
        Column("Runs"),
    ]
    note = (
        "All scored tokens. Context: tokens read before them, by compressors in steps that give summary vectors, by "
        "plain models as they are (no vectors). Loss: nats per token with the 95 % interval of a bootstrap over "
        "documents. Bits per byte: of the UTF-8 bytes of the text of the scored tokens, so that tokenizers can be "
        f"compared. {OVER_TRAINING_SEEDS}"
    )
    title = "Perplexity in detail: intervals, bits per byte, summary vectors"
    return Table("perplexity_details", title, columns, rows, note, _remarks(scores))


def _detail_row(record: LossAtContext) -> list[Cell]:
    interval = None if record.low is None or record.high is None else (record.low, record.high)
    vectors = record.summary_vectors.mean
    return [
        Cell(record.compressor),
        Cell(record.context),
        Cell(None if vectors is None else round(vectors)),
        Cell(record.loss.mean, deviation=record.loss.deviation, interval=interval),
        estimate_cell(record.perplexity),
        estimate_cell(record.bits_per_byte),
        Cell(count_text(record.scored)),
        Cell(count_text(record.documents)),
        Cell(record.loss.count),
    ]


def _remarks(scores: pd.DataFrame) -> list[str]:
    """Which contexts a model could not read, which documents were too short, and which losses were unusable."""
    remarks = [
        f"{found.compressor}: not measured after {', '.join(f'{context:,}' for context in found.contexts)} tokens of "
        f"context, which need more than the model's {found.positions:,} positions."
        for found in skipped(scores)
    ]
    short, measured = too_short(scores)
    if short:
        remarks.append(f"{short:,} documents are shorter than the longest reading and left out; {measured:,} are not.")
    told = unusable(scores)
    if len(told) > MOST_UNUSABLE:
        told = [*told[:MOST_UNUSABLE], f"{len(told) - MOST_UNUSABLE} more readings without finite losses."]
    return [*remarks, *told]
