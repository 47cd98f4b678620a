"""Next-token loss that makes logits only where there is a label, a slice of them at a time."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

IGNORED = -100
LOGITS_AT_ONCE = 2**25
"""Numbers in one slice of logits: 128 MiB in float32."""


def perplexity(loss: float) -> float:
    """Of a loss in nats per token; infinite where it is no float."""
    return math.exp(loss) if loss < 700 else math.inf


def next_token_loss(
    states: Tensor,
    labels: Tensor,
    head: Callable[[Tensor], Tensor] | None = None,
    items: Tensor | int | None = None,
) -> Tensor:
    """Mean cross entropy of each label given the state before it; labels of -100 do not count.

    states: (batch, length, hidden), which `head` makes logits of, or, without a head, (batch, length, vocabulary)
    logits themselves. labels: (batch, length). items: the number to divide the sum by, where several calls make one
    batch. Without a single label the loss is 0, with a gradient of 0.
    """
    targets = labels[:, 1:].to(states.device)
    counted = targets != IGNORED
    states, targets = states[:, :-1][counted], targets[counted]  # (n, width), (n,)
    if head is None:
        total = _sum(states, targets)
    elif _can_be_fused(states, head):
        total = _fused_sum(states, targets, head)
    else:
        total = _sum_of_slices(states, targets, head)
    return total / (counted.sum().clamp(min=1) if items is None else items)


def losses_by_segment(
    hidden: Tensor, labels: Tensor, head: Callable[[Tensor], Tensor], lengths: Sequence[int]
) -> Tensor:
    """(batch, segments, 2): of each row and segment the sum of the losses of what it predicts, and how many those are.

    hidden: (batch, length, width), which `head` makes logits of; labels: (batch, length); lengths: of the segments. The
    last state of a segment predicts the first token of the next one.
    """
    rows, end = [], 0
    for length in lengths:
        start, end = end, end + length
        part, wanted = hidden[:, start : end + 1], labels[:, start : end + 1]
        counts = (wanted[:, 1:] != IGNORED).sum(-1)  # (batch,)
        sums = [next_token_loss(part[row : row + 1], wanted[row : row + 1], head, 1) for row in range(len(part))]
        rows.append(torch.stack([torch.stack(sums), counts.to(sums[0])], dim=-1))
    return torch.stack(rows, dim=1)


def _sum(logits: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(logits.float(), targets, reduction="sum")


def _on_gpu_with_liger(states: Tensor) -> bool:
    return states.is_cuda and importlib.util.find_spec("liger_kernel") is not None


def _can_be_fused(states: Tensor, head: Callable[[Tensor], Tensor]) -> bool:
    """On a GPU with liger-kernel, where the output layer is plain and whole (adapters and shards go in slices)."""
    if not _on_gpu_with_liger(states) or not len(states):
        return False
    layer = head.__self__.get_output_embeddings()  # type: ignore[attr-defined]
    whole = type(layer) is nn.Linear and type(layer.weight) is nn.Parameter
    return whole and layer.weight.shape == (layer.out_features, layer.in_features)


def _fused_sum(states: Tensor, targets: Tensor, head: Callable[[Tensor], Tensor]) -> Tensor:
    """Output layer and cross entropy in one kernel of liger-kernel, which keeps no logits either."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    model = head.__self__  # type: ignore[attr-defined]
    layer, cap = model.get_output_embeddings(), getattr(model.config, "final_logit_softcapping", None)
    loss = LigerFusedLinearCrossEntropyLoss(reduction="sum", **({} if cap is None else {"softcap": cap}))
    return loss(layer.weight, states, targets, layer.bias)


def _sum_of_slices(hidden: Tensor, targets: Tensor, head: Callable[[Tensor], Tensor]) -> Tensor:
    vocabulary = _width(head, hidden)
    at_once = max(1, LOGITS_AT_ONCE // vocabulary)
    parameters = [parameter for parameter in _parameters(head) if parameter.requires_grad]
    if len(targets) <= at_once or not torch.is_grad_enabled():
        slices = zip(hidden.split(at_once), targets.split(at_once), strict=True)
        return sum((_sum(head(part), wanted) for part, wanted in slices), hidden.new_zeros((), dtype=torch.float32))
    return _Slices.apply(hidden, targets, head, at_once, *parameters)


def _parameters(head: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Weights of the output layer of the model whose bound method `head` is."""
    return list(head.__self__.get_output_embeddings().parameters())  # type: ignore[attr-defined]


def _width(head: Callable[[Tensor], Tensor], hidden: Tensor) -> int:
    with torch.no_grad():
        return head(hidden[:1]).shape[-1] if len(hidden) else 1


class _Slices(torch.autograd.Function):
    """Gradients are made slice by slice in the forward pass, so that no more than one slice of logits ever exists."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, targets: Tensor, head: Callable[[Tensor], Tensor], at_once: int, *parameters: Tensor
    ) -> Tensor:
        total = hidden.new_zeros((), dtype=torch.float32)
        of_hidden = torch.empty_like(hidden)
        of_parameters: list[Tensor] = []  # not made from the weights: ZeRO-3 has only parts of them outside of the head
        for start in range(0, len(targets), at_once):
            part = slice(start, start + at_once)
            with torch.enable_grad():
                states = hidden[part].detach().requires_grad_()
                loss = _sum(head(states), targets[part])
            states_gradient, *gradients = torch.autograd.grad(loss, [states, *parameters])
            of_hidden[part] = states_gradient
            of_parameters = of_parameters or [torch.zeros_like(gradient) for gradient in gradients]
            for kept, gradient in zip(of_parameters, gradients, strict=True):
                kept += gradient
            total += loss.detach()
        ctx.save_for_backward(of_hidden, *of_parameters)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        of_hidden, *of_parameters = ctx.saved_tensors
        return of_hidden * gradient, None, None, None, *(kept * gradient for kept in of_parameters)
