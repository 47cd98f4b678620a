"""What happens around the steps of a run: progress, metrics, checkpoints that can be trusted, signals.

Of several processes the first one writes; all take part in what they must agree on.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from typing import Any

import psutil
import torch
from tqdm import tqdm
from transformers import TrainerCallback

from synopsis.artifacts import atomic_file, file_hash
from synopsis.config.training import Optimisation
from synopsis.costs.estimates import mfu, training_flops_per_step
from synopsis.progress import SECONDS_BETWEEN_LINES, say
from synopsis.training import distributed
from synopsis.training.trainer import newest_first

MANIFEST = "manifest.json"
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Metrics(TrainerCallback):
    """Every logged number goes to metrics.jsonl; after a resumption the lines beyond the checkpoint are dropped.

    The Trainer's summary of a run counts only where the run is finished, so that a stopped run leaves no trace.
    """

    def __init__(self, path: Path):
        self.path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not distributed.is_first():
            return
        # What the end of a run said, it says again when it goes on from its last checkpoint.
        rows = takewhile(lambda row: "train_loss" not in row, read_metrics(self.path))
        kept = [row for row in rows if row["step"] <= state.global_step] if state.global_step else []
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(self.path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if not distributed.is_first() or ("train_loss" in (logs or {}) and state.global_step < state.max_steps):
            return
        with self.path.open("a") as stream:
            stream.write(json.dumps({"step": state.global_step, **(logs or {})}) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics file; a last line that a kill cut short is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class Speed(TrainerCallback):
    """Measures the steps alone: evaluations and checkpoints between them do not count.

    tokens_per_step: of all processes. utilisation: steps per second -> model FLOPs utilisation as a share of 1, or None
    where the peak of the device is not known.
    """

    def __init__(self, tokens_per_step: float, utilisation: Callable[[float], float | None] | None = None):
        self.tokens, self.utilisation = tokens_per_step, utilisation
        self.clock: Callable[[], float] = time.perf_counter
        self.since = self.seconds = 0.0
        self.steps = 0
        self.figures: dict[str, float] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._go_on()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.seconds += self.clock() - self.since
        self.steps += 1
        self._go_on()

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._go_on()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._go_on()

    def _go_on(self) -> None:
        self.since = self.clock()

    def measured(self) -> dict[str, float]:
        """Figures of the steps since the last call, for a row of the metrics."""
        if self.steps and self.seconds > 0:
            rate = self.steps / self.seconds
            self.figures = {"tokens_per_second": self.tokens * rate}
            utilisation = self.utilisation(rate) if self.utilisation else None
            if utilisation is not None:
                self.figures["mfu"] = utilisation
        self.steps, self.seconds = 0, 0.0
        return self.figures


def utilisation(config: Any, training: Optimisation, tokens: int) -> Callable[[float], float | None] | None:
    """For `Speed`, of a model with this configuration and training sequences of (on the mean) `tokens` tokens."""
    if not torch.cuda.is_available():
        return None
    processes, device = distributed.world_size(), torch.cuda.get_device_name()
    flops = training_flops_per_step(config, training, processes, tokens)
    return None if flops is None else lambda rate: mfu(flops * rate, device, processes, training.dtype)


def peak_memory() -> int:
    """Bytes that this process takes at its peak: of its GPU, or of the machine's memory now where it has none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return psutil.Process().memory_info().rss


class Progress(TrainerCallback):
    """Steps, loss, tokens per second and time left: a bar on a terminal, plain lines in a log.

    Tokens and the share of the peak are those of all processes, memory that of the first one.
    """

    def __init__(self, label: str, speed: Speed):
        self.label, self.speed = label, speed
        self.bar: tqdm | None = None
        self.loss: float | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.begin = self.told = time.monotonic()
        self.first_step = state.global_step
        if sys.stderr.isatty() and distributed.is_first():
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc=self.label, unit="step")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        self.loss = (logs or {}).get("loss", self.loss)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not distributed.is_first():
            return
        now = time.monotonic()
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)
            self.bar.set_postfix_str(", ".join(self._told()))
        elif now - self.told >= SECONDS_BETWEEN_LINES or state.global_step == state.max_steps:
            self.told = now
            done, left = state.global_step - self.first_step, state.max_steps - state.global_step
            rate = done / (now - self.begin)
            if not self.speed.figures:  # nothing was logged yet
                self.speed.figures = {"tokens_per_second": rate * self.speed.tokens}
            told = ", ".join(self._told())
            say(f"{self.label}: step {state.global_step}/{state.max_steps}, {told}, {left / rate:.0f} s left")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.bar is not None:
            self.bar.close()

    def _told(self) -> list[str]:
        """The loss as last logged (a dash before that, so that nothing looks like a failed step), and what it takes."""
        figures = self.speed.figures
        told = ["loss -" if self.loss is None else f"loss {self.loss:.3f}"]
        if "tokens_per_second" in figures:
            told.append(f"{figures['tokens_per_second']:.0f} tokens/s")
        if "mfu" in figures:
            told.append(f"{figures['mfu']:.0%} of the peak")
        return [*told, f"{peak_memory() / 2**30:.1f} GiB"]


class Checkpoints(TrainerCallback):
    """Seals each checkpoint with the hashes of its files, so that a half-written one is never taken for a whole.

    The first process does so when all have written their part.
    """

    def __init__(self, facts: str):
        self.facts = facts

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        distributed.barrier()
        if distributed.is_first():
            self._seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")
        distributed.barrier()

    def _seal(self, folder: Path) -> None:
        for file in folder.rglob("*"):
            if file.is_file():
                descriptor = os.open(file, os.O_RDONLY)
                os.fsync(descriptor)
                os.close(descriptor)
        hashes = {
            str(file.relative_to(folder)): file_hash(file) for file in sorted(folder.rglob("*")) if file.is_file()
        }
        manifest = {"facts": self.facts, "processes": distributed.world_size(), "files": hashes}
        with atomic_file(folder / MANIFEST) as temporary:
            temporary.write_text(json.dumps(manifest))


def checkpoint_to_go_on_from(folder: Path, facts: str) -> Path | None:
    """As `last_good_checkpoint`, found by the first process for all.

    InputError when another number of processes wrote it.
    """

    def find() -> Path | None:
        found = last_good_checkpoint(folder, facts)
        if found is not None:
            recorded = json.loads((found / MANIFEST).read_text()).get("processes", 1)
            distributed.same_processes(found, recorded)
        return found

    return distributed.of_first(find)


def last_good_checkpoint(folder: Path, facts: str) -> Path | None:
    """The newest whole checkpoint made with the same configuration; warns about every one that it passes over."""
    for checkpoint in newest_first(folder):
        fault = _fault(checkpoint, facts)
        if fault is None:
            return checkpoint
        say(f"warning: {checkpoint} is passed over: {fault}")
    return None


def _fault(checkpoint: Path, facts: str) -> str | None:
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text())
        files = dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return "it is incomplete (no readable manifest)"
    if not files:
        return "it is incomplete (its manifest names no files)"
    if manifest.get("facts") != facts:
        return "it belongs to another configuration of this run"
    damaged = [name for name, digest in files.items() if file_hash(checkpoint / name) != digest]
    return f"{', '.join(damaged)} is missing or damaged" if damaged else None


class StopOnSignal(TrainerCallback):
    """The first SIGTERM, SIGINT or SIGUSR1 saves a checkpoint after the step under way and stops; a second kills.

    One that reaches any process stops all after the same step. Several processes may each get a signal more than once
    (from Slurm, and from who started them): a second one is theirs to act on who started them.
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
        self.received = distributed.highest(self.received or 0) or None
        if self.received is not None:
            control.should_save = control.should_training_stop = True
        return control

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
