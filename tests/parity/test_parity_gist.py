"""The gist models against outputs of the published code, in float32.

Where the published code counts positions or rows wrongly, each row is compared with an uncompressed pass of
transformers' own class under a mask written down position by position.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from laws import gist_by_hand
from published import Case, close
from synopsis.compressors import attention, compressor_class
from synopsis.compressors.masks import CONDITIONS, gist_span, seen
from synopsis.compressors.published.gist import GistActivations, remove_gist
from torch import Tensor

GRADIENT = 1e-4


def condition_of(case: Case) -> str:
    return next((condition for condition in CONDITIONS[1:] if condition in case.name), "gist")


def gist_model(case: Case) -> Any:
    architecture = case.document("config")["model_type"]
    fields = {"gist_token_id": case.meta["gist_token"], "gist_condition": condition_of(case)}
    return case.model(compressor_class("gist", architecture), **fields)


def padding_mask(case: Case, ids: Tensor) -> Tensor:
    return (ids != case.meta["pad_token"]).long()


# ---------------------------------------------------------------------------------------------------------- the masks


@pytest.mark.golden("gist_masks*")
def test_masks(case: Case) -> None:
    """Ours is the published mask where it is causal; at padding ours shows each position itself."""
    ids, token = case.arguments()["input_ids"], case.meta["gist_token"]
    length, spans = ids.shape[1], case.record["get_gist_index"]
    causal, itself = torch.ones(length, length, dtype=torch.bool).tril(), torch.eye(length, dtype=torch.bool)
    fitting = [row for row, span in enumerate(spans) if not isinstance(span, str)]
    for row in set(range(len(ids))) - set(fitting):
        found = (ids[row] == token).nonzero().flatten().tolist()
        for condition in ("gist", "neg_control"):
            with pytest.raises(ValueError) as raised:
                attention.causal(torch.ones(1, length)) & seen(ids[row : row + 1], token, condition)
            assert f"row 0 do not stand together: they are at positions {found}" in str(raised.value)
    first, last = gist_span(ids[fitting], token)
    expected = [(0, -1) if spans[row][0] is None else (spans[row][0], spans[row][1] - 1) for row in fitting]
    assert list(zip(first.tolist(), last.tolist(), strict=True)) == expected
    for kind, mask in (("nopad", torch.ones_like(ids)), ("pad", padding_mask(case, ids))):
        for condition in CONDITIONS:
            published = case[f"{condition}_{kind}"].bool() & causal
            rows = list(range(len(ids))) if condition == "pos_control" else fitting
            assert torch.equal(
                attention.causal(mask[rows]) & seen(ids[rows], token, condition), (published | itself)[rows]
            )
    # The published parts of the masks, from ours: what the last position sees, and who sees the first one.
    for place, row in enumerate(fitting):
        has = int(last[place]) >= 0
        since, until = case["pre_first_gist_nopad"][row].bool(), case["post_last_gist_nopad"][row].bool()
        order = torch.arange(length)
        assert torch.equal(since, (order >= first[place]) & has)
        assert torch.equal(until, order <= last[place])


# ----------------------------------------------------------------------------------------------------- whole sequences


@pytest.mark.golden("gist_llama*")
def test_every_case(case: Case) -> None:
    """Each kind of case has its check; a kind that is not known fails."""
    checks = {
        "forward": _without_gist_mask if "error" in case.record else _forward,
        "gist_activations": _activations,
        "decode_from_cache": _decodes,
        "decode_from_promptcache": _decodes,
        "generate_cached": _generates_cached,
        "generate": _generates,
        "trainer_remove_gist": _removes_gist,
    }
    fitting = [name for name in checks if case.name.startswith(name)]
    assert fitting, f"no check for a case called {case.name}"
    checks[max(fitting, key=len)](gist_model(case), case)


def _real(values: Tensor, mask: Tensor | None) -> Tensor:
    return values if mask is None else values[mask.bool()]


def _forward(model: Any, case: Case) -> None:
    """The published call, and the same without a mask: the model makes that of its condition."""
    arguments = case.arguments()
    mask, mask_gist = arguments.get("attention_mask"), arguments.pop("attention_mask_gist")
    for given in ({"attention_mask_gist": mask_gist}, {}):
        out = model(**arguments, **given)
        close(_real(out.logits, mask), _real(case["logits"], mask))
        if "loss" in case:
            close(out.loss, case["loss"])
    expected = case.gradients()
    if expected:
        out.loss.backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        assert set(expected) == set(gradients)
        for name, gradient in expected.items():
            close(gradients[name], gradient, GRADIENT)


def _without_gist_mask(model: Any, case: Case) -> None:
    """The published code needs attention_mask_gist; here a call without it is the condition's, row by row."""
    for name, other in case.golden.cases(case.fixture).items():
        if not name.startswith("forward") or "error" in other.record:
            continue
        arguments = other.arguments()
        ids = arguments["input_ids"]
        mask = arguments.get("attention_mask", torch.ones_like(ids))
        model.config.gist_condition = condition_of(other)
        logits = model(ids, mask).logits
        for row in range(len(ids)):
            real = mask[row].bool()
            close(logits[row][real], gist_by_hand(model, ids[row][real].tolist()))


# ------------------------------------------------------------------------------------------------------- cached tokens


def _same_activations(found: GistActivations, case: Case) -> None:
    close(found.last_hidden_state, case["ga_last_hidden_state"])
    close(torch.stack([key for key, _ in found.past_key_values]), case["ga_keys"])
    close(torch.stack([value for _, value in found.past_key_values]), case["ga_values"])
    assert torch.equal(found.gist_indices, case["ga_gist_indices"])


def _activations(model: Any, case: Case) -> None:
    """The published activations; and `compress`, whose keys differ by their rotation alone, and not without padding."""
    arguments = case.arguments()
    ids, mask = arguments["input_ids"], arguments["attention_mask"]
    _same_activations(model.get_gist_activations(**arguments), case)
    _, last = gist_span(ids, case.meta["gist_token"])
    end = int(last.max()) + 1
    before = mask * (torch.arange(ids.shape[1]) <= last[:, None])
    context = model.compress(ids[:, :end], before[:, :end])
    close(torch.stack(context.values), case["ga_values"])
    close(torch.stack(context.keys).norm(dim=-1), case["ga_keys"].norm(dim=-1))
    starts = mask.argmax(-1)
    close(torch.stack(context.keys)[:, starts == 0], case["ga_keys"][:, starts == 0])
    assert torch.equal(context.next_position - context.length, case["ga_gist_indices"] - starts)


def _decodes(model: Any, case: Case) -> None:
    """Every published way to go on, row by row what one pass gives; and the published logits where they are right."""
    arguments = case.arguments()
    full, rest = arguments["full_input_ids"], arguments["input_ids"]
    every = "promptcache" in case.name
    token, real = case.meta["gist_token"], padding_mask(case, full)
    count = int((full[0] == token).sum())
    found = model.get_gist_activations(
        full,
        attention_mask=real,
        attention_mask_gist=arguments.get("full_attention_mask_gist"),
        gist_token=token,
        num_gist_tokens=arguments.get("num_gist_tokens", count),
        cache_all=every,
    )
    _same_activations(found, case)
    offset = case["ga_gist_indices"]
    mask = arguments["attention_mask"]
    mask_gist = arguments.get("attention_mask_gist", torch.ones_like(mask)[:, None, None])
    published: dict[str, Any] = {"attention_mask": mask, "attention_mask_gist": mask_gist}
    ways = [
        {**published, "gist_activations": found},
        {**published, "past_key_values": found.past_key_values, "gist_offset": found.gist_indices},
        {"attention_mask_gist": mask_gist, "gist_activations": found},
    ]
    outputs = [model(rest, **way).logits for way in ways]
    if not every:
        outputs.append(model(rest, gist_activations=found).logits)
        outputs.append(model.continue_from(found.context, rest).logits)
    _, last = gist_span(full, token)
    for row in range(len(rest)):
        prompt = full[row, : last[row] + 1][real[row, : last[row] + 1].bool()].tolist()
        expected = gist_by_hand(model, prompt + rest[row].tolist(), len(prompt))[len(prompt) :]
        for logits in outputs:
            close(logits[row], expected)
        if offset[row] == offset[0]:  # the published code takes this row's offset for all
            close(outputs[0][row], case["logits"][row])
        if "full_logits" in case:
            seen = real[row].bool()
            close(model(full, real).logits[row][seen], case["full_logits"][row][seen])


def _generates_cached(model: Any, case: Case) -> None:
    arguments = case.arguments()
    options = {key.removeprefix("gk_"): value for key, value in arguments.items() if key.startswith("gk_")}
    ids, rest = arguments["input_ids"], arguments["post"]
    masks = {key: arguments[key] for key in ("attention_mask", "attention_mask_gist")}
    assert torch.equal(model.generate(ids, **masks, **options), case["ids_uncached"])
    found = model.get_gist_activations(ids, **masks)
    ones = torch.ones(len(rest), found.context.length + rest.shape[1], dtype=torch.long)
    published = {"attention_mask": ones, "attention_mask_gist": ones[:, None, None]}
    ways: list[dict[str, Any]] = [
        {**published, "past_key_values": found.past_key_values, "gist_offset": found.gist_indices},
        {**published, "gist_activations": found},
        {"gist_activations": found},
        {"context": model.compress(ids[:, : ids.shape[1] - rest.shape[1]])},
    ]
    for way in ways:
        assert torch.equal(model.generate(rest, **way, **options), case["ids_cached"])


def _generates(model: Any, case: Case) -> None:
    """Of left-padded prompts, with the published masks and without."""
    arguments = case.arguments()
    ids = arguments["input_ids"]
    mask = arguments.get("attention_mask", padding_mask(case, ids))
    options: dict[str, Any] = {
        "do_sample": False,
        "max_new_tokens": case["ids"].shape[1] - ids.shape[1],
        "eos_token_id": case.record.get("eos_token_id", [-1])[0],
        "pad_token_id": case.meta["pad_token"],
    }
    assert torch.equal(model.generate(ids, attention_mask=mask, **options), case["ids"])
    if "attention_mask_gist" in arguments:
        masks = {"attention_mask": mask, "attention_mask_gist": arguments["attention_mask_gist"]}
        model.config.gist_token_id = None  # the published model knows of its gist token by the masks alone
        assert torch.equal(model.generate(ids, **masks, **options), case["ids"])


def _removes_gist(model: Any, case: Case) -> None:
    arguments = case.arguments()
    ids, token = arguments["input_ids"], case.meta["gist_token"]
    count = int((ids[0] == token).sum())
    left = remove_gist(arguments, count, token)
    assert set(left) == {"input_ids", "attention_mask", "attention_mask_gist"}
    for name, tensor in left.items():
        assert torch.equal(tensor, case[f"rg_{name}"])
    # What is left says the same as the whole, with the gist tokens in the cache.
    found = model.get_gist_activations(ids, gist_token=token, num_gist_tokens=count)
    row = ids[0][arguments["attention_mask"][0].bool()].tolist()
    rest = left["input_ids"].shape[1]
    close(model(**left, gist_activations=found).logits[0], gist_by_hand(model, row)[-rest:])
