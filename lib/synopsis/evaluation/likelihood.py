"""Likelihood of options after a prefix that is read once.

The prefix (a compressed context, plain tokens, or both) becomes one row of cached keys and values; every query with one
of its options is then a row of a batch that goes on from it.

    prefix = read_prefix(model, context, demonstration_ids)
    option_losses(model, prefix, [(query_ids, option_ids), ...])
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from synopsis.compressors.context import CompressedContext
from synopsis.progress import track


@dataclass(frozen=True)
class Prefix:
    """What every query goes on from: one row of keys and values, and the position of the next token."""

    cache: DynamicCache
    length: int
    next_position: int
    next_logits: Tensor | None = None
    """(vocabulary,) prediction of the next token; None where no plain token was read."""


@torch.no_grad()
def read_prefix(model: Any, context: CompressedContext | None, ids: Sequence[int]) -> Prefix:
    """Read `ids` after `context` once (either may be empty).

    ValueError when the context has more than one row or another model made it.
    """
    if context is not None:
        model.check_context(context)
        if context.batch_size != 1:
            raise ValueError(f"a prefix is one row; the context has {context.batch_size}")
    cache = DynamicCache(config=model.config) if context is None else model.prefix_cache(context)
    start = 0 if context is None else int(context.next_position[0])
    length = 0 if context is None else context.length
    next_logits = None
    if ids:
        tokens = torch.tensor([list(ids)], device=model.device)
        positions = torch.arange(start, start + len(ids), device=model.device)[None]
        next_logits = plain_forward(
            model, input_ids=tokens, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1
        ).logits[0, -1]
    return Prefix(cache, length + len(ids), start + len(ids), next_logits)


def plain_forward(model: Any, **arguments: Any) -> Any:
    """The forward pass of the transformers class, also of a compressor."""
    forward = getattr(model, "_plain_forward", None)
    return model(**arguments) if forward is None else forward(**arguments)


@torch.no_grad()
def option_losses(
    model: Any, prefix: Prefix, rows: Sequence[tuple[list[int], list[int]]], batch_size: int, label: str = "options"
) -> list[float]:
    """Mean negative log-likelihood (nats per token) of each option after its query, in the order of `rows`.

    Longest rows first: a batch that does not fit shows at once, and the time left is never underestimated.
    A query without tokens goes on from the prefix's last token. ValueError for an option without tokens, and for an
    empty query where the prefix has no plain token that could predict the option.
    """
    for index, (query, option) in enumerate(rows):
        if not option:
            raise ValueError(f"row {index}: the option has no tokens")
        if not query and prefix.next_logits is None:
            raise ValueError(f"row {index}: neither its query nor the prefix has a token that predicts the option")
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index][0]) - len(rows[index][1]))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    losses = [0.0] * len(rows)
    for batch in track(batches, label, unit="batches"):
        for index, loss in zip(batch, _batch_losses(model, prefix, [rows[i] for i in batch]), strict=True):
            losses[index] = loss
    return losses


def _batch_losses(model: Any, prefix: Prefix, rows: Sequence[tuple[list[int], list[int]]]) -> list[float]:
    """One forward pass; rows are padded on the right, where causal attention never looks."""
    width = max(len(query) + len(option) for query, option in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    labels = torch.full((len(rows), width), -100)
    for index, (query, option) in enumerate(rows):
        ids[index, : len(query) + len(option)] = torch.tensor(query + option)
        labels[index, len(query) : len(query) + len(option)] = torch.tensor(option)
    ids, labels = ids.to(model.device), labels.to(model.device)
    positions = torch.arange(width, device=model.device)[None] + prefix.next_position
    cache = copy.deepcopy(prefix.cache)
    if prefix.length:
        cache.batch_repeat_interleave(len(rows))
    logits = plain_forward(
        model, input_ids=ids, position_ids=positions.expand(len(rows), -1), past_key_values=cache, use_cache=True
    ).logits
    if prefix.next_logits is not None and not all(query for query, _ in rows):
        # What predicts the first column is the prefix's last token, which is not read again here.
        logits = torch.cat([prefix.next_logits.expand(len(rows), 1, -1), logits], dim=1)
        labels = torch.nn.functional.pad(labels, (1, 0), value=-100)
    return mean_loss(logits, labels).tolist()


def mean_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """(batch,) mean negative log-likelihood of those labels (batch, length) that are not -100; shifted inside."""
    losses = token_losses(logits, labels)
    counted = labels[:, 1:] != -100
    return (losses * counted).sum(-1) / counted.sum(-1)


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """(batch, length - 1) negative log-likelihood of labels[:, 1:], 0 where they are -100."""
    flat = torch.nn.functional.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten(), reduction="none", ignore_index=-100
    )
    return flat.view(labels.shape[0], -1)
