"""Greedy decoding of a batch of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from synopsis.data.sequences import collate_padded


@torch.no_grad()
def greedy(
    model: Any, prompts: Sequence[list[int]], max_new_tokens: int, pad: int, ends: Sequence[int], **options: Any
) -> list[list[int]]:
    """New tokens of each prompt, up to the first of `ends` (excluded). options: of `model.generate`."""
    seq2seq = model.config.is_encoder_decoder
    examples = [{"input_ids": ids, "labels": ids} for ids in prompts]
    batch = collate_padded(examples, pad, "right" if seq2seq else "left")
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
    return [row[:stop] for row, stop in zip(rows, stops, strict=True)]
