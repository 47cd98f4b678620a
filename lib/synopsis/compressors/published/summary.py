"""Argument forms of the published AutoCompressor code, so that calls written for it run.

out = model(input_ids, softprompt=soft, use_cache=True)
out = model(next_ids, past_key_values=out.past_key_values, use_cache=True)        # in the same segment
model.generate(prompt_ids, softprompt=soft, segment_lengths=512, max_new_tokens=64)
"""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from synopsis.compressors.base import check_prompts, full_mask, lengths_of_segments, with_generation_config
from synopsis.compressors.context import CompressedContext
from synopsis.compressors.summary.model import AutoCompressor, mask_of

NOT_IN_SEGMENTS = ("min_length", "min_new_tokens", "streamer", "return_dict_in_generate")
"""Options of `generate` that would have to span the several calls that writing in segments takes."""


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

    def count(self, tokens: int, mask: Tensor | None) -> None:
        """So many tokens more, with their mask (batch, tokens)."""
        if mask is not None or self.mask is not None:
            rows, device = len(self.softprompt), self.softprompt.device
            ones = torch.ones(rows, self.tokens + tokens, dtype=torch.long, device=device)
            before = ones[:, : self.tokens] if self.mask is None else self.mask
            self.mask = torch.cat([before, ones[:, self.tokens :] if mask is None else mask], dim=1)
        self.tokens += tokens


class AutoCompressorMixin(AutoCompressor):
    """An `AutoCompressor` that also continues from the cache of an unfinished segment, and writes in segments."""

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        segment_lengths: int | list[int] | None = None,
        softprompt: Tensor | None = None,
        output_softprompt: bool = False,
        past_key_values: DynamicCache | None = None,
        use_cache: bool | None = None,
        **options: Any,
    ) -> Any:
        """As `AutoCompressor.forward`, also of embeddings, and in several calls.

        use_cache gives `past_key_values` that the next call continues, in the same segment; with one number as
        segment_lengths a segment that has become that long is compressed. A cache that is given is not changed.
        attention_mask may then cover earlier tokens too.
        """
        past = past_key_values if isinstance(past_key_values, SegmentCache) else None
        cut: dict[str, Any] = {
            "segment_lengths": segment_lengths,
            "softprompt": softprompt,
            "output_softprompt": output_softprompt,
        }
        segmented = softprompt is not None or segment_lengths is not None or output_softprompt
        fresh = past_key_values is None and options.get("context") is None
        starts = bool(use_cache) and fresh and (self.compresses or segmented)
        if past is None and past_key_values is not None and segmented:
            raise ValueError(
                "softprompt, segment_lengths and output_softprompt continue from a cache of a segment only"
            )
        if past is None and not starts:
            embeds = input_ids if inputs_embeds is None else inputs_embeds
            empty = past_key_values is None or past_key_values.get_seq_length() == 0
            if embeds is not None and empty and options.get("context") is None:
                mask_of(embeds, attention_mask, may_be_empty=bool(use_cache))
            own = segmented or options.get("context") is not None  # these bring a cache of their own
            plain: dict[str, Any] = {} if own else {"past_key_values": past_key_values, "use_cache": use_cache}
            given: dict[str, Any] = {"inputs_embeds": inputs_embeds} if inputs_embeds is not None else {}
            return super().forward(input_ids, attention_mask, labels, **cut, **plain, **given, **options)
        embeds = self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds  # (B, T, E)
        mask = mask_of(embeds, attention_mask, past is not None, may_be_empty=bool(use_cache))
        if past is not None and softprompt is not None:
            raise ValueError("the cache holds a soft prompt already; give no other beside it")
        if past is not None and isinstance(segment_lengths, list):
            raise ValueError(f"segment_lengths {segment_lengths}: with a cache it is one number for all segments")
        cache = SegmentCache(self.checked_softprompt(softprompt, embeds)) if past is None else past.copy()
        lengths = lengths_of_segments(segment_lengths, embeds.shape[1], cache.tokens)
        masks: Any = [None] * len(lengths) if mask is None else mask.split(lengths, 1)
        ends, states = self.summary_tokens(options.get("summary_length")), []
        for index, (part, part_mask) in enumerate(zip(embeds.split(lengths, 1), masks, strict=True)):
            last = index == len(lengths) - 1
            cache.count(part.shape[1], part_mask)
            closes = not last or (past is not None and cache.tokens == segment_lengths)
            summarise = ends if output_softprompt or closes else 0
            hidden, summary = self.read_segment(cache.softprompt, part, summarise, cache.mask, past=cache)
            states.append(hidden)
            softprompt = self.joined(cache.softprompt, summary)
            if closes:
                cache = SegmentCache(softprompt)
            elif summarise:
                cache.crop(-summarise)
        out = self.output(torch.cat(states, dim=1), labels, softprompt, lengths, **options)  # type: ignore[arg-type]
        out.past_key_values = cache if use_cache else None
        return out

    @torch.no_grad()
    def generate(
        self,
        inputs: Tensor | None = None,
        context: CompressedContext | None = None,
        attention_mask: Tensor | None = None,
        softprompt: Tensor | None = None,
        segment_lengths: int | list[int] | None = None,
        **options: Any,
    ) -> Tensor:
        """As `ContextMixin.generate`; also after a `softprompt` (batch, k, hidden), and in segments.

        With segment_lengths the prompt is read in segments, each row's from its own first token; with one number, the
        text that is written too. The ids are those that the segmented forward pass would give.
        """
        if inputs is None:
            inputs = options.pop("input_ids", None)
        if softprompt is None and segment_lengths is None:
            return super().generate(inputs, context=context, attention_mask=attention_mask, **options)
        if inputs is None or inputs.shape[1] == 0:
            raise ValueError("generate needs at least one prompt token in each row")
        if softprompt is not None and context is not None:
            raise ValueError("give generate a softprompt or a context, not both")
        rows, mask = len(inputs), full_mask(inputs, attention_mask)
        if context is not None:
            self.check_context(context)
            context = context.to(self.device, self.dtype).expand(rows)
        elif softprompt is not None:
            softprompt = self.checked_softprompt(softprompt, self.get_input_embeddings()(inputs))
            kept = mask.new_ones(softprompt.shape[:2])
            context = self.context_of(softprompt, kept, kept.sum(-1))
        if segment_lengths is not None:
            return generate_in_segments(self, inputs, mask, context, segment_lengths, options)
        assert context is not None
        return self._generate_after(context, inputs, mask, options)


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
