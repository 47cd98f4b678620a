"""Gist tokens (Mu et al. 2023) on transformers' own causal language models.

`<GIST>` tokens stand after an instruction. Under the gist mask what follows cannot see the instruction, so the cached
keys and values of the gist tokens replace it:

    context = model.compress(ids_up_to_the_last_gist_token)       # any batch, rows padded on either side
    model.generate(rest_ids, context=context, max_new_tokens=64)

gives the tokens that one pass over the whole sequence under the gist mask would give. The controls are the same class
with another `gist_condition` in its configuration: `pos_control` (no mask), `neg_control` (instruction hidden).
Calls written for the published code (`attention_mask_gist=`, `get_gist_activations`, `gist_offset=`) run as they are;
what they mean stands in `synopsis.compressors.published.gist`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from synopsis.compressors.attention import attention_masks, causal
from synopsis.compressors.base import ContextMixin, Demand
from synopsis.compressors.context import CompressedContext
from synopsis.compressors.masks import CONDITIONS, gather, gist_span, places, seen


class Gist(ContextMixin):
    """Put before a causal language model; reads gist_token_id, gist_condition, gist_tokens from the configuration."""

    def __init__(self, config: Any):
        config.gist_token_id = getattr(config, "gist_token_id", None)
        config.gist_condition = getattr(config, "gist_condition", "gist")
        config.gist_tokens = getattr(config, "gist_tokens", 1)
        if config.gist_condition not in CONDITIONS:
            raise ValueError(f"gist_condition {config.gist_condition!r}; expected one of {', '.join(CONDITIONS)}")
        super().__init__(config)

    reads = "instructions"

    def demand(self, lengths: Sequence[int], context: CompressedContext | None = None, **options: Any) -> Demand:
        return Demand(sum(lengths), sum(lengths), self.config.gist_tokens)

    def compressible(self, ids: Tensor) -> Tensor:
        gist = torch.full_like(ids[:, : self.config.gist_tokens], self.config.gist_token_id)
        return torch.cat([ids[:, : -gist.shape[1]], gist], dim=1)

    def added_weights(self) -> dict[str, int | None]:
        if self.config.gist_token_id is None:
            return {}
        kept = {id(layer.weight) for layer in (self.get_input_embeddings(), self.get_output_embeddings())}
        # The output's matrix is none of its own where it is tied.
        return {name: self.config.gist_token_id for name, weight in self.named_parameters() if id(weight) in kept}

    def add_gist_token(self, token_id: int) -> None:
        """Make room for the gist token; its embedding starts as the mean of those before it, as published.

        Also where the matrix has spare rows already; a token that the model knows as its gist token is left as it is.
        """
        if self.config.gist_token_id == token_id:
            return
        known = self.get_input_embeddings().weight.shape[0]
        if token_id >= known:
            self.resize_token_embeddings(token_id + 1, mean_resizing=False)
        start = min(token_id, known)
        with torch.no_grad():
            for layer in (self.get_input_embeddings(), self.get_output_embeddings()):
                layer.weight[start : token_id + 1] = layer.weight[:start].mean(0)
        self.config.gist_token_id = token_id

    # --------------------------------------------------------------------------------------------------- forward pass

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        context: CompressedContext | None = None,
        shown: Tensor | None = None,
        **options: Any,
    ) -> Any:
        """One pass under the mask of the model's condition. With a `context` it is `continue_from`.

        input_ids (batch, length) hold the gist tokens; attention_mask (batch, length) is 0 at padding; shown (batch, 1,
        length or 1, length), False where something is hidden beyond causality and padding, instead of the condition.

        With a cache, with embeddings instead of ids, or with a mask made for transformers, the call goes there as it
        is: who decodes from a cache decides what it holds. ValueError for rows that are padding only or too long.
        """
        if context is not None:
            assert input_ids is not None
            return self.continue_from(context, input_ids, attention_mask, **options)
        prepared = attention_mask is not None and (not isinstance(attention_mask, Tensor) or attention_mask.dim() != 2)
        fresh = past_key_values is None or past_key_values.get_seq_length() == 0
        if fresh and not prepared and input_ids is not None:
            mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            self._check_rows(mask)
            shown = self.shown(input_ids) if shown is None else shown
            if shown is not None or attention_mask is not None:
                position_ids = self._token_positions(mask) if position_ids is None else position_ids
                attention_mask = self._masks(mask, position_ids, shown)
        return self._plain_forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            **options,
        )

    def shown(self, ids: Tensor) -> Tensor | None:
        """(batch, 1, length, length): False where the condition hides something; None where nothing is hidden."""
        token = self.config.gist_token_id
        if token is None or self.config.gist_condition == "pos_control" or not bool((ids == token).any()):
            return None
        return seen(ids, token, self.config.gist_condition)

    def _masks(self, mask: Tensor, positions: Tensor, shown: Tensor | None) -> Any:
        """What transformers takes for rows read from their start: the mask of the padding, where nothing is hidden."""
        if shown is None:
            return mask
        positions = positions.expand(len(mask), -1)
        return attention_masks(self.config, causal(mask) & shown, positions, positions, self.dtype)

    def _check_rows(self, mask: Tensor) -> None:
        """ValueError for rows without a token, or with more tokens than the model has positions."""
        lengths = mask.bool().sum(-1)
        if mask.shape[1] == 0:
            raise ValueError("the input has no tokens: its length is 0")
        if not bool(lengths.all()):
            raise ValueError(f"row {int(lengths.argmin())} has no tokens: it is padding only")
        self.check_positions(int(lengths.max()), f"the tokens of row {int(lengths.argmax())}")

    # ------------------------------------------------------------------------------------------------------- compress

    @torch.no_grad()
    def compress(  # type: ignore[override]
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        context: CompressedContext | None = None,
        **options: Any,
    ) -> CompressedContext:
        """Keys and values of each row's gist tokens; the ids end (padding aside) with the last gist token.

        Rows may have different numbers of gist tokens. Under pos_control the whole prompt is kept, under neg_control
        nothing but the position: the controls go through the same code as the gist tokens, so that only the mask
        differs. Rows that keep less than others are padded on the left. ValueError names the row that does not fit.
        """
        if context is not None:
            raise ValueError("an instruction is compressed in one piece, not after another context")
        ids, condition = input_ids.to(self.device), self.config.gist_condition
        mask = torch.ones_like(ids) if attention_mask is None else attention_mask.to(self.device)
        last = self.last_gist(ids, mask, self.config.gist_token_id)
        after = mask.bool() & (torch.arange(ids.shape[1], device=mask.device) > last[:, None])
        if bool(after.any()):
            row = int(after.any(-1).nonzero()[0])
            raise ValueError(f"row {row} goes on after its last gist token; give that part to forward or generate")
        positions = self._token_positions(mask)
        _, cache = self.read(ids, mask, positions)
        kept = {"gist": ids == self.config.gist_token_id, "pos_control": mask.bool(), "neg_control": mask < 0}
        context = self.keep(cache, kept[condition], last, positions, mask.sum(-1))
        context.check_finite()
        return context

    def last_gist(self, ids: Tensor, mask: Tensor, token: int | None) -> Tensor:
        """(batch,) the place of each row's last gist token; ValueError for a row that cannot be compressed."""
        if token is None:
            raise ValueError("this model has no gist token yet: call add_gist_token first")
        self._check_rows(mask)
        _, last = gist_span(ids, token)
        missing = (last < 0).nonzero().flatten().tolist()
        if missing:
            raise ValueError(f"row {missing[0]} has no gist token (id {token})")
        return last

    def read(
        self, ids: Tensor, mask: Tensor, positions: Tensor, shown: Tensor | None = None
    ) -> tuple[Tensor, DynamicCache]:
        """Last hidden states (batch, length, hidden) and all keys and values; without `shown`, a plain causal pass.

        No layer of the cache slides: a window counts from the tokens that go on, and those are not known yet.
        """
        cache = DynamicCache()
        arguments = {"attention_mask": self._masks(mask, positions, shown), "position_ids": positions}
        out = self.get_decoder()(input_ids=ids, past_key_values=cache, use_cache=True, **arguments)
        return out.last_hidden_state, cache

    def keep(self, cache: Any, kept: Tensor, last: Tensor, positions: Tensor, source: Tensor) -> CompressedContext:
        """The context of the tokens `kept` (batch, length), from the first of them to `last` (batch,) in each row."""
        index, mask = places(kept, last)
        return CompressedContext(
            next_position=positions.gather(1, last[:, None])[:, 0] + 1,
            source_tokens=source,
            fingerprint=self.fingerprint(),
            keys=tuple(gather(layer.keys, index, mask) for layer in cache.layers),
            values=tuple(gather(layer.values, index, mask) for layer in cache.layers),
            mask=None if bool(mask.all()) else mask.long(),
        )

    def check_context(self, context: CompressedContext) -> None:
        """ValueError when another model made the context, or it holds fewer gist tokens than the model learned with."""
        super().check_context(context)
        count, learned = context.attention_mask.sum(-1), self.config.gist_tokens or 1
        if self.config.gist_condition == "gist" and bool((count < learned).any()):
            row = int(count.argmin())
            raise ValueError(
                f"row {row} of the context holds {int(count[row])} gist tokens; this model was trained with {learned}"
            )
        context.check_finite()

    # ------------------------------------------------------------------------------------------------------- generate

    @torch.no_grad()
    def generate(
        self,
        inputs: Tensor | None = None,
        context: CompressedContext | None = None,
        attention_mask: Tensor | None = None,
        shown: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        """As `ContextMixin.generate`; prompts may hold gist tokens, and each new token sees what the last one sees.

        Prompts (batch, length) are padded on the left; returns (batch, length + new) ids. Rows without a gist token
        are plain prompts, in a batch with others too. `shown` is that of `forward`.
        """
        if inputs is None:
            inputs = options.pop("input_ids", None)
        if inputs is None or context is not None:
            return super().generate(inputs, context=context, attention_mask=attention_mask, **options)
        mask = torch.ones_like(inputs) if attention_mask is None else attention_mask
        self._check_rows(mask)
        shown = self.shown(inputs) if shown is None else shown
        if shown is None:
            return super().generate(inputs, attention_mask=attention_mask, **options)
        if not bool(mask[:, -1].all()):
            row = int(mask[:, -1].argmin())
            raise ValueError(f"row {row} is padded on the right; prompts of generate are padded on the left")
        token = self.config.gist_token_id
        ends = [] if token is None else (inputs[:, -1] == token).tolist()
        if any(ends):
            raise ValueError(f"row {ends.index(True)}: generate needs at least one token after the gist tokens")
        return self._generate_shown(inputs, mask, shown, options)

    def _generate_shown(self, inputs: Tensor, mask: Tensor, shown: Tensor, options: dict[str, Any]) -> Tensor:
        """All but the last token become a context that holds what the last one sees: the rest of the cache goes."""
        read, before = inputs.shape[1] - 1, slice(None, -1)
        shown = shown.expand(-1, -1, read + 1, -1)
        positions = self._token_positions(mask)
        _, cache = self.read(inputs[:, before], mask[:, before], positions[:, before], shown[:, :, before, before])
        kept = shown[:, 0, -1, before] & mask[:, before].bool()
        last = torch.full_like(positions[:, 0], read - 1)
        own = self.keep(cache, kept, last, positions[:, before], mask.sum(-1))
        options = dict(options)
        for limit in ("max_length", "min_length"):
            if options.get(limit) is not None:
                options[limit] -= read
        out = self._generate_after(own, inputs[:, -1:], mask[:, -1:], options)
        return torch.cat([inputs[:, before], out], dim=1)
