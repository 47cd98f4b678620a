"""Weights & Biases beside metrics.jsonl: what the section `tracking` of an experiment asks for.

    tracking: {project: context-compression}

The run has the name of the run, its group is the experiment. Without a key (WANDB_API_KEY, or a login), and where
WANDB_MODE says so, it stays on this machine under results/<experiment>/logs/wandb (or WANDB_DIR), from where
`wandb sync` sends it later. A run that resumes after a stop resumes there too.
"""

from __future__ import annotations

import contextlib
import importlib.util
import netrc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from transformers import TrainerCallback
from transformers.integrations import WandbCallback

from synopsis.artifacts import Layout
from synopsis.config.experiment import Experiment
from synopsis.errors import InputError
from synopsis.progress import say
from synopsis.stages.train.section import STAGE
from synopsis.training import distributed


@contextlib.contextmanager
def tracked(experiment: Experiment, run: str) -> Iterator[list[TrainerCallback]]:
    """Callbacks for the Trainer of the first process, none without the section; the tracked run ends with the block.

    InputError when wandb is not installed.
    """
    settings = experiment.tracking
    if settings is not None and importlib.util.find_spec("wandb") is None:
        raise InputError("tracking: the package wandb is not installed; pip install 'synopsis[scale]', or leave it out")
    if settings is None or not distributed.is_first():
        yield []
        return
    import wandb

    folder = Path(os.environ.get("WANDB_DIR") or Layout(experiment).root / "logs" / "wandb")
    folder.mkdir(parents=True, exist_ok=True)
    mode = _mode()
    wandb.init(
        project=settings.project,
        group=experiment.name,
        name=run,
        id=f"{experiment.name}-{run}-{STAGE.fingerprint(experiment, run=run)}",  # by which its later parts are known
        resume="allow" if mode == "online" else None,
        mode=mode,
        dir=folder,
        settings=wandb.Settings(silent=True, console="off", save_code=False, disable_git=True),
    )
    say(f"{run}: tracked by Weights & Biases in the project {settings.project}, {mode}; files are in {folder}")
    failed = True
    try:
        yield [WandbCallback()]
        failed = False
    finally:
        wandb.finish(exit_code=int(failed))


def _mode() -> Any:
    """Online where a key is known and nothing says otherwise."""
    return os.environ.get("WANDB_MODE") or ("online" if _has_key() else "offline")


def _has_key() -> bool:
    """Whether wandb would find a key, without asking for one."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
