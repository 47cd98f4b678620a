"""The law of compressors, for every method on every architecture: after a compressed context a row's logits and greedy
tokens are those of the one pass that it stands for, made by transformers' own class, alone and without padding."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from compressor_models import PAD, padded, tokens
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from laws import LAWS, Law
from synopsis.compressors import CompressedContext, load
from synopsis.compressors.architectures import DECODERS
from synopsis.compressors.registry import class_by_name
from synopsis.compressors.section import sections

FEW = settings(
    max_examples=2,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
EVERY = pytest.mark.parametrize(
    ("law", "architecture"),
    [pytest.param(law, name, id=f"{key}-{name}") for key, law in LAWS.items() for name in law.architectures],
)
SIDE = st.sampled_from(["left", "right"])
SIZES = st.lists(st.tuples(st.integers(1, 13), st.integers(1, 7)), min_size=1, max_size=3)
"""Of each row: what is compressed, and what follows."""
UNEQUAL = [(4, 4), (9, 1), (8, 7)]
"""Padding stands between a context and what follows, and some of it is further away than a window."""


def rows_of(law: Law, sizes: list[tuple[int, int]], seed: int = 0) -> tuple[list[list[int]], list[list[int]]]:
    generator = torch.Generator().manual_seed(seed)
    prompts = [law.prompt(generator, size) for size, _ in sizes]
    return prompts, [tokens(generator, size) for _, size in sizes]


def test_every_method_that_compresses_has_a_law() -> None:
    compressing = {name for name, section in sections().items() if section.compresses}
    assert compressing <= set(LAWS)


@EVERY
@FEW
@given(sizes=SIZES, sides=st.tuples(SIDE, SIDE), seed=st.integers(0, 9))
@example(sizes=UNEQUAL, sides=("left", "right"), seed=4)
@example(sizes=UNEQUAL, sides=("right", "left"), seed=4)
def test_what_follows_a_context_has_the_logits_of_one_pass(
    law: Law, architecture: str, sizes: list[tuple[int, int]], sides: tuple[str, str], seed: int
) -> None:
    """Rows of unequal length before and after, together and each alone."""
    model = law.model(architecture)
    prompts, rests = rows_of(law, sizes, seed)
    with torch.no_grad():
        context = model.compress(*padded(prompts, sides[0]), **law.options)
        together = law.after(model, context, rests, sides[1])
        for row, (prompt, rest) in enumerate(zip(prompts, rests, strict=True)):
            expected = law.expected(model, prompt, rest)
            law.close(together[row], expected)
            alone = model.compress(torch.tensor([prompt]), **law.options)
            law.close(law.after(model, alone, [rest])[0], expected)
    assert context.source_tokens.tolist() == list(map(len, prompts))
    assert context.attention_mask.sum(-1).tolist() == list(map(law.vectors, prompts))


@EVERY
@FEW
@given(sizes=SIZES, side=SIDE)
@example(sizes=UNEQUAL, side="left")
def test_greedy_tokens_after_a_context_are_those_of_whole_passes(
    law: Law, architecture: str, sizes: list[tuple[int, int]], side: str
) -> None:
    """Further than a window; with an end that the first row writes early, and perhaps others."""
    model = law.model(architecture)
    prompts, rests = rows_of(law, sizes)
    context = model.compress(*padded(prompts, side), **law.options)
    expected = [law.greedy(model, prompt, rest, 6) for prompt, rest in zip(prompts, rests, strict=True)]
    for end in (None, expected[0][2]):
        stopped = [row if end not in row else row[: row.index(end) + 1] for row in expected]
        longest = max(map(len, stopped))
        filled = [row + [9] * (longest - len(row)) for row in stopped]
        options = {"max_new_tokens": 6, "eos_token_id": end, "pad_token_id": 9}
        assert law.written(model, context, rests, **options) == filled


@EVERY
def test_contexts_put_together_and_taken_apart_are_what_they_were(law: Law, architecture: str) -> None:
    """They serve many rows, and are not changed by it."""
    model = law.model(architecture)
    prompts, rests = rows_of(law, [(9, 3), (4, 5), (13, 1)])
    with torch.no_grad():
        parts = [model.compress(torch.tensor([prompt]), **law.options) for prompt in prompts]
        both = CompressedContext.concat(parts)
        assert both.next_position.tolist() == [int(part.next_position[0]) for part in parts]
        for chosen in ([0, 1, 2], [2, 0, 1], [1, 1, 1]):
            after = law.after(model, both.select(chosen), rests)
            for row, which in enumerate(chosen):
                law.close(after[row], law.expected(model, prompts[which], rests[row]))
        for context in (parts[1], parts[1].expand(3)):
            first, again = law.after(model, context, rests), law.after(model, context, rests)
            assert all(map(torch.equal, first, again))
            for row, found in enumerate(first):
                law.close(found, after[row])


@EVERY
def test_saving_loading_and_pickling_change_nothing(law: Law, architecture: str, tmp_path: Path) -> None:
    model = law.model(architecture)
    prompts, rests = rows_of(law, [(9, 3), (4, 5)])
    context = model.compress(*padded(prompts, "right"), **law.options)
    expected = law.after(model, context, rests)
    model.save_pretrained(tmp_path / "model")
    context.save(tmp_path / "context.safetensors")
    loaded = CompressedContext.load(tmp_path / "context.safetensors")
    for again in (load(tmp_path / "model", "cpu"), pickle.loads(pickle.dumps(model))):
        assert type(again) is type(model)
        weights = again.state_dict()
        assert (
            all(torch.equal(weights.pop(name), weight) for name, weight in model.state_dict().items()) and not weights
        )
        # Where in memory the weights lie decides which kernel multiplies them, and that the last bits.
        for found, wanted in zip(law.after(again, loaded, rests), expected, strict=True):
            law.close(found, wanted)
    if architecture in DECODERS:
        assert class_by_name(type(model).__name__) is type(model)


@EVERY
def test_bfloat16_is_near_float32(law: Law, architecture: str) -> None:
    model = law.model(architecture)
    half = copy.deepcopy(model).to(torch.bfloat16)
    prompts, rests = rows_of(law, [(11, 4), (6, 7)])
    own, halved = (each.compress(*padded(prompts, "left"), **law.options) for each in (model, half))
    expected = torch.cat([law.expected(model, *pair) for pair in zip(prompts, rests, strict=True)])
    for context in (own, halved):  # a context in float32 serves the model in bfloat16
        found = torch.cat(law.after(half, context, rests))
        assert found.dtype == torch.bfloat16
        assert float(((found.float() - expected).norm() / expected.norm()).detach()) < 0.2  # unrelated ones: 1.4
        assert len(law.written(half, context, rests, max_new_tokens=4, eos_token_id=None, pad_token_id=PAD)[0]) == 4


@pytest.mark.parametrize("name", LAWS)
def test_a_call_with_a_context_goes_on_from_it(name: str) -> None:
    law = LAWS[name]
    model = law.model(law.architectures[0])
    (prompt,), (rest,) = rows_of(law, [(8, 2)])
    context, ids = model.compress(torch.tensor([prompt])), torch.tensor([rest])
    options: Any = {"decoder_input_ids": ids} if "t5" in name else {}
    assert torch.equal(
        model(ids, context=context, **options).logits, model.continue_from(context, ids, **options).logits
    )
    assert context.compression_ratio.shape == (1,)
    if "t5" not in name:  # the prompt counts
        out = model.generate(ids, context=context, do_sample=False, max_length=7, eos_token_id=None, pad_token_id=PAD)
        assert out.shape == (1, 7)
