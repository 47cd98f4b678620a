"""Losses of a text's last segment after a context, with memory that is bounded whatever the lengths.

Compressors read the context in steps and predict from what they kept of it; plain models read it piece by piece into a
cache. Logits are made for the last segment only, a slice at a time. Whatever the context, the same tokens are scored:
all of the last segment but its first, which nothing predicts when there is no context.

    losses = scored_losses(model, Reading(context=6144, scored=2048, step=2048), ids)    # (batch, 2047)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import DynamicCache

from synopsis.compressors.base import Demand
from synopsis.compressors.loss import LOGITS_AT_ONCE
from synopsis.compressors.section import steps
from synopsis.engine.likelihood import plain_forward
from synopsis.engine.memory import Halving
from synopsis.errors import InputError

TOKENS_AT_ONCE = 2048
"""Tokens of the context in one pass of a plain model, over all rows: enough for the matrix products to be efficient."""


@dataclass(frozen=True)
class Reading:
    """How a text is read: `scored` tokens at its end, `context` tokens directly before them, compressed in steps.

    step: tokens compressed at once, None for a model that reads the whole context; summary_length: summary tokens that
    end a step, None for all that the model has.
    """

    context: int
    scored: int
    step: int | None
    summary_length: int | None = None

    @property
    def options(self) -> dict[str, int]:
        """Those of `compress`."""
        return {} if self.summary_length is None else {"summary_length": self.summary_length}


def demand(model: Any, reading: Reading) -> Demand:
    """Positions of the longest pass that a reading takes, and the vectors before the last segment."""
    if reading.step is None or not reading.context:
        return Demand(reading.context + reading.scored, reading.context, 0)
    found: Demand = model.demand(steps(reading.context, reading.step), **reading.options)
    return replace(found, positions=max(found.positions, found.next_position + reading.scored))


@torch.no_grad()
def scored_losses(model: Any, reading: Reading, ids: Tensor) -> Tensor:
    """(batch, scored - 1) float32 losses in nats of the last tokens of `ids` (batch, length)."""
    text = ids[:, ids.shape[1] - reading.scored - reading.context :]
    before, last = text[:, : reading.context], text[:, reading.context :]
    if reading.context and reading.step is not None:
        # Numbers that are not finite spoil their own row alone.
        lengths = steps(reading.context, reading.step)
        context = model.compress(before, segment_lengths=lengths, check_numbers=False, **reading.options)
        return _losses(model, last, model.prefix_cache(context), int(context.next_position[0]))
    cache = DynamicCache(config=model.config)
    for part in before.split(max(1, TOKENS_AT_ONCE // len(before)), 1) if reading.context else ():
        plain_forward(model, input_ids=part, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return _losses(model, last, cache, None)


def _losses(model: Any, last: Tensor, cache: DynamicCache, start: int | None) -> Tensor:
    """Losses of last[:, 1:]; `start`: the position of last[:, 0] where the cache does not say it."""
    rows = len(last)
    at_once = max(1, min(LOGITS_AT_ONCE // model.config.vocab_size, TOKENS_AT_ONCE) // rows)
    inputs, targets = last[:, :-1], last[:, 1:]
    losses, done = [], 0
    for tokens, wanted in zip(inputs.split(at_once, 1), targets.split(at_once, 1), strict=True):
        places = {}
        if start is not None:
            first = start + done
            places["position_ids"] = torch.arange(first, first + tokens.shape[1], device=last.device)[None]
        logits = plain_forward(model, input_ids=tokens, past_key_values=cache, use_cache=True, **places).logits
        flat = cross_entropy(logits.float().flatten(0, 1), wanted.flatten(), reduction="none")
        losses.append(flat.view_as(wanted))
        done += tokens.shape[1]
    return torch.cat(losses, dim=1)


class Batches(Halving):
    """Measures rows in batches of at most `size`."""

    def measure(self, ids: Tensor, function: Callable[[Tensor], Tensor], what: str) -> Tensor:
        """`function(rows)` for all rows of `ids` (rows, length); InputError when not even one row fits."""
        done: list[Tensor] = []
        start = 0
        while start < len(ids):
            rows = ids[start : start + self.size]
            alone = InputError(f"one document does not fit in memory ({what}); measure less of it")
            work, place = partial(_append, done, function, rows), f"documents in a batch ({what})"
            if self.fits(work, len(rows), place, alone if len(rows) == 1 else None):
                start += len(rows)
        return torch.cat(done)


def _append(done: list[Tensor], function: Callable[[Tensor], Tensor], rows: Tensor) -> None:
    done.append(function(rows))
