"""The likelihood engine equals one plain pass for each option."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from compressor_models import GIST, configuration, gist_model, summary_model, tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from synopsis.compressors import CompressedContext
from synopsis.evaluation.likelihood import option_losses, plain_forward, read_prefix, token_losses
from transformers import LlamaForCausalLM

torch.manual_seed(0)
PLAIN = LlamaForCausalLM(configuration(num_key_value_heads=2)).eval()
SUMMARY = summary_model(num_key_value_heads=2)
GIST_MODEL = gist_model(num_key_value_heads=2)
MODELS: dict[str, Any] = {
    "plain": PLAIN,
    "summary": SUMMARY,
    "rmt": summary_model(accumulate_summary=False),
    "gist": GIST_MODEL,
}
FEW = settings(max_examples=12, deadline=None, derandomize=True)
ROWS = st.lists(st.tuples(st.integers(0, 6), st.integers(1, 4)), min_size=1, max_size=5)


def context_of(name: str, generator: torch.Generator) -> tuple[CompressedContext | None, Any]:
    """A context of one row, and the function that gives the logits of ids after it in one pass, without a cache."""
    model = MODELS[name]
    before = tokens(generator, 7)
    if name == "plain":
        return None, lambda ids: model(ids).logits
    if name == "gist":
        prompt = torch.tensor([[*before, GIST, GIST]])
        context = model.compress(prompt)
        return context, lambda ids: model(torch.cat([prompt, ids], 1)).logits[:, prompt.shape[1] :]
    context = model.compress(torch.tensor([before]), segment_lengths=4)
    return context, lambda ids: model(ids, softprompt=context.summary_vectors).logits


@torch.no_grad()
def naive(forward: Any, plain: list[int], query: list[int], option: list[int]) -> float:
    """One option at batch 1, in one pass; every token's loss one by one."""
    ids = [*plain, *query, *option]
    logits = forward(torch.tensor([ids]))[0].log_softmax(-1)
    first = len(ids) - len(option)
    return -sum(float(logits[place - 1, ids[place]]) for place in range(first, len(ids))) / len(option)


@FEW
@given(name=st.sampled_from(sorted(MODELS)), compressed=st.booleans(), plain=st.integers(0, 5), sizes=ROWS)
def test_options_score_as_in_one_plain_pass_each(
    name: str, compressed: bool, plain: int, sizes: list[tuple[int, int]]
) -> None:
    model, generator = MODELS[name], torch.Generator().manual_seed(len(sizes))
    context, forward = context_of(name, generator)
    if not compressed:
        context, forward = None, lambda ids: plain_forward(model, input_ids=ids).logits
    ids = tokens(generator, plain)
    prefix = read_prefix(model, context, ids)
    rows = [(tokens(generator, query if plain else query + 1), tokens(generator, option)) for query, option in sizes]
    expected = [naive(forward, ids, query, option) for query, option in rows]
    for batch_size in (1, 2, 64):
        assert option_losses(model, prefix, rows, batch_size) == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_the_prefix_is_not_changed_by_its_use() -> None:
    prefix = read_prefix(PLAIN, None, [5, 6, 7])
    rows = [([8], [9, 10]), ([], [9])]
    first = option_losses(PLAIN, prefix, rows, 2)
    assert prefix.cache.get_seq_length() == prefix.length == prefix.next_position == 3
    assert option_losses(PLAIN, prefix, rows, 2) == first


def test_what_cannot_be_scored_is_refused() -> None:
    context = SUMMARY.compress(torch.tensor([[5, 6, 7], [5, 6, 8]]))
    with pytest.raises(ValueError, match="one row; the context has 2"):
        read_prefix(SUMMARY, context, [])
    with pytest.raises(ValueError, match="another model"):
        read_prefix(GIST_MODEL, context.select([0]), [])
    prefix = read_prefix(SUMMARY, context.select([0]), [])
    with pytest.raises(ValueError, match="row 1: the option has no tokens"):
        option_losses(SUMMARY, prefix, [([5], [6]), ([5], [])], 2)
    with pytest.raises(ValueError, match="row 1: neither its query nor the prefix"):
        option_losses(SUMMARY, prefix, [([5], [6]), ([], [6])], 2)


def test_losses_of_tokens() -> None:
    logits = torch.randn(2, 4, 9, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[1, 2, -100, 4], [-100, -100, -100, 8]])
    losses = token_losses(logits, labels)
    assert losses.shape == (2, 3) and losses[0, 1] == 0 and losses[1, :2].tolist() == [0, 0]
    by_hand = [-logits[0, 0].log_softmax(-1)[2], -logits[0, 2].log_softmax(-1)[4], -logits[1, 2].log_softmax(-1)[8]]
    torch.testing.assert_close(losses[labels[:, 1:] != -100], torch.stack(by_hand))
