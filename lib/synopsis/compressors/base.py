"""What every compressor shares: calls that go on from a CompressedContext."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from synopsis.compressors.context import CompressedContext, fingerprint, settings_of


class ContextMixin:
    """Adds `prefix_cache`, `continue_from` and `generate(context=)` to a causal language model of transformers.

    A family says in `_context_cache` how its context becomes the keys and values of k positions; decoding from those
    is then the same for all: the k positions stand first in the cache, and each row goes on at its own position.
    """

    def compress(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **options: Any
    ) -> CompressedContext:  # pragma: no cover - every family has its own
        raise TypeError(f"{type(self).__name__} cannot compress")

    _fingerprint: tuple[int, str] | None = None  # of the weights as they were when it was taken

    def fingerprint(self) -> str:
        """Of this model as it is now; taken anew only after its weights were changed, moved or replaced."""
        settings = repr(settings_of(self.config))  # type: ignore[attr-defined]
        weights = self.parameters()  # type: ignore[attr-defined]
        # Tensors made in inference mode cannot change, and have no version.
        state = hash((settings, *((weight.data_ptr(), weight.is_inference() or weight._version) for weight in weights)))
        if self._fingerprint is None or self._fingerprint[0] != state:
            self._fingerprint = (state, fingerprint(self))  # type: ignore[arg-type]
        return self._fingerprint[1]

    def check_context(self, context: CompressedContext) -> None:
        """ValueError when another model made the context."""
        own = self.fingerprint()
        if context.fingerprint != own:
            raise ValueError(
                f"the context was made by another model (fingerprint {context.fingerprint}; this is {own})"
            )

    def _context_cache(self, context: CompressedContext) -> DynamicCache:
        """Keys and values of the context's k positions in every layer."""
        cache = DynamicCache(config=self.config)  # type: ignore[attr-defined]
        for layer, (key, value) in enumerate(zip(context.keys, context.values, strict=True)):
            cache.update(key, value, layer)
        return cache

    def prefix_cache(self, context: CompressedContext, batch_size: int | None = None) -> DynamicCache:
        """A fresh cache that holds the context, for `batch_size` rows (one row serves many)."""
        context = context.to(self.device, self.dtype)  # type: ignore[attr-defined]
        return self._context_cache(context.expand(batch_size or context.batch_size))

    def continue_from(
        self, context: CompressedContext, input_ids: Tensor, attention_mask: Tensor | None = None, **options: Any
    ) -> Any:
        """One forward pass over `input_ids` (batch, length) after the context; logits are (batch, length, vocabulary).

        Padded positions (0 in `attention_mask`, left or right) are not attended to; their logits mean nothing.
        """
        self.check_context(context)
        rows = input_ids.shape[0]
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        cache = self.prefix_cache(context, rows)
        start = context.next_position.to(input_ids.device).expand(rows)
        positions = start[:, None] + (mask.cumsum(-1) - 1).clamp(min=0)
        full = torch.cat([mask.new_ones(rows, context.length), mask], dim=1)
        return self._plain_forward(
            input_ids=input_ids, attention_mask=full, position_ids=positions, past_key_values=cache, **options
        )

    def _plain_forward(self, **arguments: Any) -> Any:
        """The forward pass of the transformers class, without anything of the family."""
        return super().forward(**arguments)  # type: ignore[misc]

    @torch.no_grad()
    def generate(
        self,
        inputs: Tensor | None = None,
        context: CompressedContext | None = None,
        attention_mask: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        """`generate` of transformers, going on after `context`; returns (batch, prompt + new) ids, left padding kept.

        Prompts of unequal length are padded on the left. Each row needs at least one prompt token. Each row has one
        continuation: no beams and no `num_return_sequences`.
        """
        if inputs is None:
            inputs = options.pop("input_ids", None)
        if context is None:
            return super().generate(inputs, attention_mask=attention_mask, **options)  # type: ignore[misc]
        if inputs is None or inputs.shape[1] == 0:
            raise ValueError("generate(context=) needs at least one prompt token in each row")
        if any(options.get(key, 1) != 1 for key in ("num_beams", "num_return_sequences")):
            raise ValueError("generate(context=) continues each row once: num_beams and num_return_sequences must be 1")
        self.check_context(context)
        rows, length = inputs.shape[0], context.length
        mask = torch.ones_like(inputs) if attention_mask is None else attention_mask
        # The k cached positions need ids that generate can count; it never reads them.
        full = torch.cat([inputs.new_zeros(rows, length), inputs], dim=1)
        for limit in ("max_length", "min_length"):
            if options.get(limit) is not None:
                options[limit] += length
        cache = self.prefix_cache(context, rows)
        start = context.next_position.to(inputs.device).expand(rows)
        positions = start[:, None] + (mask.cumsum(-1) - 1).clamp(min=0)
        out = super().generate(  # type: ignore[misc]
            full,
            attention_mask=torch.cat([mask.new_ones(rows, length), mask], dim=1),
            position_ids=torch.cat([positions.new_zeros(rows, length), positions], dim=1),
            past_key_values=cache,
            **options,
        )
        return out[:, length:]
