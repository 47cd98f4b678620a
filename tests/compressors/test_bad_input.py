"""What cannot be right is refused by summary compressors, in one sentence that names the row and the numbers."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from compressor_models import GIST, architecture_model, gist_model
from synopsis.compressors import CompressedContext, compressor_class
from synopsis.compressors.architectures import DECODERS as ARCHITECTURES
from synopsis.compressors.registry import class_by_name
from synopsis.errors import InputError
from torch import Tensor
from transformers import GenerationConfig

POSITIONS = 24
FAMILIES = pytest.mark.parametrize("architecture", ["llama", "mistral", "opt"])
GREEDY: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
IDS = torch.arange(3, 19).reshape(2, 8)


def model_of(architecture: str = "llama", **fields: Any) -> Any:
    """Three summary vectors a segment, and few positions."""
    settings = {"summary_length": 3, "max_position_embeddings": POSITIONS, **fields}
    return architecture_model("summary", architecture, **settings)


def says(message: str) -> Any:
    return pytest.raises(ValueError, match=re.escape(message))


def ids_of(rows: int, length: int) -> Tensor:
    return torch.full((rows, length), 5)


# ----------------------------------------------------------------------------------------------------------- segments


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([3, 4], "[3, 4] add up to 7, not to 8 tokens"),
        ([4, 4, 4], "[4, 4, 4] add up to 12, not to 8 tokens"),
        ([9, -1], "segment_lengths [9, -1]: every segment needs at least one token"),
        ([8, 0], "segment_lengths [8, 0]: every segment needs at least one token"),
        ([], "segment_lengths []: every segment needs at least one token"),
        (0, "segment_lengths 0: every segment needs at least one token"),
        (-2, "segment_lengths -2: every segment needs at least one token"),
    ],
)
@FAMILIES
def test_segment_lengths_that_do_not_fit(architecture: str, lengths: int | list[int], message: str) -> None:
    model = model_of(architecture)
    context = model.compress(IDS)
    calls: list[Callable[[], Any]] = [
        lambda: model(IDS, segment_lengths=lengths),
        lambda: model(inputs_embeds=model.get_input_embeddings()(IDS), segment_lengths=lengths),
        lambda: model.compress(IDS, segment_lengths=lengths),
        lambda: model.generate(IDS, segment_lengths=lengths, **GREEDY),
        lambda: model.generate(IDS, segment_lengths=lengths, context=context, **GREEDY),
    ]
    for call in calls:
        with says(message):
            call()


def test_a_list_of_segments_beside_a_cache() -> None:
    model = model_of()
    past = model(IDS, use_cache=True).past_key_values
    with says("segment_lengths [4, 4]: with a cache it is one number"):
        model(IDS, past_key_values=past, segment_lengths=[4, 4])


# -------------------------------------------------------------------------------------------------------- soft prompts


@pytest.mark.parametrize("shape", [(2, 4, 31), (1, 4, 32), (3, 4, 32), (4, 32), (2, 1, 4, 32)])
@FAMILIES
def test_soft_prompts_of_a_wrong_shape(architecture: str, shape: tuple[int, ...]) -> None:
    model = model_of(architecture)
    for call in (model, lambda ids, softprompt: model.generate(ids, softprompt=softprompt, **GREEDY)):
        with says(f"softprompt has shape {shape}; expected (2, k, 32)"):
            call(IDS, softprompt=torch.zeros(shape))


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
@FAMILIES
def test_soft_prompts_and_contexts_that_are_not_finite(architecture: str, wrong: float) -> None:
    model = model_of(architecture)
    soft = torch.zeros(2, 6, 32)
    soft[1, 2:4, 7] = wrong
    for call in (model, lambda ids, softprompt: model.generate(ids, softprompt=softprompt, **GREEDY)):
        with says("row 1 of the soft prompt: 2 of 6 hold numbers that are not finite"):
            call(IDS, softprompt=soft)
    context = replace(model.compress(IDS, segment_lengths=4), summary_vectors=soft)
    for use in uses(model, context):
        with says("row 1 of the context: 2 of 6 hold numbers that are not finite"):
            use()


def uses(model: Any, context: CompressedContext) -> list[Callable[[], Any]]:
    return [
        lambda: model.continue_from(context, IDS),
        lambda: model.generate(IDS, context=context, **GREEDY),
        lambda: model.generate(IDS, context=context, segment_lengths=4, **GREEDY),
        lambda: model.compress(IDS, context=context),
    ]


def test_weights_that_are_not_finite_give_no_context() -> None:
    model = model_of()
    with torch.no_grad():
        model.embed_summary.weight[1] = torch.nan
    with pytest.raises(ValueError, match=r"row 0 of the summary vectors: \d of 3 hold numbers that are not finite"):
        model.compress(IDS)


# ----------------------------------------------------------------------------------------------------------- positions


def test_segments_beyond_the_positions() -> None:
    for architecture in ("llama", "mistral"):
        model = model_of(architecture)
        model(ids_of(2, 40), segment_lengths=18)  # the second segment fills the 24 positions
        with says(f"need 25 positions; this model has {POSITIONS}"):
            model(ids_of(2, 40), segment_lengths=[18, 19, 3], output_softprompt=True)
        with says("a segment of 22 tokens after 0 soft-prompt vectors, with 3 more, need 25 positions"):
            model.compress(ids_of(2, 22))
    model = model_of("opt")
    model.compress(ids_of(2, POSITIONS))  # summary tokens take no positions
    with says(f"need 25 positions; this model has {POSITIONS}"):
        model.compress(ids_of(2, POSITIONS + 1))


@FAMILIES
def test_plain_passes_beyond_the_positions(architecture: str) -> None:
    for fields in ({}, {"summary_length": 0}):
        model = model_of(architecture, **fields)
        model(ids_of(2, POSITIONS))
        with says(f"need 25 positions; this model has {POSITIONS}"):
            model(ids_of(2, POSITIONS + 1))
        mask = torch.ones(2, POSITIONS + 2, dtype=torch.long)
        mask[0, :2] = 0
        with says(f"row 1: 26 tokens, padding not counted, need 26 positions; this model has {POSITIONS}"):
            model(ids_of(2, POSITIONS + 2), mask)
        mask[1, :2] = 0
        model(ids_of(2, POSITIONS + 2), mask)  # padding takes none


@FAMILIES
def test_going_on_beyond_the_positions(architecture: str) -> None:
    model = model_of(architecture)
    context = model.compress(IDS)
    room = POSITIONS - int(context.next_position[0])
    model.continue_from(context, ids_of(2, room))
    mask = torch.ones(2, room + 1, dtype=torch.long)
    mask[0, 0] = 0
    with says(f"row 1: the context and the tokens after it need 25 positions; this model has {POSITIONS}"):
        model.continue_from(context, ids_of(2, room + 1), mask)
    with says(f"row 1: the context and the prompt need 25 positions; this model has {POSITIONS}"):
        model.generate(ids_of(2, room + 1), context=context, attention_mask=mask, **GREEDY)


@FAMILIES
def test_writing_beyond_the_positions(architecture: str) -> None:
    model = model_of(architecture)
    context = model.compress(IDS)
    room = POSITIONS - int(context.next_position[0])
    out = model.generate(ids_of(2, room - 3), context=context, max_new_tokens=4, **GREEDY)
    assert out.shape == (2, room + 1)  # the last token is not read
    with says(f"need 25 positions; this model has {POSITIONS}"):
        model.generate(ids_of(2, room - 3), context=context, max_new_tokens=5, **GREEDY)
    with says(f"need 25 positions; this model has {POSITIONS}"):
        model.generate(ids_of(2, POSITIONS - 3), max_new_tokens=5, **GREEDY)
    with says(f"need 25 positions; this model has {POSITIONS}"):
        model.generate(ids_of(2, POSITIONS - 3), max_new_tokens=5, segment_lengths=POSITIONS + 6, **GREEDY)


# -------------------------------------------------------------------------------------------- rows without a token


@FAMILIES
def test_rows_of_padding_only(architecture: str) -> None:
    model = model_of(architecture)
    context, mask = model.compress(IDS), torch.ones_like(IDS)
    mask[1] = 0
    calls: list[Callable[[], Any]] = [
        lambda: model(IDS, mask),
        lambda: model(IDS, mask, segment_lengths=4),
        lambda: model(IDS, mask, output_softprompt=True),
        lambda: model.compress(IDS, mask),
        lambda: model.continue_from(context, IDS, mask),
        lambda: model.generate(IDS, attention_mask=mask, **GREEDY),
        lambda: model.generate(IDS, context=context, attention_mask=mask, **GREEDY),
        lambda: model.generate(IDS, segment_lengths=4, attention_mask=mask, **GREEDY),
        lambda: model.generate(IDS, softprompt=torch.zeros(2, 3, 32), attention_mask=mask, **GREEDY),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"row 1 .*padding only"):
            call()


@FAMILIES
def test_empty_prompts(architecture: str) -> None:
    model = model_of(architecture)
    context, empty = model.compress(IDS), ids_of(2, 0)
    calls: list[Callable[[], Any]] = [
        lambda: model(empty),
        lambda: model(empty, segment_lengths=4),
        lambda: model.compress(empty),
        lambda: model.continue_from(context, empty),
        lambda: model.generate(empty, **GREEDY),
        lambda: model.generate(empty, context=context, **GREEDY),
        lambda: model.generate(context=context, **GREEDY),
        lambda: model.generate(empty, segment_lengths=4, **GREEDY),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"no tokens|at least one prompt token"):
            call()


@FAMILIES
def test_prompts_padded_on_the_right(architecture: str) -> None:
    model, mask = model_of(architecture), torch.ones_like(IDS)
    context, mask[1, 5:] = model.compress(IDS), 0
    for options in ({"context": context}, {"segment_lengths": 4}, {"softprompt": torch.zeros(2, 3, 32)}):
        with says("row 1 ends with padding; prompts of unequal length are padded on the left"):
            model.generate(IDS, attention_mask=mask, **options, **GREEDY)


@FAMILIES
def test_masks_of_another_shape(architecture: str) -> None:
    model, mask = model_of(architecture), torch.ones(2, 7, dtype=torch.long)
    context = model.compress(IDS)
    calls: list[Callable[[], Any]] = [
        lambda: model(IDS, mask, segment_lengths=4),
        lambda: model.compress(IDS, mask),
        lambda: model.continue_from(context, IDS, mask),
        lambda: model.generate(IDS, context=context, attention_mask=mask, **GREEDY),
        lambda: model.generate(IDS, segment_lengths=4, attention_mask=mask, **GREEDY),
    ]
    for call in calls:
        with says("attention_mask has shape (2, 7); expected (2, 8)"):
            call()


# ------------------------------------------------------------------------------------------------------------ contexts


def test_contexts_of_other_models_and_families() -> None:
    model = model_of()
    gist = gist_model().compress(torch.tensor([[5, GIST], [6, GIST]]))
    for use in uses(model, gist):
        with says("this model reads summary vectors; the context holds gist activations"):
            use()
    for other in (
        model_of(seed=1),
        model_of(accumulate_summary=False),
        model_of("mistral"),
        model_of(summary_length=4),
    ):
        context = other.compress(IDS)
        for use in uses(model, context):
            with pytest.raises(ValueError, match=f"another model .*{context.fingerprint}.*{model.fingerprint()}"):
                use()
    context = model.compress(IDS)
    with pytest.raises(ValueError, match=r"another model"):
        gist_model().generate(IDS, context=context, **GREEDY)


def test_fewer_summary_vectors_than_the_model_gives() -> None:
    model = model_of()
    context = model.compress(IDS, segment_lengths=4)
    assert context.summary_vectors is not None
    fewer = replace(context, summary_vectors=context.summary_vectors[:, :4])
    mask = torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]])
    for wrong, row in ((fewer, 0), (replace(context, mask=mask), 1)):
        for use in uses(model, wrong):
            with says(f"row {row} of the context has 4 summary vectors; this model gives 3 for each segment"):
                use()


def test_contexts_of_more_rows_than_the_batch() -> None:
    model = model_of()
    context = model.compress(ids_of(3, 8))
    for use in uses(model, context):
        with says("a context of 3 rows cannot serve a batch of 2"):
            use()


@FAMILIES
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_contexts_and_soft_prompts_of_another_dtype_are_converted(architecture: str, dtype: torch.dtype) -> None:
    model = model_of(architecture)
    context = model.compress(IDS, segment_lengths=4)
    other = context.to(dtype=dtype)
    expected, found = (model.continue_from(each, IDS).logits for each in (context, other))
    assert found.dtype == torch.float32
    tolerance = 1e-6 if dtype == torch.float64 else 0.3
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)
    soft = model(IDS, softprompt=other.summary_vectors).logits
    torch.testing.assert_close(soft, found, atol=1e-4, rtol=0)
    for options in ({"context": other}, {"softprompt": other.summary_vectors}):
        assert model.generate(IDS, **options, segment_lengths=4, max_new_tokens=6, **GREEDY).shape == (2, 14)


# ------------------------------------------------------------------------------------------- arguments that do not go


def test_arguments_that_exclude_each_other() -> None:
    model = model_of()
    context, soft = model.compress(IDS), torch.zeros(2, 3, 32)
    past = model(IDS, use_cache=True).past_key_values
    with says("the cache holds a soft prompt already"):
        model(IDS, past_key_values=past, softprompt=soft)
    with says("go on from a cache of a segment only"):
        model(IDS, past_key_values=model.prefix_cache(context), segment_lengths=4)
    with says("a softprompt or a context, not both"):
        model.generate(IDS, context=context, softprompt=soft, **GREEDY)
    for options in ({"context": context}, {"segment_lengths": 4}, {"softprompt": soft}):
        with says("num_beams and num_return_sequences must be 1"):
            model.generate(IDS, num_beams=2, **options, **GREEDY)
    with says("generate(segment_lengths=) cannot honour min_new_tokens"):
        model.generate(IDS, segment_lengths=4, min_new_tokens=2, **GREEDY)


def test_a_generation_config_says_the_same_as_its_options() -> None:
    model = model_of()
    context = model.compress(IDS)
    for options in ({"max_new_tokens": 3}, {"max_length": 11}):
        given = GenerationConfig(do_sample=False, pad_token_id=0, **options)
        for where in ({"context": context}, {"segment_lengths": 4}, {"softprompt": torch.zeros(2, 3, 32)}):
            expected = model.generate(IDS, **where, do_sample=False, pad_token_id=0, **options)
            assert expected.shape[1] <= 11
            assert model.generate(IDS, **where, generation_config=given).equal(expected)
            model.generation_config, own = given, model.generation_config
            assert model.generate(IDS, **where).equal(expected)
            model.generation_config = own


# ------------------------------------------------------------------------------------------------------- architectures


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        ("gpt2", "its positions are not rotary"),
        ("bloom", "its positions are not rotary"),
        ("mamba", "recurrent state"),
        ("granite", "it changes its logits after the head (logits_scaling)"),
        ("t5", "no causal language model"),
        ("llava", "no causal language model"),
        ("nonsense", "does not know it"),
    ],
)
def test_architectures_that_do_not_fit_are_refused_with_the_reason(architecture: str, reason: str) -> None:
    with pytest.raises(InputError, match=re.escape(reason)) as refusal:
        compressor_class("summary", architecture)
    assert repr(architecture) in str(refusal.value) and ", ".join(ARCHITECTURES) in str(refusal.value)


def test_names_of_classes_that_there_are_not() -> None:
    for name in ("NonsenseAutoCompressorModel", "GPT2AutoCompressorModel", "GistMambaForCausalLM", "__path__"):
        with pytest.raises(AttributeError, match=name):
            class_by_name(name)
