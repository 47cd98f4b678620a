"""The likelihood engine equals one plain pass for each option."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from compressor_models import configuration, summary_model, tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import LAWS
from synopsis.engine import likelihood
from synopsis.engine.likelihood import plain_forward, read_prefix, score_options, token_losses
from torch import Tensor
from transformers import LlamaForCausalLM

Forward = Callable[[Tensor], Tensor]

torch.manual_seed(0)
PLAIN = LlamaForCausalLM(configuration(num_key_value_heads=2)).eval()
SUMMARY, GIST_MODEL = LAWS["autocompressor"].model("llama"), LAWS["gist"].model("llama")
MODELS = {f"{name} {architecture}": law for name, law in LAWS.items() for architecture in law.architectures}
MODELS = {name: law for name, law in MODELS.items() if "t5" not in name}
"""Every method on every decoder; beside them a plain model and full attention."""
FEW = settings(max_examples=3, deadline=None, derandomize=True, database=None)
# Of a query: its first tokens are those of the others, then its own; of each option: its length.
ROWS = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 4), st.lists(st.integers(1, 4), min_size=1, max_size=3)),
    min_size=1,
    max_size=4,
)


def plainly(model: Any) -> Forward:
    return lambda ids: plain_forward(model, input_ids=ids).logits


@torch.no_grad()
def naive(forward: Forward, plain: list[int], query: list[int], option: list[int]) -> float:
    """One option at batch 1, in one pass; every token's loss one by one."""
    ids = [*plain, *query, *option]
    logits = forward(torch.tensor([ids]))[0].log_softmax(-1)
    first = len(ids) - len(option)
    return -sum(float(logits[place - 1, ids[place]]) for place in range(first, len(ids))) / len(option)


def pairs_of(
    rows: list[tuple[int, int, list[int]]], generator: torch.Generator, at_least: int
) -> list[tuple[list[int], list[int]]]:
    shared = tokens(generator, 4)
    pairs = []
    for common, own, options in rows:
        query = [*shared[:common], *tokens(generator, own)] or tokens(generator, at_least)
        pairs += [(query, tokens(generator, length)) for length in options]
    return pairs


@pytest.mark.parametrize("name", MODELS)
@FEW
@given(plain=st.integers(0, 9), rows=ROWS)
def test_options_score_as_in_one_plain_pass_each(name: str, plain: int, rows: list[tuple[int, int, list[int]]]) -> None:
    """Whatever shares a pass, after a compressed context and without one."""
    law, generator = MODELS[name], torch.Generator().manual_seed(len(rows))
    model = law.model(name.split()[1])
    context = model.compress(torch.tensor([law.prompt(generator, 9)]), **law.options)
    ids = tokens(generator, plain)
    pairs = pairs_of(rows, generator, at_least=0 if plain else 1)
    ways: list[tuple[Any, Forward]] = [
        (context, lambda row: model.continue_from(context, row).logits),
        (None, plainly(model)),
    ]
    for before, forward in ways:
        prefix = read_prefix(model, before, ids)
        expected = [naive(forward, ids, query, option) for query, option in pairs]
        for budget in (1, 9, 512):
            assert score_options(model, prefix, pairs, budget).means == pytest.approx(expected, rel=1e-5, abs=1e-5)


@FEW
@given(plain=st.integers(1, 9), rows=ROWS)
def test_plain_models_score_as_in_one_pass_each(plain: int, rows: list[tuple[int, int, list[int]]]) -> None:
    generator = torch.Generator().manual_seed(len(rows))
    ids, pairs = tokens(generator, plain), pairs_of(rows, generator, at_least=0)
    for model in (PLAIN, summary_model(summary_length=0)):
        expected = [naive(plainly(model), ids, query, option) for query, option in pairs]
        for budget in (1, 9, 512):
            scores = score_options(model, read_prefix(model, None, ids), pairs, budget)
            assert scores.means == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_predictions_do_not_depend_on_the_budget() -> None:
    generator = torch.Generator().manual_seed(3)
    prefix = read_prefix(PLAIN, None, tokens(generator, 40))
    pairs = [(query, option) for query in [tokens(generator, 9) for _ in range(30)] for option in ([5], [6], [7, 8])]
    by_budget = [score_options(PLAIN, prefix, pairs, budget) for budget in (1, 16, 77, 512)]
    winners = []
    for scores in by_budget:
        assert scores.sums == pytest.approx(by_budget[0].sums, abs=1e-5)
        winners.append([min(range(3), key=scores.means[first : first + 3].__getitem__) for first in range(0, 90, 3)])
    assert all(found == winners[0] for found in winners) and len(set(winners[0])) > 1


def test_what_is_counted() -> None:
    prefix = read_prefix(PLAIN, None, [5, 6, 7])
    # One query with options of one, one and two tokens; a second that shares its first token.
    pairs = [([8, 9], [10]), ([8, 9], [11]), ([8, 9], [12, 13]), ([8, 10], [11])]
    scores = score_options(PLAIN, prefix, pairs)
    assert scores.counts == [1, 1, 2, 1]
    assert scores.cost.tokens == 2 + 1 + 1  # 8 9, the 12 of the third option, 10
    assert scores.cost.naive_tokens == 4 * 3 + 3 + 3 + 4 + 3
    assert scores.cost.halvings == 0 and scores.cost.seconds > 0


def test_too_little_memory_halves_the_budget(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    generator = torch.Generator().manual_seed(0)
    prefix = read_prefix(PLAIN, None, [5, 6])
    pairs = [(tokens(generator, 6), [int(option)]) for option in range(3, 23)]
    expected = score_options(PLAIN, prefix, pairs, 64)
    seen = []

    def little(model: Any, **arguments: Any) -> Any:
        seen.append(arguments["input_ids"].shape[1])
        if seen[-1] > 20:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain_forward(model, **arguments)

    monkeypatch.setattr(likelihood, "plain_forward", little)
    scores = score_options(PLAIN, prefix, pairs, 64)
    assert scores.sums == pytest.approx(expected.sums, abs=1e-5)
    assert scores.cost.halvings == 2 and scores.cost.batch_tokens <= 20
    assert "out of memory with" in capsys.readouterr().err
    with pytest.raises(MemoryError, match=r"one option with its query \(30 tokens\) after a prefix of 2"):
        score_options(PLAIN, prefix, [(tokens(generator, 30), [5])])

    def broken(model: Any, **arguments: Any) -> Any:
        raise RuntimeError("something else")

    monkeypatch.setattr(likelihood, "plain_forward", broken)
    with pytest.raises(RuntimeError, match="something else"):
        score_options(PLAIN, prefix, pairs)


def test_the_cache_of_the_prefix_is_shared_and_not_changed() -> None:
    prefix = read_prefix(PLAIN, None, [5, 6, 7])
    keys = [layer.keys for layer in prefix.cache.layers]
    pairs = [([8], [9, 10]), ([], [9])]
    first = score_options(PLAIN, prefix, pairs).sums
    assert prefix.cache.get_seq_length() == prefix.length == prefix.next_position == 3
    assert all(before is layer.keys for before, layer in zip(keys, prefix.cache.layers, strict=True))
    assert score_options(PLAIN, prefix, pairs).sums == first
    assert score_options(PLAIN, prefix, pairs[1:]).sums == pytest.approx(first[1:]), "the prefix alone predicts it"


def test_a_padded_context_counts_its_own_vectors_only() -> None:
    """One row of a batch of contexts: the padding before its vectors is not seen."""
    rows = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 0, 0, 0]])
    mask = torch.tensor([[1] * 6, [1] * 3 + [0] * 3])
    for architecture in ("llama", "mistral", "gemma2", "opt"):
        model = LAWS["autocompressor"].model(architecture)
        both = model.compress(rows, mask, segment_lengths=3)
        alone = model.compress(rows[1:, :3], segment_lengths=3)
        pairs = [([20, 21], [22, 23]), ([20], [24])]
        prefixes = [read_prefix(model, context, [30, 31]) for context in (both.select([1]), alone)]
        padded, whole = (score_options(model, prefix, pairs).sums for prefix in prefixes)
        assert padded == pytest.approx(whole, rel=1e-5, abs=1e-5)


def test_bfloat16_is_near_float32() -> None:
    generator = torch.Generator().manual_seed(1)
    ids, pairs = tokens(generator, 20), [(tokens(generator, 5), tokens(generator, 2)) for _ in range(6)]
    half = LlamaForCausalLM(PLAIN.config).to(torch.bfloat16).eval()
    half.load_state_dict(PLAIN.state_dict())
    found, expected = (score_options(model, read_prefix(model, None, ids), pairs).means for model in (half, PLAIN))
    assert found == pytest.approx(expected, abs=0.15) and found != pytest.approx(expected, abs=1e-5)


def test_what_cannot_be_scored_is_refused() -> None:
    context = SUMMARY.compress(torch.tensor([[5, 6, 7], [5, 6, 8]]))
    with pytest.raises(ValueError, match="one row; the context has 2"):
        read_prefix(SUMMARY, context, [])
    with pytest.raises(ValueError, match="another model"):
        read_prefix(GIST_MODEL, context.select([0]), [])
    prefix = read_prefix(SUMMARY, context.select([0]), [])
    with pytest.raises(ValueError, match="row 1: the option has no tokens"):
        score_options(SUMMARY, prefix, [([5], [6]), ([5], [])])
    with pytest.raises(ValueError, match="row 1: neither its query nor the prefix"):
        score_options(SUMMARY, prefix, [([5], [6]), ([], [6])])


def test_losses_of_tokens() -> None:
    logits = torch.randn(2, 4, 9, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[1, 2, -100, 4], [-100, -100, -100, 8]])
    losses = token_losses(logits, labels)
    assert losses.shape == (2, 3) and losses[0, 1] == 0 and losses[1, :2].tolist() == [0, 0]
    by_hand = [-logits[0, 0].log_softmax(-1)[2], -logits[0, 2].log_softmax(-1)[4], -logits[1, 2].log_softmax(-1)[8]]
    torch.testing.assert_close(losses[labels[:, 1:] != -100], torch.stack(by_hand))
