"""Likelihood of options: each token of a prefix, a query and its options is read once.

The prefix (a compressed context, plain tokens, or both) becomes one row of cached keys and values, which all queries
share as it stands. Queries with their options are packed into rows in which common beginnings stand once (see
`packing`), so a query is read once for all its options, and options of one token cost nothing beside it.

    prefix = read_prefix(model, context, demonstration_ids)
    scores = score_options(model, prefix, [(query_ids, option_ids), ...])
    scores.means                    # nats per token of each option after its query, in the order of the pairs
    scores.cost                     # tokens computed, those of a loop without sharing, seconds

The scores are those of one forward pass for each option, up to the rounding of sums in another order.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from synopsis.compressors.attention import attention_masks
from synopsis.compressors.context import CompressedContext
from synopsis.engine.memory import Halving
from synopsis.engine.packing import Pack, Tokens, pack
from synopsis.progress import track

BATCH_TOKENS = {"cpu": 512, "cuda": 4096}
"""Tokens in a pass: enough for the matrix products to be efficient; more adds attention between rows, masked out."""

Pair = tuple[Sequence[int], Sequence[int]]


@dataclass(frozen=True)
class Prefix:
    """What stands before every query: one row of keys and values, and the position of the next token."""

    cache: DynamicCache
    length: int
    next_position: int
    visible: Tensor
    """(length,) boolean: False at vectors of the context that are padding."""
    positions: Tensor
    """(length,) where the cached tokens stand, as sliding windows count."""
    next_logits: Tensor | None = None
    """(vocabulary,) prediction of the next token; None where no plain token was read."""

    def cache_to_extend(self) -> DynamicCache:
        """A cache on the same keys and values; adding to it makes new tensors, and leaves these as they are."""
        twin = copy(self.cache)
        twin.layers = [copy(layer) for layer in self.cache.layers]
        return twin


@dataclass(frozen=True)
class Cost:
    """What scoring took. tokens: read after the prefix; naive_tokens: that one pass for each option reads, the prefix
    each time; batch_tokens: the budget of a pass in the end; halvings: how often it was halved for want of memory."""

    tokens: int
    naive_tokens: int
    seconds: float
    batch_tokens: int
    halvings: int = 0


@dataclass(frozen=True)
class OptionScores:
    """Negative log-likelihoods in the order of the pairs: nats of the whole option, and its number of tokens."""

    sums: list[float]
    counts: list[int]
    cost: Cost

    @property
    def means(self) -> list[float]:
        """Nats per token."""
        return [total / count for total, count in zip(self.sums, self.counts, strict=True)]


@torch.no_grad()
def read_prefix(model: Any, context: CompressedContext | None, ids: Sequence[int]) -> Prefix:
    """Read `ids` after `context` once (either may be empty).

    ValueError when the context has more than one row or another model made it, and for encoder-decoders.
    """
    if model.config.is_encoder_decoder:
        raise ValueError("an encoder-decoder has no prefix that queries continue; give a decoder")
    cache, start = DynamicCache(), 0
    visible, positions = torch.ones(0, dtype=torch.bool), torch.arange(0)
    if context is not None:
        model.check_context(context)
        if context.batch_size != 1:
            raise ValueError(f"a prefix is one row; the context has {context.batch_size}")
        cache, start = model.prefix_cache(context), int(context.next_position[0])
        visible = context.attention_mask[0].bool().cpu()
        # Vectors count as standing directly before what follows, whatever they stand for (see continue_from).
        positions = start + visible.long().cumsum(-1) - visible.sum() - 1
    next_logits, held = None, len(visible)
    if ids:
        tokens = torch.tensor([list(ids)], device=model.device)
        new = torch.arange(start, start + len(ids))
        visible, positions = torch.cat([visible, torch.ones(len(ids), dtype=torch.bool)]), torch.cat([positions, new])
        next_logits = plain_forward(
            model,
            input_ids=tokens,
            attention_mask=None if bool(visible.all()) else visible[None].long().to(model.device),
            position_ids=new[None].to(model.device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[0, -1]
    place = model.device
    return Prefix(
        cache, held + len(ids), start + len(ids), visible.to(place), positions.to(place), next_logits=next_logits
    )


def plain_forward(model: Any, **arguments: Any) -> Any:
    """The forward pass of the transformers class, also of a compressor."""
    forward = getattr(model, "_plain_forward", None)
    return model(**arguments) if forward is None else forward(**arguments)


@torch.no_grad()
def score_options(
    model: Any, prefix: Prefix, pairs: Sequence[Pair], batch_tokens: int | None = None, label: str | None = "options"
) -> OptionScores:
    """Negative log-likelihood of each option after the prefix and its query; pairs of query ids and option ids.

    batch_tokens: tokens in one pass, None for `BATCH_TOKENS` of the device; halved, with a message, when memory does
    not suffice. label: of the progress, None for no progress. A query without tokens continues the prefix's last
    token. Numbers that are not finite are given as they are. ValueError for an option without tokens, and for an empty
    query where the prefix has no plain token that could predict the option; MemoryError when a single option does not
    fit.
    """
    for index, (query, option) in enumerate(pairs):
        if not len(option):
            raise ValueError(f"row {index}: the option has no tokens")
        if not len(query) and prefix.next_logits is None:
            raise ValueError(f"row {index}: neither its query nor the prefix has a token that predicts the option")
    started = time.perf_counter()
    scorer = _Scorer(model, prefix, pairs, batch_tokens or BATCH_TOKENS.get(model.device.type, BATCH_TOKENS["cuda"]))
    done = scorer.run()
    for _ in done if label is None else track(done, label, total=len(scorer.sequences), unit="sequences"):
        pass
    cost = Cost(
        tokens=scorer.tokens,
        naive_tokens=sum(prefix.length + len(query) + len(option) for query, option in pairs),
        seconds=time.perf_counter() - started,
        batch_tokens=scorer.budget.size,
        halvings=scorer.budget.halvings,
    )
    return OptionScores(scorer.sums.tolist(), [len(option) for _, option in pairs], cost)


class _Scorer:
    """The passes over the packs of some pairs, and what is known of their scores so far."""

    def __init__(self, model: Any, prefix: Prefix, pairs: Sequence[Pair], budget: int):
        self.model, self.prefix, self.pairs, self.budget = model, prefix, pairs, Halving(budget)
        self.sums = torch.zeros(len(pairs), dtype=torch.float64)
        self.tokens = 0
        # The last token of an option is predicted and never read.
        members: dict[Tokens, list[int]] = {}
        for index, (query, option) in enumerate(pairs):
            members.setdefault((*query, *option[:-1]), []).append(index)
        self.members = list(members.values())
        self.sequences = list(members)

    def run(self) -> Iterator[int]:
        """Score everything; yields the number of each sequence when it is done."""
        waiting = pack(self.sequences, self.budget.size)
        while waiting:
            packed, count = waiting[0], len(waiting[0].ids)
            one = f"one option with its query ({count} tokens) after a prefix of {self.prefix.length}"
            alone = MemoryError(f"{one} does not fit in memory") if len(packed.members) == 1 else None
            if self.budget.fits(partial(self._score, packed), count, "tokens in a pass", alone):
                yield from packed.members
                waiting = waiting[1:]
            else:
                waiting = self._packed_again(waiting)

    def _packed_again(self, waiting: list[Pack]) -> list[Pack]:
        """The packs that are left, made anew with a smaller budget."""
        left = [member for one in waiting for member in one.members]
        again = pack([self.sequences[member] for member in left], self.budget.size)
        for one in again:
            one.members = [left[member] for member in one.members]
        return again

    def _score(self, packed: Pack) -> None:
        places, targets, owners = self._predictions(packed)
        columns, index = places.unique(return_inverse=True)
        logits = self._logits(packed, columns[columns >= 0])
        if len(columns) and columns[0] < 0:
            # What predicts the first token of an option without a query is the prefix's last token.
            assert self.prefix.next_logits is not None
            first = self.prefix.next_logits[None]
            logits = first if logits is None else torch.cat([first, logits])
        assert logits is not None
        index, targets = index.to(logits.device), targets.to(logits.device)
        # One row of the vocabulary at a time in float32 would be slow, all of them at once large: by slices.
        losses = torch.cat(
            [
                torch.nn.functional.cross_entropy(logits[rows].float(), wanted, reduction="none")
                for rows, wanted in zip(index.split(SLICE), targets.split(SLICE), strict=True)
            ]
        )
        self.sums.index_add_(0, owners, losses.double().cpu())
        self.tokens += len(packed.ids)

    def _predictions(self, packed: Pack) -> tuple[Tensor, Tensor, Tensor]:
        """(predictions,) places in the row that predict, -1 for the prefix; the tokens predicted; pairs they are of."""
        places: list[int] = []
        targets: list[int] = []
        owners: list[int] = []
        for member, path in zip(packed.members, packed.paths, strict=True):
            for pair in self.members[member]:
                query, option = self.pairs[pair]
                places += [-1, *path][len(query) :]
                targets += option
                owners += [pair] * len(option)
        return torch.tensor(places), torch.tensor(targets), torch.tensor(owners)

    def _logits(self, packed: Pack, columns: Tensor) -> Tensor | None:
        """(columns, vocabulary) of one pass over the pack after the prefix; None where nothing in it predicts."""
        if not len(columns):
            return None
        prefix, device = self.prefix, self.model.device
        sees = torch.from_numpy(packed.sees()).to(device)
        allowed = torch.cat([prefix.visible.expand(len(sees), -1), sees], dim=1)[None, None]
        positions = prefix.next_position + torch.tensor([packed.depths], device=device)
        masks = attention_masks(
            self.model.config, allowed, positions, torch.cat([prefix.positions[None], positions], 1), self.model.dtype
        )
        return plain_forward(
            self.model,
            input_ids=torch.tensor([packed.ids], device=device),
            attention_mask=masks,
            position_ids=positions,
            past_key_values=prefix.cache_to_extend(),
            use_cache=True,
            logits_to_keep=columns.to(device),
        ).logits[0]


SLICE = 256
"""Predictions whose losses are computed at once."""


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """(batch, length - 1) negative log-likelihood of labels[:, 1:], 0 where they are -100."""
    flat = torch.nn.functional.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten(), reduction="none", ignore_index=-100
    )
    return flat.view(labels.shape[0], -1)
