"""The Llama compressors against outputs of the published code, in float32, within 1e-5 of the largest value."""

from __future__ import annotations

import pytest
import torch
from published import Case, Golden, close
from synopsis.compressors import CompressedContext, GistLlamaForCausalLM, LlamaAutoCompressorModel
from synopsis.compressors.masks import CONDITIONS, visible
from torch import Tensor

GRADIENT = 1e-4


def real(values: Tensor, mask: Tensor | None) -> Tensor:
    """Values at real tokens: what stands at padding means nothing."""
    return values if mask is None else values[mask.bool()]


def test_folder_of_a_later_version(later_folder: tuple[str, str]) -> None:
    raise AssertionError("a folder that is covered needs a test of its own")  # pragma: no cover - always skipped


def test_summary_compressors(golden: Golden, summary_case: tuple[str, str]) -> None:
    fixture, name = summary_case
    case = golden.case(fixture, name)
    model = golden.model(fixture, LlamaAutoCompressorModel)
    if name.startswith("generate"):
        _generates(model, case)
    elif name.startswith("grads"):
        _has_gradients(model.train(), case)
    elif "error" in case.record or name.startswith("single_allrowspadded"):
        _rows_as_alone(model, case)
    else:
        arguments = case.arguments()
        with torch.no_grad():
            out = model(**arguments)
        mask = arguments.get("attention_mask")
        close(real(out.logits, mask), real(case["logits"], mask))
        if out.softprompt is not None:
            close(out.softprompt, case["softprompt"])
        else:
            assert case["softprompt"].shape[1] == 0 and not arguments.get("output_softprompt")
        if "loss" in case:
            close(out.loss, case["loss"] if mask is None else _loss(case["logits"], arguments["labels"], mask))


def _counted(labels: Tensor, mask: Tensor) -> Tensor:
    """(batch, length - 1) labels that a real token predicts."""
    return (labels[:, 1:] != -100) & mask[:, :-1].bool()


def _loss(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Loss of the published logits; the published loss counts logits of 0 where padding stands before a token."""
    counted = _counted(labels, mask)
    return torch.nn.functional.cross_entropy(logits[:, :-1][counted], labels[:, 1:][counted])


def _rows_as_alone(model: LlamaAutoCompressorModel, case: Case) -> None:
    """Where the published code fails: each row is what it is without padding."""
    arguments = case.arguments()
    mask = arguments.pop("attention_mask")
    out = model(**arguments, attention_mask=mask)
    key = "input_ids" if "input_ids" in arguments else "inputs_embeds"
    for row in range(len(mask)):
        alone = model(**{**arguments, key: arguments[key][row : row + 1, mask[row].bool()]})
        close(out.logits[row][mask[row].bool()], alone.logits[0])
        close(out.softprompt[row], alone.softprompt[0])


def _generates(model: LlamaAutoCompressorModel, case: Case) -> None:
    arguments = case.arguments()
    soft = arguments.pop("softprompt")
    rows, length = soft.shape[:2]
    context = CompressedContext(
        torch.full((rows,), length), torch.full((rows,), length), model.fingerprint(), summary_vectors=soft
    )
    assert torch.equal(model.generate(arguments.pop("input_ids"), context=context, **arguments), case["ids"])


def _has_gradients(model: LlamaAutoCompressorModel, case: Case) -> None:
    arguments = case.arguments()
    arguments["softprompt"] = arguments["softprompt"].clone().requires_grad_()
    labels, mask = arguments["labels"], arguments["attention_mask"]
    # The published mean also counts tokens after padding, which have a loss without a gradient.
    model(**arguments).loss.mul(_counted(labels, mask).sum() / (labels[:, 1:] != -100).sum()).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    expected = case.gradients()
    assert set(expected) == set(gradients)
    for name, gradient in expected.items():
        close(gradients[name], gradient, GRADIENT)
    close(arguments["softprompt"].grad, case["grad_softprompt"], GRADIENT)


# ------------------------------------------------------------------------------------------------------------- gist


def test_gist(golden: Golden, gist_case: tuple[str, str]) -> None:
    fixture, name = gist_case
    case = golden.case(fixture, name)
    condition = next((c for c in ("pos_control", "neg_control") if c in name), "gist")
    model = golden.model(fixture, GistLlamaForCausalLM, gist_token_id=119, gist_condition=condition)
    if name.startswith("forward"):
        _forward(model, case)
    elif name.startswith("gist_activations"):
        _activations(model, case)
    elif name.startswith("decode_from_cache"):
        _continues(model, case)
    elif name.startswith("generate_cached"):
        _generates_cached(model, case)
    else:
        end = case.record.get("eos_token_id", [-1])[0]
        arguments = case.arguments()
        mask = arguments.get("attention_mask", (arguments["input_ids"] != 0).long())
        count = case["ids"].shape[1] - mask.shape[1]
        out = model.generate(
            arguments["input_ids"],
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=count,
            eos_token_id=end,
            pad_token_id=0,
        )
        assert torch.equal(out, case["ids"])


def _parts(ids: Tensor) -> tuple[list[list[int]], list[list[int]]]:
    """Each row without its padding up to its last gist token, and the rest."""
    rows = [row[row != 0].tolist() for row in ids]
    ends = [len(row) - row[::-1].index(119) for row in rows]
    return [row[:end] for row, end in zip(rows, ends, strict=True)], [
        row[end:] for row, end in zip(rows, ends, strict=True)
    ]


def _continues(model: GistLlamaForCausalLM, case: Case) -> None:
    """Each row by itself, as the published code decodes from one row's cache alone."""
    for row, (prompt, rest) in enumerate(zip(*_parts(case.arguments()["full_input_ids"]), strict=True)):
        logits = model.continue_from(model.compress(torch.tensor([prompt])), torch.tensor([rest])).logits[0]
        close(logits, case["full_logits"][row, -len(rest) :])
        if len(case["logits"]) == 1:
            close(logits, case["logits"][0])


def _forward(model: GistLlamaForCausalLM, case: Case) -> None:
    arguments = case.arguments()
    mask = arguments.get("attention_mask")
    out = model(arguments["input_ids"], mask, labels=arguments.get("labels"))
    close(real(out.logits, mask), real(case["logits"], mask))
    if "loss" in case:
        close(out.loss, case["loss"])
    expected = case.gradients()
    if expected:
        out.loss.backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        assert set(expected) == set(gradients)
        for name, gradient in expected.items():
            close(gradients[name], gradient, GRADIENT)


def _activations(model: GistLlamaForCausalLM, case: Case) -> None:
    """Values of all rows, keys of rows without padding: the published keys are rotated to positions that count it."""
    arguments = case.arguments()
    ids, mask = arguments["input_ids"], arguments["attention_mask"]
    last = (ids == 119).int().cumsum(-1).argmax(-1)
    before = mask * (torch.arange(ids.shape[1]) <= last[:, None])
    end = int(last.max()) + 1
    context = model.compress(ids[:, :end], before[:, :end])
    close(torch.stack(context.values), case["ga_values"])
    unpadded = mask.bool().all(-1)
    assert bool(unpadded.any())
    close(torch.stack(context.keys)[:, unpadded], case["ga_keys"][:, unpadded])
    assert (context.next_position - context.length)[unpadded].tolist() == case["ga_gist_indices"][unpadded].tolist()


def _generates_cached(model: GistLlamaForCausalLM, case: Case) -> None:
    arguments = case.arguments()
    options = {key.removeprefix("gk_"): value for key, value in arguments.items() if key.startswith("gk_")}
    assert torch.equal(model.generate(arguments["input_ids"], **options), case["ids_uncached"])
    (prompt,), (rest,) = _parts(arguments["input_ids"])
    context = model.compress(torch.tensor([prompt]))
    assert torch.equal(model.generate(torch.tensor([rest]), context=context, **options), case["ids_cached"])


def test_gist_masks(golden: Golden, mask_case: tuple[str, str]) -> None:
    """Ours is the published mask where it is causal; at padding ours shows each position itself."""
    fixture, name = mask_case
    case = golden.case(fixture, name)
    ids = case.arguments()["input_ids"]
    length = ids.shape[1]
    causal, itself = torch.ones(length, length, dtype=torch.bool).tril(), torch.eye(length, dtype=torch.bool)
    for condition in CONDITIONS:
        if name == "non_contiguous" and condition != "pos_control":
            with pytest.raises(ValueError, match=r"row 0 .* positions \[1, 3\]"):
                visible(ids, torch.ones_like(ids), 119, condition)
            continue
        for kind, mask in (("nopad", torch.ones_like(ids)), ("pad", (ids != 0).long())):
            published = case[f"{condition}_{kind}"].bool() & causal
            assert torch.equal(visible(ids, mask, 119, condition), published | itself), (condition, kind)
