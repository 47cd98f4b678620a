"""Gist tokens and their controls: a compressed context equals one pass under the condition's mask."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from compressor_models import (
    GIST,
    GREEDY,
    TOLERANCE,
    VOCABULARY,
    WINDOW,
    architecture_model,
    gist_model,
    padded,
    real,
    tokens,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from synopsis.compressors import CompressedContext, GistLlamaForCausalLM, load
from synopsis.compressors.architectures import DECODERS as ARCHITECTURES
from synopsis.compressors.masks import CONDITIONS
from synopsis.compressors.published.gist import remove_gist
from transformers import AutoConfig, AutoModelForCausalLM

MODELS = {(c, heads): gist_model(c, num_key_value_heads=heads) for c in CONDITIONS for heads in (4, 2)}
FEW = settings(max_examples=8, deadline=None, derandomize=True)
MODEL = st.sampled_from(sorted(MODELS))
SIDE = st.sampled_from(["left", "right"])
WINDOWS = {"sliding_attention": WINDOW, "full_attention": 10**6}


@lru_cache
def model_of(architecture: str, condition: str) -> Any:
    return architecture_model("gist", architecture, gist_token_id=GIST, gist_condition=condition)


def mask_by_hand(row: list[int], condition: str, prompt: int, window: int) -> torch.Tensor:
    """(1, 1, T, T) additive mask of one row, position by position, as section 3.1 of the paper words it.

    A gist token that the model itself writes, beyond the `prompt`, is a token like any other.
    """
    gists = [index for index, token in enumerate(row[:prompt]) if token == GIST]
    mask = torch.full((1, 1, len(row), len(row)), float("-inf"))
    for reader in range(len(row)):
        for seen in range(max(0, reader - window + 1), reader + 1):
            after = bool(gists) and reader > gists[-1]
            hidden = {
                "gist": after and seen < gists[0],
                "neg_control": after and seen <= gists[-1],
                "pos_control": False,
            }
            if not hidden[condition]:
                mask[0, 0, reader, seen] = 0.0
    return mask


@lru_cache
def plain_of(model: Any) -> Any:
    """The model of transformers with the same weights."""
    config = AutoConfig.for_model(**model.config.to_dict())
    plain = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    plain.load_state_dict(model.state_dict())
    return plain


def by_hand(model: Any, row: list[int], prompt: int | None = None) -> torch.Tensor:
    """(T, vocabulary) logits of one row from transformers' own class under masks built by hand."""
    plain, condition, prompt = plain_of(model), model.config.gist_condition, prompt or len(row)
    kinds = getattr(model.config, "layer_types", None)
    if kinds is None:
        window = WINDOW if model.config.model_type in ("mistral", "phi3") else len(row)
        mask: Any = mask_by_hand(row, condition, prompt, window)
    else:
        mask = {kind: mask_by_hand(row, condition, prompt, WINDOWS[kind]) for kind in set(kinds)}
    with torch.no_grad():
        return plain(torch.tensor([row]), attention_mask=mask, position_ids=torch.arange(len(row))[None]).logits[0]


def greedy_by_hand(model: Any, row: list[int], count: int) -> list[int]:
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
    prompts = [draw(generator, before, gists, 0) for before, _ in sizes]
    rests = [tokens(generator, after) for _, after in sizes]
    context = model.compress(*padded(prompts, sides[0]))
    ids, mask = padded(rests, sides[1])
    logits = model.continue_from(context, ids, mask).logits
    for index, (prompt, rest) in enumerate(zip(prompts, rests, strict=True)):
        expected = by_hand(model, prompt + rest)[len(prompt) :]
        torch.testing.assert_close(real(logits, mask, index), expected, **TOLERANCE)
    assert context.source_tokens.tolist() == context.next_position.tolist() == list(map(len, prompts))
    assert context.length == {"gist": gists, "neg_control": 0, "pos_control": max(map(len, prompts))}[key[0]]


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
    context = model.compress(
        *padded([row[: before + gists] for row, (before, _) in zip(rows, sizes, strict=True)], "left")
    )
    rest, rest_mask = padded([row[before + gists :] for row, (before, _) in zip(rows, sizes, strict=True)], "left")
    out = model.generate(rest, context=context, attention_mask=rest_mask, **GREEDY)
    assert out[:, rest.shape[1] :].tolist() == expected


# ------------------------------------------------------------------------------------------------- every architecture

BEFORE, GISTS, AFTER = (2, 8, 5), (2, 1, 3), (4, 1, 7)


def three_rows(gists: tuple[int, ...] = GISTS) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts of unequal lengths with unequal numbers of gist tokens, some longer than a window; and what follows."""
    generator = torch.Generator().manual_seed(4)
    prompts = [draw(generator, before, count, 0) for before, count in zip(BEFORE, gists, strict=True)]
    return prompts, [tokens(generator, count) for count in AFTER]


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture(architecture: str, condition: str) -> None:
    """One pass, and going on from a context, row by row what the masks by hand give; padded on either side."""
    model = model_of(architecture, condition)
    prompts, rests = three_rows()
    rows = [prompt + rest for prompt, rest in zip(prompts, rests, strict=True)]
    expected = [by_hand(model, row) for row in rows]
    with torch.no_grad():
        for side, other in (("left", "right"), ("right", "left")):
            ids, mask = padded(rows, side)
            logits = model(ids, mask).logits
            context = model.compress(*padded(prompts, side))
            after, after_mask = padded(rests, other)
            cached = model.continue_from(context, after, after_mask).logits
            for index, prompt in enumerate(prompts):
                torch.testing.assert_close(real(logits, mask, index), expected[index], **TOLERANCE)
                torch.testing.assert_close(real(cached, after_mask, index), expected[index][len(prompt) :], **TOLERANCE)
    assert (
        context.attention_mask.sum(-1).tolist()
        == {
            "gist": list(GISTS),
            "neg_control": [0, 0, 0],
            "pos_control": list(map(len, prompts)),
        }[condition]
    )


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_writes_the_same(architecture: str, condition: str) -> None:
    """Greedily, from whole prompts in a batch, and from a context; further than a window."""
    model = model_of(architecture, condition)
    prompts, rests = three_rows()
    rows = [prompt + rest for prompt, rest in zip(prompts, rests, strict=True)]
    expected = [greedy_by_hand(model, row, 6) for row in rows]
    ids, mask = padded(rows, "left")
    assert model.generate(ids, attention_mask=mask, **GREEDY)[:, ids.shape[1] :].tolist() == expected
    context = model.compress(*padded(prompts, "left"))
    ids, mask = padded(rests, "left")
    new = model.generate(ids, context=context, attention_mask=mask, **GREEDY)
    assert new[:, ids.shape[1] :].tolist() == expected


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_has_the_published_interface(architecture: str) -> None:
    """In a batch with padding, where the published code took the first row's offset for all."""
    model = model_of(architecture, "gist")
    prompts, rests = three_rows((2, 2, 2))
    rows = [prompt + rest for prompt, rest in zip(prompts, rests, strict=True)]
    expected = [by_hand(model, row)[len(prompt) :] for row, prompt in zip(rows, prompts, strict=True)]
    written = [greedy_by_hand(model, row, 6) for row in rows]
    ids, mask = padded(rows, "left")
    found = model.get_gist_activations(ids, mask, gist_token=GIST, num_gist_tokens=2)
    left: dict[str, Any] = remove_gist({"input_ids": ids, "attention_mask": mask}, 2, GIST)
    seen = left["attention_mask"][:, 2:]
    both = {**left, "past_key_values": found.past_key_values, "gist_offset": found.gist_indices}
    whole = model.get_gist_activations(ids, mask, gist_token=GIST, cache_all=True)
    cached = whole.context.length
    shown = torch.cat([(torch.arange(cached) >= cached - 2).expand(3, -1), seen.bool()], dim=1)
    all_cached = {
        "input_ids": left["input_ids"],
        "attention_mask": torch.cat([torch.ones(3, cached, dtype=torch.long), seen], dim=1),
        "attention_mask_gist": shown[:, None, None].long(),
        "gist_activations": whole,
    }
    for arguments in ({**left, "gist_activations": found}, both, all_cached):
        logits = model(**arguments).logits
        for index in range(3):
            torch.testing.assert_close(real(logits, seen, index), expected[index], **TOLERANCE)
        new = model.generate(**arguments, **GREEDY)[:, seen.shape[1] :]
        assert new.tolist() == written
    assert whole.past_key_values[0][0].shape[2] == cached == max(map(len, prompts))
    torch.testing.assert_close(found.last_hidden_state, whole.last_hidden_state[:, -2:], **TOLERANCE)


def test_cached_gist_tokens_are_read_in_chunks_and_more_than_once() -> None:
    model, row = MODELS["gist", 2], [5, 9, 8, GIST, GIST, 11, 12, 13, 14, 15]
    expected = by_hand(model, row)[5:]
    found = model.get_gist_activations(torch.tensor([row[:5]]))
    for _ in range(2):
        first = model(torch.tensor([row[5:7]]), gist_activations=found, use_cache=True)
        second = model(torch.tensor([row[7:]]), past_key_values=first.past_key_values, gist_offset=found.gist_indices)
        torch.testing.assert_close(torch.cat([first.logits, second.logits], dim=1)[0], expected, **TOLERANCE)
    # One row of activations serves many; a row's own mask may hide what others see.
    ids = torch.tensor([row[5:], row[5:]])
    shown = torch.ones(2, 1, 5, 7).tril(diagonal=2)
    shown[1, :, 2:, 2] = 0.0  # the later tokens of the second row do not see the first one after the gist tokens
    logits = model(ids, gist_activations=found, attention_mask_gist=shown).logits
    torch.testing.assert_close(logits[0], expected, **TOLERANCE)
    torch.testing.assert_close(logits[1, :2], expected[:2], **TOLERANCE)
    assert float((logits[1, 2:] - expected[2:]).detach().abs().max()) > 0.1


def test_a_mask_that_is_given_comes_before_the_condition() -> None:
    model, row = MODELS["gist", 2], [5, 9, 8, GIST, GIST, 11, 12, 13]
    ids = torch.tensor([row])
    for condition in CONDITIONS:
        shown = (mask_by_hand(row, condition, len(row), len(row)) == 0) | ~torch.ones(8, 8, dtype=torch.bool).tril()
        with torch.no_grad():
            expected = plain_of(model)(ids, attention_mask=mask_by_hand(row, condition, len(row), len(row))).logits
        torch.testing.assert_close(model(ids, attention_mask_gist=shown.long()).logits, expected, **TOLERANCE)
    # In `generate` too, where all is shown: the tokens are those of the plain model.
    new: list[int] = []
    for _ in range(6):
        new.append(int(plain_of(model)(torch.tensor([row + new])).logits[0, -1].argmax()))
    everything = torch.ones(1, 1, 1, len(row), dtype=torch.long)
    assert model.generate(ids, attention_mask_gist=everything, **GREEDY)[0, len(row) :].tolist() == new


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
    prompts = [draw(generator, size, count, 0) for size, count in ((3, 2), (6, 2), (1, 4))]
    rests = torch.tensor([tokens(generator, 4) for _ in range(3)])
    contexts = [model.compress(torch.tensor([prompt])) for prompt in prompts]
    shared = model.continue_from(contexts[1], rests).logits
    for index, rest in enumerate(rests.tolist()):
        torch.testing.assert_close(shared[index], by_hand(model, prompts[1] + rest)[8:], **TOLERANCE)

    merged = CompressedContext.concat(contexts)
    assert merged.next_position.tolist() == [5, 8, 5]
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
    ids, mask = padded(three_rows()[0], "right")
    model.save_pretrained(tmp_path / "model")
    again = load(tmp_path / "model", "cpu")
    context = model.compress(ids, mask)
    context.save(tmp_path / "context.safetensors")
    loaded = CompressedContext.load(tmp_path / "context.safetensors")
    rest = torch.tensor([[11, 12, 13]] * 3)
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
        ([[5, GIST], [0, 0]], [[1, 1], [0, 0]], "row 1 has no tokens: it is padding only"),
        ([[5] * 256 + [GIST]], None, "row 0 need 257 positions; this model has 256"),
        ([[5, GIST, 0], [5, GIST, 6]], [[1, 1, 0], [1, 1, 1]], "row 1 goes on after its last gist token"),
        ([[]], None, "length is 0"),
    ],
)
def test_wrong_prompts_are_refused(ids: list[list[int]], mask: list[list[int]] | None, message: str) -> None:
    model = MODELS["gist", 4]
    with pytest.raises(ValueError, match=message):
        model.compress(torch.tensor(ids, dtype=torch.long), None if mask is None else torch.tensor(mask))


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        ([[5, 6], [5, 6]], [[1, 1], [0, 0]], "row 1 has no tokens: it is padding only"),
        ([[]], None, "length is 0"),
        ([[5] * 257, [6] * 257], [[0] * 257, [1] * 257], "row 0 has no tokens"),
        ([[5] * 257, [6] * 257], [[0] * 2 + [1] * 255, [1] * 257], "row 1 need 257 positions; this model has 256"),
        ([[5, GIST, 6, 9], [GIST, 6, GIST, 9]], None, r"row 1 do not stand together: they are at positions \[0, 2\]"),
    ],
)
def test_wrong_rows_are_refused_by_passes_and_generation(
    ids: list[list[int]], mask: list[list[int]] | None, message: str
) -> None:
    model = MODELS["gist", 4]
    rows, real_tokens = torch.tensor(ids, dtype=torch.long), None if mask is None else torch.tensor(mask)
    with pytest.raises(ValueError, match=message):
        model(rows, real_tokens)
    with pytest.raises(ValueError, match=message):
        model.generate(rows, attention_mask=real_tokens, **GREEDY)


def test_wrong_uses_are_refused() -> None:
    model, ids = MODELS["gist", 4], torch.tensor([[5, 6, GIST]])
    with pytest.raises(ValueError, match="row 1: generate needs at least one token after the gist tokens"):
        model.generate(torch.tensor([[5, GIST, 6], [5, 6, GIST]]), **GREEDY)
    with pytest.raises(ValueError, match="row 1 is padded on the right"):
        model.generate(torch.tensor([[5, GIST, 6]] * 2), attention_mask=torch.tensor([[1, 1, 1], [1, 1, 0]]), **GREEDY)
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


def test_wrong_published_calls_are_refused() -> None:
    model, rest = MODELS["gist", 4], torch.tensor([[8, 9], [8, 9]])
    found = model.get_gist_activations(torch.tensor([[5, 6, GIST], [7, 6, GIST]]))
    with pytest.raises(ValueError, match="row 1 has 1 gist tokens; num_gist_tokens is 2"):
        model.get_gist_activations(torch.tensor([[5, GIST, GIST], [5, 6, GIST]]), num_gist_tokens=2)
    with pytest.raises(
        ValueError, match=r"attention_mask has shape \(2, 2\); expected \(2, 3\), for 1 cached and 2 new"
    ):
        model(rest, attention_mask=torch.ones(2, 2), gist_activations=found)
    with pytest.raises(ValueError, match=r"attention_mask_gist has shape \(2, 1, 3, 3\); expected \(2, 1, 2, 3\)"):
        model(rest, attention_mask_gist=torch.ones(2, 1, 3, 3), gist_activations=found)
    with pytest.raises(ValueError, match=r"attention_mask_gist has shape \(2, 2\); expected \(2, 1, 2, 2\)"):
        model(rest, attention_mask_gist=torch.ones(2, 2))
    with pytest.raises(ValueError, match="row 1 has no new tokens"):
        model(rest, attention_mask=torch.tensor([[1, 1, 1], [1, 0, 0]]), gist_activations=found)
    with pytest.raises(ValueError, match="the cache holds 2 rows; the input has 3"):
        model(rest[[0, 0, 0]], gist_activations=found)
    with pytest.raises(ValueError, match="it needs past_key_values"):
        model(rest, gist_offset=3)
    with pytest.raises(ValueError, match="need 258 positions; this model has 256"):
        model(rest, past_key_values=found.past_key_values, gist_offset=255)
    with pytest.raises(ValueError, match="row 1 has 0 gist tokens; expected 1"):
        remove_gist({"input_ids": torch.tensor([[5, GIST, 6], [5, 6, 7]])}, 1, GIST)
    with pytest.raises(ValueError, match="row 0 has no token after its gist tokens"):
        remove_gist({"input_ids": torch.tensor([[5, GIST]])}, 1, GIST)


def test_fewer_gist_tokens_than_were_learned_are_refused() -> None:
    model = gist_model(gist_tokens=2)
    many, few = (model.compress(torch.tensor([[5, 6, *[GIST] * count]])) for count in (2, 1))
    merged = CompressedContext.concat([many, few])
    for context, row in ((few, 0), (merged, 1)):
        with pytest.raises(ValueError, match=f"row {row} of the context holds 1 gist tokens; .* trained with 2"):
            model.generate(torch.tensor([[8]] * context.batch_size), context=context, **GREEDY)
    model.continue_from(many, torch.tensor([[8]]))
    # A prompt without gist tokens is a plain one, however short, in a batch with others too.
    rows = [[9, 4], [5, 6, GIST, GIST, 7]]
    ids, mask = padded(rows, "left")
    expected = [greedy_by_hand(model, row, 6) for row in rows]
    assert model.generate(ids, attention_mask=mask, **GREEDY)[:, 5:].tolist() == expected


def test_activations_that_are_not_finite_are_refused() -> None:
    model = gist_model()
    context = model.compress(torch.tensor([[5, 6, GIST], [7, 6, GIST]]))
    context.values[1][1, 0, 0, 3] = float("nan")
    with pytest.raises(ValueError, match="row 1 of the context holds activations that are not finite"):
        model.continue_from(context, torch.tensor([[8], [9]]))
    with torch.no_grad():
        model.model.embed_tokens.weight[7] = float("inf")
    with pytest.raises(ValueError, match="row 1 of the context holds activations that are not finite"):
        model.compress(torch.tensor([[5, 6, GIST], [7, 6, GIST]]))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("condition", CONDITIONS)
def test_padding_leaves_gradients_as_they_are(condition: str, side: str) -> None:
    """Of a batch in training: those of its rows alone, each by its share of the labels."""
    model = gist_model(condition)
    prompts, rests = three_rows()
    rows = [prompt + rest for prompt, rest in zip(prompts, rests, strict=True)]
    ids, mask = padded(rows, side)
    labels = ids.masked_fill(mask == 0, -100)
    labels[torch.arange(3), mask.argmax(-1)] = -100  # nothing predicts a row's first token
    model.train()(ids, mask, labels=labels).loss.backward()
    found = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    total = sum(map(len, rows)) - 3
    for row in rows:
        alone = torch.tensor([row])
        (model(alone, labels=alone).loss * (len(row) - 1) / total).backward()
    for name, weight in model.named_parameters():
        torch.testing.assert_close(found[name], weight.grad, **TOLERANCE)


def test_contexts_of_float32_are_read_in_bfloat16() -> None:
    """Batched, cached and whole, the same within what bfloat16 keeps: 8 bits of the largest logit."""
    model, half = gist_model(num_key_value_heads=2), gist_model(num_key_value_heads=2).to(torch.bfloat16)
    prompts, rests = three_rows()
    ids, mask = padded(rests, "left")
    own = half.compress(*padded(prompts, "left"))
    assert own.keys[0].dtype == torch.bfloat16
    for context in (own, model.compress(*padded(prompts, "left"))):
        logits = half.continue_from(context, ids, mask).logits
        assert logits.dtype == torch.bfloat16
        for index, prompt in enumerate(prompts):
            expected = by_hand(model, prompt + rests[index])[len(prompt) :]
            error = (real(logits, mask, index).detach().float() - expected).abs().max()
            assert float(error) < 2**-4 * float(expected.abs().max())
        new = half.generate(ids, context=context, attention_mask=mask, **GREEDY)
        assert new.shape == (3, ids.shape[1] + 6)


def test_generate_counts_the_prompt_towards_max_length() -> None:
    ids = torch.tensor([[5, 6, GIST, 8, 9], [4, GIST, 5, 8, 9]])
    out = MODELS["gist", 4].generate(ids, **{**GREEDY, "max_new_tokens": None, "max_length": 9})
    assert out.shape == (2, 9)
