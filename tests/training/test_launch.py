"""How many processes a run gets, what they make of their environment, and what becomes of all when one ends."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from synopsis.errors import InputError, SynopsisError
from synopsis.training import distributed, launch
from synopsis.training.launch import Launcher, check_environment, free_port, processes_here, variables


@pytest.fixture(autouse=True)
def no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*launch.TORCHRUN, launch.LAUNCHER, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)


# ------------------------------------------------------------------------------------------------------ how many, whose


@pytest.mark.parametrize(("asked", "gpus", "count"), [(None, 0, 1), (None, 4, 4), (2, 4, 2), (3, 0, 3), (1, 8, 1)])
def test_as_many_processes_as_gpus(asked: int | None, gpus: int, count: int) -> None:
    assert processes_here(asked, gpus) == count


def test_more_processes_than_gpus() -> None:
    with pytest.raises(InputError, match="--processes 8: this machine shows 4 GPUs; expected at most 4"):
        processes_here(8, 4)


def test_torchruns_variables_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "visible_gpus", lambda: pytest.fail("the machine does not matter"))
    for name, value in variables(1, 2, 29500).items():
        monkeypatch.setenv(name, value)
    assert launch.launch(["train"]) is None
    with pytest.raises(InputError, match=r"--processes 3: 2 were started on this machine"):
        launch.launch(["train"], 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"RANK": None}, "'RANK' is missing or no number; start the run by torchrun or srun"),
        ({"MASTER_PORT": None}, "'MASTER_PORT' is missing"),
        ({"RANK": "2"}, "RANK=2, WORLD_SIZE=2, .* contradict each other"),
        ({"LOCAL_RANK": "2"}, "LOCAL_RANK=2, LOCAL_WORLD_SIZE=2, .* contradict each other"),
        ({"LOCAL_WORLD_SIZE": "4"}, "WORLD_SIZE=2, LOCAL_RANK=1, LOCAL_WORLD_SIZE=4, .* contradict each other"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two, .*'two' is missing or no number"),
    ],
)
def test_variables_that_contradict_each_other(change: dict[str, str | None], message: str) -> None:
    environment = {**variables(1, 2, 29500), **change}
    with pytest.raises(InputError, match=message):
        check_environment({name: value for name, value in environment.items() if value is not None}, None)


def test_variables_of_two_machines() -> None:
    check_environment({**variables(5, 8, 29500), "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}, 4)


def test_slurms_tasks_are_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit", reason="submitit is not installed (the extra 'scale')")
    step = {
        "SLURM_JOB_ID": "77",
        "SLURM_NTASKS": "8",
        "SLURM_STEP_NUM_TASKS": "8",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_NODEID": "1",
        "SLURM_JOB_NODELIST": "gpu[03-04]",
        "SLURM_PROCID": "6",
        "SLURM_LOCALID": "2",
        "SUBMITIT_EXECUTOR": "",
    }
    for name, value in step.items():
        monkeypatch.setenv(name, value)
    for name in launch.TORCHRUN:  # so that they go again after the test
        monkeypatch.setenv(name, "")
        del os.environ[name]
    assert launch.launch(["train"]) is None
    found = {name: os.environ[name] for name in launch.TORCHRUN}
    port = found.pop("MASTER_PORT")
    expected = {"RANK": "6", "WORLD_SIZE": "8", "LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "gpu03"}
    assert found == expected and 1024 < int(port) < 65536


def test_the_port_of_the_environment_is_kept_or_refused() -> None:
    port = free_port(None)
    assert free_port(str(port)) == port
    with socket.socket() as taken:
        taken.bind(("", port))
        taken.listen()
        with pytest.raises(InputError, match=f"port {port} of this machine is in use; set MASTER_PORT"):
            free_port(str(port))
    with pytest.raises(InputError, match="MASTER_PORT='http': expected a number"):
        free_port("http")


@pytest.mark.parametrize(("local", "gpus", "slurm", "own"), [(3, 4, False, 3), (3, 1, True, 0), (2, 2, False, None)])
def test_each_process_has_its_gpu(
    local: int, gpus: int, slurm: bool, own: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm may show each task its own GPU alone."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    for name, value in {**variables(local, 4, 29500), **({"SLURM_PROCID": "3"} if slurm else {})}.items():
        monkeypatch.setenv(name, value)
    if own is not None:
        assert distributed._own_gpu() == own
        return
    with pytest.raises(InputError, match="4 processes were started on a machine that shows 2 GPUs"):
        distributed._own_gpu()


# ---------------------------------------------------------------------------------------------- processes of a command


def watch(program: str, count: int = 3) -> Launcher:
    return Launcher(
        [sys.executable, "-c", f"import os, signal, sys, time\nrank = int(os.environ['RANK'])\n{program}"], count
    )


def test_lines_of_all_go_to_standard_error_and_results_of_the_first_alone(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert watch("print('result', rank); print('said', rank, file=sys.stderr)").run() == 0
    out, err = capfd.readouterr()
    assert out == "result 0\n"
    assert sorted(err.splitlines()) == ["said 0", "said 1", "said 2"]


@pytest.mark.parametrize(
    ("program", "code", "message"),
    [
        ("sys.exit(2)", 2, ""),
        ("os.kill(os.getpid(), 9) if rank == 1 else time.sleep(60)", 137, "process 1 of 3 was killed by SIGKILL"),
        ("sys.exit(5) if rank == 2 else time.sleep(60)", 5, "process 2 of 3 ended with exit code 5"),
    ],
)
def test_when_one_ends_all_end(
    program: str, code: int, message: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "SECONDS_TO_FOLLOW", 0.2)
    begin = time.monotonic()
    run = watch(program)
    assert run.run() == code
    assert time.monotonic() - begin < 30
    assert all(child.poll() is not None for child in run.children)
    err = capfd.readouterr().err
    assert message in err if message else err == ""


WAITING = """
def stop(number, frame):
    print("got", number, file=sys.stderr, flush=True)
    if ENDS:
        sys.exit(128 + number)
signal.signal(signal.SIGUSR1, stop)
print("ready", file=sys.stderr, flush=True)
while True:
    time.sleep(0.01)
"""


def signals_when_ready(capfd: pytest.CaptureFixture[str], count: int, *numbers: int) -> threading.Thread:
    """Sends this process signals once `count` processes have said that they are ready."""
    said: list[str] = []

    def send() -> None:
        for number in numbers:
            while "".join(said).count("ready") < count:
                said.append(capfd.readouterr().err)
                time.sleep(0.02)
            os.kill(os.getpid(), number)
            time.sleep(0.3)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def test_a_signal_reaches_every_process(capfd: pytest.CaptureFixture[str]) -> None:
    sender = signals_when_ready(capfd, 3, signal.SIGUSR1)
    assert watch(WAITING.replace("ENDS", "True")).run() == 128 + signal.SIGUSR1
    sender.join()
    assert capfd.readouterr().err.count(f"got {int(signal.SIGUSR1)}") == 3


def test_a_second_signal_kills(capfd: pytest.CaptureFixture[str]) -> None:
    sender = signals_when_ready(capfd, 3, signal.SIGUSR1, signal.SIGUSR1)
    run = watch(WAITING.replace("ENDS", "False"))
    assert run.run() == 128 + signal.SIGUSR1
    sender.join()
    assert "a second signal: the processes are killed" in capfd.readouterr().err
    assert [child.returncode for child in run.children] == [-signal.SIGKILL] * 3


# -------------------------------------------------------------------------------------------------------- agreement


def test_an_error_that_all_know_of_is_reported_by_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise InputError("no corpus")

    with pytest.raises(InputError, match="no corpus"):
        distributed.on_all(fails)
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as ended:
        distributed.fail(SynopsisError("of the first"))
    assert ended.value.code == 1


def test_a_job_of_slurm_is_queued_again_and_nothing_else_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "scontrol"
    program.write_text('#!/bin/sh\necho "$@"\n')
    program.chmod(0o755)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    launch.requeue()
    assert capfd.readouterr() == ("", "")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    launch.requeue()
    assert capfd.readouterr() == ("requeue 7\n", "asking Slurm to queue job 7 again\n")
    program.unlink()
    launch.requeue()  # a container without Slurm's commands: the job fails, and Snakemake submits it again
