"""Small T5 models with gist tokens and random weights, and what transformers' own T5 says under masks built by hand."""

from __future__ import annotations

import functools
from typing import Any

import torch
from compressor_models import GIST, PAD, VOCABULARY, tokens
from synopsis.compressors import GistT5ForConditionalGeneration
from torch import Tensor, nn
from transformers import T5Config, T5ForConditionalGeneration

KINDS = {
    "tied": {"feed_forward_proj": "relu", "tie_word_embeddings": True},  # T5
    "untied": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},  # v1.1 and Flan
}
START = 0  # of the decoder


def t5_model(condition: str = "gist", kind: str = "untied", seed: int = 0, **fields: Any) -> Any:
    """Few buckets of distances, so that short rows reach the far ones, and weights by which attention is not even."""
    settings_of = {
        "vocab_size": VOCABULARY,
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_layers": 2,
        "num_decoder_layers": 1,
        "num_heads": 4,
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 12,
        "dropout_rate": 0.0,
        "decoder_start_token_id": START,
        "pad_token_id": PAD,
        "gist_token_id": GIST,
        "gist_condition": condition,
        **KINDS[kind],
        **fields,
    }
    model = GistT5ForConditionalGeneration(T5Config(**settings_of))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight.copy_(1 + 0.1 * noise if "layer_norm" in name else 0.2 * noise)
    return model.eval()


@functools.cache
def plain_t5(model: Any) -> T5ForConditionalGeneration:
    """transformers' own class with the same weights."""
    plain = T5ForConditionalGeneration(model.config).eval()
    plain.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())  # it ties all T5, the untied ones too
    plain.load_state_dict(model.state_dict())
    return plain


def t5_by_hand(model: Any, row: list[int], answer: list[int]) -> Tensor:
    """(len(answer), vocabulary) logits of one row, from transformers' own class.

    The encoder's mask is built position by position; what the decoder must not see is cut out of what it is given.
    """
    plain, condition = plain_t5(model), model.config.gist_condition
    gists = [place for place, token in enumerate(row) if token == model.config.gist_token_id]
    mask, start = torch.zeros(1, 1, len(row), len(row)), 0
    if gists and condition != "pos_control":
        start = gists[0] if condition == "gist" else gists[-1] + 1
        for reader in range(len(row)):
            hidden = slice(0, start) if reader > gists[-1] else slice(gists[-1] + 1, None)
            mask[0, 0, reader, hidden] = float("-inf")
    with torch.no_grad():
        states = plain.encoder(torch.tensor([row]), attention_mask=mask).last_hidden_state[:, start:]
        if states.shape[1] == 0:
            states = torch.zeros(1, 1, plain.config.d_model)
        return plain(encoder_outputs=(states,), decoder_input_ids=torch.tensor([answer])).logits[0]


def t5_greedy(model: Any, row: list[int], count: int) -> list[int]:
    answer = [model.config.decoder_start_token_id]
    for _ in range(count):
        answer.append(int(t5_by_hand(model, row, answer)[-1].argmax()))
    return answer


def answers(rows: int) -> Tensor:
    return torch.tensor([[START, *tokens(torch.Generator().manual_seed(row), 4)] for row in range(rows)])
