"""AutoCompressors, RMT and full attention on OPT and Llama against outputs of the published code, in float32.

What a case calls follows from its name, what with from its arguments. Where the published code is wrong (padding that
is read through a cache, writing in segments, no cache at all), the case's inputs are held against the plain forward
pass instead, row by row and without padding.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from laws import greedy_in_segments
from published import Case, close, close_gradient
from synopsis.compressors import compressor_class
from torch import Tensor


@pytest.mark.golden("ac_opt*", "ac_llama*")
def test_published_calls(case: Case) -> None:
    model = case.model(compressor_class("summary", case.document("config")["model_type"]))
    kinds = {
        "generate": _generates,
        "manual_segmented": _writes_in_segments,
        "incremental": _goes_on,
        "cached_then_summary": _compresses_what_is_cached,
        "grads": _has_gradients,
    }
    check = next((check for start, check in kinds.items() if case.name.startswith(start)), _reads)
    if not case.record.get("outputs") and not case.arguments():
        check = _has_grouped_queries
    check(model, case)


# ----------------------------------------------------------------------------------------------------------- reading


def _reads(model: Any, case: Case) -> None:
    """One forward pass."""
    arguments = case.arguments()
    mask = arguments.get("attention_mask")
    with torch.no_grad():
        out = model(**arguments)
    raised = not case.record.get("outputs") or case["logits"].shape[:2] != out.logits.shape[:2]  # or cut rows short
    if raised or _published_reads_padding(model, case):
        _rows_as_alone(model, arguments, out)
        return
    close(_real(out.logits, mask), _real(case["logits"], mask))
    if out.softprompt is not None:
        close(out.softprompt, case["softprompt"])
    else:
        assert case["softprompt"].shape[1] == 0 and not arguments.get("output_softprompt")
    if "loss" in case:
        _has_loss(model, case, arguments, out.loss)


def _real(values: Tensor, mask: Tensor | None) -> Tensor:
    """Values at real tokens: what stands at padding means nothing."""
    return values if mask is None else values[mask.bool()]


def _published_reads_padding(model: Any, case: Case) -> bool:
    """Published Llama takes padding for text with a cache, which it makes unless use_cache is False."""
    arguments = case.arguments()
    mask = arguments.get("attention_mask")
    padded = mask is not None and not bool(mask.all())
    return model.config.model_type == "llama" and padded and arguments.get("use_cache", True)


def _rows_as_alone(model: Any, arguments: dict[str, Any], out: Any) -> None:
    """Each row is what it is without padding; in several segments, whose borders padding moves, without a cache."""
    if "segment_lengths" in arguments:
        expected = model(**{**arguments, "use_cache": False})
        close(out.logits, expected.logits)
        close(out.softprompt, expected.softprompt)
        return
    key = "input_ids" if "input_ids" in arguments else "inputs_embeds"
    mask = arguments["attention_mask"].bool()
    for row in range(len(mask)):
        alone = {**arguments, "attention_mask": None, key: arguments[key][row : row + 1, mask[row]]}
        if "softprompt" in alone:
            alone["softprompt"] = alone["softprompt"][row : row + 1]
        with torch.no_grad():
            expected = model(**alone)
        close(out.logits[row][mask[row]], expected.logits[0])
        if out.softprompt is not None:
            close(out.softprompt[row], expected.softprompt[0])


def _predicted(arguments: dict[str, Any]) -> Tensor:
    """The labels that a real token predicts; the others are -100."""
    labels, mask = arguments["labels"].clone(), arguments.get("attention_mask")
    if mask is not None:
        labels[:, 1:][mask[:, :-1] == 0] = -100
    return labels


def _has_loss(model: Any, case: Case, arguments: dict[str, Any], loss: Tensor) -> None:
    """What padding predicts is arbitrary: where it has a label, both sides are held to the labels of real tokens."""
    labels = _predicted(arguments)
    if torch.equal(labels, arguments["labels"]):
        close(loss, case["loss"])
        return
    with torch.no_grad():
        found = model(**{**arguments, "labels": labels}).loss
    expected = torch.nn.functional.cross_entropy(case["logits"][:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    close(found, expected)


def _has_gradients(model: Any, case: Case) -> None:
    arguments = case.arguments()
    arguments["softprompt"] = arguments["softprompt"].clone().requires_grad_()
    mask, labels, share = arguments["attention_mask"], arguments["labels"], 1.0
    if model.config.model_type == "llama":
        # The published mean counts tokens after padding too, which have a loss there and no gradient.
        arguments["labels"] = _predicted(arguments)
        share = float((arguments["labels"][:, 1:] != -100).sum() / (labels[:, 1:] != -100).sum())
    model.train()
    out = model(**arguments, skip_logits=False)
    close(_real(out.logits, mask), _real(case["logits"], mask))
    out.loss.mul(share).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    expected = case.gradients()
    assert expected and set(expected) == {name for name, gradient in gradients.items() if gradient is not None}
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        close_gradient(name, gradients[name], gradient, largest)
    close(arguments["softprompt"].grad, case["grad_softprompt"], 1e-4)


def _has_grouped_queries(model: Any, case: Case) -> None:
    """The published code raises; what ours does is in tests/compressors/test_law.py, all of it with grouped queries."""
    assert "error" in case.record and model.config.num_key_value_heads < model.config.num_attention_heads


# ------------------------------------------------------------------------------------------------------ with a cache


def _goes_on(model: Any, case: Case) -> None:
    """A prefix, then the rest in pieces from its cache; expected is the published result, or the one-pass result."""
    arguments = case.arguments()
    ids, mask, soft = (arguments.get(key) for key in ("input_ids", "attention_mask", "softprompt"))
    assert ids is not None
    options = {} if soft is None else {"softprompt": soft}
    if "multisegment" in case.name:
        _goes_on_after_segments(model, case, ids, torch.ones_like(ids) if mask is None else mask, options)
        return
    published = not (model.config.model_type == "llama" and "left" in case.name)
    outputs = {name: case[name] for name in case.record["outputs"] if name.startswith("logits")}
    prefix = outputs["logits_prefix"].shape[1]
    real = torch.ones_like(ids) if mask is None else mask
    with torch.no_grad():
        whole = model(ids, mask, **options)
        before = None if mask is None else mask[:, :prefix]
        out = model(ids[:, :prefix], before, use_cache=True, **options)
        found, place = {"logits_prefix": out.logits}, prefix
        for name in sorted((name for name in outputs if "step" in name), key=lambda name: int(name.split("step")[1])):
            end = place + outputs[name].shape[1]
            part = None if mask is None else mask[:, :end]
            out = model(ids[:, place:end], part, past_key_values=out.past_key_values, use_cache=True)
            found[name], place = out.logits, end
    assert len(found) > 2
    logits = torch.cat(list(found.values()), dim=1)
    close(_real(logits, real[:, :place]), _real(whole.logits[:, :place], real[:, :place]))
    if published:
        logits_published = torch.cat([outputs[name] for name in found], dim=1)
        close(_real(logits, real[:, :place]), _real(logits_published, real[:, :place]))


def _goes_on_after_segments(model: Any, case: Case, ids: Tensor, mask: Tensor, options: dict[str, Any]) -> None:
    """Two segments into a cache, then one token more of the second; the mask covers that segment, or all tokens."""
    # A case that only says what it changes has the numbers of its neighbour.
    neighbour = case.golden.cases(case.fixture).get(case.name.replace("fullmask_", ""), case)
    found = re.search(r"segment_lengths=\[(\d+), *(\d+)\]", case.record["call"] + neighbour.record["call"])
    assert found, "the case does not say its segment lengths"
    first, second = map(int, found.groups())
    prefix = first + second
    with torch.no_grad():
        whole = model(ids[:, : prefix + 1], mask[:, : prefix + 1], segment_lengths=[first, second + 1], **options)
        out = model(ids[:, :prefix], mask[:, :prefix], segment_lengths=[first, second], use_cache=True, **options)
        covers = mask[:, : prefix + 1] if "fullmask" in case.name else mask[:, first : prefix + 1]
        step = model(ids[:, prefix : prefix + 1], covers, past_key_values=out.past_key_values, use_cache=True)
    close(step.logits, whole.logits[:, -1:])
    published = {name for name in case.record.get("outputs") or () if name in case}
    if model.config.model_type == "llama" and not bool(mask.all()):
        return  # published Llama reads padding through the cache
    if "logits_prefix" in published:
        close(_real(out.logits, mask[:, :prefix]), _real(case["logits_prefix"], mask[:, :prefix]))
        close(out.softprompt, case["softprompt_prefix"])
    for name in published:
        if name.startswith("logits_step"):
            close(step.logits, case[name])


def _compresses_what_is_cached(model: Any, case: Case) -> None:
    """Tokens read into a cache, then more with a summary: asked for, or because the segment has become full."""
    arguments = case.arguments()
    ids, mask, soft = (arguments[key] for key in ("input_ids", "attention_mask", "softprompt"))
    new = case["o2_logits"].shape[1]
    read = int(case.record["call"].split("ids[:,:")[1].split("]")[0])
    with torch.no_grad():
        first = model(ids[:, :read], mask[:, :read], softprompt=soft, use_cache=True)
        more = {"past_key_values": first.past_key_values, "use_cache": True}
        part, covers = ids[:, read : read + new], mask[:, : read + new]
        outs = {"o2": model(part, covers, output_softprompt=True, **more)}
        outs["o3"] = model(part, covers, segment_lengths=read + new, **more)
        whole = model(ids[:, : read + new], covers, softprompt=soft, output_softprompt=True)
    for name, out in outs.items():
        close(_real(out.logits, mask[:, read : read + new]), _real(whole.logits[:, read:], mask[:, read : read + new]))
        close(out.softprompt, whole.softprompt)
        if not (model.config.model_type == "llama" and "left" in case.name):
            close(out.logits, case[f"{name}_logits"])
            close(out.softprompt, case[f"{name}_softprompt"])


# ----------------------------------------------------------------------------------------------------------- writing


def _greedy(model: Any, arguments: dict[str, Any], count: int) -> list[list[int]]:
    """What follows each row, by transformers' own class."""
    ids, mask, soft = (arguments.get(key) for key in ("input_ids", "attention_mask", "softprompt"))
    assert ids is not None
    rows = [row.tolist() if mask is None else row[mask[index].bool()].tolist() for index, row in enumerate(ids)]
    softs = [None] * len(rows) if soft is None else soft
    lengths = arguments.get("segment_lengths")
    return [greedy_in_segments(model, row, count, lengths, own) for row, own in zip(rows, softs, strict=True)]


def _generates(model: Any, case: Case) -> None:
    arguments = case.arguments()
    out, width = model.generate(**arguments), arguments["input_ids"].shape[1]
    assert out[:, width:].tolist() == _greedy(model, arguments, arguments["max_new_tokens"])
    if not _published_generates_wrongly(model, arguments, case):
        assert torch.equal(out, case["ids"])


def _published_generates_wrongly(model: Any, arguments: dict[str, Any], case: Case) -> bool:
    """Without a cache; on Llama with padding; and a prompt whose last segment is full, which is never compressed."""
    length, cut = arguments["input_ids"].shape[1], arguments.get("segment_lengths")
    padded = "attention_mask" in arguments and not bool(arguments["attention_mask"].all())
    full = isinstance(cut, int) and length % cut == 0
    llama = model.config.model_type == "llama"
    return "error" in case.record or not arguments.get("use_cache", True) or (llama and padded) or full


def _writes_in_segments(model: Any, case: Case) -> None:
    """The published greedy loop over `forward` with a cache and one segment length."""
    arguments = case.arguments()
    ids, cut, soft = arguments["input_ids"], arguments["segment_lengths"], arguments.get("softprompt")
    count = case["ids"].shape[1] - ids.shape[1]
    text, new, past, softprompts = ids, ids, None, []
    for _ in range(count + 1):
        first = {"softprompt": soft} if past is None else {"past_key_values": past}
        with torch.no_grad():
            out = model(new, segment_lengths=cut, use_cache=True, **first)
        past, new = out.past_key_values, out.logits[:, -1:].argmax(-1)
        softprompts.append(out.softprompt.shape[1])
        text = torch.cat([text, new], dim=1)
    assert text[:, ids.shape[1] : -1].tolist() == _greedy(model, arguments, count)
    if ids.shape[1] % cut:  # else the published loop never compresses
        assert torch.equal(text[:, : case["ids"].shape[1]], case["ids"])
        steps = len(case.record["softprompt_len_per_step"])
        assert softprompts[:steps] == case.record["softprompt_len_per_step"]
        assert steps in (count, count + 1)
        if steps == count + 1:
            close(out.logits[:, -1:], case["last_logits"])
            close(out.softprompt, case["last_softprompt"])
