"""The best weights of a run: those with the lowest validation loss among the evaluations at its checkpoints.

Each checkpoint holds in `best/` the weights of the best one so far (hard links where the file system has them, so that
they take no room twice) and best.json, which says its step and loss. So a run that goes on from any of its
checkpoints knows what was best until then, and the limit on checkpoints needs no exception.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from synopsis.progress import say
from synopsis.training import distributed

FOLDER = "best"
RECORD = "best.json"
NOT_WEIGHTS = ("optimizer.pt", "scheduler.pt", "scaler.pt", "trainer_state.json", "training_args.bin", "manifest.json")


class BestWeights(TrainerCallback):
    """Keeps the best weights inside of each checkpoint; stands before the callback that seals checkpoints.

    checkpoint: the one that the run goes on from. A checkpoint that is no evaluation's (a stop in between) is never
    best; the last step of a run is evaluated and saved whatever its number.
    """

    def __init__(self, checkpoint: Path | None = None):
        self.step, self.loss = -1, math.inf
        self.evaluated: tuple[int, float] | None = None
        self.folder: Path | None = None
        if checkpoint is not None and (checkpoint / FOLDER / RECORD).is_file():
            record = json.loads((checkpoint / FOLDER / RECORD).read_text())
            self.step, self.loss, self.folder = record["step"], record["eval_loss"], checkpoint / FOLDER

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        if state.global_step >= state.max_steps:
            control.should_evaluate = control.should_save = True
        return control

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any) -> None:
        self.evaluated = (state.global_step, metrics["eval_loss"])

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        source = self.folder
        step, loss = self.evaluated or (-1, math.inf)
        if step == state.global_step and loss < self.loss:
            self.step, self.loss, source = step, loss, checkpoint
        distributed.barrier()  # every process has written its part of the checkpoint
        if source is None:
            return  # nothing was evaluated yet
        self.folder = checkpoint / FOLDER
        if state.is_world_process_zero:
            _link(source, self.folder)
            record = {"step": self.step, "eval_loss": self.loss}
            (self.folder / RECORD).write_text(json.dumps(record) + "\n")

    def load_into(self, trainer: Any) -> int | None:
        """Give the trainer's model the best weights; returns their step, None when nothing was ever evaluated."""
        if self.folder is None:
            return None
        trainer.accelerator.wait_for_everyone()
        trainer.state.best_model_checkpoint = str(self.folder)
        trainer._load_best_model()
        if distributed.is_first():
            say(f"the best weights are those of step {self.step}, with a validation loss of {self.loss:.4g}")
        return self.step


def _link(source: Path, target: Path) -> None:
    """The weights of a checkpoint, or of its `best`, in another folder."""
    shutil.rmtree(target, ignore_errors=True)

    def skipped(folder: str, names: list[str]) -> list[str]:
        if Path(folder) != source:
            return []
        return [name for name in names if name in (*NOT_WEIGHTS, FOLDER, RECORD) or name.startswith("rng_state")]

    shutil.copytree(source, target, ignore=skipped, copy_function=_link_or_copy)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
