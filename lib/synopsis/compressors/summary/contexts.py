"""Contexts of AutoCompressors: texts become summary vectors, and texts are written after them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from synopsis.compressors.base import ContextMixin, check_finite, full_mask, lengths_of_segments
from synopsis.compressors.context import CompressedContext
from synopsis.compressors.summary.segments import Segment, generate_in_segments, left_aligned


class SummaryContexts(ContextMixin):
    """What an AutoCompressor does with contexts; how it reads a segment stands in `AutoCompressorMixin`."""

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
        _, summary, _ = self._read(
            soft,
            Segment(embeds, mask if padded else None),
            self.config.summary_length if ends is None else ends,
            None,
            soft_mask if padded else None,
        )
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
            softprompt = self._checked_softprompt(softprompt, self.get_input_embeddings()(inputs), None)
            kept = mask.new_ones(softprompt.shape[:2])
            context = self.context_of(softprompt, kept, kept.sum(-1))
        if segment_lengths is not None:
            return generate_in_segments(self, inputs, mask, context, segment_lengths, options)
        assert context is not None
        return self._generate_after(context, inputs, mask, options)
