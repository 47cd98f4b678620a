"""What is T5's own in gist tokens: the published interface, whole masks, training, refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from compressor_models import GIST, GREEDY, PAD, TOLERANCE, padded
from laws import instruction
from synopsis.compressors import GistT5ForConditionalGeneration, compressor_class
from synopsis.compressors.gist.t5 import remove_gist
from synopsis.compressors.masks import CONDITIONS
from t5_models import KINDS, START, answers, plain_t5, t5_by_hand, t5_greedy, t5_model
from torch import nn
from transformers import Trainer, TrainingArguments

MODEL, TIED, NEGATIVE = t5_model(), t5_model(kind="tied"), t5_model("neg_control")


def drawn(seed: int, *sizes: tuple[int, int, int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [instruction(generator, *size) for size in sizes]


def same_as_by_hand(model: GistT5ForConditionalGeneration, rows: list[list[int]], logits: torch.Tensor) -> None:
    for row, answer, found in zip(rows, answers(len(rows)).tolist(), logits, strict=True):
        torch.testing.assert_close(found, t5_by_hand(model, row, answer), **TOLERANCE)


# ----------------------------------------------------------------------------------------------------------- contexts


def test_beams_of_a_context_are_those_of_one_pass() -> None:
    rows = drawn(5, (3, 2, 5), (6, 2, 1))
    beams = {**GREEDY, "num_beams": 3, "num_return_sequences": 2}
    ids, mask = padded(rows, "right")
    whole = TIED.generate(ids, attention_mask=mask, **beams)
    context = TIED.compress(*padded([rows[0][:5], rows[1][:8]], "left"))
    rest, mask = padded([rows[0][5:], rows[1][8:]], "left")
    assert whole.shape == (4, 7)
    assert TIED.generate(rest, context=context, attention_mask=mask, **beams).tolist() == whole.tolist()


def test_a_decoder_that_may_see_nothing_is_shown_nothing() -> None:
    """neg_control with nothing after the gist token: the instruction must not show."""
    ids = torch.tensor([[5, 6, GIST, PAD], [8, 9, GIST, 7]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    logits = NEGATIVE(ids, mask, decoder_input_ids=answers(2)).logits
    other = NEGATIVE(torch.tensor([[7, 11, GIST, 9], [8, 9, GIST, 7]]), mask, decoder_input_ids=answers(2)).logits
    assert torch.equal(logits, other)
    same_as_by_hand(NEGATIVE, [[5, 6, GIST], [8, 9, GIST, 7]], logits)
    context = NEGATIVE.compress(ids[:, :3])
    after = NEGATIVE.continue_from(context, ids[:, 3:], mask[:, 3:], decoder_input_ids=answers(2)).logits
    torch.testing.assert_close(after, logits, **TOLERANCE)


def test_a_context_alone_is_enough_to_decode_from() -> None:
    prompt = [5, 8, 4, GIST, GIST]
    context = TIED.compress(torch.tensor([prompt]))
    first = TIED.generate(context=context, **GREEDY)
    assert first.tolist() == [t5_greedy(TIED, prompt, 6)]
    assert torch.equal(TIED.generate(torch.zeros(1, 0, dtype=torch.long), context=context, **GREEDY), first)
    # Layers, key and value, heads, vectors, width and the encoder's output, in bytes; two numbers a row.
    assert context.nbytes == (2 * 2 * 4 * 2 * 8 + 2 * 32) * 4 + 2 * 8


# ------------------------------------------------------------------------------------------------ published interface


@pytest.mark.parametrize("side", ["left", "right"])
def test_all_tokens_up_to_the_gist_tokens_can_be_cached(side: str) -> None:
    """The rest sees of them what the caller's mask shows."""
    rows = drawn(8, (2, 1, 3), (6, 1, 3))
    ids, mask = padded([row[:-3] for row in rows], side)
    activations = TIED.get_gist_activations(ids, attention_mask=mask, cache_all=True)
    assert activations.context.attention_mask.tolist() == [[0, 0, 0, 0, 1, 1, 1], [1] * 7]
    only_gist = torch.tensor([[0] * 6 + [1] * 4] * 2)
    rest = torch.tensor([row[-3:] for row in rows])
    options = {"attention_mask": only_gist, "gist_activations": activations, "decoder_input_ids": answers(2)}
    same_as_by_hand(TIED, rows, TIED(rest, **options).logits)


@pytest.mark.parametrize("side", ["left", "right"])
def test_inputs_without_the_instruction(side: str) -> None:
    rows = drawn(9, (3, 2, 4), (5, 2, 1), (1, 2, 6))
    ids, mask = padded(rows, side)
    inputs = remove_gist({"input_ids": ids, "attention_mask": mask}, 2, GIST)
    activations = MODEL.get_gist_activations(ids, attention_mask=mask)
    assert inputs["attention_mask"].sum(-1).tolist() == [2 + 4, 2 + 1, 2 + 6]
    assert not bool((inputs["input_ids"] == GIST)[inputs["attention_mask"][:, 2:].bool()].any())
    out = MODEL.generate(**inputs, gist_activations=activations, **GREEDY)
    assert out.tolist() == [t5_greedy(MODEL, row, 6) for row in rows]
    inputs["attention_mask"] = inputs["attention_mask"][:, 2:]  # of the new tokens alone
    out = MODEL(**inputs, gist_activations=activations, decoder_input_ids=answers(3))
    same_as_by_hand(MODEL, rows, out.logits)
    assert out.encoder_last_hidden_state.shape == (3, 2 + inputs["input_ids"].shape[1], 32)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_whole_masks_of_the_caller_are_taken_as_they_are(condition: str) -> None:
    """With the masks of a condition, a model of another condition does what a model of that condition does."""
    ids, mask = padded([[5, 6, GIST, 8, 9], [7, GIST, 4]], "right")
    last, columns, seen = torch.tensor([2, 1]), torch.arange(5), mask.bool()
    allowed = seen[:, None, None].expand(2, 1, 5, 5)
    if condition != "pos_control":
        later = columns > last[:, None]
        seen = seen & (columns >= (last if condition == "gist" else last + 1)[:, None])
        allowed = torch.where(later[:, None, :, None], seen[:, None, None], (mask.bool() & ~later)[:, None, None])
    expected = t5_model(condition)(ids, mask, decoder_input_ids=answers(2)).logits
    other = t5_model("pos_control" if condition == "gist" else "gist")
    for given in (allowed[:, 0].long(), allowed.float(), allowed):
        out = other(ids, given, cross_attention_mask=seen.long(), decoder_input_ids=answers(2))
        torch.testing.assert_close(out.logits, expected, **TOLERANCE)


# ----------------------------------------------------------------------------------------------- training, plain T5


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_training_reaches_every_weight_and_nothing_that_is_hidden(kind: str) -> None:
    model = t5_model("neg_control", kind).train()
    ids, mask = padded([[5, 6, GIST, 8, 9], [7, GIST, 4]], "right")
    labels = torch.tensor([[11, 12, 1], [13, 1, -100]])
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.zero_grad()
        loss = model(ids, mask, labels=labels).loss
        loss.backward()
        gradients.append({name: weight.grad.clone() for name, weight in model.named_parameters()})
    assert all(bool(gradient.isfinite().all()) and bool(gradient.any()) for gradient in gradients[0].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, **TOLERANCE)
    if kind == "untied":  # where the decoder's softmax does not reach every embedding
        reached = gradients[0]["shared.weight"].any(-1)
        assert not bool(reached[[5, 6, GIST, 7]].any()) and bool(reached[[8, 9, 4]].all())
    pairs = (([5, 6, GIST, 8, 9], [START, 11, 12]), ([7, GIST, 4], [START, 13]))
    expected = torch.cat([t5_by_hand(model, *pair) for pair in pairs])
    wanted = nn.functional.cross_entropy(expected, torch.tensor([11, 12, 1, 13, 1]))
    torch.testing.assert_close(loss.detach(), wanted, **TOLERANCE)
    with pytest.raises(ValueError, match="gradient checkpointing cannot train through cached gist tokens"):
        model.get_gist_activations(ids, attention_mask=mask)


def test_a_trainer_averages_over_the_labels_of_the_batches_that_it_accumulates(tmp_path: Path) -> None:
    """Three of the first row and one of the second."""
    model = t5_model("gist", "tied")
    rows = [
        {"input_ids": torch.tensor([5, GIST, 8, 9]), "labels": torch.tensor([11, 12, 1])},
        {"input_ids": torch.tensor([6, 7, GIST, 4]), "labels": torch.tensor([13, -100, -100])},
    ]
    losses = [model(row["input_ids"][None], labels=row["labels"][None]).loss for row in rows]
    gradient = torch.autograd.grad((3 * losses[0] + losses[1]) / 4, model.shared.weight)[0]
    before = model.shared.weight.detach().clone()
    settings = {"optim": "sgd", "learning_rate": 0.5, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
    steps = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 1, "max_steps": 1}
    quiet = {"report_to": [], "save_strategy": "no", "disable_tqdm": True, "use_cpu": True}
    Trainer(model, TrainingArguments(str(tmp_path), **settings, **steps, **quiet), train_dataset=rows).train()
    torch.testing.assert_close(model.shared.weight.detach(), before - 0.5 * gradient, **TOLERANCE)


def test_a_model_without_a_gist_token_is_plain_t5() -> None:
    model = t5_model("gist", gist_token_id=None)
    ids, mask = padded([[5, 6, GIST, 8, 9], [7, GIST, 4]], "left")
    expected = plain_t5(model)(ids, mask, decoder_input_ids=answers(2)).logits
    torch.testing.assert_close(model(ids, mask, decoder_input_ids=answers(2)).logits, expected, **TOLERANCE)
    embeds = model.shared(ids)
    out = model(inputs_embeds=embeds, attention_mask=mask, decoder_input_ids=answers(2), output_hidden_states=True)
    torch.testing.assert_close(out.logits, expected, **TOLERANCE)
    assert len(out.encoder_hidden_states) == 3
    assert compressor_class("gist", "t5") is GistT5ForConditionalGeneration


# ---------------------------------------------------------------------------------------------------------- bad input

ONE = torch.tensor([[5, 6, GIST, 7]])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"input_ids": torch.tensor([[GIST, 5, GIST]])}, "do not stand together"),
        ({"input_ids": ONE, "attention_mask": torch.zeros(1, 4)}, "row 0 has no tokens: it is padding only"),
        ({"input_ids": ONE, "attention_mask": torch.ones(1, 4, 3)}, r"shape \(1, 4, 3\); expected .* \(1, 4, 4\)"),
        ({"input_ids": ONE, "attention_mask": torch.full((1, 1, 4, 4), -1e9)}, "expected 0 and 1"),
        ({"input_ids": ONE, "cross_attention_mask": torch.ones(1, 3)}, r"cross_attention_mask has shape \(1, 3\)"),
        ({"input_ids": ONE[:, :0]}, "nothing to read"),
        ({}, "nothing to read"),
    ],
)
def test_wrong_inputs_are_refused(wrong: dict[str, torch.Tensor], message: str) -> None:
    for call in (lambda: MODEL(**wrong, decoder_input_ids=answers(1)), lambda: MODEL.generate(**wrong)):
        with pytest.raises(ValueError, match=message):
            call()


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="row 0 has 1 gist tokens; num_gist_tokens is 2"):
        MODEL.get_gist_activations(ONE, num_gist_tokens=2)
    with pytest.raises(ValueError, match="pos_control has no context"):
        t5_model("pos_control").compress(ONE[:, :3])
    for implementation in ("flex_attention", "flash_attention_2"):
        with pytest.raises(ValueError, match="GistT5ForConditionalGeneration does not support"):
            t5_model().set_attn_implementation(implementation)


def test_wrong_contexts_are_refused() -> None:
    ids, rest = torch.tensor([[5, 6, GIST], [7, 8, GIST]]), torch.tensor([[8, 9]])
    context = MODEL.compress(ids)
    of_three = t5_model(gist_tokens=3)
    of_one = of_three.compress(ids)
    fewer = replace(context, keys=context.keys[:1], values=context.values[:1])
    short = replace(context, mask=torch.tensor([[1], [0]]))
    infinite = replace(context, values=(context.values[0], context.values[1] / 0))
    count = "of the context holds {} gist tokens; this model was trained with {}"
    for call, message in (
        (lambda: t5_model(seed=1).continue_from(context, rest), "another model"),
        (lambda: NEGATIVE.continue_from(context, rest), "another model"),
        (lambda: TIED.continue_from(context, rest), "another model"),
        (lambda: MODEL.continue_from(context, rest.expand(3, -1)), "2 rows cannot serve a batch of 3"),
        (lambda: MODEL.continue_from(replace(context, hidden_states=None), rest), "needs 2 and the outputs"),
        (lambda: MODEL.generate(rest, context=fewer), "needs 2 and the outputs"),
        (lambda: MODEL.generate(rest, context=short), "row 1 " + count.format(0, 1)),
        (lambda: of_three.continue_from(of_one, rest), "row 0 " + count.format(1, 3)),
        (lambda: NEGATIVE.generate(context=NEGATIVE.compress(ids)), "nothing to read: neither a vector of the context"),
        (lambda: MODEL.continue_from(infinite, rest), "not finite"),
        (
            lambda: MODEL.continue_from(context, rest.expand(2, -1), torch.ones(1, 5)),
            r"shape \(1, 5\); expected \(2, 2\)",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()
