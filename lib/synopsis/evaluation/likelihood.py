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
    # The last token of an option is predicted and never read, so options of one token share one reading of their query.
    readings: dict[tuple[int, tuple[int, ...]], list[int]] = {}
    for index, (query, option) in enumerate(rows):
        readings.setdefault((len(query), (*query, *option[:-1])), []).append(index)
    order = sorted(readings, key=lambda reading: -len(reading[1]))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    losses = [0.0] * len(rows)
    for batch in track(batches, label, unit="batches"):
        for reading, predicted in zip(batch, _predictions(model, prefix, batch), strict=True):
            for index in readings[reading]:
                tokens = torch.tensor(rows[index][1], device=predicted.device)
                losses[index] = -float(predicted.gather(1, tokens[:, None]).mean())
    return losses


def _predictions(model: Any, prefix: Prefix, batch: Sequence[tuple[int, tuple[int, ...]]]) -> list[Tensor]:
    """For each (query length, ids) the log-probabilities (option tokens, vocabulary) of what follows the query.

    One forward pass; rows are padded on the right, where causal attention never looks. Logits are computed only for
    columns that predict an option's token in some row.
    """
    width = max(max(len(ids) for _, ids in batch), 1)
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    for row, (_, tokens) in enumerate(batch):
        ids[row, : len(tokens)] = torch.tensor(tokens)
    columns = sorted({column for query, tokens in batch for column in range(max(query - 1, 0), len(tokens))})
    cache = copy.deepcopy(prefix.cache)
    if prefix.length:
        cache.batch_repeat_interleave(len(batch))
    positions = torch.arange(width, device=model.device)[None] + prefix.next_position
    logits = plain_forward(
        model,
        input_ids=ids.to(model.device),
        position_ids=positions.expand(len(batch), -1),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=torch.tensor(columns, dtype=torch.long, device=model.device),
    ).logits
    place = {column: index for index, column in enumerate(columns)}
    predictions = []
    for row, (query, tokens) in enumerate(batch):
        chosen = logits[row, [place[column] for column in range(max(query - 1, 0), len(tokens))]]
        if query == 0:
            # What predicts the first token is the prefix's last one, which is not read again here.
            assert prefix.next_logits is not None
            chosen = torch.cat([prefix.next_logits[None], chosen])
        predictions.append(chosen.float().log_softmax(-1))
    return predictions


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """(batch, length - 1) negative log-likelihood of labels[:, 1:], 0 where they are -100."""
    flat = torch.nn.functional.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten(), reduction="none", ignore_index=-100
    )
    return flat.view(labels.shape[0], -1)
