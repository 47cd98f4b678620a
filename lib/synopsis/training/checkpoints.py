"""Checkpoints that can be trusted: each has a manifest with the hashes of its files.

A checkpoint without a whole manifest, or with a damaged file, is never resumed from. So that a resumed run is bit for
bit the run that never stopped, another configuration or number of processes cannot resume from it either.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from synopsis.artifacts import file_hash, write_text
from synopsis.errors import InputError
from synopsis.progress import say
from synopsis.training import distributed

MANIFEST = "manifest.json"


class Checkpoints(TrainerCallback):
    """Writes the manifest of each checkpoint: the first process does, when all have written their part.

    fingerprint: of the configuration that the run follows from.
    """

    def __init__(self, fingerprint: str):
        self.fingerprint = fingerprint

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        distributed.barrier()
        if distributed.is_first():
            self._seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")
        distributed.barrier()

    def _seal(self, folder: Path) -> None:
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        for file in files:
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        hashes = {str(file.relative_to(folder)): file_hash(file) for file in files}
        manifest = {"fingerprint": self.fingerprint, "processes": distributed.world_size(), "files": hashes}
        write_text(folder / MANIFEST, json.dumps(manifest))


def checkpoint_to_resume(folder: Path, fingerprint: str) -> Path | None:
    """The last good checkpoint, which the first process looks for; InputError when it has another number of processes.

    The order of the data and the shards of the weights would not fit.
    """

    def find() -> Path | None:
        found = last_good_checkpoint(folder, fingerprint)
        if found is not None:
            recorded, here = json.loads((found / MANIFEST).read_text()).get("processes", 1), distributed.world_size()
            if recorded != here:
                raise InputError(
                    f"{found}: written by {recorded} processes, and this run has {here}; start it with "
                    f"--processes {recorded}, or delete {folder} to begin anew"
                )
        return found

    return distributed.on_first(find)


def last_good_checkpoint(folder: Path, fingerprint: str) -> Path | None:
    """The newest whole checkpoint made with the same configuration; warns about every one that it passes over."""
    for checkpoint in newest_first(folder):
        fault = _fault(checkpoint, fingerprint)
        if fault is None:
            return checkpoint
        say(f"warning: {checkpoint} is passed over: {fault}")
    return None


def newest_first(folder: Path) -> list[Path]:
    """Checkpoint folders of a run, by step, the newest first."""
    steps = [path.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*")]
    return [folder / f"checkpoint-{step}" for step in sorted(filter(str.isdigit, steps), key=int, reverse=True)]


def best_checkpoint(folder: Path, state: TrainerState) -> Path | None:
    """Where the best weights up to a state of the run lie, whatever the folder was called when it was saved."""
    step = state.best_global_step
    return folder / f"checkpoint-{step}" if state.best_model_checkpoint and step else None


def _fault(checkpoint: Path, fingerprint: str) -> str | None:
    """Why a run cannot resume from a checkpoint; its best weights may lie in an earlier one."""
    fault = _damage(checkpoint, fingerprint)
    if fault is None and (checkpoint / TRAINER_STATE_NAME).is_file():
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        best = best_checkpoint(checkpoint.parent, state)
        damage = _damage(best, fingerprint) if best not in (None, checkpoint) else None
        return damage and f"{best}, which has the best weights: {damage}"
    return fault


def _damage(checkpoint: Path, fingerprint: str) -> str | None:
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text())
        files = dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return "it is incomplete (no readable manifest)"
    if not files:
        return "it is incomplete (its manifest names no files)"
    if manifest.get("fingerprint") != fingerprint:
        return "it belongs to another configuration of this run"
    damaged = [name for name, digest in files.items() if file_hash(checkpoint / name) != digest]
    return f"{', '.join(damaged)} is missing or damaged" if damaged else None
