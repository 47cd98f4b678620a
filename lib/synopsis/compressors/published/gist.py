"""The interface of the published gist code, so that calls written for it run, in batches too.

    activations = model.get_gist_activations(prompt_ids, attention_mask, gist_token=..., num_gist_tokens=...)
    model(rest_ids, attention_mask=ones, attention_mask_gist=ones[:, None, None], gist_activations=activations)
    model.generate(rest_ids, attention_mask=ones, past_key_values=activations.past_key_values,
                   gist_offset=activations.gist_indices)

`ones` has a column for each cached token and each new one. What differs from the published code: `gist_offset` counts
for each row by itself, where row 0's served all; padding before the new tokens takes no position; one cached row serves
a batch. Positions: the published keys are rotated at places in the padded row, and so are those of
`get_gist_activations`, where `compress` counts real tokens. Only distances matter to rotary attention, so both give the
same logits. Learned positions (OPT) are real ones in both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from synopsis.compressors.attention import attention_masks, causal, sliding_window
from synopsis.compressors.context import CompressedContext
from synopsis.compressors.gist.model import Gist
from synopsis.compressors.masks import gather, places

KeysAndValues = tuple[tuple[Tensor, Tensor], ...]


@dataclass(frozen=True)
class GistActivations:
    """What a model computes at the k gist tokens of each row, or, with cache_all, at everything up to the last one.

    last_hidden_state: (batch, k, hidden); gist_indices: (batch,) position of the first of them; context: the same keys
    and values as a CompressedContext, which can be saved. Rows with fewer than k are padded on the left: their
    gist_indices are those that the first would have without the padding, and `context.mask` says where it is.
    """

    last_hidden_state: Tensor
    gist_indices: Tensor
    context: CompressedContext

    @property
    def past_key_values(self) -> KeysAndValues:
        """Per layer the keys and the values, (batch, kv_heads, k, head_dim) each."""
        return tuple(zip(self.context.keys, self.context.values, strict=True))

    def hide_padding(self, attention_mask: Tensor | None, input_ids: Tensor | None) -> Tensor | None:
        """attention_mask (batch, k + new), with the padding of the cached tokens hidden."""
        if self.context.mask is None or input_ids is None:
            return attention_mask
        rows, new = input_ids.shape
        own = self.context.mask.to(input_ids.device).expand(rows, -1)
        own = torch.cat([own, own.new_ones(rows, new)], dim=1)
        return own if attention_mask is None or attention_mask.shape != own.shape else own * attention_mask


class GistMixin(Gist):
    """A `Gist` model with the arguments of the published code."""

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | KeysAndValues | None = None,
        attention_mask_gist: Tensor | None = None,
        gist_activations: GistActivations | None = None,
        gist_offset: Tensor | int | None = None,
        context: CompressedContext | None = None,
        **options: Any,
    ) -> Any:
        """As `Gist.forward`, under `attention_mask_gist` where that is given, or after cached gist tokens.

        attention_mask_gist (batch, 1, length, length) or (batch, 1, 1, length) is 0 where something is hidden beyond
        causality and padding. `gist_activations`, or `past_key_values` with `gist_offset`, are cached gist tokens.
        """
        if gist_activations is not None:
            past_key_values, gist_offset = gist_activations.past_key_values, gist_activations.gist_indices
            attention_mask = gist_activations.hide_padding(attention_mask, input_ids)
        if context is None and goes_on(past_key_values, attention_mask_gist, gist_offset):
            assert input_ids is not None
            given = input_ids, attention_mask, attention_mask_gist, past_key_values, gist_offset
            return self._plain_forward(**continuation(self, *given), **options)
        if attention_mask_gist is not None and input_ids is not None:
            options["shown"] = shown_of(attention_mask_gist, input_ids)
        cache: Any = past_key_values
        return super().forward(input_ids, attention_mask, position_ids, cache, context=context, **options)

    @torch.no_grad()
    def generate(  # type: ignore[override]
        self,
        inputs: Tensor | None = None,
        context: CompressedContext | None = None,
        attention_mask: Tensor | None = None,
        attention_mask_gist: Tensor | None = None,
        gist_activations: GistActivations | None = None,
        gist_offset: Tensor | int | None = None,
        **options: Any,
    ) -> Tensor:
        """As `Gist.generate`; the published arguments are those of `forward`.

        With cached gist tokens the prompts are what follows them; attention_mask (batch, cached + length) counts them.
        """
        if inputs is None:
            inputs = options.pop("input_ids", None)
        past = options.get("past_key_values")
        if gist_activations is not None:
            past, gist_offset = gist_activations.past_key_values, gist_activations.gist_indices
            attention_mask = gist_activations.hide_padding(attention_mask, inputs)
        if inputs is not None and goes_on(past, attention_mask_gist, gist_offset):
            options.pop("past_key_values", None)
            own, mask = cached_context(self, inputs, attention_mask, attention_mask_gist, past, gist_offset)
            return self._generate_after(own, inputs, mask, options)
        if attention_mask_gist is not None and inputs is not None and context is None:
            options["shown"] = shown_of(attention_mask_gist, inputs)
        return super().generate(inputs, context, attention_mask, **options)

    @torch.no_grad()
    def get_gist_activations(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        attention_mask_gist: Tensor | None = None,
        gist_token: int | None = None,
        num_gist_tokens: int | None = None,
        cache_all: bool = False,
    ) -> GistActivations:
        """Read (batch, length) ids, which may go on after their gist tokens, and keep what stands at these.

        attention_mask_gist is taken where it is given; up to the last gist token every condition is causal. cache_all
        keeps all up to the last gist token: what of it may be seen is then said by `attention_mask_gist` of the call
        that goes on. ValueError for a row without gist tokens, or without `num_gist_tokens` of them where given.
        """
        ids, token = input_ids.to(self.device), self.config.gist_token_id if gist_token is None else gist_token
        mask = torch.ones_like(ids) if attention_mask is None else attention_mask.to(ids.device)
        last, is_gist = self.last_gist(ids, mask, token), ids == token
        check_count(is_gist, num_gist_tokens)
        end = int(last.max()) + 1
        shown = None
        if attention_mask_gist is not None:
            check_mask(attention_mask_gist, len(ids), ids.shape[1], ids.shape[1])
            shown = attention_mask_gist[:, :, :end, :end].bool().to(ids.device)
        place = torch.arange(end, device=ids.device)
        rotary = getattr(self.config, "rope_parameters", None) is not None
        positions = place.expand(len(ids), -1) if rotary else self._token_positions(mask)[:, :end]
        hidden, cache = self.read(ids[:, :end], mask[:, :end], positions, shown)
        up_to_last = mask[:, :end].bool() & (place <= last[:, None])
        kept = up_to_last if cache_all else is_gist[:, :end]
        context = self.keep(cache, kept, last, positions, up_to_last.sum(-1))
        return GistActivations(
            last_hidden_state=gather(hidden[:, None], *places(kept, last))[:, 0],
            gist_indices=context.next_position - context.length,
            context=context,
        )


def check_count(is_gist: Tensor, wanted: int | None) -> None:
    """ValueError for a row (batch, length) that does not have the wanted number of gist tokens."""
    for row, count in enumerate([] if wanted is None else is_gist.sum(-1).tolist()):
        if count != wanted:
            raise ValueError(f"row {row} has {count} gist tokens; num_gist_tokens is {wanted}")


def shown_of(mask_gist: Tensor, ids: Tensor) -> Tensor:
    """An attention_mask_gist over whole rows (batch, length) as `Gist.forward` takes it."""
    check_mask(mask_gist, len(ids), ids.shape[1], ids.shape[1])
    return mask_gist.bool()


# ---------------------------------------------------------------------------------------------- continuing from a cache


def goes_on(past: Cache | KeysAndValues | None, mask_gist: Tensor | None, offset: Tensor | int | None) -> bool:
    """Whether these arguments are the published way to continue from cached tokens."""
    if past is None:
        if offset is not None:
            raise ValueError("gist_offset says where cached gist tokens stand; it needs past_key_values")
        return False
    if isinstance(past, tuple):
        return True
    return past.get_seq_length() > 0 and (offset is not None or mask_gist is not None)


def continuation(
    model: Any, input_ids: Tensor, mask: Tensor | None, mask_gist: Tensor | None, past: Any, offset: Tensor | int | None
) -> dict[str, Any]:
    """The arguments of a plain forward pass over (batch, n) ids after k cached tokens.

    mask: (batch, k + n), None for ones; mask_gist: (batch, 1, n or 1, k + n), None for ones; past: a Cache, which
    grows, or keys and values of each layer, which stay as they are; offset: (batch,) position of the first cached
    token, None where the cached tokens are the start of the row.
    """
    rows, new = input_ids.shape
    cache = _cache(past, model, rows) if isinstance(past, tuple) else past
    mask, shown, positions = _row(input_ids, mask, mask_gist, cache.get_seq_length(), offset)
    attention: Any = mask
    if shown is not None or (sliding_window(model.config) and not bool(mask.all())):
        allowed = causal(mask, new) if shown is None else causal(mask, new) & shown
        attention = attention_masks(model.config, allowed, positions[:, -new:], positions, model.dtype)
    model.check_positions(int(positions.max()) + 1, "the cached and the new tokens")
    return {
        "input_ids": input_ids,
        "attention_mask": attention,
        "position_ids": positions[:, -new:],
        "past_key_values": cache,
    }


def cached_context(
    model: Any, input_ids: Tensor, mask: Tensor | None, mask_gist: Tensor | None, past: Any, offset: Tensor | int | None
) -> tuple[CompressedContext, Tensor]:
    """The same as a context, for generation, and the mask (batch, n) of the new tokens."""
    cache: Any = _cache(past, model, len(input_ids)) if isinstance(past, tuple) else past
    length = cache.get_seq_length()
    mask, shown, positions = _row(input_ids, mask, mask_gist, length, offset)
    if shown is not None:
        mask = mask * shown[:, 0, -1]  # what the last token sees is what new ones see
    cached, fresh = mask[:, :length], mask[:, length:]
    first = fresh.bool().int().argmax(-1, keepdim=True)
    made = CompressedContext(
        next_position=positions[:, length:].gather(1, first)[:, 0],
        source_tokens=cached.sum(-1),
        fingerprint=model.fingerprint(),
        keys=tuple(layer.keys for layer in cache.layers),
        values=tuple(layer.values for layer in cache.layers),
        mask=cached,
    )
    return made, fresh


def _row(
    input_ids: Tensor, mask: Tensor | None, mask_gist: Tensor | None, cached: int, offset: Tensor | int | None
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Mask and positions (batch, cached + n) of cached and new tokens; what is shown, where that differs by query."""
    rows, new = input_ids.shape
    if new == 0:
        raise ValueError("there are no tokens to go on with: the input's length is 0")
    if mask is None:
        mask = input_ids.new_ones(rows, cached + new)
    if mask.shape != (rows, cached + new):
        raise ValueError(
            f"attention_mask has shape {tuple(mask.shape)}; "
            f"expected ({rows}, {cached + new}), for {cached} cached and {new} new tokens"
        )
    empty = (mask[:, cached:].sum(-1) == 0).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"row {empty[0]} has no new tokens: they are padding only")
    if offset is None:
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
    else:
        start = torch.as_tensor(offset, device=input_ids.device).reshape(-1, 1).expand(rows, 1)
        counted = torch.cat([mask.new_ones(rows, cached), mask[:, cached:]], dim=1)
        positions = start + counted.cumsum(-1) - 1
    shown = None
    if mask_gist is not None:
        check_mask(mask_gist, rows, new, cached + new)
        if mask_gist.shape[2] == 1:
            mask = mask * mask_gist[:, 0, 0].to(mask.dtype)
        else:
            shown = mask_gist.bool()
    return mask, shown, positions


def _cache(past: KeysAndValues, model: Any, rows: int) -> DynamicCache:
    cache = DynamicCache()
    for layer, (key, value) in enumerate(past):
        if key.shape[0] not in (1, rows):
            raise ValueError(f"the cache holds {key.shape[0]} rows; the input has {rows}")
        moved = [tensor.to(model.device, model.dtype).expand(rows, -1, -1, -1) for tensor in (key, value)]
        cache.update(moved[0], moved[1], layer)
    return cache


def check_mask(mask_gist: Tensor, rows: int, queries: int, keys: int) -> None:
    """ValueError for an attention_mask_gist that does not fit."""
    fits = (
        mask_gist.dim() == 4
        and mask_gist.shape[0] in (1, rows)
        and mask_gist.shape[1] == 1
        and mask_gist.shape[2] in (1, queries)
        and mask_gist.shape[3] == keys
    )
    if not fits:
        raise ValueError(
            f"attention_mask_gist has shape {tuple(mask_gist.shape)}; "
            f"expected ({rows}, 1, {queries}, {keys}) or ({rows}, 1, 1, {keys})"
        )


def remove_gist(
    inputs: dict[str, Tensor], num_gist_tokens: int, gist_token: int, pad_token: int = 0
) -> dict[str, Tensor]:
    """What is left to read when the gist tokens of (batch, length) prompts are cached: the tokens after them.

    inputs: input_ids and attention_mask. Gives input_ids (batch, n), padded on the left where rows differ, and masks of
    ones for `num_gist_tokens` cached and n new tokens: attention_mask (batch, num_gist_tokens + n) and
    attention_mask_gist (batch, 1, 1, num_gist_tokens + n). ValueError for a row without a token after its gist tokens.
    """
    ids = inputs["input_ids"]
    mask = inputs.get("attention_mask", torch.ones_like(ids)).bool()
    last = ids.shape[1] - 1 - (ids == gist_token).int().flip(-1).argmax(-1)
    rests = []
    for row in range(len(ids)):
        count = int((ids[row] == gist_token).sum())
        if count != num_gist_tokens:
            raise ValueError(f"row {row} has {count} gist tokens; expected {num_gist_tokens}")
        rests.append(ids[row, last[row] + 1 :][mask[row, last[row] + 1 :]])
        if len(rests[-1]) == 0:
            raise ValueError(f"row {row} has no token after its gist tokens")
    longest = max(map(len, rests))
    left = ids.new_full((len(ids), longest), pad_token)
    attention = ids.new_ones(len(ids), num_gist_tokens + longest)
    for row, rest in enumerate(rests):
        left[row, longest - len(rest) :] = rest
        attention[row, num_gist_tokens : num_gist_tokens + longest - len(rest)] = 0
    return {
        "input_ids": left,
        "attention_mask": attention,
        "attention_mask_gist": torch.ones_like(attention)[:, None, None],
    }
