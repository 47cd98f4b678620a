"""How many processes a run gets, what they make of their environment, and what becomes of all when one ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from synopsis.config.training import LanguageModelTraining, SegmentTraining
from synopsis.errors import ConfigError, InputError, SynopsisError
from synopsis.training import distributed, launch
from synopsis.training.launch import Watch, check_environment, free_port, processes_here, variables
from synopsis.training.sharding import read_deepspeed, sharding

FILES = sorted((Path(__file__).parents[2] / "config" / "deepspeed").glob("*.json"))


@pytest.fixture(autouse=True)
def no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*launch.TORCHRUN, launch.WATCHER, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)


# ------------------------------------------------------------------------------------------------------ how many, whose


@pytest.mark.parametrize(("asked", "gpus", "count"), [(None, 0, 1), (None, 4, 4), (2, 4, 2), (3, 0, 3), (1, 8, 1)])
def test_as_many_processes_as_gpus(asked: int | None, gpus: int, count: int) -> None:
    assert processes_here(asked, gpus) == count


@pytest.mark.parametrize(("gpus", "told"), [(1, "1 GPU; expected at most 1"), (4, "4 GPUs; expected at most 4")])
def test_more_processes_than_gpus(gpus: int, told: str) -> None:
    with pytest.raises(InputError, match=f"--processes 8: this machine shows {told}"):
        processes_here(8, gpus)


def test_one_process_is_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "visible_gpus", lambda: 0)
    assert launch.launch(["train"]) is None


def test_torchruns_variables_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "visible_gpus", lambda: pytest.fail("the machine does not matter"))
    for name, value in variables(1, 2, 29500).items():
        monkeypatch.setenv(name, value)
    assert launch.launch(["train"]) is None
    with pytest.raises(InputError, match=r"--processes 3: 2 were started on this machine"):
        launch.launch(["train"], 3)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"RANK": None}, "RANK is not set; start the run by torchrun or srun"),
        ({"WORLD_SIZE": None}, "WORLD_SIZE is not set"),
        ({"MASTER_PORT": None, "MASTER_ADDR": None}, "MASTER_ADDR, MASTER_PORT is not set"),
        ({"RANK": "2"}, "RANK=2: expected less than WORLD_SIZE=2"),
        ({"LOCAL_RANK": "2"}, "LOCAL_RANK=2, LOCAL_WORLD_SIZE=2, WORLD_SIZE=2 contradict"),
        ({"LOCAL_WORLD_SIZE": "4"}, "LOCAL_WORLD_SIZE=4, WORLD_SIZE=2 contradict"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE='two': expected a number"),
    ],
)
def test_variables_that_contradict_each_other(change: dict[str, str | None], told: str) -> None:
    environment = {**variables(1, 2, 29500), **change}
    with pytest.raises(InputError, match=told):
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


@pytest.mark.parametrize(("local", "gpus", "slurm", "own"), [(3, 4, False, 3), (3, 1, True, 0), (0, 1, False, 0)])
def test_each_process_has_its_gpu(
    local: int, gpus: int, slurm: bool, own: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm may show each task its own GPU alone."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setenv("LOCAL_RANK", str(local))
    if slurm:
        monkeypatch.setenv("SLURM_PROCID", "3")
    assert distributed._own_gpu() == own


def test_a_process_too_many_for_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in variables(2, 3, 29500).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="3 processes were started on a machine that shows 2 GPUs"):
        distributed._own_gpu()


# ---------------------------------------------------------------------------------------------- processes of a command


def watch(program: str, count: int = 3) -> Watch:
    return Watch(
        [sys.executable, "-c", f"import os, signal, sys, time\nrank = int(os.environ['RANK'])\n{program}"], count
    )


def test_processes_know_their_places(tmp_path: Path) -> None:
    program = f"open(r'{tmp_path}/' + str(rank), 'w').write(repr([os.environ[n] for n in {launch.TORCHRUN}]))"
    assert watch(program).run() == 0
    places = [eval((tmp_path / str(rank)).read_text()) for rank in range(3)]
    assert [place[:4] for place in places] == [[str(rank), "3", str(rank), "3"] for rank in range(3)]
    assert len({tuple(place[4:]) for place in places}) == 1


def test_lines_of_all_go_to_standard_error_and_results_of_the_first_alone(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert watch("print('result', rank); print('said', rank, file=sys.stderr)").run() == 0
    out, err = capfd.readouterr()
    assert out == "result 0\n"
    assert sorted(err.splitlines()) == ["said 0", "said 1", "said 2"]


@pytest.mark.parametrize(
    ("program", "code", "told"),
    [
        ("sys.exit(2)", 2, ""),
        ("os.kill(os.getpid(), 9) if rank == 1 else time.sleep(60)", 137, "process 1 of 3 was killed by SIGKILL"),
        ("sys.exit(5) if rank == 2 else time.sleep(60)", 5, "process 2 of 3 ended with exit code 5"),
    ],
)
def test_when_one_ends_all_end(
    program: str, code: int, told: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "SECONDS_TO_FOLLOW", 0.2)
    begin = time.monotonic()
    run = watch(program)
    assert run.run() == code
    assert time.monotonic() - begin < 30
    assert all(child.poll() is not None for child in run.children)
    err = capfd.readouterr().err
    assert told in err if told else err == ""


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


def test_one_process_agrees_with_itself() -> None:
    assert distributed.world_size() == 1 and distributed.is_first()
    with distributed.processes():
        assert distributed.gathered("own") == ["own"]
        assert distributed.highest(3) == 3
        assert distributed.together(lambda: 5) == distributed.of_first(lambda: 5) == 5
        distributed.barrier()


def test_an_error_that_all_know_of_is_told_by_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise InputError("no corpus")

    with pytest.raises(InputError, match="no corpus"):
        distributed.together(fails)
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as ended:
        distributed.fail(SynopsisError("of the first"))
    assert ended.value.code == 1


# ---------------------------------------------------------------------------------------------------------- DeepSpeed


def training(**fields: Any) -> LanguageModelTraining:
    wanted = {"corpus": "c", "sequence_length": 8, "steps": 10, "batch_size": 4, "learning_rate": 1e-4}
    return LanguageModelTraining(**{**wanted, **fields})


def file(folder: Path, content: Any) -> Path:
    path = folder / "spread.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_files_that_ship_fit_every_run(path: Path, dtype: str) -> None:
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed (the extra 'scale')")
    wanted = training(dtype=dtype, gradient_accumulation=3, weight_decay=0.1, adam_beta2=0.95, deepspeed=str(path))
    settings = read_deepspeed(path, wanted, 8)
    assert settings["zero_optimization"]["stage"] in (2, 3)
    assert sharding(wanted) == {"deepspeed": settings}


@pytest.mark.parametrize(
    ("content", "faults"),
    [
        (
            {"train_micro_batch_size_per_gpu": 8, "train_batch_size": 12, "gradient_accumulation_steps": 2},
            [
                "train_micro_batch_size_per_gpu: found 8; expected 'auto' or 4, training.batch_size",
                "gradient_accumulation_steps: found 2; expected 'auto' or 1, training.gradient_accumulation with 2",
                "train_batch_size: found 12; expected 'auto' or 8, batch_size x gradient_accumulation x 2 processes",
            ],
        ),
        ({"optimizer": {"params": {"lr": 1e-3}}}, ["optimizer.params.lr: found 0.001; expected 'auto' or 0.0001"]),
        (
            {"bf16": {"enabled": True}},
            ["bf16.enabled: found true; expected 'auto' or false, training.dtype is float32"],
        ),
        ({"fp16": {"enabled": True}}, ["fp16.enabled: found true; expected 'auto' or false"]),
        ({"gradient_clipping": 0.5}, ["gradient_clipping: found 0.5; expected 'auto' or 1.0"]),
        (
            {"zero_optimization": {"stage": 3}},
            ["zero_optimization.stage3_gather_16bit_weights_on_model_save: found false; expected true"],
        ),
    ],
)
def test_a_file_that_contradicts_the_run(content: Any, faults: list[str], tmp_path: Path) -> None:
    path = file(tmp_path, content)
    with pytest.raises(ConfigError) as raised:
        read_deepspeed(path, training(), 2)
    assert len(raised.value.faults) == len(faults)
    for fault in faults:
        assert f"{path}: {fault}" in str(raised.value)


def test_a_batch_that_the_processes_cannot_share_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(InputError, match="sequences_per_step 16: found 3 processes of batch_size 4"):
        sharding(training(sequences_per_step=16))


def test_a_file_that_says_the_same_as_the_run(tmp_path: Path) -> None:
    content = {"train_batch_size": 8, "gradient_clipping": 1, "bf16": {"enabled": False}, "scheduler": {"params": {}}}
    filled_in = {"train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto"}
    assert read_deepspeed(file(tmp_path, content), training(), 2) == {**content, **filled_in}


@pytest.mark.parametrize("content", ["{", "[]", "\ud800".encode("utf-8", "surrogatepass")])
def test_a_file_that_is_no_settings(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "spread.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=r"spread.json: (cannot be read|expected a JSON object)"):
        read_deepspeed(path, training(), 1)


def test_a_file_is_found_beside_the_experiment(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed (the extra 'scale')")
    path = file(tmp_path, {"zero_optimization": {"stage": 2}})
    wanted = training(deepspeed=path.name)
    found = sharding(wanted, [tmp_path / "experiment.yaml"])["deepspeed"]
    assert found["zero_optimization"] == {"stage": 2}
    assert found["gradient_clipping"] == "auto", "without the key DeepSpeed would not clip"
    with pytest.raises(InputError, match=r"training.deepspeed: there is no file spread.json"):
        sharding(wanted)


def test_copies_in_each_process_look_for_unused_weights_only_where_there_are_some() -> None:
    parts = {"substeps": 2, "segments_per_substep": 2}
    fields = {"corpus": "c", "sequence_length": 8, "steps": 1, "batch_size": 1, "learning_rate": 1.0}
    assert sharding(SegmentTraining(**fields, **parts)) == {"ddp_find_unused_parameters": False}
    alone = SegmentTraining(**fields, **{**parts, "segments_per_substep": 1})
    assert sharding(alone) == {"ddp_find_unused_parameters": True}
