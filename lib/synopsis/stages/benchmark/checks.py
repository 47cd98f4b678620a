"""Whether what is timed is worth timing: the modes agree with one pass, and the compressed context is smaller.

A check that fails is a result, with its numbers; nothing is raised.
"""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from synopsis.compressors.context import CompressedContext
from synopsis.stages.benchmark.modes import PROMPT_TOKENS, Mode, Prefix

TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
"""By dtype: the largest difference, as a share of the largest of the numbers that are compared."""


def checks(modes: dict[str, Mode], folder: Path, dtype: str) -> list[dict[str, Any]]:
    """Differences of the modes from passes without a cache; `compresses`: whether the compressed context is smaller.

    tokens: how far the greedy tokens fall short of the likeliest ones of one pass over all of them.
    """
    found: list[dict[str, Any]] = []

    def check(name: str, mode: str, difference: float) -> None:
        number = difference if isfinite(difference) else None
        agrees = number is not None and number <= TOLERANCE[dtype]
        found.append({"check": name, "mode": mode, "difference": number, "agrees": agrees})

    logits = {}
    for mode in modes.values():
        mode.compress()
    for name, mode in modes.items():
        tokens = mode.generate()
        own = torch.isin(tokens, mode.own_tokens).any(0).nonzero()  # one pass would take them for those of a context
        tokens = tokens[:, : int(own[0]) + 1] if len(own) else tokens
        more = tokens[:, :-1]
        whole = modes.get("none", mode) if name == "prefix" else mode
        out = whole.prefill(more).logits.float()
        chosen = out.gather(-1, tokens[..., None])[..., 0]
        check("tokens", name, float((out.amax(-1) - chosen).max() / out.abs().max()))
        logits[name] = mode.prefill(more).logits.float()
        if isinstance(mode, Prefix):
            check("logits", name, _difference(logits[name], out))
            cached, again = _prompt(mode, mode.prompt, mode.cache()), _prompt(mode, mode.ids, DynamicCache())
            for what, one, other in zip(("hidden states", "keys and values"), cached, again, strict=True):
                check(what, name, _difference(one, other))
        if name == "compressed" and mode.context is not None:
            before, file = mode.context, folder / "check.safetensors"
            before.save(file)
            mode.context = CompressedContext.load(file).to(mode.model.device)
            check("loaded from disk", name, _difference(mode.prefill(more).logits.float(), logits[name]))
            mode.context = before
    if {"none", "compressed"} <= modes.keys():
        same = logits["none"].equal(logits["compressed"])
        kept, whole_length = modes["compressed"].held, modes["none"].held
        number = {"difference": kept / whole_length, "agrees": kept < whole_length and not same}
        found.append({"check": "compresses", "mode": "compressed", **number, "equal_logits": same})
    return found


def _difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


def _prompt(mode: Mode, ids: Tensor, cache: DynamicCache) -> tuple[Tensor, Tensor]:
    """Of the prompt, when the ids are read into the cache: the last layer's outputs, (batch, prompt, hidden), and the
    keys and values, (layers, 2, batch, heads, prompt, width).
    """
    out = mode.model.get_decoder()(input_ids=ids, past_key_values=cache, use_cache=True)
    layers: Any = cache.layers
    pairs = torch.stack([torch.stack([layer.keys, layer.values])[..., -PROMPT_TOKENS:, :] for layer in layers])
    return out.last_hidden_state[:, -PROMPT_TOKENS:].float(), pairs.float()
