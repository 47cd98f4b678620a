"""What happens around the steps of a run: progress, metrics, checkpoints that can be trusted, signals."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback

from synopsis.artifacts import atomic_file, file_hash
from synopsis.progress import SECONDS_BETWEEN_LINES, say
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
        kept = [row for row in read_metrics(self.path) if row["step"] <= state.global_step] if state.global_step else []
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(self.path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if "train_loss" in (logs or {}) and state.global_step < state.max_steps:
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


class Progress(TrainerCallback):
    """Steps, loss, tokens per second and time left: a bar on a terminal, plain lines in a log."""

    def __init__(self, label: str, tokens_per_step: int):
        self.label, self.tokens = label, tokens_per_step
        self.bar: tqdm | None = None
        self.loss: float | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.begin = self.told = time.monotonic()
        self.first_step = state.global_step
        if sys.stderr.isatty():
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc=self.label, unit="step")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        self.loss = (logs or {}).get("loss", self.loss)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        now = time.monotonic()
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)
            self.bar.set_postfix(loss=self._told_loss())
        elif now - self.told >= SECONDS_BETWEEN_LINES or state.global_step == state.max_steps:
            self.told = now
            rate = (state.global_step - self.first_step) / (now - self.begin)
            left = (state.max_steps - state.global_step) / rate
            say(
                f"{self.label}: step {state.global_step}/{state.max_steps}, loss {self._told_loss()}, "
                f"{rate * self.tokens:.0f} tokens/s, {left:.0f} s left"
            )

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.bar is not None:
            self.bar.close()

    def _told_loss(self) -> str:
        """The loss as last logged; a dash before that, so that nothing looks like a failed step."""
        return "-" if self.loss is None else f"{self.loss:.3f}"


class Checkpoints(TrainerCallback):
    """Seals each checkpoint with the hashes of its files, so that a half-written one is never taken for a whole."""

    def __init__(self, facts: str):
        self.facts = facts

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        for file in folder.rglob("*"):
            if file.is_file():
                descriptor = os.open(file, os.O_RDONLY)
                os.fsync(descriptor)
                os.close(descriptor)
        hashes = {
            str(file.relative_to(folder)): file_hash(file) for file in sorted(folder.rglob("*")) if file.is_file()
        }
        with atomic_file(folder / MANIFEST) as temporary:
            temporary.write_text(json.dumps({"facts": self.facts, "files": hashes}))


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
    """The first SIGTERM, SIGINT or SIGUSR1 saves a checkpoint after the step under way and stops; a second kills."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.before: dict[int, Any] = {}

    def _handle(self, number: int, frame: Any) -> None:
        self.received = number
        signal.signal(number, self.before[number])
        say(f"{signal.Signals(number).name} received: saving a checkpoint after this step")

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for number in SIGNALS:
            self.before[number] = signal.signal(number, self._handle)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        if self.received is not None:
            control.should_save = control.should_training_stop = True
        return control

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
