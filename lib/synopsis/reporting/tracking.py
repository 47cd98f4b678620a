"""Weights & Biases beside the results: what the section `tracking` of an experiment asks for.

    tracking: {project: gist, tag: first}

Names are built as in the published gist code: the group is `<tag>-<experiment>`, a run in it is
`<group>-<compressor>-run-<seed>`, and its settings (condition, gist tokens, seed, training) are wandb's config. One
run has the curves of its training and the ROUGE of its outputs (`<split>_rouge1`, `_rouge2`, `_rougeL`). The report is
another.

Without a key (WANDB_API_KEY, or a login), and where WANDB_MODE says so, all stays on this machine under
results/<experiment>/logs/wandb (or WANDB_DIR). A killed run resumes under its id. Offline each job leaves a part with
that id; `WANDB_RESUME=allow wandb sync results/<experiment>/logs/wandb/wandb` sends and joins them (the summary is that
of the last part, so it has the ROUGE of all splits).

Tracking changes no result, and its failures cost none: they are warnings.
"""

from __future__ import annotations

import contextlib
import importlib.util
import netrc
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from synopsis.artifacts import Layout
from synopsis.config.experiment import Experiment, Tracking
from synopsis.errors import InputError
from synopsis.progress import say
from synopsis.stages.record import stages

LONGEST_UPLOAD, LONGEST_WAIT = 120, 600
"""Seconds: for what is left to send at the end of a run, and for another job that logs to the same run."""


def check_installed(experiment: Experiment) -> None:
    """InputError where wandb is missing: a training says so at once."""
    if experiment.tracking is not None and importlib.util.find_spec("wandb") is None:
        raise InputError("tracking: the package wandb is not installed; pip install 'synopsis[scale]', or leave it out")


class Tracked:
    """A run of an experiment (None: its report) in Weights & Biases, for the time of a block.

    It does nothing without the section `tracking`, in a process that is not to track (`on`), and after a failure.
    """

    def __init__(self, experiment: Experiment, name: str | None, on: bool = True):
        self.experiment, self.name, self.settings = experiment, name, experiment.tracking if on else None
        self.run: Any = None

    def __enter__(self) -> Tracked:
        with _harmless():
            self.run = self.settings and _begin(self.experiment, self.settings, self.name)
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        with _harmless():
            if self.run is not None:
                import wandb

                self.run.finish(exit_code=int(kind is not None))
                wandb.teardown()  # waits for the process that writes the files

    def log(self, row: dict[str, Any], step: int) -> None:
        """Log a row, unless the run is past its step: then it was logged before the run was killed."""
        run, self.run = self.run, None
        with _harmless():
            if run is not None and step >= run.step:
                run.log(row, step=step)
            self.run = run


def publish(experiment: Experiment, name: str | None, row: Callable[[], dict[str, Any]], step: int = 0) -> None:
    """Log what is written already, at `step` or after whatever else the run has."""
    if experiment.tracking is None:
        return
    with _harmless():
        from filelock import FileLock

        # Of two jobs that resume one run at the same time, one would overwrite what the other sends.
        lock = FileLock(_folder(experiment) / f"{name or 'report'}.lock", timeout=LONGEST_WAIT)
        with lock, Tracked(experiment, name) as tracked:
            if tracked.run is not None:
                tracked.log(row(), max(step, tracked.run.step))


def media(files: Iterable[Path]) -> dict[str, Any]:
    """CSV files as tables of wandb, and PNG files as its images; of others nothing."""
    import pandas as pd
    import wandb

    row: dict[str, Any] = {}
    for path in files:
        if path.suffix == ".csv":
            table: Any = pd.read_csv(path, keep_default_na=False, na_values=["–"]).astype(object)
            rows = table.where(table.notna(), None).to_numpy().tolist()
            row[f"tables/{path.stem}"] = wandb.Table(columns=list(table.columns), data=rows)
        elif path.suffix == ".png":
            row[f"figures/{path.stem}"] = wandb.Image(str(path))
    return row


@contextlib.contextmanager
def _harmless() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        _warn(error, "goes on without it")


def _warn(error: Exception, consequence: str) -> None:
    reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    say(f"warning: Weights & Biases: {reason}; {consequence}")


def _begin(experiment: Experiment, tracking: Tracking, name: str | None) -> Any:
    import wandb

    folder, mode, project = _folder(experiment), _mode(), tracking.project
    settings = wandb.Settings(
        silent=True,
        console="off",
        save_code=False,
        disable_git=True,
        finish_timeout=LONGEST_UPLOAD,
        x_transaction_log_flush_interval=1.0,  # `wandb sync` stops at an empty file, which a killed job would leave
    )
    options = {"project": project, "dir": folder, "settings": settings, **_identity(experiment, tracking.tag, name)}
    try:  # offline there is nothing to resume
        run = wandb.init(mode=mode, resume="allow" if mode == "online" else None, **options)
    except wandb.Error as error:
        if mode != "online":
            raise
        _warn(error, "tracked offline instead")
        wandb.teardown()  # its process would still hold the run
        run = wandb.init(mode="offline", **options)
    for curves in ("train/*", "eval/*"):
        run.define_metric(curves, step_metric="train/global_step")  # wandb counts its own steps on where it joins parts
    say(f"{options['name']}: tracked by Weights & Biases in the project {project}; files in {folder}")
    return run


def _identity(experiment: Experiment, tag: str | None, run: str | None) -> dict[str, Any]:
    """Group, name, id and settings of a run; as long as its configuration is the same, so is its id."""
    group = "-".join(filter(None, (tag, experiment.name)))
    if run is None:
        id = f"report-{experiment.fingerprint(group)}"
        return {"group": group, "name": f"{group}-report", "id": id, "job_type": "report"}
    train, subject = stages()["train"], experiment.subject(run)
    parts = train.parts(experiment, run=run) if {"run": run} in list(train.grid(experiment)) else (subject,)
    compressor, seed = experiment.trained_runs.get(run, (run, None))
    return {
        "group": group,
        "name": f"{group}-{compressor}" + ("" if seed is None else f"-run-{seed}"),
        "id": f"{run}-{experiment.fingerprint(group, *parts)}",
        "config": {"run": run, "compressor": compressor, "seed": seed, **subject.model_dump(mode="json")},
    }


def _folder(experiment: Experiment) -> Path:
    folder = Path(os.environ.get("WANDB_DIR") or Layout(experiment).root / "logs" / "wandb")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


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
