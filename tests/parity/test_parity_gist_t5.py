"""Gist tokens on T5 against outputs of the published code, in float32.

What a case calls follows from its name, what with from its arguments. Each is held twice: the published call, with the
masks that its caller made, against the published outputs; and the call of this library, which makes the masks itself,
against transformers' own T5, row by row, without padding and under masks written down position by position. Where the
published masks are wrong (neg_control shows padding to the decoder, a row whose gist token was cut off shows nothing),
the second states what is right.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from published import Case, close
from synopsis.compressors import GistT5ForConditionalGeneration
from synopsis.compressors.gist.t5 import remove_gist
from synopsis.compressors.masks import CONDITIONS
from t5_models import t5_by_hand, t5_greedy
from torch import Tensor, nn

GRADIENT = 1e-4


@pytest.mark.golden("gist_t5*")
def test_published_calls(case: Case) -> None:
    checks = {
        "forward_cached": _goes_on,
        "forward": _reads,
        "generate_cached": _writes_after_a_cache,
        "generate": _writes,
        "gist_activations": _keeps_activations,
        "trainer_remove_gist": _removes_the_instruction,
    }
    check = next(check for start, check in checks.items() if case.name.startswith(start))
    condition = next((name for name in CONDITIONS if f"_{name}_" in case.name), "gist")
    model = case.model(GistT5ForConditionalGeneration, gist_token_id=case.meta["gist_token"], gist_condition=condition)
    check(model, case)


# ---------------------------------------------------------------------------------------------------- whole sequences


def _reads(model: Any, case: Case) -> None:
    arguments = case.arguments()
    if "error" not in case.record:
        out = model(**arguments)
        close(out.logits, case["logits"])
        close(out.loss, case["loss"])
        if "encoder_last_hidden_state" in case:
            real = _real(case)
            close(out.encoder_last_hidden_state[real], case["encoder_last_hidden_state"][real])
        if case.gradients():
            out.loss.backward()
            found = dict(model.named_parameters())
            assert set(found) == set(case.gradients())
            for name, gradient in case.gradients().items():
                close(found[name].grad, gradient, GRADIENT)
    ids, labels = arguments["input_ids"], arguments["labels"]
    with torch.no_grad():
        out = model(ids, _real(case).long(), labels=labels)
    answers = arguments.get("decoder_input_ids", model.prepare_decoder_input_ids_from_labels(labels))
    rows = [t5_by_hand(model, row, answer) for row, answer in zip(_rows(case), answers.tolist(), strict=True)]
    close(out.logits, torch.stack(rows))
    close(out.loss, nn.functional.cross_entropy(torch.cat(rows), labels.flatten()))


def _writes(model: Any, case: Case) -> None:
    arguments = case.arguments()
    count = case["ids"].shape[1] - 1
    greedy = {"do_sample": False, "max_new_tokens": count, "eos_token_id": None}
    if "error" not in case.record:
        assert torch.equal(model.generate(**arguments, **greedy), case["ids"])
        assert torch.equal(model.generate(**arguments, **greedy, use_cache=False), case["ids"])
    found = model.generate(arguments["input_ids"], attention_mask=_real(case).long(), **greedy)
    assert found.tolist() == [t5_greedy(model, row, count) for row in _rows(case)]


# ------------------------------------------------------------------------------------------------------------- caches


def _keeps_activations(model: Any, case: Case) -> None:
    arguments = {"gist_token": case.meta["gist_token"], **case.arguments()}
    arguments.setdefault("num_gist_tokens", case["ga_last_hidden_state"].shape[1])
    for mask in (arguments["attention_mask"], _real(case).long()):
        _same_activations(model.get_gist_activations(**{**arguments, "attention_mask": mask}), case)


def _same_activations(found: Any, case: Case) -> None:
    close(found.last_hidden_state, case["ga_last_hidden_state"])
    for position, name in enumerate(("ga_keys", "ga_values")):  # (layers, batch, heads, gist tokens, width)
        close(torch.stack([pair[position] for pair in found.past_key_values]), case[name])
    assert torch.equal(found.gist_indices, case["ga_gist_indices"])


@torch.no_grad()
def _goes_on(model: Any, case: Case) -> None:
    arguments = case.arguments()
    whole, rest, answers = arguments["full_input_ids"], arguments["input_ids"], arguments["decoder_input_ids"]
    prompt = whole[:, : whole.shape[1] - rest.shape[1]]
    activations = model.get_gist_activations(
        prompt,
        attention_mask=torch.ones_like(prompt),
        gist_token=case.meta["gist_token"],
        num_gist_tokens=case["ga_last_hidden_state"].shape[1],
    )
    _same_activations(activations, case)
    out = model(
        input_ids=rest,
        attention_mask=arguments["attention_mask"],
        cross_attention_mask=arguments["attention_mask"],
        gist_activations=activations,
        decoder_input_ids=answers,
    )
    close(out.logits, case["logits"])
    close(out.encoder_last_hidden_state, case["encoder_last_hidden_state"])
    close(model(whole, decoder_input_ids=answers).logits, case["full_logits"])
    close(model(rest, context=model.compress(prompt), decoder_input_ids=answers).logits, case["full_logits"])


def _writes_after_a_cache(model: Any, case: Case) -> None:
    arguments = case.arguments()
    whole, rest = arguments["input_ids"], arguments["post"]
    prompt = whole[:, : whole.shape[1] - rest.shape[1]]
    activations = model.get_gist_activations(prompt, attention_mask=torch.ones_like(prompt))
    cached = torch.ones(len(rest), activations.last_hidden_state.shape[1] + rest.shape[1])
    masks = {name: arguments[name] for name in ("attention_mask", "cross_attention_mask")}
    greedy = {"do_sample": False, "max_new_tokens": case["ids_cached"].shape[1] - 1, "eos_token_id": None}
    assert torch.equal(model.generate(whole, **masks, **greedy), case["ids_uncached"])
    found = model.generate(rest, attention_mask=cached, gist_activations=activations, **greedy)
    assert torch.equal(found, case["ids_cached"])
    assert torch.equal(model.generate(rest, context=model.compress(prompt), **greedy), case["ids_cached"])


def _removes_the_instruction(model: Any, case: Case) -> None:
    arguments = case.arguments()
    count = case["rg_attention_mask"].shape[1] - case["rg_input_ids"].shape[1]
    found = remove_gist(arguments, count, case.meta["gist_token"], case.meta["pad_token"])
    for name, tensor in found.items():
        assert torch.equal(tensor, case[f"rg_{name}"])
    activations = model.get_gist_activations(arguments["input_ids"], attention_mask=arguments["attention_mask"])
    greedy = {"do_sample": False, "max_new_tokens": 8, "eos_token_id": None}
    ids = model.generate(**found, gist_activations=activations, **greedy)
    assert ids.tolist() == [t5_greedy(model, row, 8) for row in _rows(case)]


# ------------------------------------------------------------------------------------------------------------ by hand


def _real(case: Case) -> Tensor:
    """(batch, T), False at padding, which stands at the end of a row."""
    ids = case.arguments()["input_ids"]
    length = [len(row) for row in _rows(case)]
    return torch.arange(ids.shape[1]) < torch.tensor(length)[:, None]


def _rows(case: Case) -> list[list[int]]:
    """The rows without their padding."""
    rows = case.arguments()["input_ids"].tolist()
    for row in rows:
        while row[-1] == case.meta["pad_token"]:
            row.pop()
    return rows
