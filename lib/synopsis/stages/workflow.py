"""What the Snakefile needs beside the records of the stages. Nothing heavy is imported: it runs at every start."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from synopsis.config.yaml_files import parse_value
from synopsis.errors import InputError, SynopsisError


def find_own_commands() -> None:
    """Let jobs find the `synopsis` of the environment that runs Snakemake, activated or not."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"


def leave_warnings_to_jobs() -> None:
    """In a job of Slurm, SIGUSR1 before the time limit reaches every process; Snakemake and shells would die of it."""
    if "SLURM_JOB_ID" in os.environ:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def on_one_volume(settings: Any) -> Any:
    """Snakemake's settings of storage, with all files shared where its plugin says that none are, as Kubernetes' does.

    Commands name their files by the experiment, and trainings keep checkpoints that are no declared outputs, so a
    storage that copies declared files is refused. The prefix `volume` stands for a volume that all jobs see. It holds
    all but Snakemake's cache in the home folder.
    """
    if settings.default_storage_provider is None:
        return settings
    if settings.default_storage_prefix != "volume":
        found = f"{settings.default_storage_provider}, {settings.default_storage_prefix!r}"
        raise InputError(
            f"--default-storage-provider and --default-storage-prefix: found {found}; expected neither: all jobs work "
            "on one file system or volume (see workflow/profiles/kubernetes)"
        )
    from snakemake_interface_executor_plugins.settings import SharedFSUsage

    nothing = {"default_storage_provider": None, "default_storage_prefix": None}
    return replace(settings, **nothing, shared_fs_usage=SharedFSUsage.all() - {SharedFSUsage.SOURCE_CACHE})


@contextlib.contextmanager
def one_message() -> Iterator[None]:
    """What is wrong, without a traceback."""
    try:
        yield
    except SynopsisError as error:
        print(f"synopsis: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def overrides(changes: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of `snakemake --config`, by dotted key."""
    found: dict[str, Any] = {}
    for key, value in changes.items():
        if isinstance(value, dict) and value:
            found |= overrides(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = _typed(value, f"--config {prefix}{key}")
    return found


def _typed(value: Any, origin: str) -> Any:
    """Snakemake leaves numbers inside lists and sections as text; here they are what they would be in a file."""
    if isinstance(value, dict):
        return {key: _typed(inner, origin) for key, inner in value.items()}
    if isinstance(value, list):
        return [_typed(inner, origin) for inner in value]
    return parse_value(value, origin) if isinstance(value, str) else value


def check_submitted(options: Iterable[tuple[str, Any]]) -> None:
    """InputError for a value of Snakemake's command line that the jobs of a cluster would not get as it is.

    Snakemake repeats its options in the command that it submits, without quoting them for the shells on the way.
    """
    for option, value in options:
        if re.search(r"[$`'\\]", json.dumps(value, ensure_ascii=False)):  # where quotes stand behind a backslash
            wanted = "a text without quotes, '$', '`' and '\\' when jobs are submitted"
            raise InputError(f"{option}: found {value!r}; expected {wanted}; a file for --configfile may hold any text")


def check_slurm(partitions: Iterable[Any]) -> None:
    """An error before the first of perhaps thousands of jobs, where Slurm would take none of them."""
    if shutil.which("sbatch") is None:
        raise InputError(
            "--profile slurm: found no sbatch; expected a machine that submits jobs to Slurm (for this one: --cores 2)"
        )
    asked = subprocess.run(("sinfo", "--all", "--noheader", "--format=%R"), capture_output=True, text=True)
    if asked.returncode:
        raise SynopsisError(f"Slurm does not answer ({asked.stderr.strip()}); type the same command again when it does")
    known = asked.stdout.split()
    for name in {name for names in partitions if names for name in str(names).split(",")}:
        if name not in known:
            raise InputError(f"slurm_partition: found {name!r}; this cluster has {', '.join(known)}")


def one_of(names: Iterable[Any]) -> str:
    """A wildcard constraint that matches these names, and nothing when there are none."""
    return "|".join(re.escape(str(name)) for name in names) or "(?!)"
