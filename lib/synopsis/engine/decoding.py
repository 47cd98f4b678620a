"""Decoding of a batch of prompts: greedy, or drawn with a generator for each row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, TopPLogitsWarper

from synopsis.compressors.loading import quiet
from synopsis.data.sequences import collate_padded


class Draws(LogitsProcessor):
    """Makes the greedy choice a draw: the largest of the scores with Gumbel noise is a token drawn from them.

    Each row has its own generator, so that what it draws depends neither on the other rows nor on their number.
    """

    def __init__(self, generators: Sequence[torch.Generator], temperature: float, top_p: float):
        self.generators, self.temperature, self.nucleus = generators, temperature, TopPLogitsWarper(top_p)

    def select(self, rows: Sequence[int]) -> Draws:
        """Of some of the rows alone."""
        return Draws([self.generators[row] for row in rows], self.temperature, self.nucleus.top_p)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # (B, T), (B, V)
        kept: Tensor = self.nucleus(input_ids, scores.float() / self.temperature)
        noise = [torch.empty(scores.shape[1]).exponential_(generator=generator) for generator in self.generators]
        return kept - torch.stack(noise).log().to(scores.device)


def ends_and_padding(model: Any, tokenizer: Any) -> tuple[list[int], int]:
    """The tokens that end a text, of the model and of its tokenizer, and the one that pads prompts."""
    settings = model.generation_config
    ends = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
    ends = list(dict.fromkeys(token for token in (*ends, tokenizer.eos_token_id) if token is not None))
    pads = (settings.pad_token_id, tokenizer.pad_token_id, *ends)
    return ends, next((token for token in pads if token is not None), 0)


@torch.no_grad()
def decode(
    model: Any, prompts: Sequence[list[int]], max_new_tokens: int, pad: int, ends: Sequence[int], **options: Any
) -> list[tuple[list[int], bool]]:
    """New tokens of each prompt, up to the first of `ends` (excluded), and whether there was one.

    options: of `model.generate`, which decodes greedily.
    """
    seq2seq = model.config.is_encoder_decoder
    examples = [{"input_ids": ids, "labels": ids} for ids in prompts]
    batch = collate_padded(examples, pad, "right" if seq2seq else "left")
    with quiet():
        out = model.generate(
            batch["input_ids"].to(model.device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=pad,
            eos_token_id=list(ends) or None,
            **{"attention_mask": batch["attention_mask"].to(model.device), **options},
        )
    # A decoder repeats the prompt; an encoder-decoder starts with one token of its own.
    rows = out[:, 1 if seq2seq else batch["input_ids"].shape[1] :].tolist()
    stops = [next((place for place, token in enumerate(row) if token in ends), len(row)) for row in rows]
    return [(row[:stop], stop < len(row)) for row, stop in zip(rows, stops, strict=True)]
