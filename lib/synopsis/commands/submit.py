"""Jobs of a stage without a workflow: submitit sends them to a cluster, and queues again those that are cut short."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from synopsis.artifacts import Layout, make_room
from synopsis.commands.options import check_choice, command_line, read, values_of
from synopsis.config.experiment import Experiment
from synopsis.errors import InputError, SynopsisError
from synopsis.progress import say
from synopsis.stages import job_words
from synopsis.stages.prepare.section import PREPARE
from synopsis.stages.record import Job, Stage, stages

CLUSTERS = ("slurm", "local", "debug")
DEFAULTS = {"timeout_min": 1440, "gpus_per_node": 1, "cpus_per_task": 8, "mem_gb": 64, "signal_delay_s": 300}
"""As in the profile `slurm` of the workflow."""
MOST_TIMEOUTS = 100
"""How often a job that resumes is queued again at its time limit. A job of a stage that does not has one try."""


@dataclass
class Work:
    """One job where it runs: the command of its stage, in a process of its own, which may start more for its GPUs."""

    job: Job
    command: list[str]
    process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> None:
        if self.job.is_made():  # it ended in the moment in which it was queued again
            return
        self.process = subprocess.Popen(self.command, preexec_fn=_leave_signal_to_submitit)
        try:
            code = self.process.wait()
        finally:
            if self.process.poll() is None:
                self.process.terminate()
                self.process.wait()
        if code in (-signal.SIGTERM, 128 + signal.SIGTERM):
            # Cancelled or preempted: Slurm knows which. With a result, submitit would take the job for ended.
            sys.exit(128 + signal.SIGTERM)
        if code:
            raise SynopsisError(f"{shlex.join(self.command)}: ended with exit code {code}")

    def checkpoint(self) -> Any:
        """What submitit queues again; it asks when the time limit is near. The process saves its work and ends."""
        from submitit.helpers import DelayedSubmission

        if self.process is not None:
            self.process.terminate()
            # Not process.wait(): this is a signal's handler inside of that call, which holds a lock.
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.process.pid, 0)
        return DelayedSubmission(replace(self, process=None))


def _leave_signal_to_submitit() -> None:
    """Slurm sends it to every process of a job; the stage's would die of it before it has saved anything."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def submit(
    name: str,
    config: list[Path],
    changes: list[str],
    chosen: dict[str, list[str]],
    cluster: str,
    parameters: list[str],
    wait: bool,
) -> None:
    """Submit the chosen jobs of a stage that are not made yet, and print their numbers.

    chosen: word -> its values. parameters: of submitit, as KEY=VALUE. InputError where nothing can be submitted;
    SynopsisError where a job that was waited for has failed.
    """
    check_choice("--cluster", cluster, CLUSTERS, "submitit")
    check_choice("stage", name, stages(), "the library")
    if importlib.util.find_spec("submitit") is None:
        raise InputError("submitit is not installed: pip install 'synopsis[scale]'")
    if cluster == "slurm" and not (shutil.which("sbatch") and shutil.which("srun")):
        raise InputError("--cluster slurm: no sbatch and srun on this machine; expected local or debug here")
    stage, changes, chosen = stages()[name], list(changes), dict(chosen)
    if "seed" in chosen and "seed" not in stage.wildcards:
        chosen["run"] = _trained_with(config, changes, chosen.pop("seed"), chosen)
    experiment = read(config, changes)
    jobs = selected(experiment, stage, chosen)
    left = []
    for job in jobs:
        if job.is_made():
            say(f"up to date: {job.outputs[0]}; delete it to make it again")
        else:
            left.append(job)
    if missing := _missing(experiment, left, config, changes):
        lines = "".join(f"\n  {path}: {how}" for path, how in missing.items())
        raise InputError(f"nothing was submitted: inputs are missing; make them in this order:{lines}")
    if not left:
        return
    words = [job_words(name, job.wildcards) for job in left]
    start = [sys.executable, "-m", "synopsis.cli"]
    work = [
        Work(job, start + command_line(name, config, changes, False, *each))
        for job, each in zip(left, words, strict=True)
    ]
    folder = Layout(experiment).root / "logs" / "submit" / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    sent = _send(work, folder, cluster, parameters, f"{experiment.name}-{name}", MOST_TIMEOUTS * stage.resumes)
    titles = [shlex.join([name, *each]) for each in words]
    for job, title in zip(sent, titles, strict=True):
        print(f"{job.job_id}  {title}", flush=True)
    if cluster != "debug":
        say(f"logs: {folder}")
    if wait or cluster == "debug":  # whose jobs run when somebody looks at them
        _wait(sent, titles)


def seeds(text: str) -> list[str]:
    """The seeds that `0:3` or `0,1,2` name."""
    first, colon, end = text.partition(":")
    try:
        found = range(int(first), int(end)) if colon else [int(number) for number in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 0:
        raise InputError(f"--seed {text}: expected seeds, for instance 0:3 or 0,1,2")
    return [str(number) for number in found]


def _trained_with(config: list[Path], changes: list[str], seeds: list[str], chosen: dict[str, list[str]]) -> list[str]:
    """Runs of the chosen compressors; seeds that the experiment does not have are added to `changes`."""
    if "compressor" not in chosen or "run" in chosen:
        raise InputError("--seed: the training seeds of a compressor; expected --compressor beside it, and no --run")
    experiment = read(config, changes)
    for name in chosen["compressor"]:
        check_choice("compressor", name, experiment.compressors)
        own = experiment.seeds_of(name)
        if not own:
            raise InputError(f"--seed: '{name}' is not trained; expected no seed for it")
        if new := [seed for seed in map(int, seeds) if seed not in own]:
            changes.append(f"compressors.{name}.training_seeds={[*own, *new]}")
    return [f"{name}-s{seed}" for name in chosen["compressor"] for seed in seeds]


def selected(experiment: Experiment, stage: Stage, chosen: dict[str, list[str]]) -> list[Job]:
    """The jobs of a stage that have one of the chosen values for each word; InputError where there is none."""
    named = []
    for job in stage.jobs(experiment):
        words = {name: str(value) for name, value in job.wildcards.items()}
        named.append((job, words | ({"compressor": experiment.name_of(words["run"])} if "run" in words else {})))
    for name, values in chosen.items():
        known = dict.fromkeys(words[name] for _, words in named if name in words)
        for value in values:
            check_choice(f"--{name}", value, known, f"the stage '{stage.name}' of the experiment")
    found = [job for job, words in named if all(words[name] in values for name, values in chosen.items())]
    if not found:
        raise InputError(f"the stage '{stage.name}' of the experiment has no such job")
    return found


def _missing(experiment: Experiment, jobs: list[Job], config: list[Path], changes: list[str]) -> dict[Path, str]:
    """Inputs that are not there, and theirs before them, with the commands that make them."""
    if all(path.exists() for job in jobs for path in job.inputs):
        return {}
    makers: dict[Path, tuple[Job, list[str]]] = {}
    for name, kind in {**PREPARE, **stages()}.items():
        for job in kind.jobs(experiment):
            prepared = ["prepare", name, *job.wildcards.values()]
            words = prepared if name in PREPARE else [name, *job_words(name, job.wildcards)]
            makers |= dict.fromkeys(job.outputs, (job, words))
    found: dict[Path, str] = {}

    def look(job: Job) -> None:
        for path in job.inputs:
            if path not in found and not path.exists():
                maker, (stage, *words) = makers[path]
                look(maker)
                found[path] = shlex.join(["synopsis", *command_line(stage, config, changes, False, *words)])

    for job in jobs:
        look(job)
    return found


def _send(work: list[Work], folder: Path, cluster: str, parameters: list[str], name: str, timeouts: int) -> list[Any]:
    """The jobs of submitit: one array on Slurm, all at once on this machine. InputError where they are refused."""
    import submitit

    shared = submitit.AutoExecutor._valid_parameters()
    given = {"name": name, **DEFAULTS, **values_of(parameters, "--slurm", "partition=gpu")}
    limit, delay = given["timeout_min"], given["signal_delay_s"]
    if isinstance(limit, int) and isinstance(delay, int) and 60 * limit <= delay + 60:
        # Slurm may send the signal a minute early. A job that gets it at its start is queued again and gets nowhere.
        raise InputError(
            f"--slurm timeout_min={limit}: expected a minute more than signal_delay_s ({delay} s) at least"
        )
    make_room(folder)
    try:
        executor = submitit.AutoExecutor(
            folder, cluster, slurm_max_num_timeout=timeouts, local_max_num_timeout=timeouts
        )
        executor.update_parameters(**{key if key in shared else f"slurm_{key}": given[key] for key in given})
        return executor.submit_array(work)
    except (AssertionError, NameError, TypeError, ValueError) as error:
        fault = f"--slurm: {error}"
    except (submitit.core.utils.FailedSubmissionError, submitit.core.utils.FailedJobError) as error:
        fault = f"nothing was submitted: {error}"
    shutil.rmtree(folder, ignore_errors=True)
    raise InputError(fault)


def _wait(jobs: list[Any], titles: list[str]) -> None:
    """Until each has ended; SynopsisError where one failed."""
    failed = 0
    for job, title in zip(jobs, titles, strict=True):
        error = job.exception()
        failed += error is not None
        log = f"; see {job.paths.stderr}" if job.paths.stderr.exists() else ""
        say(f"{job.job_id}  {title}: {f'failed{log}' if error else 'done'}")
    if failed:
        raise SynopsisError(f"{failed} of {len(jobs)} jobs failed")
