"""StreamingLLM (Xiao et al. 2024) on transformers' own causal language models, without any training.

A text is read as ever, and every token sees all before it. Then only the keys and values of the first tokens and of the
newest ones are kept, as many as the budget:

    context = model.compress(input_ids)
    model.generate(prompt_ids, context=context, max_new_tokens=20)

The law: what follows computes what it would in one pass in which the evicted pairs are hidden from it. With `rerotate`
the kept keys are turned to the positions 0, 1, 2, ..., as in a cache that never grows.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from synopsis.compressors.attention import sliding_window
from synopsis.compressors.base import ContextMixin, Demand, full_mask, lengths_of_segments
from synopsis.compressors.context import CompressedContext
from synopsis.compressors.eviction.section import SINKS
from synopsis.compressors.masks import gather
from synopsis.errors import InputError


class StreamingMixin(ContextMixin):
    """Put before a causal language model; reads budget and rerotate from the configuration."""

    def __init__(self, config: Any):
        if sliding_window(config):
            raise InputError("streaming_llm: the layers of this model slide over the text, and evict by themselves")
        if config.rerotate and getattr(config, "rope_parameters", None) is None:
            raise InputError("streaming_llm with rerotate: the positions of this model are not rotary")
        super().__init__(config)

    @torch.no_grad()
    def compress(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        context: CompressedContext | None = None,
        segment_lengths: int | list[int] | None = None,
        check_numbers: bool = True,
        **options: Any,
    ) -> CompressedContext:
        """Keys and values of the first and the newest of (batch, length) tokens, read after an earlier `context`.

        segment_lengths: tokens of each pass, which bound its memory; eviction follows the last one.
        """
        mask, rows = full_mask(input_ids, attention_mask), len(input_ids)
        cache, before = DynamicCache(), mask[:, :0]
        start = source = before.sum(-1)
        if context is not None:
            self.check_context(context)
            cache, before = self.prefix_cache(context, rows), context.expand(rows).attention_mask.to(mask)
            start, source = (
                value.expand(rows).to(mask.device) for value in (context.next_position, context.source_tokens)
            )
        positions = self._token_positions(mask, start)
        self._check_end(positions, "the context and the text")
        whole, seen = torch.cat([before, mask], dim=1), before.shape[1]
        parts = lengths_of_segments(segment_lengths, input_ids.shape[1])
        for ids, places in zip(input_ids.split(parts, 1), positions.split(parts, 1), strict=True):
            seen += ids.shape[1]
            shown = None if bool(whole.all()) else whole[:, :seen]
            self.get_decoder()(
                input_ids=ids, attention_mask=shown, position_ids=places, past_key_values=cache, use_cache=True
            )
        index, kept = self._kept(whole)
        keys: list[Tensor] = []
        values: list[Tensor] = []
        layers: Any = cache.layers
        # Keys of an earlier context that were turned stand at 0, 1, 2, ...; others are not turned again.
        stand = torch.cat([_ranks(before), positions], dim=1).gather(1, index)
        for number, layer in enumerate(layers):
            key, value = (gather(states, index, kept) for states in (layer.keys, layer.values))
            keys.append(self._turned(key, _ranks(kept.long()) - stand, number) if self.config.rerotate else key)
            values.append(value)
        made = CompressedContext(
            next_position=kept.sum(-1) if self.config.rerotate else start + mask.sum(-1),
            source_tokens=source + mask.sum(-1),
            fingerprint=self.fingerprint(),
            keys=tuple(keys),
            values=tuple(values),
            mask=None if bool(kept.all()) else kept.long(),
        )
        if check_numbers:
            made.check_finite()
        return made

    def _kept(self, whole: Tensor) -> tuple[Tensor, Tensor]:
        """Which of the pairs `whole` (batch, n) stay: (batch, k) places, padded on the left, and which are real."""
        rank, count = _ranks(whole), whole.sum(-1, keepdim=True)
        stays = whole.bool() & ((rank < SINKS) | (rank >= count - (self.config.budget - SINKS)))
        index = stays.long().argsort(dim=-1, stable=True)[:, -int(stays.sum(-1).max()) :]
        return index, stays.gather(1, index)

    def _turned(self, keys: Tensor, by: Tensor, layer: int) -> Tensor:
        """Keys (batch, heads, k, width) of a layer, turned `by` (batch, k) positions."""
        decoder: Any = self.get_decoder()
        if not getattr(decoder.layers[layer].self_attn, "use_rope", True):
            return keys  # a layer without positions
        cos, sin = (part / decoder.rotary_emb.attention_scaling for part in decoder.rotary_emb(keys, by))
        turn = sys.modules[type(decoder).__module__].apply_rotary_pos_emb
        turned: Tensor = turn(keys, keys, cos, sin)[1]
        return turned

    def demand(self, lengths: Sequence[int], context: CompressedContext | None = None, **options: Any) -> Demand:
        start, held = (0, 0) if context is None else (int(context.next_position.max()), context.length)
        total = sum(lengths)
        vectors = min(self.config.budget, held + total)
        return Demand(start + total, vectors if self.config.rerotate else start + total, vectors)


def _ranks(mask: Tensor) -> Tensor:
    """(batch, n): how many real columns stand before each."""
    return (mask.cumsum(-1) - 1).clamp(min=0)
