"""transformers' Trainer, with training over segments and what a long run needs around it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import RandomSampler
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState

from synopsis.compressors.loss import IGNORED
from synopsis.config.training import SegmentTraining
from synopsis.errors import SynopsisError
from synopsis.progress import say
from synopsis.training import distributed
from synopsis.training.checkpoints import best_checkpoint
from synopsis.training.segments import fixed_segment_lengths, random_segment_lengths, substep_slices
from synopsis.training.trainable import is_partial, not_decayed, trained_state
from synopsis.training.validation import metrics_of, segment_sums, whole_sums

T = TypeVar("T")
SEQUENCES = "sequences"
"""Key of a batch: which sequences of the data it is made of."""
FILLER = -1
"""In place of a sequence's number: the row only fills a batch of the validation, and does not count."""


class Losses(TrainerCallback, ExportableState):
    """Training losses since the last log and of the whole run; checkpoints keep them.

    The Trainer's own sums start anew when a run resumes, so that a log interval with a stop in it would be the mean of
    its second part only. Of several processes it is their mean, the same in each.
    """

    def __init__(self) -> None:
        self.of_interval = self.of_run = 0.0
        self.logged_step = 0

    def add(self, loss: float) -> None:
        self.of_interval += loss
        self.of_run += loss

    def mean(self, step: int) -> float:
        """Over all steps of the run, those before a stop too."""
        return self.of_run / max(step, 1)

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
    """Trains every method; with `segment_training` a step goes over substeps and segments.

    A substep's loss is propagated by itself; its soft prompt is passed to the next substep without gradient. The
    gradients of the substeps add up, and the reported loss is their mean. With random_summary_length each step draws
    how many summary tokens end its segments, from torch's generator, as the segment lengths are: a resumed run
    draws what it would have drawn. All passes of a step share its draws, in whatever processes they run.

    sequences_per_step: an epoch is filled up to whole steps of as many sequences; longest: tokens of a segment that fit
    the positions; describe: an index of the training data to words; measured: figures for a logged row, such as tokens
    per second.
    """

    model: Any

    def __init__(
        self,
        *arguments: Any,
        segment_training: SegmentTraining | None = None,
        sequences_per_step: int | None = None,
        longest: int = 0,
        describe: Callable[[int], str] = str,
        measured: Callable[[], dict[str, float]] = dict,
        **options: Any,
    ):
        options["compute_metrics"] = metrics_of
        super().__init__(*arguments, **options)
        self.segment_training, self.longest, self.describe = segment_training, longest, describe
        self.measured, self.sequences_per_step = measured, sequences_per_step
        self.draws: dict[str, Any] = {}
        if segment_training is not None:  # its rows have as many labels in each batch, and several losses a step
            self.model_accepts_loss_kwargs = False
        self.losses = Losses()
        self.add_callback(self.losses)

    def create_accelerator_and_postprocess(self) -> None:
        """As in the Trainer, which says 1 for its accumulation where DeepSpeed's settings say what it is."""
        super().create_accelerator_and_postprocess()
        if self.is_deepspeed_enabled:  # accelerate divides no loss by it then
            self.accelerator.gradient_accumulation_steps = self.args.gradient_accumulation_steps

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """The sequences left over at the end of an epoch would be shared out by the number of processes."""
        if self.sequences_per_step is None:
            return super()._get_train_sampler(train_dataset)
        data: Any = self.train_dataset
        steps = math.ceil(len(data) / self.sequences_per_step)
        return RandomSampler(data, num_samples=steps * self.sequences_per_step)

    def _run_epoch(self, *arguments: Any, **options: Any) -> Any:
        """As in the Trainer, which makes a step too many when it resumes from the last checkpoint of a run."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return None
        return super()._run_epoch(*arguments, **options)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs["loss"] = self.losses.drain(self.state.global_step)
            logs |= self.measured()
        if "train_loss" in logs:
            logs["train_loss"] = self.losses.mean(self.state.global_step)
        super().log(logs, start_time)

    # ------------------------------------------------------------------------------------------------------- training

    def training_step(self, model: Any, inputs: dict[str, Tensor], num_items_in_batch: Any = None) -> Tensor:
        sequences = inputs.pop(SEQUENCES, None)
        if self.segment_training is None:
            loss = super().training_step(model, inputs, num_items_in_batch)
        else:
            loss = self._substeps(model, inputs, self.segment_training)
        batch = ""
        if sequences is not None and not torch.isfinite(loss):
            batch = f" on the batch of the sequences {', '.join(map(self.describe, sequences.tolist()))}"
        losses = distributed.gathered((loss.item(), batch))
        for value, batch in losses:
            if not math.isfinite(value):
                distributed.fail(
                    SynopsisError(
                        f"step {self.state.global_step + 1}: the loss is {value}{batch}; training stops. "
                        "The last checkpoint holds the weights from before; try a lower learning_rate or float32."
                    )
                )
        self.losses.add(sum(value for value, _ in losses) / len(losses))
        return loss

    def _substeps(self, model: Any, inputs: dict[str, Tensor], training: SegmentTraining) -> Tensor:
        model.train()
        inputs = self._prepare_inputs(inputs)
        read = part_that_is_read(inputs["input_ids"].shape[1], training)
        inputs, length = _sliced(inputs, read), read.stop - read.start
        options = self._drawn_options(training)
        total = torch.zeros((), device=inputs["input_ids"].device)
        softprompt = None
        backward = {"scale_wrt_gas": False} if self.is_deepspeed_enabled else {}  # the loss is divided here
        for part in substep_slices(length, training.substeps):
            last = part.stop == length
            with self._gradients_meet(model, last):
                with self.compute_loss_context_manager():
                    out = model(
                        **_sliced(inputs, part),
                        softprompt=softprompt,
                        segment_lengths=self._lengths(part, training),
                        output_softprompt=not last,
                        **options,
                    )
                softprompt = out.softprompt.detach()
                self.accelerator.backward(out.loss / self.current_gradient_accumulation_steps, **backward)
            total += out.loss.detach()
        return total / training.substeps / self.current_gradient_accumulation_steps

    def _drawn_options(self, training: SegmentTraining) -> dict[str, int]:
        if not training.random_summary_length:
            return {}
        most = self.model.summary_tokens()
        return {"summary_length": self._drawn("summary", lambda: int(torch.randint(1, most + 1, ())))}

    def _drawn(self, what: str, draw: Callable[[], T]) -> T:
        """A draw of the first pass of a step, which holds for the others."""
        if self.draws.get("step") != self.state.global_step:
            self.draws = {"step": self.state.global_step}
        if what not in self.draws:
            self.draws[what] = draw()
        return self.draws[what]

    @contextlib.contextmanager
    def _gradients_meet(self, model: Any, last: bool) -> Iterator[None]:
        """Processes exchange the gradients of a step once, in the backward pass of its last substep."""
        state = self.accelerator.gradient_state
        if last or not state.sync_gradients:
            yield
        elif self.is_deepspeed_enabled:
            state._set_sync_gradients(False)  # with it on, each backward pass is taken for a step
            try:
                yield
            finally:
                state._set_sync_gradients(True)
        else:
            with self.accelerator.no_sync(model):
                yield

    def _lengths(self, part: slice, training: SegmentTraining) -> list[int]:
        length, count = part.stop - part.start, training.segments_per_substep
        if training.randomize_segments:
            return self._drawn(str(part), lambda: random_segment_lengths(length, count, self.longest))
        return training.segment_lengths or fixed_segment_lengths(length, count)

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        """Weight decay would change the rows of a matrix that are not trained."""
        left_alone = not_decayed(model)
        return [name for name in super().get_decay_parameter_names(model) if name not in left_alone]

    # ----------------------------------------------------------------------------------------------------- validation

    def prediction_step(
        self, model: Any, inputs: dict[str, Tensor], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[None, Tensor, Tensor]:
        """The losses and numbers of labels of each row (see `synopsis.training.validation`), in place of logits.

        Without a loss of the batch, the Trainer takes that of `metrics_of`, which is weighted by tokens.
        """
        sequences = inputs.pop(SEQUENCES, None)
        inputs = self._prepare_inputs(inputs)
        if sequences is not None:
            labels = inputs.get("labels", inputs["input_ids"])
            filler = (sequences == FILLER).to(labels.device)
            inputs["labels"] = labels.masked_fill(filler[:, None], IGNORED)
        training = self.segment_training
        with torch.no_grad(), self.compute_loss_context_manager():
            if training is None:
                sums = whole_sums(model, self.model, inputs)
            else:
                read = part_that_is_read(inputs["input_ids"].shape[1], training)
                lengths = (training.segment_lengths or []) * training.substeps
                lengths = lengths or fixed_segment_lengths(read.stop - read.start, training.segments)
                sums = segment_sums(model, _sliced(inputs, read), lengths)
        return None, sums, torch.zeros_like(sums[..., 0])

    # ---------------------------------------------------------------------------------------------------- checkpoints

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """A checkpoint of a partly frozen model holds what is trained: the rest is the base's."""
        if state_dict is None and is_partial(self.model):
            state_dict = trained_state(self.model)
        super()._save(output_dir, state_dict)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """As in the Trainer, but only at checkpoints that a run has without a stop: a stop must change nothing."""
        step = self.state.global_step
        counts = step % self.args.save_steps == 0 or step >= self.state.max_steps
        return counts and super()._determine_best_metric(metrics, trial)

    def _load_best_model(self) -> None:
        """As in the Trainer, for a run that is finished, also where its folder has been moved."""
        best = best_checkpoint(Path(str(self.args.output_dir)), self.state)
        if best is None or self.state.global_step < self.state.max_steps:
            return
        self.state.best_model_checkpoint = str(best)
        super()._load_best_model()
        if distributed.is_first():
            loss = f"a validation loss of {self.state.best_metric:.4g}"
            say(f"the best weights are those of step {self.state.best_global_step}, with {loss}")

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """As in the Trainer; a checkpoint need not hold what is frozen, nor a tied weight under its second name."""
        names = {name for name, _ in self.model.named_parameters(remove_duplicate=False)}
        unneeded = names - trained_state(self.model).keys()
        missing = [key for key in load_result.missing_keys if key not in unneeded]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))


def part_that_is_read(length: int, training: SegmentTraining) -> slice:
    """Where fixed segments are shorter than a row of `length` tokens, its end is read, as published."""
    if training.segment_lengths is None:
        return slice(0, length)
    read = training.substeps * sum(training.segment_lengths)
    if read > length:
        raise ValueError(f"segment_lengths need rows of {read} tokens; these have {length}")
    return slice(length - read, length)


def _sliced(inputs: dict[str, Tensor], part: slice) -> dict[str, Tensor]:
    """The model's inputs for a part of each sequence; without labels every token is one."""
    found: dict[str, Tensor] = {
        key: inputs[key][:, part] for key in ("input_ids", "attention_mask", "labels") if key in inputs
    }
    return {"labels": found["input_ids"], **found}
