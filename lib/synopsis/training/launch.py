"""How many processes train a run, and who starts them.

    synopsis train --config config/demo.yaml autocompressor-s0 --processes 2

The first of these that holds decides:

1. torchrun's variables (RANK, WORLD_SIZE, ...) are set: this process is one of those;
2. it is a task of a Slurm step with several tasks (`srun --ntasks-per-node=4 synopsis train ...`): so is each task,
   on as many nodes as there are;
3. else the command starts itself `--processes` times on this machine, as often as it sees GPUs without that option,
   and once without a GPU.

In the third case this process passes SIGTERM, SIGINT and SIGUSR1 on, so that the run saves a checkpoint and stops; a
second signal kills. When one process fails, the others are ended: they would wait for it forever. The exit code is that
of the process that failed first, and 128 + the signal's number for a signal, as without processes. (torchrun's agent
ends the others before one of them has reported the error, and has no exit code of a run that finished in spite of a
signal.)

The same command resumes a run that ended so. A job of Slurm that SIGUSR1 warns of its time limit is queued again, and
goes on in the next one:

    #SBATCH --requeue --signal=USR1@300
    srun synopsis train ...
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import IO

from synopsis.errors import InputError
from synopsis.progress import say

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
SECONDS_TO_FOLLOW = 10.0
"""How long the others have to end by themselves after one process has failed."""
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
LAUNCHER = "SYNOPSIS_LAUNCHER"
"""Process that started this one; without it, this one ends."""


def launch(command: list[str], processes: int | None = None) -> int | None:
    """Run `synopsis *command` in several processes and give their exit code; None where this process is to do it.

    processes: on this machine; None: as many as GPUs. InputError when they contradict the machine, or the variables of
    torchrun or Slurm.
    """
    environment = os.environ
    if not _is_one_of_several(environment) and _is_slurm_task(environment):
        _export_slurm()
    if _is_one_of_several(environment):
        check_environment(environment, processes)
        return None
    count = processes_here(processes, visible_gpus())
    return None if count == 1 else Launcher([sys.executable, "-m", "synopsis.cli", *command], count).run()


def processes_here(asked: int | None, gpus: int) -> int:
    """Processes for this machine; InputError for more than it has GPUs, where it has any."""
    if gpus and asked is not None and asked > gpus:
        shows = "1 GPU" if gpus == 1 else f"{gpus} GPUs"
        raise InputError(f"--processes {asked}: this machine shows {shows}; expected at most {gpus}, one for each GPU")
    return asked if asked is not None else max(gpus, 1)


def visible_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def requeue() -> None:
    """Ask Slurm to queue the job that this process belongs to again; without one nothing happens."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is not None:
        say(f"asking Slurm to queue job {job} again")
        with contextlib.suppress(OSError):
            subprocess.run(["scontrol", "requeue", job], check=False)


# ------------------------------------------------------------------------------------------- started by torchrun, srun


def _is_one_of_several(environment: Mapping[str, str]) -> bool:
    return "WORLD_SIZE" in environment or "RANK" in environment


def check_environment(environment: Mapping[str, str], processes: int | None) -> None:
    """InputError for variables that are missing, no numbers or contradict each other or `--processes`."""
    given = ", ".join(f"{name}={environment[name]}" for name in TORCHRUN if name in environment)
    try:
        rank, world, local, _ = (int(environment[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"))
        here = int(environment.get("LOCAL_WORLD_SIZE", world))
    except (KeyError, ValueError) as error:
        raise InputError(
            f"{given}: this process is one of several, but {error} is missing or no number; start the run by torchrun "
            "or srun, or unset these variables"
        ) from None
    if not (0 <= rank < world and 0 <= local < here <= world):
        raise InputError(f"{given}: these contradict each other")
    if processes is not None and processes != here:
        raise InputError(
            f"--processes {processes}: {here} were started on this machine (LOCAL_WORLD_SIZE); leave it out"
        )


def _is_slurm_task(environment: Mapping[str, str]) -> bool:
    """Whether srun started this process and others beside it. A batch script has the variables of the job alone."""
    return "SLURM_PROCID" in environment and int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1


def _export_slurm() -> None:
    """Set torchrun's variables from Slurm's; the port follows from the job's id. MASTER_ADDR and MASTER_PORT stay."""
    try:
        from submitit.helpers import TorchDistributedEnvironment
    except ImportError:
        raise InputError(
            "several tasks of Slurm: the package submitit is not installed; pip install 'synopsis[scale]'"
        ) from None
    os.environ["SUBMITIT_EXECUTOR"] = "slurm"
    distributed = TorchDistributedEnvironment()
    own = {name: os.environ.pop(name) for name in ("MASTER_ADDR", "MASTER_PORT") if name in os.environ}
    # Each task sees the GPUs of its node or its own alone; `distributed.processes` finds out which.
    distributed.export(set_cuda_visible_devices=False)
    os.environ.update(own)


# ------------------------------------------------------------------------------------------ started by this process


class Launcher:
    """`count` processes of a command on this machine, and what happens to all when something happens to one."""

    def __init__(self, command: list[str], count: int):
        self.command, self.count = command, count
        self.children: list[subprocess.Popen[bytes]] = []
        self.readers: list[threading.Thread] = []
        self.received: list[int] = []  # signals, in their order

    def run(self) -> int:
        """The exit code of the run."""
        port = free_port(os.environ.get("MASTER_PORT"))
        before = {number: signal.signal(number, lambda n, _: self.received.append(n)) for number in SIGNALS}
        try:
            for rank in range(self.count):
                self._start(rank, port)
            return self._watch()
        finally:
            self._kill()
            for reader in self.readers:
                reader.join(SECONDS_TO_FOLLOW)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _start(self, rank: int, port: int) -> None:
        environment = {
            "OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // self.count)),
            **os.environ,
            **variables(rank, self.count, port),
            LAUNCHER: str(os.getpid()),
        }
        bar = sys.stderr.isatty()  # a bar needs the terminal itself; lines also go to the log file of this process
        child = subprocess.Popen(
            self.command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=None if rank == 0 else subprocess.DEVNULL,
            stderr=None if bar else subprocess.PIPE,
            start_new_session=True,  # signals of a terminal reach this process alone, which passes them on once
        )
        self.children.append(child)
        if child.stderr is not None:
            self.readers.append(threading.Thread(target=_copy_lines, args=(child.stderr,), daemon=True))
            self.readers[-1].start()

    def _watch(self) -> int:
        passed_on = 0
        while self._run() and self._failed() is None:
            if len(self.received) > 1:
                say("a second signal: the processes are killed")
                return 128 + self.received[0]
            for number in self.received[passed_on:]:
                passed_on += 1
                for child in self.children:
                    child.send_signal(number)
            time.sleep(0.02)
        rank = self._failed()
        if rank is None:
            return 0
        code, who = self.children[rank].returncode, f"process {rank} of {self.count}"
        if code < 0:
            self._kill()
            say(
                f"synopsis: {who} was killed by {signal.Signals(-code).name}, and the others were ended; "
                "the same command resumes from the last checkpoint"
            )
            return 128 - code
        end = time.monotonic() + SECONDS_TO_FOLLOW
        while self._run() and time.monotonic() < end:
            time.sleep(0.02)
        if self._run():
            say(f"synopsis: {who} ended with exit code {code}, and the others were ended")
        return code

    def _run(self) -> bool:
        """Whether some process still runs; asks each of them, which is what sets its exit code."""
        return None in [child.poll() for child in self.children]

    def _failed(self) -> int | None:
        """The first process in order of rank that ended with an error; one that was killed comes before others."""
        codes = {rank: child.returncode for rank, child in enumerate(self.children) if child.returncode}
        return min(codes, key=lambda rank: (codes[rank] > 0, rank), default=None)

    def _kill(self) -> None:
        for child in self.children:
            if child.poll() is None:
                child.kill()
        for child in self.children:
            child.wait()


def variables(rank: int, count: int, port: int) -> dict[str, str]:
    """torchrun's variables for a process of this machine."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
    return {"MASTER_ADDR": "127.0.0.1", **{name: str(number) for name, number in numbers.items()}}


def free_port(asked: str | None) -> int:
    """A free port of this machine, or the one in MASTER_PORT; InputError when that one is in use."""
    try:
        with socket.create_server(("", int(asked or 0))) as server:
            return server.getsockname()[1]
    except ValueError:
        raise InputError(f"MASTER_PORT={asked!r}: expected a number") from None
    except (OSError, OverflowError):
        raise InputError(port_in_use(asked)) from None


def port_in_use(port: str | None) -> str:
    return f"port {port} of this machine is in use; set MASTER_PORT to a free one, or leave it unset"


def _copy_lines(source: IO[bytes]) -> None:
    """Lines of a process to standard error, whole ones, so that those of several do not mix."""
    with source:
        for line in source:
            sys.stderr.write(line.decode(errors="backslashreplace"))
            sys.stderr.flush()
