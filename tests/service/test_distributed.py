"""Runs of several processes, for real: they learn what one process learns, and lose nothing when one is killed."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import running
import torch
import yaml
from running import MICRO, ROOT, wait_for, wait_for_line
from safetensors.torch import load_file
from synopsis.config.experiment import load_experiment
from synopsis.data.prepare import prepare
from synopsis.errors import InputError
from synopsis.training.launch import free_port, variables
from synopsis.training.stage import train

SECONDS = 170.0
CLOSE = {"rel": 1e-5, "abs": 1e-5}
"""float32 sums of the same numbers in another order, over a dozen steps."""
NUMBERS = ("loss", "grad_norm", "learning_rate", "eval_loss", "train_loss")


class Setup:
    """An experiment with its data and base model made, and processes that train on it."""

    def __init__(self, folder: Path):
        self.folder = folder
        content = yaml.safe_load(MICRO.read_text())
        content["results"] = str(folder / "results")
        content["compressors"]["autocompressor"]["training"].update(batch_size=4, log_every=3, checkpoint_every=4)
        content["compressors"]["gist-1"]["training"].update(batch_size=4)
        self.config = folder / "micro.yaml"
        self.config.write_text(yaml.safe_dump(content, sort_keys=False))
        experiment = load_experiment(self.config)
        for what in (("tokenizer", "base"), ("corpus", "stories", "base"), ("instructions", "translations")):
            prepare(experiment, *what)
        train(experiment, "base")

    def alone(self, run: str, name: str, **training: Any) -> Path:
        """One process, with the batches of two; results in a folder of their own."""
        compressor = f"compressors.{run.removesuffix('-s0')}.training"
        changes = {f"{compressor}.{key}": value for key, value in {"batch_size": 8, **training}.items()}
        experiment = load_experiment(self.config, overrides={"name": name, **changes})
        self._with_inputs(name)
        train(experiment, run)
        return self.model(name, run)

    def command(self, run: str, name: str, **training: Any) -> list[str]:
        self._with_inputs(name)
        compressor = f"compressors.{run.removesuffix('-s0')}.training"
        changes = {"name": name, **{f"{compressor}.{key}": value for key, value in training.items()}}
        sets = [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
        return ["train", "--config", str(self.config), *sets, run]

    def together(self, run: str, name: str, **training: Any) -> subprocess.Popen[str]:
        """Two processes, as the command starts them."""
        return start([sys.executable, "-m", "synopsis.cli", *self.command(run, name, **training), "--processes", "2"])

    def _with_inputs(self, name: str) -> None:
        """The same data and base model under another name of the experiment."""
        place = self.folder / "results" / name
        (place / "models").mkdir(parents=True, exist_ok=True)
        for part in ("data", "models/base"):
            if not (place / part).exists():
                (place / part).symlink_to(self.folder / "results" / "micro" / part)

    def model(self, name: str, run: str) -> Path:
        return self.folder / "results" / name / "models" / run

    def checkpoints(self, name: str, run: str) -> Path:
        return self.folder / "results" / name / "checkpoints" / run


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    return Setup(tmp_path_factory.mktemp("distributed"))


def start(command: list[str], **environment: str) -> subprocess.Popen[str]:
    variables = running.environment(**environment)
    return subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def pair(program: str, *arguments: str, **environment: str) -> list[subprocess.Popen[str]]:
    """Two processes of a Python program, as torchrun would start them."""
    port = free_port(None)
    command = [sys.executable, "-c", program, *arguments]
    return [start(command, **variables(rank, 2, port), **environment) for rank in (0, 1)]


def finished(*processes: subprocess.Popen[str]) -> str:
    """What the processes said; fails when one of them did."""
    said = [process.communicate(timeout=SECONDS)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(said)
    return "\n".join(said)


def curve(model: Path) -> list[tuple[int, str, float]]:
    rows = [json.loads(line) for line in (model / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], key, row[key]) for row in rows for key in NUMBERS if key in row]


def assert_same_run(one: Path, other: Path) -> None:
    """The same curve and the same weights, to the rounding of float32."""
    expected, found = curve(one), curve(other)
    assert [row[:2] for row in found] == [row[:2] for row in expected]
    assert [row[2] for row in found] == [pytest.approx(row[2], **CLOSE) for row in expected]
    weights, others = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(others[name], weight, rtol=1e-4, atol=1e-4, msg=name)


def rank_of(process: psutil.Process) -> str:
    return process.environ()["RANK"]


# ------------------------------------------------------------------------------------------ two copies of the weights


@pytest.mark.parametrize(
    ("run", "training"),
    [
        ("autocompressor-s0", {}),
        # No loss depends on the summary tokens, which stand at the end of each substep.
        ("autocompressor-s0", {"segments_per_substep": 1, "gradient_accumulation": 2}),
        ("gist-1-s0", {"gradient_accumulation": 2}),
    ],
    ids=["autocompressor", "one-segment", "gist"],
)
def test_two_processes_learn_what_one_learns(
    setup: Setup, run: str, training: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    name = request.node.callspec.id
    alone = setup.alone(run, f"{name}-alone", **training)
    said = finished(setup.together(run, name, **training))
    assert_same_run(alone, setup.model(name, run))
    assert said.count(" tokens/s, ") == 1, "progress of one process alone"
    assert said.count("train_loss: ") == 1, "figures of one process alone"
    report = json.loads((setup.model(name, run) / "provenance.json").read_text())
    accumulation = training.get("gradient_accumulation", 1)
    assert (report["processes"], report["sequences_per_step"]) == (2, 8 * accumulation)
    assert said.count(f" = {8 * accumulation} sequences a step: the result depends on the number of processes") == 1


@pytest.mark.parametrize("run", ["autocompressor-s0", "gist-1-s0"])
def test_a_fixed_number_of_sequences_is_the_same_run_in_any_number_of_processes(setup: Setup, run: str) -> None:
    """Drawn segments, unequal numbers of labels, and data (64 and 16 or 8 sequences) that end within a batch."""
    training = {"batch_size": 6, "sequences_per_step": 12}
    alone = setup.alone(run, "fixed-alone", **training)
    said = finished(setup.together(run, "fixed", **training))
    assert_same_run(alone, setup.model("fixed", run))
    assert "depends on the number of processes" not in said
    report = json.loads((setup.model("fixed", run) / "provenance.json").read_text())
    assert (report["processes"], report["sequences_per_step"]) == (2, 12)


def test_a_run_that_loses_a_process_learns_what_one_that_does_not_learns(setup: Setup) -> None:
    """Stopped by a signal; the newest checkpoint damaged; one process killed: the curve is the same to the last bit."""
    run, long = "autocompressor-s0", {"steps": 48, "keep_checkpoints": 3}
    whole = setup.together(run, "whole", **long)
    finished(whole)

    folder = setup.checkpoints("killed", run)
    process = setup.together(run, "killed", **long)
    wait_for(folder / "checkpoint-4" / "manifest.json", process)
    process.send_signal(signal.SIGUSR1)
    said = process.communicate(timeout=SECONDS)[0]
    assert process.returncode == 128 + signal.SIGUSR1, said
    assert said.count("SIGUSR1 received: saving a checkpoint after this step") == 1
    assert said.count("the same command resumes there") == 1 and "Traceback" not in said

    with pytest.raises(InputError, match="by 2 processes, and this run has 1; start it with --processes 2"):
        setup.alone(run, "killed", batch_size=4, **long)
    newest = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.removeprefix("checkpoint-")))
    (newest / "rng_state_1.pth").write_bytes(b"damaged")
    process = setup.together(run, "killed", **long)
    wait_for(folder / "checkpoint-24" / "manifest.json", process)
    ranks = sorted(psutil.Process(process.pid).children(), key=rank_of)
    ranks[1].kill()
    said = process.communicate(timeout=SECONDS)[0]
    assert process.returncode == 128 + signal.SIGKILL
    assert said.count(f"{newest} is passed over: rng_state_1.pth is missing or damaged") == 1
    assert "process 1 of 2 was killed by SIGKILL" in said
    assert not any(rank.is_running() for rank in ranks)

    said = finished(setup.together(run, "killed", **long))
    assert said.count(f"{run}: resumes from {folder}") == 1
    assert curve(setup.model("killed", run)) == curve(setup.model("whole", run))
    weights = [(setup.model(name, run) / "model.safetensors").read_bytes() for name in ("killed", "whole")]
    assert weights[0] == weights[1]
    assert not folder.exists()


def test_a_second_start_waits_in_all_its_processes_and_takes_the_model(setup: Setup) -> None:
    run, long = "autocompressor-s0", {"steps": 96}
    owner = setup.together(run, "twice", **long)
    wait_for(setup.checkpoints("twice", run) / "checkpoint-4" / "manifest.json", owner)
    first = min(psutil.Process(owner.pid).children(), key=rank_of)
    first.suspend()  # it would end while the others still start
    second = pair("from synopsis.cli import main; main()", *setup.command(run, "twice", **long))
    try:
        said = wait_for_line("waiting for it to end", second[0])
    finally:
        first.resume()
    finished(owner)
    said += finished(*second)
    assert said.count(f"{run}: process ") == said.count("waiting for it to end\n") == 1
    assert said.count("finished by the other process; taking") == said.count("train_loss: ") == 1
    assert "tokens/s" not in said
    assert not setup.checkpoints("twice", run).exists()


def test_a_port_in_use_is_reported(setup: Setup) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "synopsis.cli", *setup.command("gist-1-s0", "port")]
        process = start(command, **variables(0, 2, port))
        said = process.communicate(timeout=SECONDS)[0]
    assert process.returncode == 2, said
    assert f"port {port} of this machine is in use; set MASTER_PORT" in said and "Traceback" not in said


# ------------------------------------------------------------------------------------------------- parts of the weights

SMALL_SLICES = """
import deepspeed.ops
deepspeed.ops.__compatible_ops__ = {}  # nothing is compiled
import synopsis.compressors.loss as loss
loss.LOGITS_AT_ONCE = 1024  # so that the loss of these small batches comes in slices
from synopsis.cli import main
main()
"""


# accelerate shards on GPUs alone. What it does there also works on gloo, once it takes these processes for GPUs.
AS_ON_GPUS = """
import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from synopsis.training import sharding
PartialState._prepare_backend = lambda self, *arguments: ("gloo", DistributedType.MULTI_GPU)
sharding.gpus = lambda: True
import synopsis.compressors.loss as loss
loss.LOGITS_AT_ONCE = 1024
from synopsis.cli import main
main()
"""


def small_zero3(setup: Setup) -> tuple[str, dict[str, Any], dict[str, str]]:
    """The file that ships, for a model whose layers are all small; it is found beside the experiment's file."""
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed (the extra 'scale')")
    settings = json.loads((ROOT / "config" / "deepspeed" / "zero3.json").read_text())
    settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    (setup.folder / "zero3.json").write_text(json.dumps(settings))
    return SMALL_SLICES, {"deepspeed": "zero3.json"}, {"DS_ACCELERATOR": "cpu"}


def fsdp(setup: Setup) -> tuple[str, dict[str, Any], dict[str, str]]:
    return AS_ON_GPUS, {"fsdp": True}, {"ACCELERATE_TORCH_DEVICE": "cpu"}


@pytest.mark.parametrize("spread", [small_zero3, fsdp], ids=["zero3", "fsdp"])
def test_spread_weights_learn_what_one_process_learns_and_become_an_ordinary_model(setup: Setup, spread: Any) -> None:
    """No weight is whole outside of its layer; the loss in slices reads the output layer inside of a forward pass.

    Stopped on the way, and gone on from the checkpoint, which is in parts too.
    """
    run, name = "autocompressor-s0", spread.__name__
    program, training, environment = spread(setup)
    alone = setup.alone(run, f"{name}-alone", gradient_accumulation=2)
    command = setup.command(run, name, gradient_accumulation=2, **training)
    first = pair(program, *command, **environment)
    wait_for(setup.checkpoints(name, run) / "checkpoint-4" / "manifest.json", first[0])
    for process in first:
        process.send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=SECONDS)[0] for process in first]
    assert [process.returncode for process in first] == [143, 143], "\n".join(said)
    said = finished(*pair(program, *command, **environment))
    assert_same_run(alone, setup.model(name, run))
    assert "Gradient accumulation steps mismatch" not in said


def test_deepspeed_accumulates_and_clips_as_the_run_says_where_its_file_does_not(setup: Setup) -> None:
    """Each optimizer step takes both passes, unequal numbers of labels in them, and one step of the schedule."""
    program, _, environment = small_zero3(setup)
    (setup.folder / "zero2.json").write_text('{"zero_optimization": {"stage": 2}}')
    run, training = "gist-1-s0", {"gradient_accumulation": 2, "max_grad_norm": 0.1, "warmup_steps": 2, "log_every": 1}
    alone = setup.alone(run, "zero2-alone", **training)
    command = setup.command(run, "zero2", deepspeed="zero2.json", **training)
    said = finished(*pair(program, *command, **environment))
    assert_same_run(alone, setup.model("zero2", run))
    rates = [row[2] for row in curve(setup.model("zero2", run)) if row[1] == "learning_rate"]
    assert rates == pytest.approx([3e-3 * share for share in (0, 1 / 2, 1, 3 / 4, 1 / 2, 1 / 4)])
    assert "Gradient accumulation steps mismatch" not in said
