"""transformers' Trainer, with training over segments and what a long run needs around it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import TrainOutput

from synopsis.config_training import SegmentTraining
from synopsis.errors import SynopsisError
from synopsis.training.segments import fixed_segment_lengths, random_segment_lengths, substep_slices


class Losses(TrainerCallback, ExportableState):
    """Training losses since the last log and of the whole run; checkpoints keep them.

    The Trainer's own sums start anew when a run goes on, so that a log interval with a stop in it would be the mean of
    its second part only. Each process counts its own; a checkpoint keeps those of the first one.
    """

    def __init__(self) -> None:
        self.of_interval = self.of_run = 0.0
        self.logged_step = 0

    def add(self, loss: float) -> None:
        self.of_interval += loss
        self.of_run += loss

    def drain(self, step: int) -> float:
        """Mean over the steps since the last call."""
        mean = self.of_interval / max(step - self.logged_step, 1)
        self.of_interval, self.logged_step = 0.0, step
        return mean

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": dict(vars(self))}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        kept = state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        vars(self).update(kept["attributes"] if state.global_step else Losses().state()["attributes"])


class CompressorTrainer(Trainer):
    """Trains every family; with `segment_training` a step goes over substeps and segments.

    A substep's loss is propagated by itself; its soft prompt goes on to the next substep without gradient. The
    gradients of the substeps add up, and the reported loss is their mean.
    """

    def __init__(
        self, *arguments: Any, segment_training: SegmentTraining | None = None, longest: int = 0, **options: Any
    ):
        super().__init__(*arguments, **options)
        self.segment_training, self.longest = segment_training, longest
        self.model_accepts_loss_kwargs = False
        self.losses = Losses()
        self.add_callback(self.losses)

    def train(self, *arguments: Any, **options: Any) -> TrainOutput:
        """As `Trainer.train`; `training_loss` is the mean over all steps of the run, those before a stop too."""
        result = super().train(*arguments, **options)
        return result._replace(training_loss=self.losses.of_run / max(self.state.global_step, 1))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            mean = torch.tensor(self.losses.drain(self.state.global_step), dtype=torch.float64, device=self.args.device)
            logs["loss"] = self.accelerator.gather(mean).mean().item()
        if "train_loss" in logs:
            logs["train_loss"] = self.losses.of_run / max(self.state.global_step, 1)
        super().log(logs, start_time)

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
        self.losses.add(loss.item())
        return loss

    def _substeps(self, model: Any, inputs: dict[str, Tensor], training: SegmentTraining) -> Tensor:
        model.train()
        inputs = self._prepare_inputs(inputs)
        length = inputs["input_ids"].shape[1]
        total = torch.zeros((), device=inputs["input_ids"].device)
        softprompt = None
        for part in substep_slices(length, training.substeps):
            with self.compute_loss_context_manager():
                out = model(
                    **_sliced(inputs, part),
                    softprompt=softprompt,
                    segment_lengths=self._lengths(part.stop - part.start, training),
                    output_softprompt=part.stop < length,
                )
            softprompt = out.softprompt.detach()
            self.accelerator.backward(out.loss / self.current_gradient_accumulation_steps)
            total += out.loss.detach()
        return total / training.substeps / self.current_gradient_accumulation_steps

    def _lengths(self, length: int, training: SegmentTraining) -> list[int]:
        if training.randomize_segments:
            return random_segment_lengths(length, training.segments_per_substep, self.longest)
        return fixed_segment_lengths(length, training.segments_per_substep)

    def prediction_step(
        self, model: Any, inputs: dict[str, Tensor], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        if self.segment_training is None:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        inputs = self._prepare_inputs(inputs)
        length = inputs["input_ids"].shape[1]
        lengths = fixed_segment_lengths(length, self.segment_training.segments)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = model(**_sliced(inputs, slice(0, length)), segment_lengths=lengths).loss.detach()
        return loss, None, None


def _sliced(inputs: dict[str, Tensor], part: slice) -> dict[str, Tensor]:
    """The model's inputs for a part of each sequence; without labels every token is one."""
    found: dict[str, Tensor] = {
        key: inputs[key][:, part] for key in ("input_ids", "attention_mask", "labels") if key in inputs
    }
    return {"labels": found["input_ids"], **found}


def newest_first(folder: Path) -> list[Path]:
    """Checkpoint folders of a run, by step, the newest first."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")), reverse=True)
