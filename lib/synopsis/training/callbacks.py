"""What happens around the steps of a run: metrics, progress, signals.

Of several processes the first one writes; all take part in what they must agree on.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from tqdm import tqdm
from transformers import TrainerCallback
from transformers.integrations.integration_utils import rewrite_logs

from synopsis.artifacts import write_text
from synopsis.compressors.section import Subject
from synopsis.config.training import Optimisation
from synopsis.costs.devices import mfu
from synopsis.costs.flops import step_flops
from synopsis.progress import SECONDS_BETWEEN_LINES, say
from synopsis.training import distributed
from synopsis.training.launch import SIGNALS
from synopsis.training.validation import without_prefix


class Metrics(TrainerCallback):
    """Every logged number goes to metrics.jsonl, and to `log` as (row, step) under the names of wandb's callback.

    A resumed run begins with the rows that its checkpoint holds. The Trainer's summary of a run counts only where the
    run is finished, so that a stopped run leaves no trace.
    """

    def __init__(self, path: Path, log: Callable[[dict[str, float], int], None] = lambda row, step: None):
        self.path, self.log = path, log

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if distributed.is_first():
            write_text(self.path, "".join(_row(row["step"], row) for row in state.log_history))
            for row in state.log_history:
                self._log({key: value for key, value in row.items() if key != "step"}, row["step"])

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if distributed.is_first() and ("train_loss" not in logs or state.global_step >= state.max_steps):
            with self.path.open("a") as stream:
                stream.write(_row(state.global_step, logs))
            self._log(logs, state.global_step)

    def _log(self, row: dict[str, float], step: int) -> None:
        self.log(rewrite_logs({**row, "global_step": step}), step)


def _row(step: int, logs: dict[str, float]) -> str:
    return json.dumps({"step": step, **without_prefix(logs)}) + "\n"


class Progress(TrainerCallback):
    """Steps, loss, tokens per second and time left: a bar on a terminal, plain lines in a log.

    The speed is that of the steps alone: evaluations and checkpoints between them do not count. tokens_per_step: of all
    processes. utilisation: steps per second -> model FLOPs utilisation as a share of 1, or None where the peak of the
    device is not known. The memory is that of the first process.
    """

    def __init__(
        self, label: str, tokens_per_step: float, utilisation: Callable[[float], float | None] | None = None
    ) -> None:
        self.label, self.tokens, self.utilisation = label, tokens_per_step, utilisation
        self.seconds, self.steps = 0.0, 0
        self.figures: dict[str, float] = {}
        self.bar: tqdm | None = None
        self.loss: float | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.begin = self.shown = self.since = time.monotonic()
        self.first_step = state.global_step
        if sys.stderr.isatty() and distributed.is_first():
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc=self.label, unit="step")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        now = time.monotonic()
        self.seconds += now - self.since
        self.steps += 1
        if distributed.is_first():
            self._show(state, now)
        self.since = time.monotonic()

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.since = time.monotonic()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.since = time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        self.loss = (logs or {}).get("loss", self.loss)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.bar is not None:
            self.bar.close()

    def measured(self) -> dict[str, float]:
        """Figures of the steps since the last call, for a row of the metrics."""
        if self.steps and self.seconds > 0:
            rate = self.steps / self.seconds
            self.figures = {"tokens_per_second": self.tokens * rate}
            share = self.utilisation(rate) if self.utilisation else None
            if share is not None:
                self.figures["mfu"] = share
        self.steps, self.seconds = 0, 0.0
        return self.figures

    def _show(self, state: Any, now: float) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)
            self.bar.set_postfix_str(self._description())
        elif now - self.shown >= SECONDS_BETWEEN_LINES or state.global_step == state.max_steps:
            self.shown = now
            rate = (state.global_step - self.first_step) / (now - self.begin)
            if not self.figures:  # nothing was logged yet
                self.figures = {"tokens_per_second": rate * self.tokens}
            left = (state.max_steps - state.global_step) / rate
            step = f"step {state.global_step}/{state.max_steps}"
            say(f"{self.label}: {step}, {self._description()}, {left:.0f} s left")

    def _description(self) -> str:
        """The loss as last logged (a dash before that, so that nothing looks like a failed step), speed and memory."""
        parts = ["loss -" if self.loss is None else f"loss {self.loss:.3f}"]
        if "tokens_per_second" in self.figures:
            parts.append(f"{self.figures['tokens_per_second']:.0f} tokens/s")
        if "mfu" in self.figures:
            parts.append(f"{self.figures['mfu']:.0%} of the peak")
        return ", ".join([*parts, f"{peak_memory() / 2**30:.1f} GiB"])


def utilisation(
    config: Any, subject: Subject, training: Optimisation, tokens: int
) -> Callable[[float], float | None] | None:
    """For `Progress`, of a model with this configuration and training sequences of `tokens` tokens on the mean."""
    if not torch.cuda.is_available():
        return None
    processes, device = distributed.world_size(), torch.cuda.get_device_name()
    flops = step_flops(config, training, subject.vectors, processes, tokens)
    return None if flops is None else lambda rate: mfu(flops * rate, device, processes, training.dtype)


def peak_memory() -> int:
    """Bytes that this process takes at its peak: of its GPU, or of the machine's memory now where it has none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return psutil.Process().memory_info().rss


class StopOnSignal(TrainerCallback):
    """The first SIGTERM, SIGINT or SIGUSR1 saves a checkpoint after the step under way and stops; a second one kills.

    One that reaches any process stops all after the same step. Several processes may each get a signal more than once
    (from Slurm, and from their launcher), so of several none is killed by a second one: their launcher does that.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.before: dict[int, Any] = {}

    def _handle(self, number: int, frame: Any) -> None:
        if distributed.world_size() == 1:
            signal.signal(number, self.before[number])
        first, self.received = self.received is None, number
        if first and distributed.is_first():
            say(f"{signal.Signals(number).name} received: saving a checkpoint after this step")

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for number in SIGNALS:
            self.before[number] = signal.signal(number, self._handle)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        agreed = max(distributed.gathered(self.received or 0))
        if agreed:  # a signal that arrived during the exchange is agreed on after the next step
            self.received = agreed
            control.should_save = control.should_training_stop = True
        return control

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
