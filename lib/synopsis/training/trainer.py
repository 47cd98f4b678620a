"""transformers' Trainer, with training over segments and what a long run needs around it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from synopsis.config import SegmentTraining
from synopsis.errors import SynopsisError
from synopsis.training.segments import fixed_segment_lengths, random_segment_lengths, substep_slices


class CompressorTrainer(Trainer):
    """Trains every family; with `segment_training` a step goes over substeps and segments.

    A substep's loss is propagated by itself; its soft prompt goes on to the next substep without gradient. The
    gradients of the substeps add up, and the reported loss is their mean.
    """

    def __init__(self, *arguments: Any, segment_training: SegmentTraining | None = None, longest: int = 0, **options: Any):
        super().__init__(*arguments, **options)
        self.segment_training, self.longest = segment_training, longest
        self.model_accepts_loss_kwargs = False

    def training_step(self, model: Any, inputs: dict[str, Tensor], num_items_in_batch: Any = None) -> Tensor:
        if self.segment_training is None:
            loss = super().training_step(model, inputs, num_items_in_batch)
        else:
            loss = self._substeps(model, inputs, self.segment_training)
        if not torch.isfinite(loss):
            raise SynopsisError(
                f"step {self.state.global_step + 1}: the loss is {loss.item()}; training stops. "
                "The last checkpoint holds the weights from before; try a lower learning_rate or float32."
            )
        return loss

    def _substeps(self, model: Any, inputs: dict[str, Tensor], training: SegmentTraining) -> Tensor:
        model.train()
        inputs = self._prepare_inputs(inputs)
        total = torch.zeros((), device=inputs["input_ids"].device)
        softprompt = None
        for part in substep_slices(inputs["input_ids"].shape[1], training.substeps):
            ids = inputs["input_ids"][:, part]
            lengths = self._lengths(ids.shape[1], training)
            with self.compute_loss_context_manager():
                out = model(
                    input_ids=ids,
                    labels=ids,
                    softprompt=softprompt,
                    segment_lengths=lengths,
                    output_softprompt=part.stop < inputs["input_ids"].shape[1],
                )
            softprompt = out.softprompt.detach()
            self.accelerator.backward(out.loss / self.args.gradient_accumulation_steps)
            total += out.loss.detach()
        return total / training.substeps / self.args.gradient_accumulation_steps

    def _lengths(self, length: int, training: SegmentTraining) -> list[int]:
        if training.randomize_segments and self.model.training:
            return random_segment_lengths(length, training.segments_per_substep, self.longest)
        return fixed_segment_lengths(length, training.segments_per_substep)

    def prediction_step(
        self, model: Any, inputs: dict[str, Tensor], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        if self.segment_training is None:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        inputs = self._prepare_inputs(inputs)
        ids = inputs["input_ids"]
        lengths = fixed_segment_lengths(ids.shape[1], self.segment_training.segments)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = model(input_ids=ids, labels=ids, segment_lengths=lengths).loss.detach()
        return loss, None, None


def perplexity(loss: float) -> float:
    """e to the loss, infinite where that overflows."""
    return math.exp(loss) if loss < 700 else math.inf


def newest_first(folder: Path) -> list[Path]:
    """Checkpoint folders of a run, by step, the newest first."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")), reverse=True)
