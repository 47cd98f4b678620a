"""What every compressor shares: calls that continue from a CompressedContext, and a loss without needless logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from synopsis.compressors.attention import attention_masks, causal, sliding_window
from synopsis.compressors.auto_classes import own_configuration
from synopsis.compressors.context import CompressedContext, fingerprint, settings_of
from synopsis.compressors.loss import next_token_loss

if TYPE_CHECKING:  # what a mixin finds on the class of transformers that it is put before
    Model = Any
else:
    Model = object

ONE_ROW_ONCE = ("num_beams", "num_return_sequences")


@dataclass(frozen=True)
class Demand:
    """What compressing some steps takes: positions of the longest pass; then what the context gives.

    next_position: of the first token after it; vectors: in each row of it.
    """

    positions: int
    next_position: int
    vectors: int


class ContextMixin(Model):
    """Adds `prefix_cache`, `continue_from` and `generate(context=)` to a causal language model of transformers.

    A method says in `_context_cache` how its context becomes the keys and values of k positions; decoding from those
    is then the same for all: the k positions stand first in the cache, and each row goes on at its own position.
    """

    def __init__(self, config: Any):
        super().__init__(own_configuration(config, type(self).config_class))

    # --------------------------------------------------------------------------------------- what a method says of it

    reads: ClassVar[Literal["text", "instructions"]] = "text"
    """What it was made to compress."""

    @property
    def compresses(self) -> bool:
        """False for a model of a method's class that reads the whole context."""
        return True

    def compress(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        context: CompressedContext | None = None,
        segment_lengths: int | list[int] | None = None,
        check_numbers: bool = True,
        **options: Any,
    ) -> CompressedContext:  # pragma: no cover - every method has its own
        """The context of (batch, length) tokens, read in segments after an earlier `context` if one is given.

        check_numbers: ValueError for a row with numbers that are not finite; False leaves them to the caller.
        """
        raise TypeError(f"{type(self).__name__} cannot compress")

    def demand(self, lengths: Sequence[int], context: CompressedContext | None = None, **options: Any) -> Demand:
        """What `compress` of steps of these lengths takes and gives; options as of `compress`."""
        raise TypeError(f"{type(self).__name__} does not compress in steps")

    def steps_that_fit(self, length: int) -> list[int]:
        """Lengths of the steps that a text is compressed in, as few as the positions allow."""
        return [length]

    def summary_tokens(self, wanted: int | None = None) -> int:
        """How many summary tokens end a step; ValueError for a number that is of no use to the model."""
        return 0

    def compressible(self, ids: Tensor) -> Tensor:
        """Ids (batch, length) made into those of a context, with the tokens that compress it in the last places."""
        return ids

    def added_weights(self) -> dict[str, int | None]:
        """Parameters that the base does not have -> the row of it that is new, or None for all of it."""
        return {}

    # ------------------------------------------------------------------------------------------------------ contexts

    _fingerprint: tuple[int, str] | None = None  # of the weights as they were when it was taken

    def fingerprint(self) -> str:
        """Of this model as it is now; taken anew only after its weights were changed, moved or replaced."""
        settings = repr(settings_of(self.config))
        weights = self.parameters()
        # Tensors made in inference mode cannot change, and have no version.
        state = hash((settings, *((weight.data_ptr(), weight.is_inference() or weight._version) for weight in weights)))
        if self._fingerprint is None or self._fingerprint[0] != state:
            self._fingerprint = (state, fingerprint(self))
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
        cache = DynamicCache()
        if context.summary_vectors is not None:
            self._read_vectors(context.summary_vectors, context.mask, cache)
        for layer, (key, value) in enumerate(zip(context.keys, context.values, strict=True)):
            cache.update(key, value, layer)
        return cache

    def _read_vectors(self, vectors: Tensor, mask: Tensor | None, cache: DynamicCache) -> None:
        """Read the vectors (batch, k, hidden) into an empty cache: what follows cannot change their keys and values."""
        if vectors.shape[1] == 0:
            return
        full: Any = mask
        if mask is not None and sliding_window(self.config):
            counted = (mask.cumsum(-1) - 1).clamp(min=0)
            full = self._masks_by_position(mask, counted, counted)
        positions = self._vector_positions(vectors, mask)
        self.get_decoder()(
            inputs_embeds=vectors, attention_mask=full, position_ids=positions, past_key_values=cache, use_cache=True
        )

    def _vector_positions(self, vectors: Tensor, mask: Tensor | None) -> Tensor | None:
        """(batch, k) positions of vectors; None for 0, 1, 2, ..."""
        return None if mask is None else (mask.cumsum(-1) - 1).clamp(min=0)

    def context_of(self, soft: Tensor, soft_mask: Tensor, source: Tensor) -> CompressedContext:
        """Summary vectors (batch, k, hidden) with their mask (batch, k), standing for `source` (batch,) tokens.

        A row's vectors stand last: sliding windows count places, and none may be empty between them and what follows.
        """
        order = soft_mask.argsort(dim=-1, stable=True)
        soft = soft.gather(1, order[..., None].expand_as(soft))
        soft_mask = soft_mask.gather(1, order)
        return CompressedContext(
            next_position=self._next_position(soft_mask),
            source_tokens=source,
            fingerprint=self.fingerprint(),
            summary_vectors=soft,
            mask=None if bool(soft_mask.all()) else soft_mask,
        )

    def _next_position(self, soft_mask: Tensor) -> Tensor:
        return soft_mask.sum(-1)

    def prefix_cache(self, context: CompressedContext, batch_size: int | None = None) -> DynamicCache:
        """A fresh cache that holds the context, for `batch_size` rows (one row serves many)."""
        context = context.to(self.device, self.dtype)
        return self._context_cache(context.expand(batch_size or context.batch_size))

    def continue_from(
        self, context: CompressedContext, input_ids: Tensor, attention_mask: Tensor | None = None, **options: Any
    ) -> Any:
        """One forward pass over `input_ids` (batch, length) after the context; logits are (batch, length, vocabulary).

        Padded positions (0 in `attention_mask`, left or right) are not attended to; their logits mean nothing.
        """
        self.check_context(context)
        rows = input_ids.shape[0]
        mask = full_mask(input_ids, attention_mask)
        cache = self.prefix_cache(context, rows)
        start, before = _of_rows(context, rows, input_ids.device)
        positions = self._token_positions(mask, start)
        self._check_end(positions, "the context and the tokens after it")
        full: Any = torch.cat([before.to(mask.dtype), mask], dim=1)
        if sliding_window(self.config) and not bool(mask.all()):
            # Their vectors stand directly before the tokens: distances count from there, and not padding.
            keys = torch.cat([start[:, None] + before.cumsum(-1) - before.sum(-1, keepdim=True) - 1, positions], dim=1)
            full = self._masks_by_position(full, positions, keys)
        return self._plain_forward(
            input_ids=input_ids, attention_mask=full, position_ids=positions, past_key_values=cache, **options
        )

    def _token_positions(self, mask: Tensor, start: Tensor | int = 0) -> Tensor:
        """(batch, length) positions of the tokens of a padded row; those of padding mean nothing."""
        offset = start[:, None] if isinstance(start, Tensor) else start
        return offset + (mask.cumsum(-1) - 1).clamp(min=0)

    # -------------------------------------------------------------------------------------------------------- limits

    def _masks_by_position(self, visible: Tensor, query_positions: Tensor, key_positions: Tensor) -> Any:
        """Causal masks with windows by position. visible: (batch, keys), 0 at padding; the queries come last."""
        allowed = causal(visible, query_positions.shape[1])
        return attention_masks(self.config, allowed, query_positions, key_positions, self.dtype)

    def _check_end(self, positions: Tensor, what: str) -> None:
        """ValueError for a row whose positions (batch, length) go beyond those of the model."""
        ends = positions.amax(-1) + 1
        self.check_positions(int(ends.max()), f"row {int(ends.argmax())}: {what}")

    def check_positions(self, needed: int, what: str) -> None:
        """ValueError when a row needs more positions than the model has."""
        limit = getattr(self.config, "max_position_embeddings", None)
        if limit is not None and needed > limit:
            raise ValueError(f"{what} need {needed} positions; this model has {limit} (max_position_embeddings)")

    # --------------------------------------------------------------------------------------------------- forward pass

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        context: CompressedContext | None = None,
        **options: Any,
    ) -> Any:
        """The forward pass of the transformers class; with a `context` it is `continue_from`."""
        if context is None:
            return self._plain_forward(input_ids=input_ids, attention_mask=attention_mask, **options)
        assert input_ids is not None
        return self.continue_from(context, input_ids, attention_mask, **options)

    def _plain_forward(
        self,
        labels: Tensor | None = None,
        skip_logits: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **arguments: Any,
    ) -> Any:
        """The forward pass of the transformers class; with labels the loss, and logits only where they are wanted.

        skip_logits None means: in training. The logits of a long sequence are by far the largest tensor of a step.
        """
        self._check_plain(**arguments)
        if labels is None:
            return super().forward(**arguments)
        if not (self.training if skip_logits is None else skip_logits):
            out = super().forward(**arguments)
            out.loss = next_token_loss(out.logits, labels, items=num_items_in_batch)
            return out
        out = self.get_decoder()(**arguments)
        loss = next_token_loss(out.last_hidden_state, labels, self.logits, num_items_in_batch)
        return CausalLMOutputWithPast(loss=loss, past_key_values=out.past_key_values)

    def _check_plain(
        self,
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        **_: Any,
    ) -> None:
        """ValueError for rows that need more positions than there are; looks closer only where it may be so."""
        new = input_ids if inputs_embeds is None else inputs_embeds
        limit = getattr(self.config, "max_position_embeddings", None)
        if new is None or limit is None:
            return
        columns = new.shape[1] + (0 if past_key_values is None else past_key_values.get_seq_length())
        if columns <= limit:
            return
        if position_ids is None:
            whole = isinstance(attention_mask, Tensor) and attention_mask.dim() == 2
            real = attention_mask if whole else new.new_ones(len(new), columns, dtype=torch.long)
            position_ids = real.cumsum(-1) - 1
        self._check_end(position_ids, f"{columns} tokens, padding not counted,")

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., hidden) -> (..., vocabulary), as the transformers class does it."""
        logits = self.get_output_embeddings()(hidden)
        cap = getattr(self.config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    # ------------------------------------------------------------------------------------------------------- generate

    @torch.no_grad()
    def generate(
        self,
        inputs: Tensor | None = None,
        context: CompressedContext | None = None,
        attention_mask: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        """`generate` of transformers, continuing after `context`; returns (batch, prompt + new) ids, left padding kept.

        Prompts of unequal length are padded on the left. Each row needs at least one prompt token. Each row has one
        continuation: no beams and no `num_return_sequences`.
        """
        if inputs is None:
            inputs = options.pop("input_ids", None)
        if inputs.shape[1] == 0 if inputs is not None else context is not None:
            raise ValueError("generate needs at least one prompt token in each row")
        if context is None:
            if inputs is not None and attention_mask is not None and options.get("past_key_values") is None:
                full_mask(inputs, attention_mask)
            return super().generate(inputs, attention_mask=attention_mask, **options)
        assert inputs is not None
        self.check_context(context)
        return self._generate_after(context, inputs, full_mask(inputs, attention_mask), options)

    def _generate_after(
        self, context: CompressedContext, inputs: Tensor, mask: Tensor, options: dict[str, Any]
    ) -> Tensor:
        options = with_generation_config(options)
        if any(options.get(key, 1) != 1 for key in ONE_ROW_ONCE):
            raise ValueError("generate(context=) continues each row once: num_beams and num_return_sequences must be 1")
        check_prompts(mask)
        rows, length = inputs.shape[0], context.length
        context = context.expand(rows)
        start, before = _of_rows(context, rows, inputs.device)
        positions = self._token_positions(mask, start)
        self._check_end(positions, "the context and the prompt")
        if sliding_window(self.config) and not bool(mask.all()):
            # Windows count places in the cache, padding too: rows of one length at a time.
            return by_group(
                mask.sum(-1),
                lambda chosen: self._generate_unpadded(context, inputs, mask, chosen, options),
                self.pad_token(options),
            )
        options = self._longer(options, length)
        options["use_cache"] = True  # the context is in it, whatever the configuration says
        # The k cached positions need ids that generate can count; it never reads them.
        full = torch.cat([inputs.new_zeros(rows, length), inputs], dim=1)
        out = super().generate(
            full,
            attention_mask=torch.cat([before.to(mask.dtype), mask], dim=1),
            position_ids=torch.cat([positions.new_zeros(rows, length), positions], dim=1),
            past_key_values=self.prefix_cache(context, rows),
            **options,
        )
        return out[:, length:]

    def _generate_unpadded(
        self, context: CompressedContext, inputs: Tensor, mask: Tensor, chosen: Tensor, options: dict[str, Any]
    ) -> Tensor:
        """The chosen rows, whose prompts have one length."""
        pads = inputs.shape[1] - int(mask[chosen[0]].sum())
        options, rows = self._longer(options, -pads), inputs[chosen]
        if "logits_processor" in options:  # those that know rows go on with theirs
            known = [getattr(processor, "select", None) for processor in options["logits_processor"]]
            parts = zip(known, options["logits_processor"], strict=True)
            options["logits_processor"] = [part if select is None else select(chosen) for select, part in parts]
        out = self._generate_after(context.select(chosen), rows[:, pads:], mask[chosen, pads:], options)
        return torch.cat([rows[:, :pads], out], dim=1)

    def _supports_logits_to_keep(self) -> bool:
        """Of a prompt only the last logits are made; transformers looks in the signature, which says `**options`."""
        return not self.config.is_encoder_decoder

    def pad_token(self, options: dict[str, Any]) -> int:
        """What rows that ended are filled with."""
        pad = options.get("pad_token_id", self.generation_config.pad_token_id)
        return 0 if pad is None else pad

    def _longer(self, options: dict[str, Any], columns: int) -> dict[str, Any]:
        """Options of generate for prompts with so many columns more; its limits of length count them."""
        moved = dict(options)
        for limit, instead in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
            own = None if options.get(instead) else getattr(self.generation_config, limit, None)
            value = options.get(limit, own)
            if value is not None:
                moved[limit] = max(value + columns, 0)
        return moved


def full_mask(ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """The mask (batch, length) of the ids, ones without one; ValueError where it does not fit or a row has no token."""
    mask = torch.ones_like(ids) if attention_mask is None else attention_mask
    if mask.shape != ids.shape:
        raise ValueError(f"attention_mask has shape {tuple(mask.shape)}; expected {tuple(ids.shape)}")
    if ids.shape[1] == 0:
        raise ValueError("row 0 has no tokens: the length of the input is 0")
    empty = (mask.sum(-1) == 0).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"row {empty[0]} has no tokens: it is padding only, {ids.shape[1]} places long")
    return mask.to(ids.device)


def check_prompts(mask: Tensor) -> None:
    """ValueError for prompts that do not end with a token."""
    wrong = (mask[:, -1] == 0).nonzero().flatten().tolist()
    if wrong:
        raise ValueError(f"row {wrong[0]} ends with padding; prompts of unequal length are padded on the left")


def with_generation_config(options: dict[str, Any]) -> dict[str, Any]:
    """Options of generate, those of a `generation_config` among them one by one."""
    given = options.get("generation_config")
    if given is None:
        return options
    set_there = {name: value for name, value in given.to_diff_dict().items() if name != "transformers_version"}
    return {**set_there, **{name: value for name, value in options.items() if name != "generation_config"}}


def by_group(groups: Tensor, function: Any, pad: int = 0) -> Tensor:
    """`function(rows)` for the rows of each group, put together again; what ends first is padded on the right."""
    chosen = [(groups == group).nonzero().flatten() for group in groups.unique()]
    outputs = [function(rows) for rows in chosen]
    whole = outputs[0].new_full((len(groups), max(out.shape[1] for out in outputs)), pad)
    for rows, out in zip(chosen, outputs, strict=True):
        whole[rows, : out.shape[1]] = out
    return whole


def _of_rows(context: CompressedContext, rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Next positions (rows,) and mask (rows, k) of a context that serves `rows` rows."""
    start = context.next_position.to(device).expand(rows)
    return start, context.attention_mask.to(device).expand(rows, -1)


def check_finite(vectors: Tensor, what: str) -> None:
    """ValueError for (batch, k, width) vectors that are not all finite."""
    wrong = (~vectors.isfinite().all(-1)).sum(-1)  # (B,)
    for row in wrong.nonzero().flatten().tolist():
        raise ValueError(f"row {row} {what}: {int(wrong[row])} of {vectors.shape[1]} hold numbers that are not finite")


def lengths_of_segments(segment_lengths: int | list[int] | None, length: int, read: int = 0) -> list[int]:
    """How `length` tokens are cut, when `read` tokens of the first segment were read before."""
    if length == 0:
        raise ValueError("the input has no tokens: its length is 0")
    if segment_lengths is None:
        return [length]
    given = [segment_lengths] if isinstance(segment_lengths, int) else segment_lengths
    if min(given, default=0) < 1:
        raise ValueError(f"segment_lengths {segment_lengths}: every segment needs at least one token")
    if isinstance(segment_lengths, int):
        first = min(max(segment_lengths - read, 0), length)
        whole, rest = divmod(length - first, segment_lengths)
        # A first segment that is full already is read on with no token, to be compressed.
        return ([first] if first or read else []) + [segment_lengths] * whole + ([rest] if rest else [])
    if sum(segment_lengths) != length:
        raise ValueError(f"segment_lengths {segment_lengths} add up to {sum(segment_lengths)}, not to {length} tokens")
    return list(segment_lengths)
