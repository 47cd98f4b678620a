"""Gist tokens and their controls on decoders and T5: the mask of the condition in one pass, new tokens, refusals.

The published interface of decoders stands here too, that of T5 in `test_gist_t5`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from compressor_models import GIST, GREEDY, TOLERANCE, VOCABULARY, gist_model, padded, real, tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import (
    DECODERS,
    LAWS,
    POS_CONTROL_T5,
    Gist,
    gist_by_hand,
    gist_greedy,
    instruction,
    mask_by_hand,
    plain_of,
)
from synopsis.compressors import CompressedContext
from synopsis.compressors.masks import CONDITIONS
from synopsis.compressors.published.gist import remove_gist
from t5_models import KINDS, answers, t5_model

GISTS = {**{name: law for name, law in LAWS.items() if isinstance(law, Gist)}, "pos_control t5": POS_CONTROL_T5}
EVERY = pytest.mark.parametrize(
    ("law", "architecture"),
    [pytest.param(law, name, id=f"{key}-{name}") for key, law in GISTS.items() for name in law.architectures],
)
SIDE = st.sampled_from(["left", "right"])
FEW = settings(max_examples=4, deadline=None, derandomize=True, database=None)
MODEL, T5 = gist_model(), t5_model()


@EVERY
@FEW
@given(
    side=SIDE,
    sizes=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 3), st.integers(1, 7)), min_size=1, max_size=3),
)
def test_one_pass_is_the_mask_of_the_condition(
    law: Gist, architecture: str, side: str, sizes: list[tuple[int, int, int]]
) -> None:
    """Rows with few, many and no gist tokens in one padded batch: their logits, and what is written after them."""
    model, generator = law.model(architecture), torch.Generator().manual_seed(len(sizes))
    rows = [instruction(generator, *size) for size in sizes]
    for found, expected in law.whole(model, rows, side):
        torch.testing.assert_close(found, expected, **TOLERANCE)
    found, expected = law.generated(model, rows)
    assert found == expected


def three_rows() -> tuple[list[list[int]], list[list[int]]]:
    """Prompts of unequal lengths with two gist tokens each, some longer than a window; and what follows."""
    generator = torch.Generator().manual_seed(4)
    prompts = [instruction(generator, before, 2) for before in (2, 8, 5)]
    return prompts, [tokens(generator, count) for count in (4, 1, 7)]


# ------------------------------------------------------------------------------------------------ published interface


@pytest.mark.parametrize("architecture", DECODERS)
def test_every_architecture_has_the_published_interface(architecture: str) -> None:
    """In a batch with padding, where the published code took the first row's offset for all."""
    model = LAWS["gist"].model(architecture)
    prompts, rests = three_rows()
    rows = [prompt + rest for prompt, rest in zip(prompts, rests, strict=True)]
    expected = [gist_by_hand(model, row)[len(prompt) :] for row, prompt in zip(rows, prompts, strict=True)]
    written = [gist_greedy(model, row, 6) for row in rows]
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
        assert model.generate(**arguments, **GREEDY)[:, seen.shape[1] :].tolist() == written
    assert whole.past_key_values[0][0].shape[2] == cached == max(map(len, prompts))
    torch.testing.assert_close(found.last_hidden_state, whole.last_hidden_state[:, -2:], **TOLERANCE)


def test_cached_gist_tokens_are_read_in_chunks_and_more_than_once() -> None:
    model, row = gist_model(num_key_value_heads=2), [5, 9, 8, GIST, GIST, 11, 12, 13, 14, 15]
    expected = gist_by_hand(model, row)[5:]
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
    row = [5, 9, 8, GIST, GIST, 11, 12, 13]
    ids, causal = torch.tensor([row]), torch.ones(8, 8, dtype=torch.bool).tril()
    for condition in CONDITIONS:
        mask = mask_by_hand(row, condition)
        with torch.no_grad():
            expected = plain_of(MODEL)(ids, attention_mask=mask).logits
        logits = MODEL(ids, attention_mask_gist=((mask == 0) | ~causal).long()).logits
        torch.testing.assert_close(logits, expected, **TOLERANCE)
    # In `generate` too, where all is shown: the tokens are those of the plain model.
    new: list[int] = []
    for _ in range(6):
        new.append(int(plain_of(MODEL)(torch.tensor([row + new])).logits[0, -1].argmax()))
    everything = torch.ones(1, 1, 1, len(row), dtype=torch.long)
    assert MODEL.generate(ids, attention_mask_gist=everything, **GREEDY)[0, len(row) :].tolist() == new


# ----------------------------------------------------------------------------------------------- new tokens, gradients


def ends_of(model: Any) -> list[torch.Tensor]:
    return [model.get_input_embeddings().weight, model.get_output_embeddings().weight]


@pytest.mark.parametrize("kind", ["llama", *KINDS])
@pytest.mark.parametrize("token", [VOCABULARY, VOCABULARY - 1], ids=["a new row", "a spare row"])
def test_a_new_gist_token_starts_as_the_mean_embedding(kind: str, token: int) -> None:
    model = gist_model(gist_token_id=None) if kind == "llama" else t5_model("gist", kind, gist_token_id=None)
    before = [weight.detach().clone() for weight in ends_of(model)]
    model.add_gist_token(token)
    for weight, old in zip(ends_of(model), before, strict=True):
        assert torch.equal(weight[:token], old[:token])
        assert len(weight) == max(VOCABULARY, token + 1) == model.config.vocab_size
        torch.testing.assert_close(weight[token], old[:token].mean(0))
    with torch.no_grad():
        ends_of(model)[0][token] = 3.0
    model.add_gist_token(token)
    assert bool((ends_of(model)[0][token] == 3.0).all()), "a token that it has already stays as it is"
    options: Any = {} if kind == "llama" else {"decoder_input_ids": answers(1)}
    logits = model(torch.tensor([[5, 6, token, 7]]), **options).logits[:, -1]
    context = model.compress(torch.tensor([[5, 6, token]]))
    after = model.continue_from(context, torch.tensor([[7]]), **options).logits[:, -1]
    torch.testing.assert_close(after, logits, **TOLERANCE)
    if kind != "llama":
        assert model.encoder.embed_tokens.weight is model.decoder.embed_tokens.weight is model.shared.weight
        assert (model.lm_head.weight is model.shared.weight) == (kind == "tied")


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("condition", CONDITIONS)
def test_padding_leaves_gradients_as_they_are(condition: str, side: str) -> None:
    """Of a batch in training: those of its rows alone, each by its share of the labels."""
    model = gist_model(condition)
    rows = [prompt + rest for prompt, rest in zip(*three_rows(), strict=True)]
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


def test_a_context_counts_its_bytes_and_generate_the_prompt() -> None:
    ids = torch.tensor([[5, 6, GIST, 8, 9], [4, GIST, 5, 8, 9]])
    assert MODEL.generate(ids, **{**GREEDY, "max_new_tokens": None, "max_length": 9}).shape == (2, 9)
    context = MODEL.compress(torch.tensor([[5, 6, GIST]]))
    assert context.nbytes == 2 * 2 * 4 * 8 * 4 + 2 * 8  # layers, K and V, heads, width, bytes; two numbers a row


# ----------------------------------------------------------------------------------------------------------- bad input

APART = r"row 1 do not stand together: they are at positions \[0, 2\]"
PADDING = "row 1 has no tokens: it is padding only"


@pytest.mark.parametrize(
    ("ids", "mask", "message", "models"),
    [
        ([[5, GIST, 6], [GIST, 6, GIST]], None, APART, (MODEL, T5)),
        ([[5, GIST], [5, 6]], None, "row 1 has no gist token .id 60", (MODEL, T5)),
        ([[5, GIST], [0, 0]], [[1, 1], [0, 0]], PADDING, (MODEL, T5)),
        ([[5] * 256 + [GIST]], None, "row 0 need 257 positions; this model has 256", (MODEL,)),
        ([[5, GIST, 0], [5, GIST, 6]], [[1, 1, 0], [1, 1, 1]], "row 1 goes on after its last gist token", (MODEL, T5)),
        ([[5, GIST]], [[1, 1, 1]], r"attention_mask has shape \(1, 3\); expected \(1, 2\)", (T5,)),
        ([[]], None, "length is 0", (MODEL, T5)),
    ],
)
def test_wrong_prompts_are_refused(
    ids: list[list[int]], mask: list[list[int]] | None, message: str, models: tuple[Any, ...]
) -> None:
    for model in models:
        with pytest.raises(ValueError, match=message):
            model.compress(torch.tensor(ids, dtype=torch.long), None if mask is None else torch.tensor(mask))


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        ([[5, 6], [5, 6]], [[1, 1], [0, 0]], PADDING),
        ([[]], None, "length is 0"),
        ([[5] * 257, [6] * 257], [[0] * 257, [1] * 257], "row 0 has no tokens"),
        ([[5] * 257, [6] * 257], [[0] * 2 + [1] * 255, [1] * 257], "row 1 need 257 positions; this model has 256"),
        ([[5, GIST, 6, 9], [GIST, 6, GIST, 9]], None, APART),
    ],
)
def test_wrong_rows_are_refused_by_passes_and_generation(
    ids: list[list[int]], mask: list[list[int]] | None, message: str
) -> None:
    rows, real_tokens = torch.tensor(ids, dtype=torch.long), None if mask is None else torch.tensor(mask)
    for call in (lambda: MODEL(rows, real_tokens), lambda: MODEL.generate(rows, attention_mask=real_tokens, **GREEDY)):
        with pytest.raises(ValueError, match=message):
            call()


def test_wrong_uses_are_refused() -> None:
    ids = torch.tensor([[5, 6, GIST]])
    with pytest.raises(ValueError, match="row 1: generate needs at least one token after the gist tokens"):
        MODEL.generate(torch.tensor([[5, GIST, 6], [5, 6, GIST]]), **GREEDY)
    with pytest.raises(ValueError, match="row 1 is padded on the right"):
        MODEL.generate(torch.tensor([[5, GIST, 6]] * 2), attention_mask=torch.tensor([[1, 1, 1], [1, 1, 0]]), **GREEDY)
    context = MODEL.compress(ids)
    others = (gist_model(seed=1), gist_model("neg_control"), gist_model(num_key_value_heads=2), T5)
    for other in others:
        with pytest.raises(ValueError, match="another model"):
            other.continue_from(context, ids)
    for model in (MODEL, T5):
        with pytest.raises(ValueError, match="in one piece, not after another context"):
            model.compress(ids, context=context)
    for make in (gist_model, t5_model):
        with pytest.raises(ValueError, match="no gist token yet"):
            make(gist_token_id=None).compress(ids)
        with pytest.raises(ValueError, match="gist_condition 'none'"):
            make("none")


def test_wrong_published_calls_are_refused() -> None:
    rest = torch.tensor([[8, 9], [8, 9]])
    found = MODEL.get_gist_activations(torch.tensor([[5, 6, GIST], [7, 6, GIST]]))
    cached, one, uneven = found.past_key_values, torch.tensor([[5, GIST, 6], [5, 6, 7]]), torch.tensor([[5, GIST]])
    counts = torch.tensor([[5, GIST, GIST], [5, 6, GIST]])
    short = torch.tensor([[1, 1, 1], [1, 0, 0]])
    for call, message in (
        (
            lambda: MODEL.get_gist_activations(counts, num_gist_tokens=2),
            "row 1 has 1 gist tokens; num_gist_tokens is 2",
        ),
        (
            lambda: MODEL(rest, attention_mask=torch.ones(2, 2), gist_activations=found),
            r"attention_mask has shape \(2, 2\); expected \(2, 3\), for 1 cached and 2 new",
        ),
        (
            lambda: MODEL(rest, attention_mask_gist=torch.ones(2, 1, 3, 3), gist_activations=found),
            r"attention_mask_gist has shape \(2, 1, 3, 3\); expected \(2, 1, 2, 3\)",
        ),
        (
            lambda: MODEL(rest, attention_mask_gist=torch.ones(2, 2)),
            r"attention_mask_gist has shape \(2, 2\); expected \(2, 1, 2, 2\)",
        ),
        (lambda: MODEL(rest, attention_mask=short, gist_activations=found), "row 1 has no new tokens"),
        (lambda: MODEL(rest[[0, 0, 0]], gist_activations=found), "the cache holds 2 rows; the input has 3"),
        (lambda: MODEL(rest, gist_offset=3), "it needs past_key_values"),
        (lambda: MODEL(rest, past_key_values=cached, gist_offset=255), "need 258 positions; this model has 256"),
        (lambda: remove_gist({"input_ids": one}, 1, GIST), "row 1 has 0 gist tokens; expected 1"),
        (lambda: remove_gist({"input_ids": uneven}, 1, GIST), "row 0 has no token after its gist tokens"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_fewer_gist_tokens_than_were_learned_are_refused() -> None:
    model = gist_model(gist_tokens=2)
    many, few = (model.compress(torch.tensor([[5, 6, *[GIST] * count]])) for count in (2, 1))
    merged = CompressedContext.concat([many, few])
    for context, row in ((few, 0), (merged, 1)):
        with pytest.raises(ValueError, match=f"row {row} of the context holds 1 gist tokens; .* trained with 2"):
            model.generate(torch.tensor([[8]] * context.batch_size), context=context, **GREEDY)
    model.continue_from(many, torch.tensor([[8]]))
    # A prompt without gist tokens is a plain one, however short, in a batch with others too.
    ids, mask = padded([[9, 4], [5, 6, GIST, GIST, 7]], "left")
    expected = [gist_greedy(model, row, 6) for row in ([9, 4], [5, 6, GIST, GIST, 7])]
    assert model.generate(ids, attention_mask=mask, **GREEDY)[:, 5:].tolist() == expected


def test_activations_that_are_not_finite_are_refused() -> None:
    model, ids = gist_model(), torch.tensor([[5, 6, GIST], [7, 6, GIST]])
    context = model.compress(ids)
    broken = replace(context, values=(context.values[0], context.values[1].clone()))
    broken.values[1][1, 0, 0, 3] = float("nan")
    message = "row 1 of the context holds activations that are not finite"
    with pytest.raises(ValueError, match=message):
        model.continue_from(broken, torch.tensor([[8], [9]]))
    with torch.no_grad():
        model.model.embed_tokens.weight[7] = float("inf")
    with pytest.raises(ValueError, match=message):
        model.compress(ids)
