"""What the processes of one run do together: start, agree, and report an error once.

Everything here also works in a single process, where it does next to nothing. `synopsis.training.launch` says where the
processes come from; each knows its place by torchrun's variables.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import transformers
from torch import distributed

from synopsis.errors import InputError, SynopsisError
from synopsis.training.launch import LAUNCHER, free_port, port_in_use, variables

T = TypeVar("T")
PATIENCE = timedelta(hours=1)
"""How long a process waits for another, which may be hashing a large checkpoint."""


def world_size() -> int:
    """Processes of this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def is_first() -> bool:
    """Whether this process writes the logs, the metrics and the models of the run."""
    return rank() == 0


@contextlib.contextmanager
def processes(group: bool = False) -> Iterator[None]:
    """Join the processes of the run, and leave them at the end. InputError for a port in use or a GPU too few.

    group: also where there is one process alone, as DeepSpeed and FSDP want it.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed would look for a GPU
    # DeepSpeed calls functions by their old names, which a user can do nothing about.
    warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)
    if "WORLD_SIZE" not in os.environ:
        if not group:
            yield
            return
        os.environ.update(variables(0, 1, free_port(None)))
    _end_with_launcher()
    if not is_first():  # warnings of the libraries come from the first process alone, errors from all
        transformers.utils.logging.set_verbosity_error()
        logging.getLogger("accelerate").setLevel(logging.ERROR)
        warnings.simplefilter("ignore")
    _join()
    try:
        yield
        barrier()
    except SystemExit:
        distributed.destroy_process_group()
        raise
    # Not after a SynopsisError: one process alone reports it, and others may wait for it elsewhere.
    distributed.destroy_process_group()


def _join() -> None:
    device = None
    if torch.cuda.is_available():
        device = torch.device("cuda", _own_gpu())
        torch.cuda.set_device(device)
    try:
        distributed.init_process_group("gloo" if device is None else "cpu:gloo,cuda:nccl", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        if "EADDRINUSE" in str(error) or "address already in use" in str(error).lower():
            raise InputError(port_in_use(os.environ.get("MASTER_PORT"))) from None
        raise SynopsisError(
            f"process {rank()} of {world_size()} does not reach the others at {place}: {str(error).splitlines()[0]}"
        ) from error


def _own_gpu() -> int:
    """Index of this process's GPU. A scheduler may show each process its own GPU alone, which is number 0 then."""
    local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if gpus == 1 and local > 0 and "SLURM_PROCID" in os.environ:
        os.environ["LOCAL_RANK"] = "0"
        return 0
    if local >= gpus:
        here = os.environ.get("LOCAL_WORLD_SIZE", "several")
        raise InputError(
            f"{here} processes were started on a machine that shows {gpus} GPUs; expected one for each GPU"
        )
    return local


def _end_with_launcher() -> None:
    """End this process when its launcher has ended: nobody would be left to stop it."""

    def watch(launcher: int) -> None:
        while os.getppid() == launcher:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)

    if LAUNCHER in os.environ:
        threading.Thread(target=watch, args=(int(os.environ[LAUNCHER]),), daemon=True).start()


# --------------------------------------------------------------------------------------------------------- agreement


def barrier() -> None:
    """Wait until every process is here."""
    gathered(None)


def gathered(value: T) -> list[T]:
    """The values of all processes, in order of their rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    distributed.all_gather_object(values, value)
    return values


def on_all(action: Callable[[], T]) -> T:
    """Do something in every process; a SynopsisError of one ends them all, and is reported once."""
    result: Any = None
    error: SynopsisError | None = None
    try:
        result = action()
    except SynopsisError as raised:
        error = raised
    faults = gathered(None if error is None else (str(error), error.exit_code))
    for text, code in filter(None, faults):
        if error is None or not is_first():  # the first process has none of its own to report
            error = SynopsisError(text)
            error.exit_code = code
        fail(error)
    return result


def on_first(action: Callable[[], T]) -> T:
    """Do something in the first process and give its result in all; its errors end them all, and are reported once."""
    return gathered(on_all(lambda: action() if is_first() else None))[0]  # type: ignore[return-value]


def fail(error: SynopsisError) -> NoReturn:
    """Raise an error that all processes know of: the first reports it, the others end with its exit code in silence."""
    if is_first():
        raise error
    sys.exit(error.exit_code)
