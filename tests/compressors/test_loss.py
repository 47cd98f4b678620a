"""The loss of labels that are ignored, of logits in slices, and of calls that together make one batch."""

from __future__ import annotations

import copy
import sys
import types
from typing import Any

import pytest
import torch
from compressor_models import architecture_model, padded, tokens
from synopsis.compressors import loss as losses
from torch import Tensor
from torch.nn.functional import cross_entropy

HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "untied": ("llama", {}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "soft cap": ("gemma2", {"final_logit_softcapping": 2.0, "tie_word_embeddings": True}),
    "projected": ("opt", {"word_embed_proj_dim": 16, "do_layer_norm_before": False, "tie_word_embeddings": True}),
    "biased": ("phi", {}),
}
CALLS: dict[str, dict[str, Any]] = {"plain": {}, "segments": {"segment_lengths": 5}}
EVERY_HEAD = pytest.mark.parametrize("head", HEADS)
EVERY_CALL = pytest.mark.parametrize("call", CALLS)


def model_of(head: str) -> Any:
    architecture, fields = HEADS[head]
    return architecture_model("summary", architecture, summary_length=2, **fields).train()


def batch(right: bool = True) -> dict[str, Tensor]:
    """Two rows with padding and, in the first, a prompt without labels."""
    rows = [tokens(torch.Generator().manual_seed(1), size) for size in (12, 7)]
    ids, mask = padded(rows, "right" if right else "left")
    labels = ids.masked_fill(mask == 0, -100)
    labels[0, :4] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def expected_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert set(found) == set(wanted)
    largest = max(float(gradient.abs().max()) for gradient in wanted.values())
    assert largest > 0
    for name, gradient in wanted.items():
        torch.testing.assert_close(
            found[name], gradient, atol=1e-5 * largest, rtol=0, msg=lambda text, n=name: n + text
        )


@EVERY_HEAD
@EVERY_CALL
@pytest.mark.parametrize("at_once", [1, 61 * 3, 61 * 10_000])
def test_the_loss_without_logits_is_that_of_all_logits(
    head: str, call: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slices of one label, of three, and of all; the loss and every gradient, scaled by what follows it too."""
    monkeypatch.setattr(losses, "LOGITS_AT_ONCE", at_once)
    model, arguments = model_of(head), {**batch(), **CALLS[call]}
    whole = model(**arguments, skip_logits=False)
    by_hand = expected_loss(whole.logits, arguments["labels"])
    torch.testing.assert_close(whole.loss, by_hand)
    wanted = gradients(model, by_hand * 3)
    quick = model(**arguments)
    assert quick.logits is None
    torch.testing.assert_close(quick.loss, by_hand)
    same(gradients(model, quick.loss * 3), wanted)
    with torch.no_grad():
        torch.testing.assert_close(model(**arguments).loss, by_hand)


@EVERY_CALL
def test_evaluation_gives_logits_with_the_loss_unless_they_are_skipped(call: str) -> None:
    model, arguments = model_of("untied").eval(), {**batch(), **CALLS[call]}
    out = model(**arguments)
    assert out.logits.shape == (2, 12, 61)
    skipped = model(**arguments, skip_logits=True)
    assert skipped.logits is None
    torch.testing.assert_close(skipped.loss, out.loss)


@EVERY_HEAD
@EVERY_CALL
@pytest.mark.parametrize("skip", [False, True])
def test_labels_that_are_all_ignored_give_zero_and_zero_gradients(head: str, call: str, skip: bool) -> None:
    model, arguments = model_of(head), {**batch(), **CALLS[call]}
    loss = model(**{**arguments, "labels": torch.full((2, 12), -100)}, skip_logits=skip).loss
    assert loss.shape == () and float(loss.detach()) == 0
    assert all(not bool(gradient.any()) for gradient in gradients(model, loss).values())


@EVERY_CALL
@pytest.mark.parametrize("skip", [False, True])
def test_calls_that_make_one_batch_add_up_to_its_mean(call: str, skip: bool) -> None:
    model, arguments = model_of("untied"), batch()
    options = {**CALLS[call], "skip_logits": skip}
    whole = model(**arguments, **options).loss
    items = int((arguments["labels"][:, 1:] != -100).sum())
    total = torch.zeros(())
    for row in range(2):
        part = {name: tensor[row : row + 1] for name, tensor in arguments.items()}
        for count in (items, torch.tensor(items)):
            loss = model(**part, **options, num_items_in_batch=count).loss
        total = total + loss
    torch.testing.assert_close(total, whole)


def test_frozen_heads_and_frozen_models_get_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with LoRA: the weights do not learn, and the summary tokens do."""
    monkeypatch.setattr(losses, "LOGITS_AT_ONCE", 61)
    model = model_of("untied")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name == "embed_summary.weight")
    arguments = {**batch(), "segment_lengths": 5}
    wanted = gradients(model, model(**arguments, skip_logits=False).loss)
    found = gradients(model, model(**arguments).loss)
    assert set(found) == {"embed_summary.weight"}
    same(found, wanted)


def test_bfloat16_sums_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many slices are as near to float32 as one is."""
    model = model_of("untied")
    half, arguments = copy.deepcopy(model).to(torch.bfloat16), batch()
    expected = model(**arguments).loss
    for at_once in (61, 61 * 10_000):
        monkeypatch.setattr(losses, "LOGITS_AT_ONCE", at_once)
        loss = half(**arguments).loss
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, expected, rtol=0.05, atol=0)
        assert all(bool(gradient.isfinite().all()) for gradient in gradients(half, loss).values())


class StandIn(torch.nn.Module):
    """Takes what liger-kernel's class takes, by the same names; the kernel itself needs a GPU."""

    calls = 0

    def __init__(self, ignore_index: int = -100, reduction: str = "mean", softcap: float | None = None):
        super().__init__()
        self.reduction, self.softcap = reduction, softcap

    def forward(self, lin_weight: Tensor, _input: Tensor, target: Tensor, bias: Tensor | None = None) -> Tensor:
        type(self).calls += 1
        logits = torch.nn.functional.linear(_input, lin_weight, bias)
        logits = logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap
        return torch.nn.functional.cross_entropy(logits, target, reduction=self.reduction)


@EVERY_HEAD
def test_the_fused_loss_of_a_gpu_is_called_with_what_gives_the_same(head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(head)
    ids = torch.randint(3, 30, (2, 9))
    expected = model(ids, labels=ids, segment_lengths=[4, 5]).loss
    module = types.ModuleType("liger_kernel.transformers")
    module.LigerFusedLinearCrossEntropyLoss = StandIn  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "liger_kernel", types.ModuleType("liger_kernel"))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", module)
    monkeypatch.setattr(losses, "_on_gpu_with_liger", lambda states: True)
    before = StandIn.calls
    torch.testing.assert_close(model(ids, labels=ids, segment_lengths=[4, 5]).loss, expected)
    assert StandIn.calls == before + 1
    model.lm_head = torch.nn.Sequential(model.lm_head)  # no plain output layer: in slices
    model(ids, labels=ids, segment_lengths=[4, 5])
    assert StandIn.calls == before + 1
