"""What the processes of one run do together: start, agree, and tell an error once.

Everything here also works in a single process, where it does next to nothing. `synopsis.training.launch` says where the
processes come from; each knows its place by torchrun's variables.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
from torch import distributed

from synopsis.errors import InputError, SynopsisError
from synopsis.training.launch import WATCHER, free_port, port_in_use, variables

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
    # What DeepSpeed calls by an old name is not the user's to mend.
    warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)
    if "WORLD_SIZE" not in os.environ:
        if not group:
            yield
            return
        os.environ.update(variables(0, 1, free_port(None)))
    _follow_watcher()
    if not is_first():
        _quiet_libraries()
    _join()
    try:
        yield
        barrier()
    except SystemExit:
        _leave()
        raise
    except SynopsisError:
        # Told by one process alone, as others may wait for it where it does not arrive.
        raise
    _leave()


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


def _leave() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _quiet_libraries() -> None:
    """Warnings of the libraries come from the first process alone; errors from all."""
    import logging

    from transformers.utils import logging as of_transformers

    of_transformers.set_verbosity_error()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")


def _follow_watcher() -> None:
    """End when the process that started this one has ended: nobody would be left to stop it."""
    watcher = os.environ.get(WATCHER)
    if watcher is None:
        return

    def follow() -> None:
        while os.getppid() == int(watcher):
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=follow, daemon=True).start()


# --------------------------------------------------------------------------------------------------------- agreement


def barrier() -> None:
    """Wait until every process is here."""
    if world_size() > 1:
        gathered(None)


def gathered(value: T) -> list[T]:
    """The values of all processes, in order of their rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    distributed.all_gather_object(values, value)
    return values


def highest(value: int) -> int:
    """The highest value of all processes."""
    if world_size() == 1:
        return value
    tensor = torch.tensor(value)
    distributed.all_reduce(tensor, distributed.ReduceOp.MAX)
    return int(tensor)


def together(action: Callable[[], T]) -> T:
    """Do something in every process; an error of one that a user can mend ends them all, and is told once."""
    result: Any = None
    error: SynopsisError | None = None
    try:
        result = action()
    except SynopsisError as raised:
        error = raised
    own = None if error is None else (error.exit_code, str(error))
    faults = [fault for fault in gathered(own) if fault is not None]
    if faults:
        code, text = faults[0]
        fail(error if error is not None and str(error) == text else Told(text, code))
    return result


def of_first(action: Callable[[], T]) -> T:
    """Do something in the first process and give its result in all; its errors end them all, and are told once."""
    mine = together(lambda: action() if is_first() else None)
    return gathered(mine)[0]  # type: ignore[return-value]


class Told(SynopsisError):
    """An error of another process, told by the first one."""

    def __init__(self, text: str, exit_code: int):
        super().__init__(text)
        self.exit_code = exit_code


def fail(error: SynopsisError) -> NoReturn:
    """Raise an error that all processes know of: the first tells it, the others end with the same code and no word."""
    if is_first():
        raise error
    sys.exit(error.exit_code)


def same_processes(checkpoint: Path, recorded: int) -> None:
    """InputError for a checkpoint of another number of processes: its data order and its shards would not fit."""
    if recorded != world_size():
        raise InputError(
            f"{checkpoint}: written by {recorded} processes, and this run has {world_size()}; start it with "
            f"--processes {recorded}, or delete {checkpoint.parent} to begin anew"
        )
