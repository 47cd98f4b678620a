"""AutoCompressors (Chevalier et al. 2023) as a mixin over transformers' own causal language models.

A text is read segment by segment, each laid out as [soft prompt | tokens | summary tokens]. The last hidden states of
the summary tokens are the *summary vectors*; they stand before the next segment as its soft prompt. With
`accumulate_summary` the soft prompt grows by each segment's summary vectors (AutoCompressor), else the new ones replace
it (RMT). `summary_length=0` is a plain model. Positions are counted from 0 in each segment over
real (unpadded) positions, soft prompt and summary tokens included.

    out = model(input_ids, segment_lengths=[512, 512, 512], output_softprompt=True)
    out.logits                      # (batch, 1536, vocabulary)
    out.softprompt                  # (batch, 3 * summary_length, hidden)
    context = model.compress(input_ids)
    model.generate(prompt_ids, context=context, max_new_tokens=20)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from synopsis.compressors.attention import sliding_window
from synopsis.compressors.base import Demand, check_finite, lengths_of_segments
from synopsis.compressors.context import CompressedContext
from synopsis.compressors.loss import losses_by_segment, next_token_loss
from synopsis.compressors.summary.contexts import SummaryContexts
from synopsis.compressors.summary.section import vectors_after
from synopsis.compressors.summary.segments import Segment, SegmentCache


@dataclass
class SummaryOutput(CausalLMOutputWithPast):
    """Logits of the tokens of all segments, and the soft prompt that a next segment would get.

    segment_losses: (batch, segments, 2), of each row and segment the sum of its predictions' losses, and their number.
    """

    softprompt: Tensor | None = None
    segment_losses: Tensor | None = None


class AutoCompressorMixin(SummaryContexts):
    """Put before a causal language model; see the module's docstring.

    Read from the configuration: summary_length, accumulate_summary, segment_gradient_checkpointing, and
    random_summary_length (trained to be of use with fewer summary tokens too, the first ones).
    """

    def __init__(self, config: Any):
        config.summary_length = getattr(config, "summary_length", 0)
        config.accumulate_summary = getattr(config, "accumulate_summary", True)
        config.segment_gradient_checkpointing = getattr(config, "segment_gradient_checkpointing", False)
        config.random_summary_length = getattr(config, "random_summary_length", False)
        super().__init__(config)
        self.loss_type = "ForCausalLM"  # transformers guesses it from the names of classes that it knows
        if config.summary_length > 0:
            width = self.get_input_embeddings().weight.shape[1]
            self.embed_summary = nn.Embedding(config.summary_length, width)
            self.post_init()

    def initialize_summary_embeddings(self) -> None:
        """Start the summary tokens as the embedding of the end-of-text token, as the paper describes it.

        Called once before training; ids without an end-of-text token start as the mean of all embeddings.
        """
        words = self.get_input_embeddings().weight.detach()
        end = self.config.eos_token_id
        end = end[0] if isinstance(end, list) else end
        start = words.mean(0) if end is None else words[end]
        with torch.no_grad():
            self.embed_summary.weight.copy_(start.expand_as(self.embed_summary.weight))

    @property
    def compresses(self) -> bool:
        return self.config.summary_length > 0

    def added_weights(self) -> dict[str, int | None]:
        return {"embed_summary.weight": None} if self.compresses else {}

    def demand(
        self,
        lengths: Sequence[int],
        context: CompressedContext | None = None,
        summary_length: int | None = None,
        **options: Any,
    ) -> Demand:
        soft, ends = 0 if context is None else context.length, self.summary_tokens(summary_length)
        longest = 0
        for tokens in lengths:
            longest = max(longest, tokens + self.positions_beside(soft, ends))
            soft = vectors_after(soft, ends, self.config.accumulate_summary)
        return Demand(longest, self.positions_beside(soft, 0), soft)

    def steps_that_fit(self, length: int) -> list[int]:
        limit, ends = getattr(self.config, "max_position_embeddings", None), self.config.summary_length
        if limit is None:
            return [length]
        lengths: list[int] = []
        left, soft = length, 0
        while left:
            room = limit - self.positions_beside(soft, ends)
            if room < 1:
                raise ValueError(
                    f"the text has {length} tokens, and this model reads {length - left} of them: "
                    f"their {soft} summary vectors, with {ends} more, fill its {limit} positions"
                )
            lengths.append(min(room, left))
            left, soft = left - lengths[-1], vectors_after(soft, ends, self.config.accumulate_summary)
        return lengths

    # ------------------------------------------------------------------------------------------------------- reading

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        segment_lengths: int | list[int] | None = None,
        softprompt: Tensor | None = None,
        output_softprompt: bool = False,
        summary_length: int | None = None,
        output_segment_losses: bool = False,
        past_key_values: DynamicCache | None = None,
        use_cache: bool | None = None,
        skip_logits: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        context: CompressedContext | None = None,
        **options: Any,
    ) -> Any:
        """Read segments and predict every next token. With a `context` it is `continue_from`, one pass and no segments.

        input_ids: (batch, length); segment_lengths: a list that adds up to length, or one length for all segments but
        a shorter last one; softprompt: (batch, k, hidden) before the first segment; output_softprompt: also summarise
        the last segment; labels: (batch, length), shifted inside, -100 ignored (as the first token after padding on the
        left should be: nothing predicts it). The loss is one mean over all segments. skip_logits: give no logits beside
        the loss (None: in training). summary_length: how many summary tokens end a segment, the first ones (None: all).
        output_segment_losses: also give the losses by row and segment, and no logits.

        use_cache gives `past_key_values` that the next call goes on from, in the same segment; with one number as
        segment_lengths a segment that has become that long is compressed. A cache that is given is not changed.
        attention_mask may then cover earlier tokens too. Without any of those this is the plain model.

        ValueError when they do not fit each other or the input.
        """
        if context is not None:
            if input_ids is None or softprompt is not None or segment_lengths is not None or output_softprompt:
                raise ValueError("with a context give input_ids, and neither a softprompt nor segment_lengths")
            return self.continue_from(context, input_ids, attention_mask, labels=labels, **options)
        past = past_key_values if isinstance(past_key_values, SegmentCache) else None
        compresses = softprompt is not None or segment_lengths is not None or output_softprompt
        starts_cache = bool(use_cache) and past_key_values is None and self.config.summary_length > 0
        if past is None and past_key_values is not None and compresses:
            raise ValueError("softprompt, segment_lengths and output_softprompt go on from a cache of a segment only")
        if past is None and not compresses and not starts_cache:
            embeds = input_ids if inputs_embeds is None else inputs_embeds
            if embeds is not None and (past_key_values is None or past_key_values.get_seq_length() == 0):
                _mask_of(embeds, attention_mask, covers_more=False, may_be_empty=bool(use_cache))
            out = self._plain_forward(
                input_ids=input_ids,
                attention_mask=attention_mask,
                inputs_embeds=inputs_embeds,
                labels=labels,
                past_key_values=past_key_values,
                use_cache=use_cache,
                skip_logits=skip_logits,
                num_items_in_batch=num_items_in_batch,
                **options,
            )
            return SummaryOutput(**out) if isinstance(out, CausalLMOutputWithPast) else out
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)  # (B, T, E)
        assert inputs_embeds is not None
        mask = _mask_of(inputs_embeds, attention_mask, past is not None, may_be_empty=bool(use_cache))
        softprompt = self._checked_softprompt(softprompt, inputs_embeds, past)
        segments = self._segments(inputs_embeds, mask, segment_lengths, past)

        hidden_states, cache, ends = [], past, self.summary_tokens(summary_length)
        for index, segment in enumerate(segments):
            last = index == len(segments) - 1
            if last and use_cache and cache is None:
                cache = SegmentCache(softprompt)
            summarise = output_softprompt or not last or segment.closes
            hidden, summary, cache = self._read(softprompt, segment, ends if summarise else 0, cache)
            hidden_states.append(hidden)
            softprompt = self._joined(softprompt, summary)
            if not last:
                cache = None
            elif segment.closes:
                cache = SegmentCache(softprompt)
        hidden = torch.cat(hidden_states, dim=1)  # (B, T, E)
        loss = logits = losses = None
        if labels is not None and output_segment_losses:
            losses = losses_by_segment(hidden, labels, self.logits, [segment.embeds.shape[1] for segment in segments])
            loss = losses[..., 0].sum() / losses[..., 1].sum().clamp(min=1)
        elif labels is not None and (self.training if skip_logits is None else skip_logits):
            loss = next_token_loss(hidden, labels, self.logits, num_items_in_batch)
        else:
            logits = self.logits(hidden)  # (B, T, V)
            loss = None if labels is None else next_token_loss(logits, labels, items=num_items_in_batch)
        return SummaryOutput(
            loss=loss,
            logits=logits,
            softprompt=softprompt,
            segment_losses=losses,
            past_key_values=cache if use_cache else None,
        )

    def summary_tokens(self, wanted: int | None = None) -> int:
        """How many summary tokens end a segment; ValueError where so few (or many) are of no use to this model."""
        most = self.config.summary_length
        if wanted is None or wanted == most:
            return most
        if not 1 <= wanted <= most:
            raise ValueError(f"summary_length {wanted}; this model has 1 to {most} summary tokens")
        if not self.config.random_summary_length:
            raise ValueError(
                f"summary_length {wanted}: this model was trained with all its {most} summary tokens, and fewer are of "
                "no use to it; train with random_summary_length to choose later"
            )
        return wanted

    def _segments(
        self, embeds: Tensor, mask: Tensor | None, segment_lengths: int | list[int] | None, past: SegmentCache | None
    ) -> list[Segment]:
        """The input cut into segments, the first of which goes on from `past`."""
        length, read = embeds.shape[1], 0 if past is None else past.tokens
        if past is not None and isinstance(segment_lengths, list):
            raise ValueError(f"segment_lengths {segment_lengths}: with a cache it is one number for all segments")
        lengths = lengths_of_segments(segment_lengths, length, read)
        masks = [None] * len(lengths) if mask is None else mask.split(lengths, 1)
        segments = [Segment(*parts) for parts in zip(embeds.split(lengths, 1), masks, strict=True)]
        if past is not None and isinstance(segment_lengths, int):
            filled = lengths[-1] + (read if len(lengths) == 1 else 0)
            segments[-1].closes = filled == segment_lengths
        return segments

    def _checked_softprompt(self, softprompt: Tensor | None, embeds: Tensor, past: SegmentCache | None) -> Tensor:
        rows, _, width = embeds.shape
        if past is not None:
            if softprompt is not None:
                raise ValueError("the cache holds a soft prompt already; give no other beside it")
            return past.softprompt
        if softprompt is None:
            softprompt = embeds.new_zeros(rows, 0, width)
        if softprompt.dim() != 3 or softprompt.shape[0] != rows or softprompt.shape[2] != width:
            raise ValueError(f"softprompt has shape {tuple(softprompt.shape)}; expected ({rows}, k, {width})")
        if not self.training:
            check_finite(softprompt, "of the soft prompt")
        return softprompt.to(embeds.device, embeds.dtype)

    def _joined(self, softprompt: Tensor, summary: Tensor) -> Tensor:
        """The next soft prompt: all summary vectors so far, or the newest."""
        if self.config.accumulate_summary:
            return torch.cat([softprompt, summary], dim=1)
        return summary if summary.shape[1] > 0 else softprompt

    def _read(
        self,
        softprompt: Tensor,
        segment: Segment,
        ends: int,
        cache: SegmentCache | None = None,
        soft_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, SegmentCache | None]:
        """Hidden states of the tokens (B, t, E) and of the first `ends` summary tokens (B, ends, E).

        With a cache, the cache of the segment so far, these tokens included and the summary tokens not.
        """
        embeds, summary = segment.embeds, segment.embeds[:, :0]
        rows, soft = len(embeds), softprompt.shape[1]
        if ends:
            summary = self.embed_summary.weight[:ends].to(embeds.dtype).expand(rows, -1, -1)
        if embeds.shape[1] + summary.shape[1] == 0:
            return embeds, summary, cache  # a full segment of a model that has no summary tokens
        mask = segment.mask if cache is None else cache.with_mask(segment)
        whole = segment.embeds.shape[1] + (0 if cache is None else cache.tokens)  # tokens of the segment so far
        if soft_mask is not None or mask is not None:
            mask = embeds.new_ones(rows, whole, dtype=torch.long) if mask is None else mask
            soft_mask = mask.new_ones(rows, soft) if soft_mask is None else soft_mask
        positions, needed = self._positions(soft, soft_mask, whole, mask, ends)
        self.check_positions(needed, f"a segment of {whole} tokens after {soft} soft-prompt vectors, with {ends} more,")
        full: Any = None if mask is None else torch.cat([soft_mask, mask, mask.new_ones(rows, ends)], dim=1)  # type: ignore[list-item]
        past = None if cache is None else cache.copy()
        cached = 0 if past is None else past.get_seq_length()
        if full is not None and sliding_window(self.config):
            counted = (full.cumsum(-1) - 1).clamp(min=0)
            full = self._masks_by_position(full, counted[:, cached:], counted)
        positions = None if positions is None else positions[:, cached:]

        def read(softprompt: Tensor, embeds: Tensor, summary: Tensor) -> Tensor:
            parts = [embeds, summary] if cached else [softprompt, embeds, summary]
            return self.get_decoder()(
                inputs_embeds=torch.cat([part for part in parts if part.shape[1]], dim=1),
                attention_mask=full,
                position_ids=positions,
                past_key_values=past,
                use_cache=past is not None,
            ).last_hidden_state

        if self.config.segment_gradient_checkpointing and self.training and torch.is_grad_enabled() and past is None:
            hidden = checkpoint(read, softprompt, embeds, summary, use_reentrant=False)
        else:
            hidden = read(softprompt, embeds, summary)
        if past is not None:
            past.extend(segment, ends)
        first = 0 if cached else soft
        return hidden[:, first : first + embeds.shape[1]], hidden[:, first + embeds.shape[1] :], past

    def positions_beside(self, soft: int, ends: int) -> int:
        """Positions that `soft` soft-prompt vectors and `ends` summary tokens take from those of a segment's tokens."""
        return self._positions(soft, None, 0, None, ends)[1]

    def _positions(
        self, soft: int, soft_mask: Tensor | None, tokens: int, mask: Tensor | None, ends: int
    ) -> tuple[Tensor | None, int]:
        """(batch or 1, soft + tokens + ends) positions of a segment, or None for 0, 1, 2, ...; and how many there are.

        The masks (batch, soft) and (batch, tokens) are both None when nothing is padded.
        """
        if soft_mask is None or mask is None:
            return None, soft + tokens + ends
        full = torch.cat([soft_mask, mask, mask.new_ones(len(mask), ends)], dim=1)
        return (full.cumsum(-1) - 1).clamp(min=0), int(full.sum(-1).max())


def _mask_of(embeds: Tensor, attention_mask: Tensor | None, covers_more: bool, may_be_empty: bool) -> Tensor | None:
    """(batch, length) mask of the input, of which a mask of earlier tokens too holds the end; None when unpadded.

    Rows may be padding only where more will follow.
    """
    rows, length = embeds.shape[:2]
    if length == 0:
        raise ValueError("row 0 has no tokens: the length of the input is 0")
    if attention_mask is None:
        return None
    if covers_more:
        attention_mask = attention_mask[:, -length:]
    if attention_mask.shape != (rows, length):
        raise ValueError(f"attention_mask has shape {tuple(attention_mask.shape)}; expected ({rows}, {length})")
    empty = (attention_mask.sum(-1) == 0).nonzero().flatten().tolist()
    if empty and not may_be_empty:
        raise ValueError(f"row {empty[0]} has no tokens: it is padding only, {length} places long")
    return attention_mask.long()
