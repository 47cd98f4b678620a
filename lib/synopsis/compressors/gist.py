"""Gist tokens (Mu et al. 2023) on transformers' own causal language models.

`<GIST>` tokens stand after an instruction. Under the gist mask what follows cannot see the instruction, so the cached
keys and values of the gist tokens replace it:

    context = model.compress(ids_up_to_the_last_gist_token)       # any batch, rows padded on either side
    model.generate(rest_ids, context=context, max_new_tokens=64)

gives the tokens that one pass over the whole sequence under the gist mask would give. The controls are the same class
with another `gist_condition` in its configuration: `pos_control` (no mask), `neg_control` (instruction hidden).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from synopsis.compressors.base import ContextMixin
from synopsis.compressors.context import CompressedContext
from synopsis.compressors.masks import CONDITIONS, additive, gist_span, visible


class GistMixin(ContextMixin):
    """Put before a causal language model; reads gist_token_id, gist_condition, gist_tokens from the configuration."""

    def __init__(self, config: Any):
        config.gist_token_id = getattr(config, "gist_token_id", None)
        config.gist_condition = getattr(config, "gist_condition", "gist")
        config.gist_tokens = getattr(config, "gist_tokens", 1)
        if config.gist_condition not in CONDITIONS:
            raise ValueError(f"gist_condition {config.gist_condition!r}; expected one of {', '.join(CONDITIONS)}")
        super().__init__(config)  # type: ignore[call-arg]
        self.loss_type = "ForCausalLM"  # transformers guesses it from the names of classes that it knows

    def add_gist_token(self, token_id: int) -> None:
        """Make room for the gist token; its embedding starts as the mean of those before it, as published.

        Also where the matrix has spare rows already; a token that the model knows as its gist token is left as it is.
        """
        if self.config.gist_token_id == token_id:  # type: ignore[attr-defined]
            return
        known = self.get_input_embeddings().weight.shape[0]  # type: ignore[attr-defined]
        if token_id >= known:
            self.resize_token_embeddings(token_id + 1, mean_resizing=False)  # type: ignore[attr-defined]
        start = min(token_id, known)
        with torch.no_grad():
            for layer in (self.get_input_embeddings(), self.get_output_embeddings()):  # type: ignore[attr-defined]
                layer.weight[start : token_id + 1] = layer.weight[:start].mean(0)
        self.config.gist_token_id = token_id  # type: ignore[attr-defined]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: DynamicCache | None = None,
        **options: Any,
    ) -> Any:
        """One pass under the mask of the model's condition.

        input_ids (batch, length) hold the gist tokens; attention_mask (batch, length) is 0 at padding. With a cache,
        with embeddings instead of ids, or with a 4D mask the call goes to transformers as it is: who decodes from
        a cache decides what it holds.
        """
        condition = self.config.gist_condition  # type: ignore[attr-defined]
        token = self.config.gist_token_id  # type: ignore[attr-defined]
        plain = input_ids is None or token is None or (attention_mask is not None and attention_mask.dim() == 4)
        fresh = past_key_values is None or past_key_values.get_seq_length() == 0
        if plain or not fresh or condition == "pos_control":
            return self._plain_forward(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                **options,
            )
        assert input_ids is not None
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        allowed = visible(input_ids, mask, token, condition)
        if position_ids is None:
            position_ids = (mask.cumsum(-1) - 1).clamp(min=0)
        return self._plain_forward(
            input_ids=input_ids,
            attention_mask=additive(allowed, self.dtype),  # type: ignore[attr-defined]
            position_ids=position_ids,
            past_key_values=past_key_values,
            **options,
        )

    @torch.no_grad()
    def compress(self, input_ids: Tensor, attention_mask: Tensor | None = None, **options: Any) -> CompressedContext:
        """Keys and values of each row's gist tokens; the ids end (padding aside) with the last gist token.

        Under pos_control the whole prompt is kept (rows must then have equal lengths), under neg_control nothing but
        the position: the controls go through the same code as the gist tokens, so that only the mask differs.
        """
        config = self.config  # type: ignore[attr-defined]
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        rows, length = input_ids.shape
        if config.gist_token_id is None:
            raise ValueError("this model has no gist token yet: call add_gist_token first")
        if length == 0:
            raise ValueError("there is nothing to compress: the input's length is 0")
        first, last = gist_span(input_ids, config.gist_token_id)
        missing = (last < 0).nonzero().flatten().tolist()
        if missing:
            raise ValueError(f"row {missing[0]} has no gist token (id {config.gist_token_id})")
        count = int((last - first + 1)[0])
        if not bool(((last - first + 1) == count).all()):
            raise ValueError(f"rows have different numbers of gist tokens: {(last - first + 1).tolist()}")
        after = mask.bool() & (torch.arange(length, device=mask.device) > last[:, None])
        if bool(after.any()):
            row = int(after.any(-1).nonzero()[0])
            raise ValueError(f"row {row} goes on after its last gist token; give that part to forward or generate")
        cache = DynamicCache(config=config)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        self._plain_forward(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        kept = first[:, None] + torch.arange(count, device=first.device)  # (B, k)
        if config.gist_condition == "pos_control":
            if not bool(mask.all()):
                raise ValueError("pos_control keeps whole prompts: compress rows of equal length, without padding")
            kept = torch.arange(length, device=first.device).expand(rows, -1)
        elif config.gist_condition == "neg_control":
            kept = kept[:, :0]

        def gather(states: Tensor) -> Tensor:  # (B, heads, T, D) -> (B, heads, k, D)
            index = kept[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[3])
            return states.gather(2, index)

        layers: Any = cache.layers
        return CompressedContext(
            next_position=positions.gather(1, last[:, None])[:, 0] + 1,
            source_tokens=mask.sum(-1),
            fingerprint=self.fingerprint(),
            keys=tuple(gather(layer.keys) for layer in layers),
            values=tuple(gather(layer.values) for layer in layers),
        )

    @torch.no_grad()
    def generate(
        self,
        inputs: Tensor | None = None,
        context: CompressedContext | None = None,
        attention_mask: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        """As `ContextMixin.generate`; prompts that still hold gist tokens are compressed first, row by row their own.

        Prompts (batch, length) are padded on the left; returns (batch, length + new) ids. Rows without a gist token
        are plain prompts, in a batch with others too.
        """
        if inputs is None:
            inputs = options.pop("input_ids", None)
        token, condition = self.config.gist_token_id, self.config.gist_condition  # type: ignore[attr-defined]
        plain = context is not None or inputs is None or condition == "pos_control" or token is None
        if plain or not bool((inputs == token).any()):
            return super().generate(inputs, context=context, attention_mask=attention_mask, **options)
        assert inputs is not None
        mask = torch.ones_like(inputs) if attention_mask is None else attention_mask
        _, last = gist_span(inputs, token)
        if bool((last < 0).any()):
            return self._generate_apart(inputs, mask, last < 0, options)
        after = torch.arange(inputs.shape[1], device=inputs.device) > last[:, None]  # (B, T)
        if not bool((after & mask.bool()).any(-1).all()):
            raise ValueError("generate needs at least one token after the gist tokens in each row")
        end, start = int(last.max()) + 1, int(last.min()) + 1
        context = self.compress(inputs[:, :end], (mask * ~after)[:, :end])
        for limit in ("max_length", "min_length"):
            if options.get(limit) is not None:
                options[limit] -= start
        out = super().generate(inputs[:, start:], context=context, attention_mask=(mask * after)[:, start:], **options)
        return torch.cat([inputs[:, :start], out], dim=1)

    def _generate_apart(self, inputs: Tensor, mask: Tensor, plain: Tensor, options: dict[str, Any]) -> Tensor:
        """Two calls, for the `plain` rows and the others; what ends first is padded on the right, as in `generate`."""
        groups = [rows.nonzero().flatten() for rows in (plain, ~plain)]
        outputs = [self.generate(inputs[rows], attention_mask=mask[rows], **options) for rows in groups]
        pad = options.get("pad_token_id", self.generation_config.pad_token_id)  # type: ignore[attr-defined]
        whole = inputs.new_full((len(inputs), max(out.shape[1] for out in outputs)), 0 if pad is None else pad)
        for rows, out in zip(groups, outputs, strict=True):
            whole[rows, : out.shape[1]] = out
        return whole
