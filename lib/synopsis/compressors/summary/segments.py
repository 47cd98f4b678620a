"""Segments of AutoCompressors: how an input is cut, the cache of an unfinished segment, and writing in segments."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from synopsis.compressors.base import check_prompts, lengths_of_segments, with_generation_config
from synopsis.compressors.context import CompressedContext

NOT_IN_SEGMENTS = ("min_length", "min_new_tokens", "streamer", "return_dict_in_generate")
"""Options of `generate` that would have to span the several calls that writing in segments takes."""


@dataclass
class Segment:
    """Tokens of (a part of) a segment. embeds: (batch, t, width); mask: (batch, t), None when nothing is padded."""

    embeds: Tensor
    mask: Tensor | None = None
    closes: bool = False  # with these tokens the segment is full, and is compressed


class SegmentCache(DynamicCache):
    """Keys and values of an unfinished segment: [soft prompt | tokens so far].

    softprompt: (batch, k, width); tokens: how many columns of tokens are cached; mask: (batch, tokens) or None.
    """

    def __init__(self, softprompt: Tensor):
        super().__init__()
        self.softprompt = softprompt
        self.tokens = 0
        self.mask: Tensor | None = None

    def copy(self) -> SegmentCache:
        """A second cache on the same keys and values; adding to one leaves the other as it is."""
        twin = copy(self)
        twin.layers = [copy(layer) for layer in self.layers]
        return twin

    def with_mask(self, segment: Segment) -> Tensor | None:
        """(batch, tokens + t) mask after the segment's tokens."""
        if self.mask is None and segment.mask is None:
            return None
        rows, more = segment.embeds.shape[:2]
        ones = torch.ones(rows, self.tokens + more, dtype=torch.long, device=segment.embeds.device)
        before = ones[:, : self.tokens] if self.mask is None else self.mask
        return torch.cat([before, ones[:, self.tokens :] if segment.mask is None else segment.mask], dim=1)

    def extend(self, segment: Segment, summary: int) -> None:
        """Count the segment's tokens, now cached, and drop the `summary` tokens cached after them."""
        self.mask = self.with_mask(segment)
        self.tokens += segment.embeds.shape[1]
        if summary:
            self.crop(-summary)


def left_aligned(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The rows with their padding on the right."""
    if bool(mask.all()):
        return ids, mask
    order = (mask == 0).int().argsort(dim=-1, stable=True)
    return ids.gather(1, order), mask.gather(1, order)


def generate_in_segments(
    model: Any,
    inputs: Tensor,
    mask: Tensor,
    context: CompressedContext | None,
    segment_lengths: int | list[int],
    options: dict[str, Any],
) -> Tensor:
    """Continue prompts (batch, length), reading (and with one number writing) in segments; see `generate`.

    A full segment is compressed when the token after it is read: the first token of a segment is predicted by the one
    before it, as in the forward pass.
    """
    check_prompts(mask)
    options = with_generation_config(options)
    for option in NOT_IN_SEGMENTS:
        if options.get(option):
            raise ValueError(f"generate(segment_lengths=) cannot honour {option}")
    rows, length = inputs.shape
    lengths_of_segments(segment_lengths, length)  # refuses what does not fit
    options = dict(options)
    most = options.pop("max_length", None)
    given = options.pop("max_new_tokens", None) or model.generation_config.max_new_tokens
    left = given or max((most or model.generation_config.max_length or 20) - length, 1)
    pad = model.pad_token(options)
    options.setdefault("pad_token_id", pad)
    ends = options.get("eos_token_id", model.generation_config.eos_token_id)
    ends = torch.as_tensor([] if ends is None else ends, device=inputs.device).flatten()

    state = _State(model, [row[real.bool()] for row, real in zip(inputs, mask, strict=True)], context)
    if not isinstance(segment_lengths, int):
        for count in segment_lengths[:-1]:
            state.compress(count)
        segment_lengths = left + length  # what is written stays in the last segment
    written: list[list[Tensor]] = [[] for _ in range(rows)]
    active = torch.arange(rows, device=inputs.device)
    while left > 0 and len(active):
        while state.compress(segment_lengths):
            pass
        room = min(segment_lengths - len(state.tails[row]) + 1 for row in active.tolist())
        new = state.write(active, {**options, "max_new_tokens": min(room, left)})  # (active, n)
        going_on = []
        for row, tokens in zip(active.tolist(), new, strict=True):
            stops = torch.isin(tokens, ends).nonzero().flatten().tolist()
            tokens = tokens[: stops[0] + 1] if stops else tokens
            written[row].append(tokens)
            state.tails[row] = torch.cat([state.tails[row], tokens])
            if not stops:
                going_on.append(row)
        left -= new.shape[1]
        active = active.new_tensor(going_on)
    texts = [torch.cat(parts) for parts in written]
    out = inputs.new_full((rows, length + max(map(len, texts))), pad)
    out[:, :length] = inputs
    for row, text in enumerate(texts):
        out[row, length : length + len(text)] = text
    return out


class _State:
    """Rows that are being continued: their soft prompts, and the tokens of their unfinished segments."""

    def __init__(self, model: Any, tails: list[Tensor], context: CompressedContext | None):
        self.model, self.tails = model, tails
        width = model.get_input_embeddings().weight.shape[1]
        if context is None:
            self.soft = torch.zeros(len(tails), 0, width, device=model.device, dtype=model.dtype)
            self.soft_mask = tails[0].new_ones(len(tails), 0)
            self.source = tails[0].new_zeros(len(tails))
        else:
            assert context.summary_vectors is not None
            self.soft, self.soft_mask = context.summary_vectors, context.attention_mask
            self.source = context.source_tokens

    def compress(self, count: int) -> bool:
        """The first `count` tokens of each row that has more than those; False when none has."""
        full = [len(tail) > count for tail in self.tails]
        if not any(full):
            return False
        first = self.tails[full.index(True)]
        ids = torch.stack(
            [tail[:count] if ready else first[:count] for tail, ready in zip(self.tails, full, strict=True)]
        )
        mask = torch.as_tensor(full, device=ids.device)[:, None].expand(-1, count).long()
        self.soft, self.soft_mask = self.model.summarised(self.soft, self.soft_mask, ids, mask)
        self.source = self.source + mask.sum(-1)
        self.tails = [tail[count:] if ready else tail for tail, ready in zip(self.tails, full, strict=True)]
        return True

    def write(self, active: Tensor, options: dict[str, Any]) -> Tensor:
        """(active, n) new tokens."""
        tails = [self.tails[row] for row in active.tolist()]
        longest = max(map(len, tails))
        ids = torch.stack([torch.nn.functional.pad(tail, (longest - len(tail), 0)) for tail in tails])
        counts = torch.as_tensor([[len(tail)] for tail in tails], device=ids.device)
        mask = (torch.arange(longest, device=ids.device) >= longest - counts).long()
        context = self.model.context_of(self.soft, self.soft_mask, self.source).select(active)
        return self.model._generate_after(context, ids, mask, options)[:, longest:]
