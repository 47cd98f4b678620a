"""Gist tokens on T5: what the decoder says after a compressed context equals one pass under the condition's masks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from compressor_models import GIST, GREEDY, PAD, TOLERANCE, VOCABULARY, padded, tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from synopsis.compressors import CompressedContext, GistT5ForConditionalGeneration, compressor_class, load
from synopsis.compressors.gist.t5 import remove_gist
from synopsis.compressors.masks import CONDITIONS
from t5_models import KINDS, START, answers, by_hand, draw, greedy_by_hand, plain_t5, t5_model
from torch import nn
from transformers import Trainer, TrainingArguments

MODELS = {(condition, kind): t5_model(condition, kind) for condition in CONDITIONS for kind in KINDS}
COMPRESSING = {key: model for key, model in MODELS.items() if key[0] != "pos_control"}
FEW = settings(max_examples=10, deadline=None, derandomize=True)
SIDE = st.sampled_from(["left", "right"])


SIZES = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 14)), min_size=1, max_size=3)


# ------------------------------------------------------------------------------------------------------------ the law


@FEW
@given(key=st.sampled_from(sorted(MODELS)), side=SIDE, gists=st.integers(0, 3), sizes=SIZES)
def test_one_pass_is_the_mask_of_the_condition(
    key: tuple[str, str], side: str, gists: int, sizes: list[tuple[int, int]]
) -> None:
    model, generator = MODELS[key], torch.Generator().manual_seed(len(sizes))
    rows = [draw(generator, before + 1, gists, after) for before, after in sizes]
    ids, mask = padded(rows, side)
    logits = model(ids, mask, decoder_input_ids=answers(len(rows))).logits
    for index, row in enumerate(rows):
        torch.testing.assert_close(logits[index], by_hand(model, row, answers(len(rows))[index].tolist()), **TOLERANCE)


@FEW
@given(
    key=st.sampled_from(sorted(COMPRESSING)),
    sides=st.tuples(SIDE, SIDE),
    gists=st.lists(st.integers(1, 3), min_size=3, max_size=3),
    sizes=SIZES.filter(lambda sizes: any(after for _, after in sizes)),
)
def test_going_on_equals_one_pass(
    key: tuple[str, str], sides: tuple[str, str], gists: list[int], sizes: list[tuple[int, int]]
) -> None:
    """Row by row, of different numbers of gist tokens, and where nothing follows in some rows too."""
    model, generator = MODELS[key], torch.Generator().manual_seed(sum(gists))
    prompts = [draw(generator, before, count, 0) for (before, _), count in zip(sizes, gists, strict=False)]
    rests = [tokens(generator, after) for _, after in sizes]
    context = model.compress(*padded(prompts, sides[0]))
    ids, mask = padded(rests, sides[1])
    logits = model.continue_from(context, ids, mask, decoder_input_ids=answers(len(rests))).logits
    for index, (prompt, rest) in enumerate(zip(prompts, rests, strict=True)):
        expected = by_hand(model, prompt + rest, answers(len(rests))[index].tolist())
        torch.testing.assert_close(logits[index], expected, **TOLERANCE)
    assert context.source_tokens.tolist() == context.next_position.tolist() == list(map(len, prompts))
    assert context.length == (max(gists[: len(sizes)]) if key[0] == "gist" else 0)


@FEW
@given(key=st.sampled_from(sorted(MODELS)), side=SIDE, gists=st.integers(1, 3), sizes=SIZES)
def test_greedy_tokens_equal_those_of_whole_passes(
    key: tuple[str, str], side: str, gists: int, sizes: list[tuple[int, int]]
) -> None:
    """Of whole sequences in one padded batch, and of the same sequences in two parts."""
    model, generator = MODELS[key], torch.Generator().manual_seed(gists)
    rows = [draw(generator, before, gists, after + 1) for before, after in sizes]
    expected = [greedy_by_hand(model, row, 6) for row in rows]
    ids, mask = padded(rows, side)
    assert model.generate(ids, attention_mask=mask, **GREEDY).tolist() == expected
    if key[0] == "pos_control":
        return
    context = model.compress(*padded([row[: size[0] + gists] for row, size in zip(rows, sizes, strict=True)], side))
    rest, mask = padded([row[size[0] + gists :] for row, size in zip(rows, sizes, strict=True)], side)
    assert model.generate(rest, context=context, attention_mask=mask, **GREEDY).tolist() == expected


def test_beams_of_a_context_are_those_of_one_pass() -> None:
    model, generator = MODELS["gist", "tied"], torch.Generator().manual_seed(5)
    rows = [draw(generator, before, 2, after) for before, after in ((3, 5), (6, 1))]
    beams = {**GREEDY, "num_beams": 3, "num_return_sequences": 2}
    whole = model.generate(*padded(rows, "right")[:1], attention_mask=padded(rows, "right")[1], **beams)
    context = model.compress(*padded([rows[0][:5], rows[1][:8]], "left"))
    rest, mask = padded([rows[0][5:], rows[1][8:]], "left")
    assert whole.shape == (4, 7)
    assert model.generate(rest, context=context, attention_mask=mask, **beams).tolist() == whole.tolist()


def test_a_decoder_that_may_see_nothing_is_told_nothing() -> None:
    """neg_control with nothing after the gist token: the instruction must not show."""
    model, ids = MODELS["neg_control", "untied"], torch.tensor([[5, 6, GIST, PAD], [8, 9, GIST, 7]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    logits = model(ids, mask, decoder_input_ids=answers(2)).logits
    other = model(torch.tensor([[7, 11, GIST, 9], [8, 9, GIST, 7]]), mask, decoder_input_ids=answers(2)).logits
    assert torch.equal(logits, other)
    torch.testing.assert_close(logits[0], by_hand(model, [5, 6, GIST], answers(2)[0].tolist()), **TOLERANCE)
    context = model.compress(ids[:, :3])
    after = model.continue_from(context, ids[:, 3:], mask[:, 3:], decoder_input_ids=answers(2)).logits
    torch.testing.assert_close(after, logits, **TOLERANCE)


# ----------------------------------------------------------------------------------------------------------- contexts


def test_one_context_serves_many_rows_and_contexts_of_unequal_lengths_share_a_batch() -> None:
    model, generator = MODELS["gist", "untied"], torch.Generator().manual_seed(2)
    prompts = [draw(generator, size, gists, 0) for size, gists in ((3, 2), (6, 1), (1, 3))]
    rests = [tokens(generator, count) for count in (4, 7, 2)]
    contexts = [model.compress(torch.tensor([prompt])) for prompt in prompts]
    ids, mask = padded(rests, "left")
    shared = model.continue_from(contexts[1], ids, mask, decoder_input_ids=answers(3)).logits
    for index, rest in enumerate(rests):
        expected = by_hand(model, prompts[1] + rest, answers(3)[index].tolist())
        torch.testing.assert_close(shared[index], expected, **TOLERANCE)

    merged = CompressedContext.concat(contexts)
    assert merged.next_position.tolist() == [5, 7, 4] and merged.attention_mask.sum(-1).tolist() == [2, 1, 3]
    for side in ("left", "right"):
        order = [2, 0, 1]
        ids, mask = padded(rests, side)
        logits = model(ids, mask, context=merged.select(order), decoder_input_ids=answers(3)).logits
        for index, chosen in enumerate(order):
            expected = by_hand(model, prompts[chosen] + rests[index], answers(3)[index].tolist())
            torch.testing.assert_close(logits[index], expected, **TOLERANCE)


def test_a_context_alone_is_enough_to_decode_from() -> None:
    model, prompt = MODELS["gist", "tied"], [5, 8, 4, GIST, GIST]
    context = model.compress(torch.tensor([prompt]))
    before = [key.clone() for key in context.keys]
    first = model.generate(context=context, **GREEDY)
    assert first.tolist() == [greedy_by_hand(model, prompt, 6)]
    assert torch.equal(model.generate(torch.zeros(1, 0, dtype=torch.long), context=context, **GREEDY), first)
    assert all(torch.equal(*pair) for pair in zip(context.keys, before, strict=True))
    # Layers, key and value, heads, vectors, width and the encoder's output, in bytes; two numbers a row.
    assert context.nbytes == (2 * 2 * 4 * 2 * 8 + 2 * 32) * 4 + 2 * 8


@pytest.mark.parametrize("key", sorted(COMPRESSING))
def test_saving_and_loading_changes_nothing(key: tuple[str, str], tmp_path: Path) -> None:
    model, ids = MODELS[key], torch.tensor([[5, 6, 9, GIST, GIST]])
    model.save_pretrained(tmp_path / "model")
    again = load(tmp_path / "model", "cpu")
    context = model.compress(ids)
    context.save(tmp_path / "context.safetensors")
    loaded = CompressedContext.load(tmp_path / "context.safetensors")
    rest = torch.tensor([[11, 12, 13]])
    assert isinstance(again, GistT5ForConditionalGeneration) and again.config.gist_condition == key[0]
    assert (again.lm_head.weight is again.shared.weight) == (key[1] == "tied")
    expected = model.continue_from(context, rest, decoder_input_ids=answers(1)).logits
    assert torch.equal(again.continue_from(loaded, rest, decoder_input_ids=answers(1)).logits, expected)


def test_the_class_is_found_by_kind_and_architecture() -> None:
    assert compressor_class("gist", "t5") is GistT5ForConditionalGeneration


# ------------------------------------------------------------------------------------------------ published interface


@pytest.mark.parametrize("whole_mask", [False, True])
def test_gist_activations_stand_for_the_instruction(whole_mask: bool) -> None:
    model, generator = MODELS["gist", "untied"], torch.Generator().manual_seed(7)
    rows = [draw(generator, before, 2, after) for before, after in ((3, 4), (7, 1))]
    ids, mask = padded(rows, "right")
    activations = model.get_gist_activations(ids, attention_mask=mask, gist_token=GIST, num_gist_tokens=2)
    assert activations.gist_indices.tolist() == [3, 7]
    assert activations.last_hidden_state.shape == (2, 2, 32)
    assert [tuple(states.shape) for states in activations.past_key_values[1]] == [(2, 4, 2, 8)] * 2
    rest, mask = padded([rows[0][5:], rows[1][9:]], "left")
    if whole_mask:
        mask = torch.cat([torch.ones(2, 2, dtype=torch.long), mask], dim=1)
    out = model(rest, attention_mask=mask, gist_activations=activations, decoder_input_ids=answers(2))
    for index, row in enumerate(rows):
        expected = by_hand(model, row, answers(2)[index].tolist())
        torch.testing.assert_close(out.logits[index], expected, **TOLERANCE)
    assert out.encoder_last_hidden_state.shape == (2, 2 + 4, 32)


@pytest.mark.parametrize("side", ["left", "right"])
def test_all_tokens_up_to_the_gist_tokens_can_be_cached(side: str) -> None:
    """The rest sees of them what the caller's mask shows."""
    model, generator = MODELS["gist", "tied"], torch.Generator().manual_seed(8)
    rows = [draw(generator, before, 1, 3) for before in (2, 6)]
    ids, mask = padded([row[:-3] for row in rows], side)
    activations = model.get_gist_activations(ids, attention_mask=mask, cache_all=True)
    assert activations.context.attention_mask.tolist() == [[0, 0, 0, 0, 1, 1, 1], [1] * 7]
    only_gist = torch.tensor([[0] * 6 + [1] * 4] * 2)
    rest = torch.tensor([row[-3:] for row in rows])
    logits = model(rest, attention_mask=only_gist, gist_activations=activations, decoder_input_ids=answers(2)).logits
    for index, row in enumerate(rows):
        torch.testing.assert_close(logits[index], by_hand(model, row, answers(2)[index].tolist()), **TOLERANCE)


@pytest.mark.parametrize("side", ["left", "right"])
def test_inputs_without_the_instruction(side: str) -> None:
    model, generator = MODELS["gist", "untied"], torch.Generator().manual_seed(9)
    rows = [draw(generator, before, 2, after) for before, after in ((3, 4), (5, 1), (1, 6))]
    ids, mask = padded(rows, side)
    inputs = remove_gist({"input_ids": ids, "attention_mask": mask}, 2, GIST)
    activations = model.get_gist_activations(ids, attention_mask=mask)
    assert inputs["attention_mask"].sum(-1).tolist() == [2 + 4, 2 + 1, 2 + 6]
    assert not bool((inputs["input_ids"] == GIST)[inputs["attention_mask"][:, 2:].bool()].any())
    out = model.generate(**inputs, gist_activations=activations, **GREEDY)
    assert out.tolist() == [greedy_by_hand(model, row, 6) for row in rows]


@pytest.mark.parametrize("condition", CONDITIONS)
def test_whole_masks_of_the_caller_are_taken_as_they_are(condition: str) -> None:
    """With the masks of a condition, a model of another condition does what a model of that condition does."""
    ids, mask = padded([[5, 6, GIST, 8, 9], [7, GIST, 4]], "right")
    other = MODELS["pos_control" if condition == "gist" else "gist", "untied"]
    allowed, seen = other._visible(ids, mask, None)
    assert seen is not None
    columns = torch.arange(5)
    last = torch.tensor([2, 1])
    later = columns > last[:, None]
    if condition != "pos_control":
        start = last if condition == "gist" else last + 1
        seen = seen & (columns >= start[:, None])
        allowed = torch.where(later[:, None, :, None], seen[:, None, None], (mask.bool() & ~later)[:, None, None])
    expected = MODELS[condition, "untied"](ids, mask, decoder_input_ids=answers(2)).logits
    for given_mask in (allowed[:, 0].long(), allowed.float(), allowed):
        out = other(ids, given_mask, cross_attention_mask=seen.long(), decoder_input_ids=answers(2))
        torch.testing.assert_close(out.logits, expected, **TOLERANCE)


# --------------------------------------------------------------------------------------- attention, training, numbers


@pytest.mark.parametrize("condition", CONDITIONS)
def test_attention_implementations_agree(condition: str) -> None:
    generator = torch.Generator().manual_seed(3)
    rows = [draw(generator, before, 2, after) for before, after in ((3, 5), (8, 2), (2, 0))]
    ids, mask = padded(rows, "left")
    logits = {}
    for implementation in ("eager", "sdpa"):
        model = t5_model(condition)
        model.set_attn_implementation(implementation)
        assert model.encoder.config._attn_implementation == implementation
        logits[implementation] = model(ids, mask, decoder_input_ids=answers(3)).logits
        if condition != "pos_control":
            context = model.compress(*padded([rows[0][:5], rows[1][:10], rows[2][:4]], "right"))
            rest, rest_mask = padded([rows[0][5:], rows[1][10:], []], "right")
            after = model.continue_from(context, rest, rest_mask, decoder_input_ids=answers(3)).logits
            torch.testing.assert_close(after, logits[implementation], **TOLERANCE)
    torch.testing.assert_close(logits["eager"], logits["sdpa"], **TOLERANCE)


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
    expected = torch.cat(
        [by_hand(model, [5, 6, GIST, 8, 9], [START, 11, 12]), by_hand(model, [7, GIST, 4], [START, 13])]
    )
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
    settings_of = {"optim": "sgd", "learning_rate": 0.5, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
    steps = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 1, "max_steps": 1}
    quiet = {"report_to": [], "save_strategy": "no", "disable_tqdm": True, "use_cpu": True}
    arguments = TrainingArguments(str(tmp_path), **settings_of, **steps, **quiet)
    Trainer(model, arguments, train_dataset=rows).train()
    torch.testing.assert_close(model.shared.weight.detach(), before - 0.5 * gradient, **TOLERANCE)


@pytest.mark.parametrize("key", sorted(COMPRESSING))
def test_contexts_work_in_bfloat16(key: tuple[str, str]) -> None:
    model = t5_model(*key)
    prompt, rest = torch.tensor([[5, 6, 9, GIST, GIST]]), torch.tensor([[11, 12, 13]])
    with torch.no_grad():
        exact = model(torch.cat([prompt, rest], 1), decoder_input_ids=answers(1)).logits
    context = model.compress(prompt)
    model = model.to(torch.bfloat16)
    for used in (context, model.compress(prompt)):  # made in one dtype, used in another
        logits = model.continue_from(used, rest, decoder_input_ids=answers(1)).logits
        assert logits.dtype == torch.bfloat16
        torch.testing.assert_close(logits.float(), exact, atol=0.05 * float(exact.abs().max()), rtol=0)
    assert model.generate(rest, context=context, **GREEDY).shape == (1, 7)


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("token", [VOCABULARY, VOCABULARY - 1])
def test_a_new_gist_token_starts_as_the_mean_embedding(kind: str, token: int) -> None:
    model = t5_model("gist", kind, gist_token_id=None)
    before = {name: model.state_dict()[name].clone() for name in ("shared.weight", "lm_head.weight")}
    model.add_gist_token(token)
    for name, weight in (("shared.weight", model.shared.weight), ("lm_head.weight", model.lm_head.weight)):
        torch.testing.assert_close(weight[token], before[name][:token].mean(0))
        assert torch.equal(weight[:token], before[name][:token]) and len(weight) == max(VOCABULARY, token + 1)
    assert model.encoder.embed_tokens.weight is model.decoder.embed_tokens.weight is model.shared.weight
    assert (model.lm_head.weight is model.shared.weight) == (kind == "tied")
    row = [5, 6, token, 7]
    logits = model(torch.tensor([row]), decoder_input_ids=answers(1)).logits
    context = model.compress(torch.tensor([row[:3]]))
    after = model.continue_from(context, torch.tensor([row[3:]]), decoder_input_ids=answers(1)).logits
    torch.testing.assert_close(after, logits, **TOLERANCE)


def test_a_model_without_a_gist_token_is_plain_t5() -> None:
    model = t5_model("gist", gist_token_id=None)
    ids, mask = padded([[5, 6, GIST, 8, 9], [7, GIST, 4]], "left")
    expected = plain_t5(model)(ids, mask, decoder_input_ids=answers(2)).logits
    torch.testing.assert_close(model(ids, mask, decoder_input_ids=answers(2)).logits, expected, **TOLERANCE)
    embeds = model.shared(ids)
    out = model(inputs_embeds=embeds, attention_mask=mask, decoder_input_ids=answers(2), output_hidden_states=True)
    torch.testing.assert_close(out.logits, expected, **TOLERANCE)
    assert len(out.encoder_hidden_states) == 3


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        ([[5, GIST, 6], [GIST, 6, GIST]], None, r"row 1 do not stand together: they are at positions \[0, 2\]"),
        ([[5, GIST], [5, 6]], None, "row 1 has no gist token .id 60"),
        ([[5, GIST, 0], [5, GIST, 6]], [[1, 1, 0], [1, 1, 1]], "row 1 goes on after its last gist token"),
        ([[5, GIST], [5, GIST]], [[1, 1], [0, 0]], "row 1 has no tokens: it is padding only"),
        ([[5, GIST]], [[1, 1, 1]], r"attention_mask has shape \(1, 3\); expected \(1, 2\)"),
        ([[]], None, "length is 0"),
    ],
)
def test_wrong_prompts_are_refused(ids: list[list[int]], mask: list[list[int]] | None, message: str) -> None:
    model = MODELS["gist", "untied"]
    with pytest.raises(ValueError, match=message):
        model.compress(torch.tensor(ids, dtype=torch.long), None if mask is None else torch.tensor(mask))


def test_wrong_inputs_are_refused() -> None:
    model, ids = MODELS["gist", "untied"], torch.tensor([[5, 6, GIST, 7]])
    for wrong, message in (
        ({"input_ids": torch.tensor([[GIST, 5, GIST]])}, "do not stand together"),
        ({"input_ids": ids, "attention_mask": torch.zeros(1, 4)}, "row 0 has no tokens: it is padding only"),
        ({"input_ids": ids, "attention_mask": torch.ones(1, 4, 3)}, r"shape \(1, 4, 3\); expected .* \(1, 4, 4\)"),
        ({"input_ids": ids, "attention_mask": torch.full((1, 1, 4, 4), -1e9)}, "expected 0 and 1"),
        ({"input_ids": ids, "cross_attention_mask": torch.ones(1, 3)}, r"cross_attention_mask has shape \(1, 3\)"),
        ({"input_ids": ids[:, :0]}, "nothing to read"),
        ({}, "nothing to read"),
    ):
        for call in (
            lambda wrong=wrong: model(**wrong, decoder_input_ids=answers(1)),
            lambda wrong=wrong: model.generate(**wrong),
        ):
            with pytest.raises(ValueError, match=message):
                call()
    with pytest.raises(ValueError, match="row 0 has 1 gist tokens; num_gist_tokens is 2"):
        model.get_gist_activations(ids, num_gist_tokens=2)
    with pytest.raises(ValueError, match="pos_control has no context"):
        MODELS["pos_control", "tied"].compress(ids[:, :3])
    with pytest.raises(ValueError, match="no gist token yet"):
        t5_model(gist_token_id=None).compress(ids[:, :3])
    for implementation in ("flex_attention", "flash_attention_2"):
        with pytest.raises(ValueError, match="GistT5ForConditionalGeneration does not support"):
            t5_model().set_attn_implementation(implementation)
    with pytest.raises(ValueError, match="gist_condition 'none'"):
        t5_model("none")


def test_wrong_contexts_are_refused() -> None:
    model, ids, rest = MODELS["gist", "untied"], torch.tensor([[5, 6, GIST], [7, 8, GIST]]), torch.tensor([[8, 9]])
    context = model.compress(ids)
    for other in (t5_model(seed=1), MODELS["neg_control", "untied"], MODELS["gist", "tied"]):
        with pytest.raises(ValueError, match="another model"):
            other.continue_from(context, rest)
    with pytest.raises(ValueError, match="2 rows cannot serve a batch of 3"):
        model.continue_from(context, rest.expand(3, -1))
    with pytest.raises(ValueError, match="needs 2 and the outputs"):
        model.continue_from(replace(context, hidden_states=None), rest)
    with pytest.raises(ValueError, match="needs 2 and the outputs"):
        model.generate(rest, context=replace(context, keys=context.keys[:1], values=context.values[:1]))
    short = replace(context, mask=torch.tensor([[1], [0]]))
    with pytest.raises(ValueError, match="row 1 of the context holds 0 gist tokens; this model was trained with 1"):
        model.generate(rest, context=short)
    of_three = t5_model(gist_tokens=3)
    with pytest.raises(ValueError, match="row 0 of the context holds 1 gist tokens; this model was trained with 3"):
        of_three.continue_from(of_three.compress(ids), rest)
    empty = MODELS["neg_control", "tied"].compress(ids)
    with pytest.raises(ValueError, match="nothing to read: neither a vector of the context nor a token after it"):
        MODELS["neg_control", "tied"].generate(context=empty)
    with pytest.raises(ValueError, match="not finite"):
        model.continue_from(replace(context, values=(context.values[0], context.values[1] / 0)), rest)
    with pytest.raises(ValueError, match=r"shape \(1, 5\); expected \(2, 2\)"):
        model.continue_from(context, rest.expand(2, -1), torch.ones(1, 5))
