"""Validation losses, weighted by tokens: of the whole, of each segment, and by how much context stood before it.

    eval_loss 2.31   loss/segment=1 2.74   perplexity/context=0 15.5   loss/segment=4 2.12   perplexity/context=4608 8.3

Segments are counted from 1; a segment's losses are those of what its states predict, the first token of the next
segment among them. A context is counted in tokens before the segment, summarised by then. Each process gives (rows,
segments, 3) numbers for its batch: the sum of the losses, the number of labels, the tokens before the segment.
"""

from __future__ import annotations

import math
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import EvalPrediction

from synopsis.compressors.base import ContextMixin
from synopsis.compressors.loss import IGNORED, perplexity


def segment_sums(call: Any, inputs: dict[str, Tensor], lengths: list[int]) -> Tensor:
    """(rows, segments, 3) of a batch that is read in segments; `call`: the model, as wrapped for its processes."""
    losses = call(**inputs, segment_lengths=lengths, output_segment_losses=True).segment_losses
    before = losses.new_tensor([0, *accumulate(lengths)][:-1])
    return torch.cat([losses, before.expand(len(losses), -1)[..., None]], dim=-1)


def whole_sums(call: Any, model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """(rows, 1, 3) of a batch that is read at once; each row gets its share, by labels, of the batch's loss."""
    config, labels = model.config, inputs["labels"]
    counted = (labels if config.is_encoder_decoder else labels[:, 1:]) != IGNORED
    options = {"skip_logits": True} if isinstance(model, ContextMixin) and not config.is_encoder_decoder else {}
    loss = call(**inputs, **options).loss.float()
    counts = counted.sum(-1)[:, None].to(loss)  # (rows, 1)
    sums = torch.where(counts > 0, loss * counts, 0.0)
    return torch.stack([sums, counts, torch.zeros_like(counts)], dim=-1)


def metrics_of(prediction: EvalPrediction) -> dict[str, float]:
    """Of the rows of all batches and processes; by segment only where there are several."""
    sums, counts, before = np.moveaxis(np.asarray(prediction.predictions, dtype=np.float64), -1, 0)  # (rows, segments)
    real = counts > 0  # batches of fewer segments are filled up with negative numbers
    metrics = {"loss": _mean(sums, counts, real)}
    if sums.shape[1] == 1:
        return metrics
    for index in range(sums.shape[1]):
        chosen = real & (np.arange(sums.shape[1]) == index)
        metrics[f"loss/segment={index + 1}"] = _mean(sums, counts, chosen)
    for context in np.unique(before[real]):
        loss = _mean(sums, counts, real & (before == context))
        metrics[f"perplexity/context={int(context)}"] = perplexity(loss)
    return metrics


def without_prefix(metrics: dict[str, float]) -> dict[str, float]:
    """The numbers of segments and contexts without the Trainer's `eval_`."""
    return {key.removeprefix("eval_") if "/" in key else key: value for key, value in metrics.items()}


def _mean(sums: np.ndarray, counts: np.ndarray, chosen: np.ndarray) -> float:
    total = float(counts[chosen].sum())
    return float(sums[chosen].sum()) / total if total else math.nan
