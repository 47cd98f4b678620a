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

Further argument forms of the published code stand in `synopsis.compressors.published.summary`.
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
from synopsis.compressors.base import ContextMixin, Demand, check_finite, full_mask, lengths_of_segments
from synopsis.compressors.context import CompressedContext
from synopsis.compressors.loss import losses_by_segment, next_token_loss
from synopsis.compressors.summary.section import vectors_after


@dataclass
class SummaryOutput(CausalLMOutputWithPast):
    """Logits of the tokens of all segments, and the soft prompt that a next segment would get.

    segment_losses: (batch, segments, 2), of each row and segment the sum of its predictions' losses, and their number.
    """

    softprompt: Tensor | None = None
    segment_losses: Tensor | None = None


class AutoCompressor(ContextMixin):
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

    # ------------------------------------------------------------------------------------------------------- reading

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        segment_lengths: int | list[int] | None = None,
        softprompt: Tensor | None = None,
        output_softprompt: bool = False,
        summary_length: int | None = None,
        context: CompressedContext | None = None,
        **options: Any,
    ) -> Any:
        """Read segments and predict every next token. With a `context` it is `continue_from`, one pass and no segments.

        input_ids: (batch, length); segment_lengths: a list that adds up to length, or one length for all segments but
        a shorter last one; softprompt: (batch, k, hidden) before the first segment; output_softprompt: also summarise
        the last segment; labels: (batch, length), shifted inside, -100 ignored (as the first token after padding on the
        left should be: nothing predicts it). The loss is one mean over all segments; its options are those of `output`.
        summary_length: how many summary tokens end a segment, the first ones (None: all). Without any of those this is
        the plain model. ValueError when they do not fit each other or the input.
        """
        segmented = softprompt is not None or segment_lengths is not None or output_softprompt
        if context is not None:
            if input_ids is None or segmented:
                raise ValueError("with a context give input_ids, and neither a softprompt nor segment_lengths")
            return self.continue_from(context, input_ids, attention_mask, labels=labels, **options)
        if not segmented:
            out = self._plain_forward(input_ids=input_ids, attention_mask=attention_mask, labels=labels, **options)
            return SummaryOutput(**out) if isinstance(out, CausalLMOutputWithPast) else out
        embeds = options.pop("inputs_embeds", None)
        embeds = self.get_input_embeddings()(input_ids) if embeds is None else embeds  # (B, T, E)
        mask = mask_of(embeds, attention_mask)
        softprompt = self.checked_softprompt(softprompt, embeds)
        lengths, ends = lengths_of_segments(segment_lengths, embeds.shape[1]), self.summary_tokens(summary_length)
        masks: Any = [None] * len(lengths) if mask is None else mask.split(lengths, 1)
        states = []
        for index, (part, part_mask) in enumerate(zip(embeds.split(lengths, 1), masks, strict=True)):
            summarise = output_softprompt or index < len(lengths) - 1
            hidden, summary = self.read_segment(softprompt, part, ends if summarise else 0, part_mask)
            states.append(hidden)
            softprompt = self.joined(softprompt, summary)
        return self.output(torch.cat(states, dim=1), labels, softprompt, lengths, **options)

    def output(
        self,
        hidden: Tensor,
        labels: Tensor | None,
        softprompt: Tensor,
        lengths: Sequence[int],
        output_segment_losses: bool = False,
        skip_logits: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **_: Any,
    ) -> SummaryOutput:
        """Logits of the states (B, T, E), and the loss where there are labels.

        skip_logits: give no logits beside the loss (None: in training). output_segment_losses: also give the losses by
        row and segment, and no logits.
        """
        loss = logits = losses = None
        if labels is not None and output_segment_losses:
            losses = losses_by_segment(hidden, labels, self.logits, lengths)
            loss = losses[..., 0].sum() / losses[..., 1].sum().clamp(min=1)
        elif labels is not None and (self.training if skip_logits is None else skip_logits):
            loss = next_token_loss(hidden, labels, self.logits, num_items_in_batch)
        else:
            logits = self.logits(hidden)  # (B, T, V)
            loss = None if labels is None else next_token_loss(logits, labels, items=num_items_in_batch)
        return SummaryOutput(loss=loss, logits=logits, softprompt=softprompt, segment_losses=losses)

    def read_segment(
        self,
        softprompt: Tensor,
        embeds: Tensor,
        ends: int,
        mask: Tensor | None = None,
        soft_mask: Tensor | None = None,
        past: DynamicCache | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Hidden states of the tokens (B, t, E) and of the first `ends` summary tokens (B, ends, E).

        past: keys and values of the soft prompt and the tokens before these, which grows by all that is read; mask:
        (B, tokens of the whole segment), None when nothing is padded.
        """
        rows, soft, summary = len(embeds), softprompt.shape[1], embeds[:, :0]
        if ends:
            summary = self.embed_summary.weight[:ends].to(embeds.dtype).expand(rows, -1, -1)
        if embeds.shape[1] + summary.shape[1] == 0:
            return embeds, summary  # a full segment of a model that has no summary tokens
        cached = 0 if past is None else past.get_seq_length()
        whole = embeds.shape[1] + max(cached - soft, 0)  # tokens of the segment so far
        if soft_mask is not None or mask is not None:
            mask = embeds.new_ones(rows, whole, dtype=torch.long) if mask is None else mask
            soft_mask = mask.new_ones(rows, soft) if soft_mask is None else soft_mask
        positions, needed = self._positions(soft, soft_mask, whole, mask, ends)
        self.check_positions(needed, f"a segment of {whole} tokens after {soft} soft-prompt vectors, with {ends} more,")
        full: Any = None if mask is None else torch.cat([soft_mask, mask, mask.new_ones(rows, ends)], dim=1)  # type: ignore[list-item]
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
        first = 0 if cached else soft
        return hidden[:, first : first + embeds.shape[1]], hidden[:, first + embeds.shape[1] :]

    def joined(self, softprompt: Tensor, summary: Tensor) -> Tensor:
        """The next soft prompt: all summary vectors so far, or the newest."""
        if self.config.accumulate_summary:
            return torch.cat([softprompt, summary], dim=1)
        return summary if summary.shape[1] > 0 else softprompt

    def checked_softprompt(self, softprompt: Tensor | None, embeds: Tensor) -> Tensor:
        """The soft prompt for embeddings (B, T, E), empty without one; ValueError for a wrong shape or numbers."""
        rows, _, width = embeds.shape
        if softprompt is None:
            softprompt = embeds.new_zeros(rows, 0, width)
        if softprompt.dim() != 3 or softprompt.shape[0] != rows or softprompt.shape[2] != width:
            raise ValueError(f"softprompt has shape {tuple(softprompt.shape)}; expected ({rows}, k, {width})")
        if not self.training:
            check_finite(softprompt, "of the soft prompt")
        return softprompt.to(embeds.device, embeds.dtype)

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

    # ------------------------------------------------------------------------------------------------------ contexts

    @torch.no_grad()
    def compress(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        context: CompressedContext | None = None,
        segment_lengths: int | list[int] | None = None,
        check_numbers: bool = True,
        summary_length: int | None = None,
        **options: Any,
    ) -> CompressedContext:
        """Summary vectors of (batch, length) tokens, read in segments after an earlier `context` if one is given.

        Each row's segments are counted from its own first token, wherever its padding is, so that it gives what it
        would give alone; a row that has ended gives no more vectors, and the context's mask says so. summary_length:
        vectors of each segment, all or, for a model trained with random_summary_length, fewer.
        """
        if self.config.summary_length == 0:
            raise ValueError("this model has no summary tokens (summary_length is 0)")
        ends = self.summary_tokens(summary_length)
        rows, length = input_ids.shape
        mask = full_mask(input_ids, attention_mask)
        lengths = lengths_of_segments(segment_lengths, length)
        source = mask.sum(-1)
        if context is None:
            soft = self.get_input_embeddings()(input_ids[:, :0])
            soft_mask = mask.new_ones(rows, 0)
        else:
            self.check_context(context)
            context = context.to(self.device, self.dtype).expand(rows)
            assert context.summary_vectors is not None
            soft, soft_mask = context.summary_vectors, context.attention_mask
            source = source + context.source_tokens
        ids, mask = left_aligned(input_ids, mask)
        for tokens, tokens_mask in zip(ids.split(lengths, 1), mask.split(lengths, 1), strict=True):
            soft, soft_mask = self.summarised(soft, soft_mask, tokens, tokens_mask, ends)
        if check_numbers:
            check_finite(soft, "of the summary vectors")
        return self.context_of(soft, soft_mask, source)

    def summarised(
        self, soft: Tensor, soft_mask: Tensor, tokens: Tensor, mask: Tensor, ends: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """The soft prompt (batch, k, hidden) and its mask after one more segment; rows without tokens keep theirs."""
        embeds = self.get_input_embeddings()(tokens)
        padded = not bool(mask.all()) or not bool(soft_mask.all())
        ends = self.config.summary_length if ends is None else ends
        masks = (mask, soft_mask) if padded else (None, None)
        _, summary = self.read_segment(soft, embeds, ends, *masks)
        alive = mask.any(-1)
        new_mask = alive[:, None].to(soft_mask.dtype).expand(-1, summary.shape[1])
        if self.config.accumulate_summary or summary.shape[1] == 0:
            return torch.cat([soft, summary], dim=1), torch.cat([soft_mask, new_mask], dim=1)
        longest = max(soft.shape[1], summary.shape[1])
        (soft, soft_mask), (summary, new_mask) = (
            (nn.functional.pad(vectors, (0, 0, missing, 0)), nn.functional.pad(real, (missing, 0)))
            for vectors, real in ((soft, soft_mask), (summary, new_mask))
            for missing in [longest - vectors.shape[1]]
        )
        return torch.where(alive[:, None, None], summary, soft), torch.where(alive[:, None], new_mask, soft_mask)

    def check_context(self, context: CompressedContext) -> None:
        """ValueError for a context of another model or method, or of fewer summary vectors than this model gives."""
        if context.summary_vectors is None:
            raise ValueError("this model reads summary vectors; the context holds gist activations")
        super().check_context(context)
        step = 1 if self.config.random_summary_length else self.config.summary_length
        for row, count in enumerate(context.attention_mask.sum(-1).tolist()):
            if count == 0 or count % step:
                raise ValueError(
                    f"row {row} of the context has {count} summary vectors; this model gives {step} for each segment"
                )
        check_finite(context.summary_vectors, "of the context")


def left_aligned(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The rows with their padding on the right."""
    if bool(mask.all()):
        return ids, mask
    order = (mask == 0).int().argsort(dim=-1, stable=True)
    return ids.gather(1, order), mask.gather(1, order)


def mask_of(
    embeds: Tensor, attention_mask: Tensor | None, covers_more: bool = False, may_be_empty: bool = False
) -> Tensor | None:
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
