"""Gist tokens and their controls: a compressed context equals one pass under the condition's mask."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from compressor_models import GIST, GREEDY, TOLERANCE, VOCABULARY, gist_model, padded, real, tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from synopsis.compressors import CompressedContext, GistLlamaForCausalLM, load
from synopsis.compressors.masks import CONDITIONS
from transformers import LlamaForCausalLM

MODELS = {(c, heads): gist_model(c, num_key_value_heads=heads) for c in CONDITIONS for heads in (4, 2)}
FEW = settings(max_examples=8, deadline=None, derandomize=True)
MODEL = st.sampled_from(sorted(MODELS))
SIDE = st.sampled_from(["left", "right"])


def mask_by_hand(row: list[int], condition: str, prompt: int) -> torch.Tensor:
    """(1, 1, T, T) additive mask of one row, position by position, as section 3.1 of the paper words it.

    A gist token that the model itself writes, beyond the `prompt`, is a token like any other.
    """
    gists = [index for index, token in enumerate(row[:prompt]) if token == GIST]
    mask = torch.full((1, 1, len(row), len(row)), float("-inf"))
    for reader in range(len(row)):
        for seen in range(reader + 1):
            after = bool(gists) and reader > gists[-1]
            hidden = {
                "gist": after and seen < gists[0],
                "neg_control": after and seen <= gists[-1],
                "pos_control": False,
            }
            if not hidden[condition]:
                mask[0, 0, reader, seen] = 0.0
    return mask


def by_hand(model: GistLlamaForCausalLM, row: list[int], prompt: int | None = None) -> torch.Tensor:
    """(T, vocabulary) logits of one row from transformers' own class under a mask built by hand."""
    plain = LlamaForCausalLM(model.config).eval()
    plain.load_state_dict(model.state_dict())
    mask = mask_by_hand(row, model.config.gist_condition, prompt or len(row))
    with torch.no_grad():
        return plain(torch.tensor([row]), attention_mask=mask).logits[0]


def greedy_by_hand(model: GistLlamaForCausalLM, row: list[int], count: int) -> list[int]:
    ids = list(row)
    for _ in range(count):
        ids.append(int(by_hand(model, ids, len(row))[-1].argmax()))
    return ids[len(row) :]


def draw(generator: torch.Generator, before: int, gists: int, after: int) -> list[int]:
    return tokens(generator, before) + [GIST] * gists + tokens(generator, after)


@FEW
@given(
    key=MODEL,
    side=SIDE,
    gists=st.integers(0, 3),
    sizes=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 5)), min_size=1, max_size=3),
)
def test_one_pass_is_the_mask_of_the_condition(
    key: tuple[str, int], side: str, gists: int, sizes: list[tuple[int, int]]
) -> None:
    model, generator = MODELS[key], torch.Generator().manual_seed(len(sizes))
    rows = [draw(generator, before + 1, gists, after) for before, after in sizes]
    ids, mask = padded(rows, side)
    logits = model(ids, mask).logits
    for index, row in enumerate(rows):
        torch.testing.assert_close(real(logits, mask, index), by_hand(model, row), **TOLERANCE)


@FEW
@given(
    key=MODEL,
    sides=st.tuples(SIDE, SIDE),
    gists=st.integers(1, 3),
    sizes=st.lists(st.tuples(st.integers(0, 6), st.integers(1, 5)), min_size=1, max_size=3),
)
def test_going_on_equals_one_pass(
    key: tuple[str, int], sides: tuple[str, str], gists: int, sizes: list[tuple[int, int]]
) -> None:
    model, generator = MODELS[key], torch.Generator().manual_seed(gists)
    if key[0] == "pos_control":  # keeps whole prompts, so these have one length
        sizes = [(sizes[0][0], after) for _, after in sizes]
    prompts = [draw(generator, before, gists, 0) for before, _ in sizes]
    rests = [tokens(generator, after) for _, after in sizes]
    context = model.compress(*padded(prompts, sides[0]))
    ids, mask = padded(rests, sides[1])
    logits = model.continue_from(context, ids, mask).logits
    for index, (prompt, rest) in enumerate(zip(prompts, rests, strict=True)):
        expected = by_hand(model, prompt + rest)[len(prompt) :]
        torch.testing.assert_close(real(logits, mask, index), expected, **TOLERANCE)
    assert context.source_tokens.tolist() == context.next_position.tolist() == list(map(len, prompts))
    assert context.length == {"gist": gists, "neg_control": 0, "pos_control": len(prompts[0])}[key[0]]


@FEW
@given(
    key=MODEL,
    gists=st.integers(1, 3),
    sizes=st.lists(st.tuples(st.integers(0, 6), st.integers(1, 4)), min_size=1, max_size=3),
)
def test_greedy_tokens_equal_those_of_whole_passes(
    key: tuple[str, int], gists: int, sizes: list[tuple[int, int]]
) -> None:
    """Of whole prompts in one left-padded batch, and of the same prompts in two parts."""
    model, generator = MODELS[key], torch.Generator().manual_seed(gists)
    rows = [draw(generator, before, gists, after) for before, after in sizes]
    expected = [greedy_by_hand(model, row, 6) for row in rows]
    ids, mask = padded(rows, "left")
    out = model.generate(ids, attention_mask=mask, **GREEDY)
    assert out[:, : ids.shape[1]].equal(ids)
    assert out[:, ids.shape[1] :].tolist() == expected
    if key[0] == "pos_control":
        return
    context = model.compress(
        *padded([row[: before + gists] for row, (before, _) in zip(rows, sizes, strict=True)], "left")
    )
    rest, rest_mask = padded([row[before + gists :] for row, (before, _) in zip(rows, sizes, strict=True)], "left")
    out = model.generate(rest, context=context, attention_mask=rest_mask, **GREEDY)
    assert out[:, rest.shape[1] :].tolist() == expected


def test_prompts_without_gist_tokens_are_plain_ones() -> None:
    model, rows = MODELS["gist", 4], [tokens(torch.Generator().manual_seed(1), size) for size in (3, 6)]
    ids, mask = padded(rows, "left")
    out = model.generate(ids, attention_mask=mask, **GREEDY)
    assert out[:, 6:].tolist() == [greedy_by_hand(model, row, 6) for row in rows]


def test_rows_with_and_without_gist_tokens_share_a_batch() -> None:
    model, rows = MODELS["gist", 4], [[5, 9, GIST, 7], [5, 6, 7, 8, 9, 10], [8, GIST, 4]]
    ids, mask = padded(rows, "left")
    out = model.generate(ids, attention_mask=mask, **GREEDY)
    assert out[:, 6:].tolist() == [greedy_by_hand(model, row, 6) for row in rows]


def test_one_context_serves_many_rows_and_rows_can_be_chosen() -> None:
    model, generator = MODELS["gist", 2], torch.Generator().manual_seed(2)
    prompts = [draw(generator, size, 2, 0) for size in (3, 6, 1)]
    rests = torch.tensor([tokens(generator, 4) for _ in range(3)])
    contexts = [model.compress(torch.tensor([prompt])) for prompt in prompts]
    shared = model.continue_from(contexts[1], rests).logits
    for index, rest in enumerate(rests.tolist()):
        torch.testing.assert_close(shared[index], by_hand(model, prompts[1] + rest)[8:], **TOLERANCE)

    merged = CompressedContext.concat(contexts)
    assert merged.next_position.tolist() == [5, 8, 3]
    chosen = merged.select([2, 0, 2])
    logits = model.continue_from(chosen, rests).logits
    for index, prompt in enumerate([prompts[2], prompts[0], prompts[2]]):
        expected = by_hand(model, prompt + rests[index].tolist())[len(prompt) :]
        torch.testing.assert_close(logits[index], expected, **TOLERANCE)


def test_a_context_is_not_changed_by_its_use() -> None:
    model, ids = MODELS["gist", 4], torch.tensor([[5, 6, GIST]])
    context = model.compress(ids)
    before = [key.clone() for key in context.keys]
    first = model.generate(torch.tensor([[8, 9]]), context=context, **GREEDY)
    assert torch.equal(model.generate(torch.tensor([[8, 9]]), context=context, **GREEDY), first)
    assert all(torch.equal(*pair) for pair in zip(context.keys, before, strict=True))
    assert context.nbytes == 2 * 2 * 4 * 8 * 4 + 2 * 8  # layers, K and V, heads, width, bytes; two numbers a row


@pytest.mark.parametrize("condition", CONDITIONS)
def test_saving_and_loading_changes_nothing(condition: str, tmp_path: Path) -> None:
    model = MODELS[condition, 2]
    ids = torch.tensor([[5, 6, 9, GIST, GIST]])
    model.save_pretrained(tmp_path / "model")
    again = load(tmp_path / "model", "cpu")
    context = model.compress(ids)
    context.save(tmp_path / "context.safetensors")
    loaded = CompressedContext.load(tmp_path / "context.safetensors")
    rest = torch.tensor([[11, 12, 13]])
    assert isinstance(again, GistLlamaForCausalLM)
    assert torch.equal(again.continue_from(loaded, rest).logits, model.continue_from(context, rest).logits)


def test_a_new_gist_token_starts_as_the_mean_embedding() -> None:
    model = gist_model()
    model.config.gist_token_id = None
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    model.add_gist_token(VOCABULARY)
    for layer, name in ((model.get_input_embeddings(), "model.embed_tokens.weight"), (model.lm_head, "lm_head.weight")):
        assert torch.equal(layer.weight[:VOCABULARY], before[name])
        torch.testing.assert_close(layer.weight[VOCABULARY], before[name].mean(0))
    assert model.config.vocab_size == VOCABULARY + 1
    kept = model.lm_head.weight.clone()
    with torch.no_grad():
        model.lm_head.weight[VOCABULARY] = 3.0
    model.add_gist_token(VOCABULARY)
    assert bool((model.lm_head.weight[VOCABULARY] == 3.0).all()) and torch.equal(model.lm_head.weight[:60], kept[:60])


def test_a_spare_row_of_the_vocabulary_starts_as_the_mean_embedding() -> None:
    model = gist_model()
    model.config.gist_token_id = None
    before = model.get_input_embeddings().weight.clone()
    model.add_gist_token(VOCABULARY - 1)
    assert torch.equal(model.get_input_embeddings().weight[:-1], before[:-1])
    torch.testing.assert_close(model.get_input_embeddings().weight[-1], before[:-1].mean(0))


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        ([[5, GIST, 6], [GIST, 6, GIST]], None, r"row 1 do not stand together: they are at positions \[0, 2\]"),
        ([[5, GIST], [5, 6]], None, "row 1 has no gist token .id 60"),
        ([[5, GIST], [GIST, GIST]], None, r"different numbers of gist tokens: \[1, 2\]"),
        ([[5, GIST, 0], [5, GIST, 6]], [[1, 1, 0], [1, 1, 1]], "row 1 goes on after its last gist token"),
        ([[]], None, "length is 0"),
    ],
)
def test_wrong_prompts_are_refused(ids: list[list[int]], mask: list[list[int]] | None, message: str) -> None:
    model = MODELS["gist", 4]
    with pytest.raises(ValueError, match=message):
        model.compress(torch.tensor(ids, dtype=torch.long), None if mask is None else torch.tensor(mask))


def test_wrong_uses_are_refused() -> None:
    model, ids = MODELS["gist", 4], torch.tensor([[5, 6, GIST]])
    with pytest.raises(ValueError, match="do not stand together"):
        model(torch.tensor([[GIST, 5, GIST]]))
    with pytest.raises(ValueError, match="at least one token after the gist tokens"):
        model.generate(ids, **GREEDY)
    with pytest.raises(ValueError, match="without padding"):
        MODELS["pos_control", 4].compress(torch.tensor([[0, 5, GIST]]), torch.tensor([[0, 1, 1]]))
    with pytest.raises(ValueError, match="no gist token yet"):
        GistLlamaForCausalLM(
            gist_model().config.__class__(**{**gist_model().config.to_dict(), "gist_token_id": None})
        ).compress(ids)
    context = model.compress(ids)
    for other in (gist_model(seed=1), MODELS["neg_control", 4], MODELS["gist", 2]):
        with pytest.raises(ValueError, match="another model"):
            other.continue_from(context, ids)
    with pytest.raises(ValueError, match="gist_condition 'none'"):
        gist_model("none")


def test_generate_counts_the_prompt_towards_max_length() -> None:
    ids = torch.tensor([[5, 6, GIST, 8, 9], [4, GIST, 5, 8, 9]])
    out = MODELS["gist", 4].generate(ids, **{**GREEDY, "max_new_tokens": None, "max_length": 9})
    assert out.shape == (2, 9)
