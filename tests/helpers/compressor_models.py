"""Small models of every method with random weights, and the rows of tokens that their tests read."""

from __future__ import annotations

from typing import Any

import torch
from synopsis.compressors import GistLlamaForCausalLM, LlamaAutoCompressorModel, compressor_class
from torch import Tensor
from transformers import AutoConfig, LlamaConfig

VOCABULARY, GIST, PAD = 61, 60, 0
# Logits of these models are of the order of 1; float32 sums in another order differ by a few 1e-6.
TOLERANCE = {"atol": 2e-5, "rtol": 1e-4}


MICRO: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": PAD,
    "tie_word_embeddings": False,
}


def configuration(**fields: Any) -> LlamaConfig:
    return LlamaConfig(**{**MICRO, **fields})


def summary_model(seed: int = 0, **fields: Any) -> LlamaAutoCompressorModel:
    torch.manual_seed(seed)
    return LlamaAutoCompressorModel(configuration(**{"summary_length": 3, **fields})).eval()


def gist_model(condition: str = "gist", seed: int = 0, **fields: Any) -> GistLlamaForCausalLM:
    torch.manual_seed(seed)
    settings = {"gist_token_id": GIST, "gist_condition": condition, **fields}
    return GistLlamaForCausalLM(configuration(**settings)).eval()


WINDOW = 5
OWN_FIELDS: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": WINDOW},
    "qwen2": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "qwen3": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1, "head_dim": 8},
    "gemma2": {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"], "head_dim": 8},
    "gemma3_text": {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"], "head_dim": 8},
    "smollm3": {"use_sliding_window": True, "sliding_window": WINDOW, "no_rope_layers": [1, 0]},
    "phi3": {"sliding_window": WINDOW},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.3, "dropout": 0.0},
}
"""What makes small models of the architectures show their kind: windows that are shorter than the texts."""


def architecture_model(kind: str, architecture: str, seed: int = 0, **fields: Any) -> Any:
    """A small compressor (`summary` or `gist`) on an architecture, with fewer key and value heads where it can."""
    settings = {**MICRO, "num_key_value_heads": 2, **OWN_FIELDS.get(architecture, {}), **fields}
    config = AutoConfig.for_model(architecture, **settings)
    torch.manual_seed(seed)
    return compressor_class(kind, architecture)(config).eval()


def tokens(generator: torch.Generator, count: int) -> list[int]:
    """Ordinary tokens: no padding, end of text or gist token."""
    return torch.randint(3, GIST, (count,), generator=generator).tolist()


def padded(rows: list[list[int]], side: str, width: int | None = None) -> tuple[Tensor, Tensor]:
    """Ids and attention mask of rows of unequal length, padded on one side with tokens that would show if read."""
    width = width or max(map(len, rows))
    ids, mask = torch.full((len(rows), width), 7), torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        place = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[index, place], mask[index, place] = torch.tensor(row, dtype=torch.long), 1
    return ids, mask


def real(values: Tensor, mask: Tensor, row: int) -> Tensor:
    """The values of a row where it has tokens."""
    return values[row][mask[row].bool()]


GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 6, "eos_token_id": None, "pad_token_id": PAD}
