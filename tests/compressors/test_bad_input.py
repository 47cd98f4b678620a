"""What cannot be right is refused by summary compressors, in one sentence that names the row and the numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from compressor_models import architecture_model, gist_model, padded
from synopsis.compressors import CompressedContext, compressor_class
from synopsis.compressors.architectures import DECODERS as ARCHITECTURES
from synopsis.compressors.registry import class_by_name
from synopsis.errors import InputError
from torch import Tensor
from transformers import GenerationConfig

POSITIONS = 24
EACH = pytest.mark.parametrize("architecture", ["llama", "mistral", "opt"])
GREEDY: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
IDS = torch.arange(3, 19).reshape(2, 8)
SOFT = torch.zeros(2, 3, 32)
FULL = f"need 25 positions; this model has {POSITIONS}"


def model_of(architecture: str = "llama", **fields: Any) -> Any:
    """Three summary vectors a segment, and few positions."""
    settings = {"summary_length": 3, "max_position_embeddings": POSITIONS, **fields}
    return architecture_model("summary", architecture, **settings)


def ids_of(rows: int, length: int) -> Tensor:
    return torch.full((rows, length), 5)


CALLS: dict[str, Any] = {
    "forward": lambda model, *ids, **options: model(*ids, **options),
    "compress": lambda model, *ids, **options: model.compress(*ids, **options),
    "continue_from": lambda model, *ids, context, **options: model.continue_from(context, *ids, **options),
    "generate": lambda model, *ids, **options: model.generate(*ids, **{**GREEDY, **options}),
}


def refused(message: str, model: Any, calls: Iterable[str], *ids: Any, pattern: bool = False, **options: Any) -> None:
    """Each call raises ValueError with the message, or with what fits it as a pattern."""
    for call in calls:
        with pytest.raises(ValueError, match=message if pattern else re.escape(message)):
            CALLS[call](model, *ids, **options)


def refused_context(message: str, model: Any, context: CompressedContext, pattern: bool = False) -> None:
    """By whatever reads a context."""
    refused(message, model, ("continue_from", "generate", "compress"), IDS, context=context, pattern=pattern)
    refused(message, model, ("generate",), IDS, context=context, segment_lengths=4, pattern=pattern)


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
@EACH
def test_segment_lengths_that_do_not_fit(architecture: str, lengths: int | list[int], message: str) -> None:
    model = model_of(architecture)
    embeds = model.get_input_embeddings()(IDS)
    refused(message, model, ("forward", "compress", "generate"), IDS, segment_lengths=lengths)
    refused(message, model, ("forward",), inputs_embeds=embeds, segment_lengths=lengths)
    refused(message, model, ("generate",), IDS, context=model.compress(IDS), segment_lengths=lengths)


# -------------------------------------------------------------------------------------------------------- soft prompts


@pytest.mark.parametrize("shape", [(2, 4, 31), (1, 4, 32), (3, 4, 32), (4, 32), (2, 1, 4, 32)])
@EACH
def test_soft_prompts_of_a_wrong_shape(architecture: str, shape: tuple[int, ...]) -> None:
    message = f"softprompt has shape {shape}; expected (2, k, 32)"
    refused(message, model_of(architecture), ("forward", "generate"), IDS, softprompt=torch.zeros(shape))


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
@EACH
def test_soft_prompts_and_contexts_that_are_not_finite(architecture: str, wrong: float) -> None:
    model, soft = model_of(architecture), torch.zeros(2, 6, 32)
    soft[1, 2:4, 7] = wrong
    message = "row 1 of the {}: 2 of 6 hold numbers that are not finite"
    refused(message.format("soft prompt"), model, ("forward", "generate"), IDS, softprompt=soft)
    refused_context(
        message.format("context"), model, replace(model.compress(IDS, segment_lengths=4), summary_vectors=soft)
    )
    with torch.no_grad():
        model.embed_summary.weight[1] = torch.nan
    message = r"row 0 of the summary vectors: \d of 3 hold numbers that are not finite"
    refused(message, model, ("compress",), IDS, pattern=True)


# ----------------------------------------------------------------------------------------------------------- positions


def test_segments_beyond_the_positions() -> None:
    for architecture in ("llama", "mistral"):
        model = model_of(architecture)
        model(ids_of(2, 40), segment_lengths=18)  # the second segment fills the 24 positions
        refused(FULL, model, ("forward",), ids_of(2, 40), segment_lengths=[18, 19, 3], output_softprompt=True)
        message = f"a segment of 22 tokens after 0 soft-prompt vectors, with 3 more, {FULL}"
        refused(message, model, ("compress",), ids_of(2, 22))
    model = model_of("opt")
    model.compress(ids_of(2, POSITIONS))  # summary tokens take no positions
    refused(FULL, model, ("compress",), ids_of(2, POSITIONS + 1))


@EACH
def test_plain_passes_beyond_the_positions(architecture: str) -> None:
    for fields in ({}, {"summary_length": 0}):
        model = model_of(architecture, **fields)
        model(ids_of(2, POSITIONS))
        refused(FULL, model, ("forward",), ids_of(2, POSITIONS + 1))
        mask = torch.ones(2, POSITIONS + 2, dtype=torch.long)
        mask[0, :2] = 0
        message = f"row 1: 26 tokens, padding not counted, need 26 positions; this model has {POSITIONS}"
        refused(message, model, ("forward",), ids_of(2, POSITIONS + 2), mask)
        mask[1, :2] = 0
        model(ids_of(2, POSITIONS + 2), mask)  # padding takes none


@EACH
def test_going_on_and_writing_beyond_the_positions(architecture: str) -> None:
    model = model_of(architecture)
    context = model.compress(IDS)
    room = POSITIONS - int(context.next_position[0])
    model.continue_from(context, ids_of(2, room))
    mask = torch.ones(2, room + 1, dtype=torch.long)
    mask[0, 0] = 0
    options = {"context": context, "attention_mask": mask}
    message = f"row 1: the context and the {{}} {FULL}"
    refused(message.format("tokens after it"), model, ("continue_from",), ids_of(2, room + 1), **options)
    refused(message.format("prompt"), model, ("generate",), ids_of(2, room + 1), **options)
    out = model.generate(ids_of(2, room - 3), context=context, max_new_tokens=4, **GREEDY)
    assert out.shape == (2, room + 1)  # the last token is not read
    refused(FULL, model, ("generate",), ids_of(2, room - 3), context=context, max_new_tokens=5)
    for extra in ({}, {"segment_lengths": POSITIONS + 6}):
        refused(FULL, model, ("generate",), ids_of(2, POSITIONS - 3), max_new_tokens=5, **extra)


# ------------------------------------------------------------------------------------------------ rows and their masks


@EACH
def test_rows_without_tokens_padding_at_the_end_and_masks_of_another_shape(architecture: str) -> None:
    model = model_of(architecture)
    context, empty, no_tokens = model.compress(IDS), ids_of(2, 0), "no tokens|at least one prompt token"
    padding, right, shape = torch.ones_like(IDS), torch.ones_like(IDS), torch.ones(2, 7, dtype=torch.long)
    padding[1], right[1, 5:] = 0, 0
    at_the_end = "row 1 ends with padding; prompts of unequal length are padded on the left"
    wrong_shape = "attention_mask has shape (2, 7); expected (2, 8)"
    for calls, options in (
        (("forward", "compress", "generate"), {}),
        (("forward", "generate"), {"segment_lengths": 4}),
        (("continue_from", "generate"), {"context": context}),
        (("generate",), {"softprompt": SOFT}),
    ):
        refused(r"row 1 .*padding only", model, calls, IDS, attention_mask=padding, pattern=True, **options)
        refused(no_tokens, model, calls, empty, pattern=True, **options)
        if options:
            refused(at_the_end, model, ("generate",), IDS, attention_mask=right, **options)
            refused(wrong_shape, model, calls, IDS, attention_mask=shape, **options)
    refused(no_tokens, model, ("generate",), context=context, pattern=True)
    refused(wrong_shape, model, ("compress",), IDS, shape)


# ------------------------------------------------------------------------------------------------------------ contexts


def test_contexts_of_other_models_and_methods() -> None:
    model = model_of()
    gist = gist_model().compress(torch.tensor([[5, 60], [6, 60]]))
    refused_context("this model reads summary vectors; the context holds gist activations", model, gist)
    others: list[dict[str, Any]] = [
        {"seed": 1},
        {"accumulate_summary": False},
        {"architecture": "mistral"},
        {"summary_length": 4},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e4}},
    ]
    for fields in others:
        context = model_of(**fields).compress(IDS)
        message = f"another model .*{context.fingerprint}.*{model.fingerprint()}"
        refused_context(message, model, context, pattern=True)
    refused("another model", gist_model(), ("generate",), IDS, context=model.compress(IDS))


def test_contexts_of_fewer_vectors_or_other_rows() -> None:
    model = model_of()
    context = model.compress(IDS, segment_lengths=4)
    assert context.summary_vectors is not None
    fewer = replace(context, summary_vectors=context.summary_vectors[:, :4])
    mask = torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]])
    for wrong, row in ((fewer, 0), (replace(context, mask=mask), 1)):
        message = f"row {row} of the context has 4 summary vectors; this model gives 3 for each segment"
        refused_context(message, model, wrong)
    refused_context("a context of 3 rows cannot serve a batch of 2", model, model.compress(ids_of(3, 8)))


@EACH
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_contexts_and_soft_prompts_of_another_dtype_are_converted(architecture: str, dtype: torch.dtype) -> None:
    model = model_of(architecture)
    context = model.compress(IDS, segment_lengths=4)
    other = context.to(dtype=dtype)
    expected, found = (model.continue_from(each, IDS).logits for each in (context, other))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=1e-6 if dtype == torch.float64 else 0.3, rtol=0)
    soft = model(IDS, softprompt=other.summary_vectors).logits
    torch.testing.assert_close(soft, found, atol=1e-4, rtol=0)
    for options in ({"context": other}, {"softprompt": other.summary_vectors}):
        assert model.generate(IDS, **options, segment_lengths=4, max_new_tokens=6, **GREEDY).shape == (2, 14)


# ------------------------------------------------------------------------------------------- arguments that do not go


def test_arguments_that_exclude_each_other() -> None:
    model = model_of()
    context = model.compress(IDS)
    past = {"past_key_values": model(IDS, use_cache=True).past_key_values}
    of_context = {"past_key_values": model.prefix_cache(context)}
    beams = "num_beams and num_return_sequences must be 1"
    for message, call, options in (
        ("segment_lengths [4, 4]: with a cache it is one number", "forward", {"segment_lengths": [4, 4], **past}),
        ("the cache holds a soft prompt already", "forward", {"softprompt": SOFT, **past}),
        ("continue from a cache of a segment only", "forward", {"segment_lengths": 4, **of_context}),
        ("continue from a cache of a segment only", "forward", {"softprompt": SOFT, **of_context}),
        ("a softprompt or a context, not both", "generate", {"context": context, "softprompt": SOFT}),
        (beams, "generate", {"context": context, "num_beams": 2}),
        (beams, "generate", {"segment_lengths": 4, "num_beams": 2}),
        (beams, "generate", {"softprompt": SOFT, "num_beams": 2}),
        ("cannot honour min_new_tokens", "generate", {"segment_lengths": 4, "min_new_tokens": 2}),
    ):
        refused(message, model, (call,), IDS, **options)
    refused("summary_length is 0", model_of(summary_length=0), ("compress",), *padded([[5, 6], [7]], "left"))


def test_a_generation_config_says_the_same_as_its_options() -> None:
    model = model_of()
    context = model.compress(IDS)
    for options in ({"max_new_tokens": 3}, {"max_length": 11}):
        given = GenerationConfig(do_sample=False, pad_token_id=0, **options)
        for where in ({"context": context}, {"segment_lengths": 4}, {"softprompt": SOFT}):
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
