"""Truncation on transformers' own causal language models: of a text only its last tokens are kept, plain.

    context = model.compress(input_ids)
    model.generate(prompt_ids, context=context, max_new_tokens=20)

The vectors of a context are the embeddings of the kept tokens. The law: what follows computes what a plain pass over
the kept tokens and itself would.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from synopsis.compressors.base import ContextMixin, Demand, full_mask
from synopsis.compressors.context import CompressedContext


class TruncationMixin(ContextMixin):
    """Put before a causal language model; reads budget from the configuration."""

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
        """The last of (batch, length) tokens, or of those of an earlier `context` and them; segments change nothing."""
        vectors, mask = self.get_input_embeddings()(input_ids), full_mask(input_ids, attention_mask)
        source = mask.sum(-1)
        if context is not None:
            self.check_context(context)
            context = context.to(self.device, self.dtype).expand(len(mask))
            assert context.summary_vectors is not None
            vectors = torch.cat([context.summary_vectors, vectors], dim=1)
            mask = torch.cat([context.attention_mask, mask], dim=1)
            source = source + context.source_tokens
        newest = mask.argsort(dim=-1, stable=True)[:, -self.config.budget :]  # a row's tokens stand last
        made = self.context_of(
            vectors.gather(1, newest[..., None].expand(-1, -1, vectors.shape[2])), mask.gather(1, newest), source
        )
        if check_numbers:
            made.check_finite()
        return made

    def check_context(self, context: CompressedContext) -> None:
        if context.summary_vectors is None:
            raise ValueError("this model reads vectors of tokens; the context holds keys and values")
        super().check_context(context)

    def demand(self, lengths: Sequence[int], context: CompressedContext | None = None, **options: Any) -> Demand:
        kept = min(self.config.budget, sum(lengths) + (0 if context is None else context.length))
        return Demand(kept, kept, kept)
