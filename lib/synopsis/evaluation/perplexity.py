"""The perplexity stage: the loss of a document's last tokens by how much context was read before them.

    synopsis perplexity --config config/demo.yaml autocompressor-s0

All context lengths score the same tokens: the last `scored_tokens` of each document's first (longest context +
scored) tokens, but for the first of them, which nothing predicts when there is no context. Compressors read the
context in steps and predict from the summary vectors; plain models read it whole, and skip lengths beyond their
positions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from synopsis.artifacts import Layout, Provenance, write_json
from synopsis.compressors.loading import load
from synopsis.config import Experiment
from synopsis.data.corpora import load_corpus
from synopsis.errors import DataError
from synopsis.evaluation.likelihood import plain_forward, token_losses
from synopsis.plan import perplexity_facts
from synopsis.progress import track

BOOTSTRAP_SAMPLES = 1000
MAX_EXPONENT = 700  # e to more than this is no float


def perplexity(experiment: Experiment, run: str) -> dict[str, Any]:
    """Measure a run; writes and returns rows by domain, class of tokens and context length."""
    section = experiment.perplexity
    assert section is not None
    layout, base = Layout(experiment), experiment.base_of(run)
    corpus = layout.corpus(section.corpus, base)
    provenance = Provenance(perplexity_facts(experiment, run), inputs=[layout.model(run), corpus])
    model = load(layout.model(run))
    provenance.device, provenance.dtype = str(model.device), str(model.dtype).removeprefix("torch.")
    lengths = sorted(set(section.context_lengths))
    documents, counts = _long_documents(
        load_corpus(corpus, section.split), lengths[-1] + section.scored_tokens, section.max_documents
    )
    if not documents:
        raise DataError(
            f"{corpus}: none of {counts['too_short']} documents of the split '{section.split}' has "
            f"{lengths[-1] + section.scored_tokens} tokens (longest context and scored tokens)"
        )
    rows, skipped = [], []
    for length in lengths:
        if _positions(model, length, section.scored_tokens) > model.config.max_position_embeddings:
            skipped.append(length)
            continue
        losses = []
        batches = list(_batches(documents, section.batch_size))
        for batch in track(batches, f"{run} context {length}", unit="batches"):
            ids = torch.tensor([d["input_ids"] for d in batch], device=model.device)
            losses.append(scored_losses(model, ids, length, section.scored_tokens, section.tokens_per_step))
        vectors = _vectors(model, length, section.tokens_per_step)
        rows += _rows(documents, torch.cat(losses).double().cpu().numpy(), length, vectors)
    payload = {
        "run": run,
        "corpus": section.corpus,
        "split": section.split,
        "scored_tokens": section.scored_tokens,
        "rows": rows,
        "skipped_context_lengths": skipped,
        **counts,
    }
    write_json(layout.perplexity(run), "perplexity", payload, provenance.record())
    return payload


@torch.no_grad()
def scored_losses(model: Any, ids: Tensor, context: int, scored: int, step: int) -> Tensor:
    """(batch, scored - 1) losses of the last tokens of `ids` (batch, length), after `context` tokens before them."""
    tail = ids[:, ids.shape[1] - scored - context :]
    if context and getattr(model.config, "summary_length", 0):
        before, last = tail[:, :context], tail[:, context:]
        softprompt = model.compress(before, segment_lengths=steps(context, step)).summary_vectors
        logits = model(last, softprompt=softprompt).logits
    else:
        last = tail[:, context:]
        logits = plain_forward(model, input_ids=tail).logits[:, context:]
    return token_losses(logits, last)


def steps(length: int, step: int) -> list[int]:
    """Whole steps that end at the scored tokens; the first one is shorter where `length` is no multiple."""
    whole, rest = divmod(length, step)
    return ([rest] if rest else []) + [step] * whole


def _positions(model: Any, context: int, scored: int) -> int:
    return scored if getattr(model.config, "summary_length", 0) else context + scored


def _vectors(model: Any, context: int, step: int) -> int:
    summary = getattr(model.config, "summary_length", 0)
    count = len(steps(context, step)) if context else 0
    return summary * (count if getattr(model.config, "accumulate_summary", True) else min(count, 1))


def _long_documents(documents: Any, needed: int, limit: int | None) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Documents of at least `needed` tokens, cut to that, at most `limit` of each domain; and what was left out."""
    kept: list[dict[str, Any]] = []
    by_domain: dict[str, int] = {}
    short = beyond = 0
    for document in documents:
        if len(document["input_ids"]) < needed:
            short += 1
        elif limit is not None and by_domain.get(document["domain"], 0) >= limit:
            beyond += 1
        else:
            by_domain[document["domain"]] = by_domain.get(document["domain"], 0) + 1
            cut = {key: document[key][:needed] for key in ("input_ids", "kind") if key in document}
            kept.append({"domain": document["domain"], **cut})
    return kept, {"documents": len(kept), "too_short": short, "beyond_limit": beyond}


def _batches(documents: Sequence[dict[str, Any]], size: int) -> Iterator[Sequence[dict[str, Any]]]:
    for start in range(0, len(documents), size):
        yield documents[start : start + size]


def _rows(documents: Sequence[dict[str, Any]], losses: np.ndarray, length: int, vectors: int) -> list[dict[str, Any]]:
    """Summaries of (documents, tokens) losses by domain and class of tokens."""
    from synopsis.data.world import KINDS

    classes = {"all": np.ones_like(losses, dtype=bool)}
    if "kind" in documents[0]:
        kinds = np.array([d["kind"][-losses.shape[1] :] for d in documents])
        classes["dependent"] = kinds > 0
        classes |= {name: kinds == number for number, name in enumerate(KINDS) if number}
    domains = sorted({d["domain"] for d in documents})
    rows = []
    for domain in ["all", *domains] if len(domains) > 1 else domains:
        chosen = np.array([domain in ("all", d["domain"]) for d in documents])
        for name, counted in classes.items():
            sums, counts = (losses * counted).sum(-1)[chosen], counted.sum(-1)[chosen]
            if not counts.sum():
                continue
            low, high = bootstrap(sums, counts)
            loss = float(sums.sum() / counts.sum())
            rows.append(
                {
                    "domain": domain,
                    "context_length": length,
                    "tokens": name,
                    "loss": loss,
                    "perplexity": math.exp(loss) if loss < MAX_EXPONENT else math.inf,
                    "loss_low": low,
                    "loss_high": high,
                    "n_tokens": int(counts.sum()),
                    "n_documents": int(chosen.sum()),
                    "summary_vectors": vectors,
                }
            )
    return rows


def bootstrap(sums: np.ndarray, counts: np.ndarray, samples: int = BOOTSTRAP_SAMPLES) -> tuple[float, float]:
    """95 % interval of the token-weighted mean loss, documents drawn again with a fixed seed."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(sums), size=(samples, len(sums)))
    totals = np.maximum(counts[drawn].sum(-1), 1)
    low, high = np.quantile(sums[drawn].sum(-1) / totals, [0.025, 0.975])
    return float(low), float(high)
