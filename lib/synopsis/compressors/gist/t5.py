"""Gist tokens (Mu et al. 2023) on transformers' own T5: the instruction is compressed in the encoder.

The encoder reads in both directions. Under the gist mask the instruction and its gist tokens see each other and nothing
later; what follows sees the gist tokens and itself; the decoder sees the gist tokens and what follows. So the encoder's
keys, values and outputs of the gist tokens replace the instruction:

    context = model.compress(ids_up_to_the_last_gist_token)       # any batch, rows padded on either side
    model.generate(rest_ids, context=context, max_new_tokens=64)

gives the tokens that one pass over the whole sequence under the gist mask would give. T5 knows no positions, only
distances, and the gist tokens stand directly before what follows, wherever a batch has its padding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, T5Config, T5ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from synopsis.compressors.attention import attention_masks
from synopsis.compressors.auto_classes import configuration_class
from synopsis.compressors.context import CompressedContext
from synopsis.compressors.gist.model import Gist
from synopsis.compressors.loss import IGNORED
from synopsis.compressors.masks import gather, places, visible_both_ways
from synopsis.compressors.published import gist as published

ENCODER_SIDE = ("cross_attention_mask", "gist_activations", "inputs_embeds")
ENCODER_FLAGS = ("output_attentions", "output_hidden_states")

GistT5ForConditionalGenerationConfig: Any = configuration_class(
    "gist", T5Config, "GistT5ForConditionalGeneration", __name__
)


class GistT5ForConditionalGeneration(Gist, T5ForConditionalGeneration):
    """T5 with gist tokens; reads gist_token_id, gist_condition, gist_tokens from the configuration."""

    config_class = GistT5ForConditionalGenerationConfig
    encoder: Any
    _supports_flex_attn = False  # transformers' reads T5's bias, made once for all rows, at the number of each row

    @property
    def compresses(self) -> bool:
        """pos_control has no context: T5 reads instruction and input in both directions at once."""
        return bool(self.config.gist_condition != "pos_control")

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """T5Config calls every T5 tied; only those that scale their decoder's outputs are (v1.1 and Flan are not)."""
        tied = super().get_expanded_tied_weights_keys(all_submodels)
        if not self.config.scale_decoder_outputs:
            tied.pop("lm_head.weight", None)
        return tied

    # --------------------------------------------------------------------------------------------------- forward pass

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cross_attention_mask: Tensor | None = None,
        gist_activations: published.GistActivations | None = None,
        context: CompressedContext | None = None,
        encoder_outputs: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **options: Any,
    ) -> Any:
        """One pass under the masks of the model's condition; the decoder's side and `options` are those of T5.

        input_ids: (batch, T) with their gist tokens, or what follows them with `context` or `gist_activations` (k
        vectors). attention_mask: (batch, T), 0 at padding, with vectors (batch, k + T) too. As in the published code it
        may also be the encoder's whole mask, (batch, T, T) or (batch, 1, T, T), 0 where a row must not see a column;
        the caller is then in charge, and the decoder sees whatever cross_attention_mask (batch, k + T) does not hide.

        A row in which the decoder may see nothing (neg_control, and nothing follows) reads vectors of zeros.
        num_items_in_batch: labels of the whole step, which the sum of these rows' losses is divided by.
        """
        if encoder_outputs is None:
            flags = {name: options[name] for name in ENCODER_FLAGS if name in options}
            encoder_outputs, cross_attention_mask = self._encode(
                input_ids, attention_mask, context, cross_attention_mask, gist_activations, inputs_embeds, **flags
            )
        elif cross_attention_mask is None:
            cross_attention_mask = attention_mask
        out = T5ForConditionalGeneration.forward(
            self,
            attention_mask=cross_attention_mask,
            encoder_outputs=encoder_outputs,
            labels=labels,  # named, as a trainer drops the columns that it does not find in the signature
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            **options,
        )
        # T5's loss is the mean over these rows, which are a part of a step.
        if labels is not None and num_items_in_batch is not None:
            out.loss = out.loss * labels.ne(IGNORED).sum() / num_items_in_batch
        return out

    def continue_from(
        self,
        context: CompressedContext,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **options: Any,
    ) -> Any:
        """`forward` after a context: input_ids (batch, T) is what follows the gist tokens, None if nothing does."""
        return self(input_ids, attention_mask, context=context, **options)

    @torch.no_grad()
    def generate(  # type: ignore[override]
        self,
        inputs: Tensor | None = None,
        context: CompressedContext | None = None,
        attention_mask: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        """`generate` of transformers with the encoder's side as in `forward`; returns (batch, new) decoder ids."""
        if inputs is None:
            inputs = options.pop("input_ids", None)
        if options.get("encoder_outputs") is None:
            given = {name: options.pop(name, None) for name in ENCODER_SIDE}
            options["encoder_outputs"], attention_mask = self._encode(inputs, attention_mask, context=context, **given)
        plain: Any = T5ForConditionalGeneration
        return plain.generate(self, attention_mask=attention_mask, **options)

    # -------------------------------------------------------------------------------------------------------- encoder

    def _encode(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        context: CompressedContext | None,
        cross_attention_mask: Tensor | None,
        gist_activations: published.GistActivations | None,
        inputs_embeds: Tensor | None,
        **flags: Any,
    ) -> tuple[BaseModelOutput, Tensor | None]:
        """What the decoder reads, (batch, k + T, d_model), and what of it is seen, (batch, k + T); None for all."""
        input_ids = None if input_ids is None else input_ids.to(self.device)
        if gist_activations is not None:
            context = gist_activations.context
        encoded: Any
        seen: Tensor | None
        if context is not None:
            hidden, seen = self._encode_after(context, input_ids, attention_mask)
            encoded = BaseModelOutput(last_hidden_state=hidden)
        else:
            read = inputs_embeds if input_ids is None else input_ids
            if read is None or read.shape[1] == 0:
                raise ValueError("there is nothing to read: the encoder's input is missing or its length is 0")
            allowed, seen = self._visible(read, attention_mask, self.config.gist_token_id)
            mask = self._native(allowed)
            encoded = self.encoder(input_ids=input_ids, inputs_embeds=inputs_embeds, attention_mask=mask, **flags)
        hidden = encoded.last_hidden_state
        if cross_attention_mask is not None:
            return encoded, _real(cross_attention_mask, hidden.shape[:2], hidden.device, "cross_attention_mask")
        if seen is not None:
            # The softmax over a row that sees nothing is even, over what is hidden too. Zeros have values of zero.
            encoded.last_hidden_state = hidden * seen.any(-1)[:, None, None]
        return encoded, seen

    def _visible(
        self, read: Tensor, attention_mask: Tensor | None, gist_token: int | None
    ) -> tuple[Tensor, Tensor | None]:
        """(batch, 1, T, T) boolean, who sees whom in the encoder; (batch, T), what the decoder sees, None for all.

        read: (batch, T) ids, or embeddings, in which no gist token is known.
        """
        rows, length = read.shape[:2]
        if attention_mask is not None and attention_mask.dim() > 2:
            whole = attention_mask[:, None] if attention_mask.dim() == 3 else attention_mask
            if whole.shape != (rows, 1, length, length) or bool((whole < 0).any()):
                raise ValueError(
                    f"attention_mask has shape {tuple(attention_mask.shape)}; expected 0 and 1 of the shape "
                    f"({rows}, {length}), ({rows}, {length}, {length}) or ({rows}, 1, {length}, {length})"
                )
            return whole.bool().to(read.device), None
        real = _real(attention_mask, read.shape[:2], read.device)
        self._check_rows(real)
        if gist_token is None or read.dim() > 2:
            return visible_both_ways(read, real, -1, "pos_control")
        return visible_both_ways(read, real, gist_token, self.config.gist_condition)

    def _native(self, allowed: Tensor) -> Any:
        """(batch, 1, T, K) in the form that the model's attention takes; positions play no part in T5."""
        none = allowed.new_zeros(0)
        return attention_masks(self.config, allowed, none, none, self.dtype)

    def _encode_after(
        self, context: CompressedContext, input_ids: Tensor | None, attention_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Outputs of the context's k tokens and of what follows, (batch, k + T, d_model), and which are real."""
        self.check_context(context)
        rows, k = context.batch_size if input_ids is None else len(input_ids), context.length
        context = context.expand(rows).to(self.device, self.dtype)
        ids = context.next_position.new_zeros(rows, 0) if input_ids is None else input_ids
        length, hidden = ids.shape[1], context.hidden_states
        assert hidden is not None
        if k + length == 0:
            raise ValueError("there is nothing to read: neither a vector of the context nor a token after it")
        shown = torch.ones_like(context.attention_mask)
        if attention_mask is not None and attention_mask.shape == (rows, k + length):
            shown, attention_mask = attention_mask.to(self.device).split([k, length], dim=1)
        exists, after = context.attention_mask.bool(), _real(attention_mask, ids.shape, ids.device)
        real = torch.cat([exists & shown.bool(), after], dim=1)  # (B, k + T)
        if length:
            # Counting what exists leaves no padding between the gist tokens and what follows them.
            positions = torch.cat([exists, after], dim=1).cumsum(-1) - 1
            allowed = real[:, None, None, :].expand(-1, -1, length, -1)
            hidden = torch.cat([hidden, self._blocks(ids, allowed, self._context_cache(context), positions)], dim=1)
        return hidden, real

    def _blocks(self, input_ids: Tensor, allowed: Tensor, cache: DynamicCache, positions: Tensor) -> Tensor:
        """The encoder with a cache, which T5's own has not: (batch, T, d_model); keys and values go to the cache.

        allowed: (batch, 1, T, K), K counting the cached tokens and these; positions: (batch or 1, K) of both.
        """
        encoder = self.encoder
        if encoder.gradient_checkpointing and self.training:
            raise ValueError("gradient checkpointing cannot train through cached gist tokens: switch it off, or eval()")
        attention = encoder.block[0].layer[0].SelfAttention  # its distances serve all layers
        buckets = attention._relative_position_bucket(
            positions[:, None, :] - positions[:, positions.shape[1] - input_ids.shape[1] :, None],  # (B, T, K)
            num_buckets=attention.relative_attention_num_buckets,
            max_distance=attention.relative_attention_max_distance,
        )
        bias = attention.relative_attention_bias(buckets).permute(0, 3, 1, 2)  # (B, heads, T, K)
        mask = self._native(allowed)
        hidden = encoder.dropout(encoder.embed_tokens(input_ids))
        for block in encoder.block:
            hidden = block(hidden, attention_mask=mask, position_bias=bias, past_key_values=cache)[0]
        return encoder.dropout(encoder.final_layer_norm(hidden))

    # ------------------------------------------------------------------------------------------------------- compress

    @torch.no_grad()
    def compress(  # type: ignore[override]
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        context: CompressedContext | None = None,
        **options: Any,
    ) -> CompressedContext:
        """The encoder's activations of each row's gist tokens; the ids end (padding aside) with the last gist token.

        Rows may have different numbers of gist tokens. Under neg_control nothing is kept. Under pos_control there is no
        context: instruction and input see each other, so that nothing can be computed before the input is there.
        ValueError names the row that does not fit.
        """
        if context is not None:
            raise ValueError("an instruction is compressed in one piece, not after another context")
        ids, condition = input_ids.to(self.device), self.config.gist_condition
        if not self.compresses:
            raise ValueError("pos_control has no context: T5 reads instruction and input in both directions at once")
        real = _real(attention_mask, ids.shape, ids.device)
        last = self.last_gist(ids, real, self.config.gist_token_id)
        after = real & (torch.arange(ids.shape[1], device=ids.device) > last[:, None])
        if bool(after.any()):
            row = int(after.any(-1).nonzero()[0])
            raise ValueError(f"row {row} goes on after its last gist token; give that part to forward or generate")
        kept = (ids == self.config.gist_token_id) & (condition == "gist")
        allowed = real[:, None, None].expand(-1, -1, ids.shape[1], -1)
        return self._keep(ids, allowed, kept, last, real.sum(-1))

    @torch.no_grad()
    def get_gist_activations(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        gist_token: int | None = None,
        num_gist_tokens: int | None = None,
        cache_all: bool = False,
    ) -> published.GistActivations:
        """The published form of `compress`, for rows that may go on after their gist tokens; masks as in `forward`.

        cache_all keeps all up to the last gist token; what of it is seen says the mask of the call that goes on.
        """
        ids, token = input_ids.to(self.device), self.config.gist_token_id if gist_token is None else gist_token
        allowed, _ = self._visible(ids, attention_mask, token)
        real = allowed[:, 0].diagonal(dim1=1, dim2=2)  # only padding does not see itself
        last = self.last_gist(ids, real, token)
        is_gist = ids == token
        published.check_count(is_gist, num_gist_tokens)
        up_to_last = real & (torch.arange(ids.shape[1], device=ids.device) <= last[:, None])
        context = self._keep(ids, allowed, up_to_last if cache_all else is_gist, last, up_to_last.sum(-1))
        assert context.hidden_states is not None
        return published.GistActivations(context.hidden_states, last + 1 - context.length, context)

    def _keep(self, ids: Tensor, allowed: Tensor, kept: Tensor, last: Tensor, source: Tensor) -> CompressedContext:
        """The context of the tokens `kept` (batch, T), from the first of them to `last` (batch,) in each row."""
        cache = DynamicCache()
        hidden = self._blocks(ids, allowed, cache, torch.arange(ids.shape[1], device=ids.device)[None])
        index, mask = places(kept, last)
        layers: Any = cache.layers
        return CompressedContext(
            next_position=source,
            source_tokens=source,
            fingerprint=self.fingerprint(),
            keys=tuple(gather(layer.keys, index, mask) for layer in layers),
            values=tuple(gather(layer.values, index, mask) for layer in layers),
            hidden_states=gather(hidden[:, None], index, mask)[:, 0],
            mask=None if bool(mask.all()) else mask.long(),
        )

    def check_context(self, context: CompressedContext) -> None:
        """ValueError when another model made the context, or it lacks vectors."""
        super().check_context(context)
        if context.hidden_states is None or len(context.keys) != self.config.num_layers:
            raise ValueError(
                f"the context has {len(context.keys)} layers and {'no ' * (context.hidden_states is None)}outputs of "
                f"an encoder; this model needs {self.config.num_layers} and the outputs"
            )


def remove_gist(
    inputs: dict[str, Tensor], num_gist_tokens: int, gist_token: int, pad_token: int = 0
) -> dict[str, Tensor]:
    """What is left to read when the gist tokens of (batch, T) inputs are cached, as published: the tokens after them.

    inputs: input_ids and attention_mask, (batch, T) or (batch, T, T). Gives input_ids (batch, R), padded on the left
    where rows differ, attention_mask and cross_attention_mask (batch, num_gist_tokens + R).
    """
    mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))
    if mask.dim() == 3:
        mask = mask.diagonal(dim1=1, dim2=2)  # only padding does not see itself
    rows = {"input_ids": inputs["input_ids"], "attention_mask": mask}
    rest = published.remove_gist(rows, num_gist_tokens, gist_token, pad_token)
    mask = rest["attention_mask"]
    return {"input_ids": rest["input_ids"], "attention_mask": mask, "cross_attention_mask": mask}


def _real(mask: Tensor | None, shape: torch.Size, device: torch.device, name: str = "attention_mask") -> Tensor:
    """(batch, T) boolean, False at padding."""
    if mask is None:
        return torch.ones(shape, dtype=torch.bool, device=device)
    if mask.shape != shape:
        raise ValueError(f"{name} has shape {tuple(mask.shape)}; expected {tuple(shape)}")
    return mask.to(device).bool()
