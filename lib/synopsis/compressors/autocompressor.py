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

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from synopsis.compressors.base import ContextMixin
from synopsis.compressors.context import CompressedContext


@dataclass
class SummaryOutput(CausalLMOutputWithPast):
    """Logits of the tokens of all segments, and the soft prompt that a next segment would get."""

    softprompt: Tensor | None = None


class AutoCompressorMixin(ContextMixin):
    """Put before a causal language model with a `model` and an `lm_head`; see the module's docstring.

    Read from the configuration: summary_length, accumulate_summary, segment_gradient_checkpointing.
    """

    def __init__(self, config: Any):
        config.summary_length = getattr(config, "summary_length", 0)
        config.accumulate_summary = getattr(config, "accumulate_summary", True)
        config.segment_gradient_checkpointing = getattr(config, "segment_gradient_checkpointing", False)
        super().__init__(config)  # type: ignore[call-arg]
        self.loss_type = "ForCausalLM"  # transformers guesses it from the names of classes that it knows
        if config.summary_length > 0:
            self.embed_summary = nn.Embedding(config.summary_length, config.hidden_size)
            self.post_init()  # type: ignore[attr-defined]

    def initialize_summary_embeddings(self) -> None:
        """Start the summary tokens as the embedding of the end-of-text token, as the paper describes it.

        Called once before training; ids without an end-of-text token start as the mean of all embeddings.
        """
        words = self.get_input_embeddings().weight.detach()  # type: ignore[attr-defined]
        end = self.config.eos_token_id  # type: ignore[attr-defined]
        end = end[0] if isinstance(end, list) else end
        start = words.mean(0) if end is None else words[end]
        with torch.no_grad():
            self.embed_summary.weight.copy_(start.expand_as(self.embed_summary.weight))

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        segment_lengths: int | list[int] | None = None,
        softprompt: Tensor | None = None,
        output_softprompt: bool = False,
        past_key_values: DynamicCache | None = None,
        position_ids: Tensor | None = None,
        **options: Any,
    ) -> Any:
        """Read segments and predict every next token.

        input_ids: (batch, length); segment_lengths: a list that adds up to length, or one length for all segments but
        a shorter last one; softprompt: (batch, k, hidden) before the first segment; output_softprompt: also summarise
        the last segment; labels: (batch, length), shifted inside, -100 ignored. The loss is one mean over all segments;
        the first token after padding on the left has no part in it, as nothing predicts it.

        Without any of those this is the plain model. ValueError when they come with a cache, or do not fit the input.
        """
        compresses = softprompt is not None or segment_lengths is not None or output_softprompt
        if compresses and past_key_values is not None:
            raise ValueError(
                "softprompt, segment_lengths and output_softprompt do not go with a cache; "
                "decode with compress() and generate(context=)"
            )
        if not compresses:
            out = self._plain_forward(
                input_ids=input_ids,
                attention_mask=attention_mask,
                inputs_embeds=inputs_embeds,
                labels=labels,
                past_key_values=past_key_values,
                position_ids=position_ids,
                **options,
            )
            return SummaryOutput(**out) if isinstance(out, CausalLMOutputWithPast) else out
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)  # type: ignore[attr-defined]  # (B, T, E)
        assert inputs_embeds is not None
        rows, length, width = inputs_embeds.shape
        mask = inputs_embeds.new_ones(rows, length, dtype=torch.long) if attention_mask is None else attention_mask
        lengths = self._segment_lengths(segment_lengths, length)
        if softprompt is None:
            softprompt = inputs_embeds.new_zeros(rows, 0, width)
        if softprompt.dim() != 3 or softprompt.shape[0] != rows or softprompt.shape[2] != width:
            raise ValueError(f"softprompt has shape {tuple(softprompt.shape)}; expected ({rows}, k, {width})")

        hidden_states = []
        segments = list(zip(inputs_embeds.split(lengths, 1), mask.split(lengths, 1), strict=True))
        for index, (tokens, tokens_mask) in enumerate(segments):
            summarise = output_softprompt or index < len(segments) - 1
            hidden, summary = self._read_segment(softprompt, tokens, tokens_mask, summarise)
            hidden_states.append(hidden)
            if self.config.accumulate_summary:  # type: ignore[attr-defined]
                softprompt = torch.cat([softprompt, summary], dim=1)
            elif summary.shape[1] > 0:
                softprompt = summary
        logits = self.lm_head(torch.cat(hidden_states, dim=1))  # type: ignore[attr-defined]  # (B, T, V)
        loss = None
        if labels is not None:
            labels = torch.cat([labels[:, :1], labels[:, 1:].masked_fill(mask[:, :-1] == 0, -100)], dim=1)
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1])  # type: ignore[attr-defined]
        return SummaryOutput(loss=loss, logits=logits, softprompt=softprompt)

    def _segment_lengths(self, segment_lengths: int | list[int] | None, length: int) -> list[int]:
        if length == 0:
            raise ValueError("the input has no tokens: its length is 0")
        if segment_lengths is None:
            return [length]
        given = [segment_lengths] if isinstance(segment_lengths, int) else segment_lengths
        if min(given, default=0) < 1:
            raise ValueError(f"segment_lengths {segment_lengths}: every segment needs at least one token")
        if isinstance(segment_lengths, int):
            whole, rest = divmod(length, segment_lengths)
            return [segment_lengths] * whole + ([rest] if rest else [])
        if sum(segment_lengths) != length:
            raise ValueError(
                f"segment_lengths {segment_lengths} add up to {sum(segment_lengths)}, not to {length} tokens"
            )
        return list(segment_lengths)

    def _read_segment(self, softprompt: Tensor, tokens: Tensor, mask: Tensor, summarise: bool) -> tuple[Tensor, Tensor]:
        """Hidden states of the tokens (B, t, E) and of the summary tokens (B, s, E); s is 0 without `summarise`."""
        rows, soft, summary = tokens.shape[0], softprompt.shape[1], tokens[:, :0]
        if summarise and self.config.summary_length > 0:  # type: ignore[attr-defined]
            summary = self.embed_summary.weight.to(tokens.dtype).expand(rows, -1, -1)
        ends = summary.shape[1]

        def read(softprompt: Tensor, tokens: Tensor, summary: Tensor) -> Tensor:
            full_mask = torch.cat([mask.new_ones(rows, soft), mask, mask.new_ones(rows, ends)], dim=1)
            return self.model(  # type: ignore[attr-defined]
                inputs_embeds=torch.cat([softprompt, tokens, summary], dim=1),
                attention_mask=full_mask,
                position_ids=(full_mask.cumsum(-1) - 1).clamp(min=0),
                use_cache=False,
            ).last_hidden_state

        if self.config.segment_gradient_checkpointing and self.training and torch.is_grad_enabled():  # type: ignore[attr-defined]
            hidden = checkpoint(read, softprompt, tokens, summary, use_reentrant=False)
        else:
            hidden = read(softprompt, tokens, summary)
        return hidden[:, soft : soft + tokens.shape[1]], hidden[:, soft + tokens.shape[1] :]

    @torch.no_grad()
    def compress(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        segment_lengths: int | list[int] | None = None,
        context: CompressedContext | None = None,
        **options: Any,
    ) -> CompressedContext:
        """Summary vectors of (batch, length) tokens, read in segments after an earlier `context` if one is given."""
        if self.config.summary_length == 0:  # type: ignore[attr-defined]
            raise ValueError("this model has no summary tokens (summary_length is 0)")
        lengths = self._segment_lengths(segment_lengths, input_ids.shape[1])
        softprompt = None
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        source = mask.sum(-1)
        if not bool(source.all()):
            raise ValueError(f"row {int((source == 0).nonzero()[0])} has no tokens to compress")
        if context is not None:
            self.check_context(context)
            context = context.to(self.device, self.dtype).expand(input_ids.shape[0])  # type: ignore[attr-defined]
            softprompt, source = context.summary_vectors, source + context.source_tokens
        embeds = self.get_input_embeddings()(input_ids)  # type: ignore[attr-defined]
        for tokens, tokens_mask in zip(embeds.split(lengths, 1), mask.split(lengths, 1), strict=True):
            before = tokens[:, :0] if softprompt is None else softprompt
            _, summary = self._read_segment(before, tokens, tokens_mask, True)
            softprompt = torch.cat([before, summary], dim=1) if self.config.accumulate_summary else summary  # type: ignore[attr-defined]
        assert softprompt is not None
        return CompressedContext(
            next_position=torch.full((len(input_ids),), softprompt.shape[1], device=input_ids.device),
            source_tokens=source,
            fingerprint=self.fingerprint(),
            summary_vectors=softprompt,
        )

    def _context_cache(self, context: CompressedContext) -> DynamicCache:
        """The soft prompt read once: what follows cannot change its keys and values."""
        if context.summary_vectors is None:
            raise ValueError("this model reads summary vectors; the context holds gist activations")
        cache = DynamicCache(config=self.config)  # type: ignore[attr-defined]
        self.model(inputs_embeds=context.summary_vectors, past_key_values=cache, use_cache=True)  # type: ignore[attr-defined]
        return cache
