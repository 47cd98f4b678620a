"""The perplexity stage: the loss of a document's last tokens by how much context was read before them.

    synopsis perplexity --config config/demo.yaml autocompressor-s0

All context lengths score the same tokens: the last `scored_tokens` of each document's first (longest context +
scored) tokens, but for the first of them, which nothing predicts when there is no context (see `last_segment`).
Lengths that need more positions than the model has are skipped and reported. Documents are read from disk a batch at a
time, each once for all lengths; what is kept of a document is the sum of its losses by class of tokens.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from synopsis.artifacts import Layout, Provenance, write_json, write_json_lines
from synopsis.compressors.loss import perplexity as perplexity_of
from synopsis.config.experiment import Experiment
from synopsis.data.corpora import load_corpus
from synopsis.engine.last_segment import (
    Batches,
    Reading,
    demand,
    scored_losses,
)
from synopsis.engine.runs import OpenRun, open_run
from synopsis.errors import DataError, InputError
from synopsis.progress import say, track
from synopsis.stages.perplexity.documents import Documents, text_bytes
from synopsis.stages.perplexity.section import STAGE, Perplexity

BOOTSTRAP_SAMPLES = 1000
DRAWN_AT_ONCE = 2**20
"""Documents drawn in one go of the bootstrap, over its samples."""


def perplexity(experiment: Experiment, run: str) -> dict[str, Any]:
    """Measure a run; writes and returns rows by domain, class of tokens, context length and summary tokens a step.

    DataError when no document is long enough; InputError when no context length fits the model, when one document
    does not fit memory, and when no loss is a finite number.
    """
    section = experiment.perplexity
    assert section is not None
    layout, base = Layout(experiment), experiment.base_of(run)
    corpus = layout.corpus(section.corpus, base)
    provenance = Provenance(STAGE.fingerprint(experiment, run=run), inputs=[layout.weights(run), corpus])
    needed = max(section.context_lengths) + section.scored_tokens
    documents = Documents.of(load_corpus(corpus, section.split), needed, section.max_documents)
    if not len(documents):
        raise DataError(
            f"{corpus}: none of {documents.too_short} documents of the split '{section.split}' has "
            f"{needed} tokens (longest context and scored tokens)"
        )
    opened = open_run(experiment, run, section.dtype)
    model = opened.model
    provenance.device, provenance.dtype = str(model.device), str(model.dtype).removeprefix("torch.")
    readings, skipped = _readings(opened, run, section)
    say(f"{run}: {len(documents)} documents of {needed} tokens or more; {documents.too_short} are shorter")
    measured = _measure(model, opened.tokenizer, run, documents, readings, section.batch_size)
    rows = [
        row
        for reading in sorted(readings, key=lambda reading: (reading.context, reading.summary_length or 0))
        for row in _rows(documents, measured, reading, demand(model, reading).vectors)
    ]
    if len(measured.not_finite) == len(documents) * len(readings):
        first = measured.not_finite[0]
        raise InputError(f"run '{run}': {_fault(first)}, and so in every document; the model gives no usable numbers")
    payload = {
        "run": run,
        "corpus": section.corpus,
        "split": section.split,
        "scored_tokens": section.scored_tokens,
        "rows": rows,
        "skipped": skipped,
        "documents": len(documents),
        "too_short": documents.too_short,
        "beyond_limit": documents.beyond_limit,
        "not_finite": measured.not_finite,
        "cost": measured.cost,
    }
    path = layout.perplexity(run)
    records = layout.examples(path)
    write_json_lines(records, _records(documents, measured))
    write_json(path, "perplexity", payload, provenance.record(), [records])
    return payload


# ----------------------------------------------------------------------------------------------------- what is read


def _readings(opened: OpenRun, run: str, section: Perplexity) -> tuple[list[Reading], list[dict[str, Any]]]:
    """The readings that the model has positions for, longest first (so that what is too large shows at once), and
    records of the others."""
    limit = getattr(opened.model.config, "max_position_embeddings", None)
    step = section.tokens_per_step if opened.compresses else None
    readings, skipped = [], []
    for length in sorted(set(section.context_lengths), reverse=True):
        for summary_length in _summary_lengths(opened, run, section) if length else [None]:
            reading = Reading(length, section.scored_tokens, step, summary_length)
            positions = demand(opened.model, reading).positions
            if limit is None or positions <= limit:
                readings.append(reading)
            else:
                record = {"context_length": length, "summary_length": summary_length, "positions": positions}
                skipped.append({**record, "model_positions": limit})
    if not readings:
        least = min(record["positions"] for record in skipped)
        raise InputError(
            f"perplexity.context_lengths: run '{run}' has {limit} positions; the shortest reading needs {least} "
            f"({min(section.context_lengths)} tokens of context and {section.scored_tokens} scored ones)"
        )
    return readings, skipped


def _summary_lengths(opened: OpenRun, run: str, section: Perplexity) -> list[int | None]:
    """Summary tokens a step, None for all: InputError where so few are of no use to the model."""
    most = opened.model.summary_tokens() if opened.compresses else 0
    if section.summary_lengths is None or not most:
        return [None]
    try:
        found = [opened.model.summary_tokens(length) for length in section.summary_lengths]
    except ValueError as error:
        raise InputError(f"perplexity.summary_lengths: run '{run}': {error}") from None
    return [None if length == most else length for length in found]


# --------------------------------------------------------------------------------------------------------- measuring


@dataclass
class _Measured:
    """What is kept of the losses: (documents, classes) sums of each reading, in nats, and counts; bytes of each text.

    classes: names of the classes of tokens; hashes: of each document's scored tokens; not_finite: readings of documents
    that gave no usable numbers.
    """

    classes: list[str]
    sums: dict[Reading, np.ndarray]
    counts: np.ndarray
    bytes: np.ndarray
    hashes: list[int] = field(default_factory=list)
    not_finite: list[dict[str, Any]] = field(default_factory=list)
    cost: dict[str, Any] = field(default_factory=dict)


def _measure(
    model: Any, tokenizer: Any, run: str, documents: Documents, readings: Sequence[Reading], batch_size: int
) -> _Measured:
    count, classes, scored = len(documents), _classes(documents), readings[0].scored
    found = _Measured(
        classes=classes,
        sums={reading: np.zeros((count, len(classes))) for reading in readings},
        counts=np.zeros((count, len(classes)), dtype=np.int64),
        bytes=np.zeros(count, dtype=np.int64),
    )
    batches, started = Batches(batch_size), time.perf_counter()
    for start in track(range(0, count, batch_size), f"{run} perplexity", unit="batches"):
        chosen = slice(start, min(start + batch_size, count))
        ids, kinds = documents.read(chosen)
        counted = _members(classes, kinds, (len(ids), scored - 1))  # (classes, batch, tokens)
        found.counts[chosen] = counted.sum(-1).T
        found.bytes[chosen] = [text_bytes(tokenizer, text[-scored:]) for text in ids]
        found.hashes += [zlib.crc32(text[-scored:].tobytes()) for text in ids]
        tokens = torch.from_numpy(ids).to(model.device)
        for reading in readings:
            what = f"{reading.context} tokens of context, {scored} scored"
            losses = batches.measure(tokens, partial(scored_losses, model, reading), what)
            values = losses.double().cpu().numpy()
            found.sums[reading][chosen] = np.where(counted, values, 0.0).sum(-1).T
            for row in np.flatnonzero(~np.isfinite(values).all(-1)):
                record = _not_finite(documents, start + int(row), reading, values[row])
                if not found.not_finite:
                    say(f"{run}: {_fault(record)}; this is reported once, and the result lists all")
                found.not_finite.append(record)
    seconds = time.perf_counter() - started
    read = count * sum(reading.context + scored for reading in readings)
    found.cost = {"tokens": read, "seconds": seconds, "batch_size": batches.size, "halvings": batches.halvings}
    return found


def _classes(documents: Documents) -> list[str]:
    """Of the generated language it is known which tokens only the context predicts, and why."""
    from synopsis.data.world import KINDS

    return ["all", "dependent", *KINDS[1:]] if documents.has_kinds else ["all"]


def _members(classes: Sequence[str], kinds: np.ndarray | None, shape: tuple[int, int]) -> np.ndarray:
    """(classes, batch, scored - 1) boolean: which tokens are of which class."""
    everything = np.ones(shape, dtype=bool)
    if kinds is None:
        return everything[None]
    kinds = kinds[:, -shape[1] :]
    return np.stack([everything, kinds > 0, *(kinds == number for number in range(1, len(classes) - 1))])


def _not_finite(documents: Documents, document: int, reading: Reading, losses: np.ndarray) -> dict[str, Any]:
    return {
        "document": documents.rows[document],
        "domain": documents.domain_of(document),
        "context_length": reading.context,
        "summary_length": reading.summary_length,
        "tokens": int((~np.isfinite(losses)).sum()),
    }


def _fault(record: dict[str, Any]) -> str:
    return (
        f"document {record['document']} of the split (domain {record['domain']}): {record['tokens']} of its losses "
        f"after {record['context_length']} tokens of context are not finite"
    )


# -------------------------------------------------------------------------------------------------------------- rows


def _records(documents: Documents, measured: _Measured) -> Iterator[dict[str, Any]]:
    """The mean loss of each document and reading by class of tokens, None where it is not finite, and their numbers."""
    for reading, sums in measured.sums.items():
        for number, row in enumerate(documents.rows):
            counts = {name: int(n) for name, n in zip(measured.classes, measured.counts[number], strict=True) if n}
            totals = dict(zip(measured.classes, sums[number].tolist(), strict=True))
            yield {
                "context_length": reading.context,
                "summary_length": reading.summary_length,
                "document": row,
                "domain": documents.domain_of(number),
                "hash": measured.hashes[number],
                "n": counts,
                "loss": {name: totals[name] / n if math.isfinite(totals[name]) else None for name, n in counts.items()},
            }


def _rows(documents: Documents, measured: _Measured, reading: Reading, vectors: int) -> Iterator[dict[str, Any]]:
    """Summaries by domain and class of tokens; without a loss where a document of the row gave no finite ones."""
    for domain in ["all", *documents.domains] if len(documents.domains) > 1 else documents.domains:
        chosen = documents.of_domain(domain)
        for number, name in enumerate(measured.classes):
            sums, counts = measured.sums[reading][chosen, number], measured.counts[chosen, number]
            if not counts.sum():
                continue
            size = int(measured.bytes[chosen].sum()) if name == "all" else None
            yield {
                "domain": domain,
                "context_length": reading.context,
                "summary_length": reading.summary_length,
                "tokens": name,
                **_estimates(sums, counts, size),
                "n_tokens": int(counts.sum()),
                "n_bytes": size,
                "n_documents": int(chosen.sum()),
                "summary_vectors": vectors,
            }


def _estimates(sums: np.ndarray, counts: np.ndarray, size: int | None) -> dict[str, float | None]:
    """Loss with its interval, perplexity, and bits per byte of a text of `size` bytes; None where there is none."""
    total = float(sums.sum())
    if not math.isfinite(total):
        return dict.fromkeys(("loss", "perplexity", "bits_per_byte", "loss_low", "loss_high"))
    low, high = bootstrap(sums, counts)
    loss = total / int(counts.sum())
    return {
        "loss": loss,
        "perplexity": perplexity_of(loss),
        "bits_per_byte": total / math.log(2) / size if size else None,
        "loss_low": low,
        "loss_high": high,
    }


def bootstrap(sums: np.ndarray, counts: np.ndarray, samples: int = BOOTSTRAP_SAMPLES) -> tuple[float, float]:
    """95 % interval of the token-weighted mean loss, documents drawn again with a fixed seed.

    sums, counts: (documents,). Equal seeds draw equal documents, so readings are compared on the same samples.
    """
    rng, at_once = np.random.default_rng(0), max(1, DRAWN_AT_ONCE // len(sums))
    means = []
    for done in range(0, samples, at_once):
        drawn = rng.integers(len(sums), size=(min(at_once, samples - done), len(sums)))
        means.append(sums[drawn].sum(-1) / np.maximum(counts[drawn].sum(-1), 1))
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return float(low), float(high)


def headline(result: dict[str, Any]) -> dict[str, float]:
    """The losses that the command line prints: of all domains together."""
    rows = result["rows"]
    one = len({row["domain"] for row in rows}) == 1
    numbers = {}
    for row in rows:
        fewer = "" if row["summary_length"] is None else f"/summary_length={row['summary_length']}"
        if row["loss"] is not None and (one or row["domain"] == "all"):
            numbers[f"loss/{row['tokens']}/context={row['context_length']}{fewer}"] = row["loss"]
    return numbers
