"""What this machine has of what the workflow needs: one check a function, each with what to do about a fault."""

from __future__ import annotations

import fcntl
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

OLDEST = {"snakemake": "9.20", "snakemake-executor-plugin-slurm": "2.7.1"}
SLURM = ("sbatch", "squeue", "sacct", "scontrol", "sinfo")
REMEMBERED = 30
"""Seconds (MinJobAge) for which Slurm must know an ended job: three times the first look of profiles/slurm."""
FREE_GB = 20
KEYS = {"HF_TOKEN": "gated models and data sets", "OPENAI_API_KEY": "judges", "WANDB_API_KEY": "tracked trainings"}
SECONDS = 10


@dataclass(frozen=True)
class Finding:
    """state: `ok`; `note` for what only some experiments need; `fault`."""

    subject: str
    state: str
    text: str


def examine() -> list[Finding]:
    """Every check of this machine and of the working directory."""
    return [finding for check in CHECKS for finding in check()]


def workflow() -> Iterator[Finding]:
    for package, oldest in OLDEST.items():
        try:
            found = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(package, "fault", "not installed: pip install 'synopsis[workflow]'")
            continue
        old = _numbers(found) < _numbers(oldest)
        advice = f"; at least {oldest} is needed: pip install --upgrade {package}" if old else ""
        yield Finding(package, "fault" if old else "ok", found + advice)


def slurm() -> Iterator[Finding]:
    missing = [name for name in SLURM if shutil.which(name) is None]
    if len(missing) == len(SLURM):
        yield Finding("slurm", "note", "not on this machine: --profile slurm runs where sbatch does")
        return
    if missing:
        yield Finding("slurm", "fault", f"not on PATH: {', '.join(missing)}; ask who runs the cluster for them")
        return
    code, output = _said("sinfo", "--noheader", "--format=%R: %a, %D nodes, %l, %G")
    if code:
        yield Finding("slurm", "fault", f"the controller does not answer ({output}): start nothing until it does")
        return
    yield Finding("slurm", "ok", _said("sinfo", "--version")[1])
    yield from (Finding("partition", "ok", line) for line in output.splitlines())
    found = re.search(r"MinJobAge\s*=\s*(\d+)", _said("scontrol", "show", "config")[1])
    if found and int(found[1]) < REMEMBERED:
        text = f"MinJobAge is {found[1]} s; {REMEMBERED} are needed: with fewer `scancel` of a job is not noticed"
        yield Finding("slurm", "fault", text)


def gpus() -> Iterator[Finding]:
    import torch

    code, listed = _said("nvidia-smi", "--list-gpus") if shutil.which("nvidia-smi") else (1, "")
    there = 0 if code else len(listed.splitlines())
    seen, built = torch.cuda.device_count(), torch.version.cuda
    text = f"torch {torch.__version__}" + (f" (CUDA {built})" if built else " (without CUDA)")
    if there > seen:
        advice = "reload the driver or unset CUDA_VISIBLE_DEVICES" if built else "install torch with CUDA"
        yield Finding("gpus", "fault", f"{text} sees {seen} of {there} GPUs: {advice}")
    elif seen:
        names = ", ".join(sorted({torch.cuda.get_device_name(index) for index in range(seen)}))
        yield Finding("gpus", "ok", f"{text} sees {seen}: {names}")
    else:
        yield Finding("gpus", "note", f"{text}; none here: models run on the CPU")
    flash = importlib.util.find_spec("flash_attn") is not None
    text = importlib.metadata.version("flash-attn") if flash else "not installed: torch's own attention is used"
    yield Finding("flash-attn", "ok" if flash else "note", text)


def files() -> Iterator[Finding]:
    folder = next(path for path in (Path("results").absolute(), Path.cwd()) if path.is_dir())
    free = shutil.disk_usage(folder).free / 1e9
    state, advice = ("note", "; a model of 7B takes 14 GB and each checkpoint 80") if free < FREE_GB else ("ok", "")
    yield Finding("disk", state, f"{free:.0f} GB free in {folder}{advice}")
    try:
        with tempfile.TemporaryFile(dir=folder) as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield Finding("locks", "ok", f"files in {folder} can be locked")
    except OSError as error:
        advice = "give each Snakemake and each judge a results folder of its own, or move it to another file system"
        yield Finding("locks", "fault", f"files in {folder} cannot be locked ({error.strerror}): {advice}")


def access() -> Iterator[Finding]:
    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
        yield Finding("hub", "note", "HF_HUB_OFFLINE is set: `prepare` takes local copies alone (SYNOPSIS_DATA)")
    else:
        try:
            urllib.request.urlopen(urllib.request.Request(hub, method="HEAD"), timeout=SECONDS).close()
            yield Finding("hub", "ok", f"{hub} answers")
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            text = f"no network to {hub} ({reason}): run `prepare` where there is one, or set SYNOPSIS_DATA"
            yield Finding("hub", "note", text)
    for name, purpose in KEYS.items():
        there = bool(os.environ.get(name))
        yield Finding(name, "ok" if there else "note", "set" if there else f"not set; for {purpose}")


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (workflow, slurm, gpus, files, access)


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)[:3]]


def _said(*command: str) -> tuple[int, str]:
    """Exit code and output of a command, its error where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return 1, f"no answer in {SECONDS} s"
    return done.returncode, (done.stderr if done.returncode else done.stdout).strip()
