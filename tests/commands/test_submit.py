"""`synopsis submit`: which jobs are sent, with what, and that one that submitit cuts short goes on where it was."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from running import MICRO
from synopsis.artifacts import Layout
from synopsis.commands.submit import Work, selected
from synopsis.config.experiment import load_experiment
from synopsis.errors import SynopsisError
from synopsis.stages.record import stages
from synopsis.training.stage import train
from training_runs import autocompressor, experiment, gist

pytest.importorskip("submitit", reason="the package submitit is not installed")
Call = Callable[..., tuple[int, str, str]]
SECONDS = 300.0
REFUSED = [
    ("--cluster=lsf", "--cluster 'lsf': submitit has slurm, local, debug"),
    ("--compressor=its", "--compressor 'its': the stage 'train' of the experiment has it"),
    ("--compressor=its --seed=0", "compressor 'its': the experiment has it"),
    ("--seed=0", "--seed: the training seeds of a compressor; expected --compressor beside it, and no --run"),
    ("--compressor=it --seed=3:3", "--seed 3:3: expected seeds, for instance 0:3 or 0,1,2"),
    ("--run=it-s0 --dataset=sst2", "--dataset 'sst2': the stage 'train' of the experiment has none"),
    ("--slurm=partition", "--slurm partition: expected KEY=VALUE, for instance --slurm partition=gpu"),
    ("--slurm=gpus=1", "--slurm: Unknown argument 'gpus' for executor 'slurm'"),
    ("--slurm=timeout_min=soon", '--slurm: Parameter "timeout_min" expected type'),
    ("--slurm=timeout_min=6", "--slurm timeout_min=6: expected a minute more than signal_delay_s (300 s) at least"),
    ("--cluster=slurm", "--cluster slurm: no sbatch and srun on this machine; expected local or debug here"),
]


def words(folder: Path, *options: str) -> list[str]:
    return ["submit", "train", "--config", str(folder / "experiment.yaml"), *options]


@pytest.mark.parametrize(("options", "fault"), REFUSED)
def test_what_cannot_be_submitted(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: str, fault: str
) -> None:
    experiment(tmp_path, autocompressor())
    monkeypatch.setenv("PATH", "")
    code, _, err = call(*words(tmp_path, "--cluster=local", *options.split()))
    assert code == 2 and f"synopsis: {fault}" in err
    assert not list(tmp_path.rglob("submit/*"))


def test_the_seed_of_a_stage_with_seeds_is_one_of_its_own() -> None:
    found = load_experiment(MICRO, overrides={"evaluation_seeds": [0, 1, 2], "training_seeds": [0, 1]})
    chosen = {"compressor": ["autocompressor"], "seed": ["1", "2"]}
    jobs = selected(found, stages()["icl"], chosen)
    named = [(job.wildcards["run"], job.wildcards["seed"]) for job in jobs]
    assert named == [(f"autocompressor-s{run}", seed) for run in (0, 1) for seed in (1, 2)]


def test_missing_inputs_are_named_with_the_commands_that_make_them(call: Call, tmp_path: Path) -> None:
    layout = Layout(experiment(tmp_path, autocompressor()))
    for part in (layout.model("base"), layout.corpus("stories", "base")):
        part.rename(tmp_path / part.parent.name)
    code, _, err = call(*words(tmp_path, "--cluster=debug"))
    config = f"--config {tmp_path}/experiment.yaml"
    assert code == 2 and err.splitlines()[-3:] == [
        "synopsis: nothing was submitted: inputs are missing; make them in this order:",
        f"  {layout.model('base')}: synopsis prepare {config} model base",
        f"  {layout.corpus('stories', 'base')}: synopsis prepare {config} corpus stories base",
    ]


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """An sbatch of this shell script; gives the place of what it was asked."""

    def make(script: str) -> Path:
        for name, text in {"srun": "", "sbatch": f'cp "$1" {tmp_path}/asked\n{script}'}.items():
            (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
            (tmp_path / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        return tmp_path / "asked"

    return make


def test_a_sweep_is_one_array_with_the_parameters_of_submitit(
    call: Call, tmp_path: Path, slurm: Callable[[str], Path]
) -> None:
    asked = slurm("echo Submitted batch job 17")
    experiment(tmp_path, gist(), training_seeds=[0, 1])
    options = ("--slurm=partition=gpu", "--slurm=timeout_min=60", "--slurm=mem_gb=null")
    code, out, err = call(*words(tmp_path, "--compressor=it", "--seed=0:3", *options))
    assert code == 0, err
    assert out.endswith("17_0  train it-s0\n17_1  train it-s1\n17_2  train it-s2\n")
    lines = [line.removeprefix("#SBATCH --") for line in asked.read_text().splitlines()]
    expected = ["array=0-2%3", "cpus-per-task=8", "gpus-per-node=1", "partition=gpu", "signal=USR2@300", "time=60"]
    assert set(expected) <= set(lines) and not any(line.startswith("mem=") for line in lines)


def test_what_slurm_refuses_leaves_nothing_behind(call: Call, tmp_path: Path, slurm: Callable[[str], Path]) -> None:
    slurm("echo sbatch: error: invalid partition specified: gqu >&2; exit 1")
    experiment(tmp_path, autocompressor())
    code, _, err = call(*words(tmp_path, "--slurm=partition=gqu"))
    assert code == 2 and "synopsis: nothing was submitted: sbatch: error: invalid partition specified: gqu\n" in err
    assert not list(tmp_path.rglob("submit/*"))


def test_jobs_that_end_badly(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = stages()["train"].job(experiment(tmp_path, autocompressor()), run="it-s0")
    with pytest.raises(SynopsisError, match="ended with exit code 3"):
        Work(job, ["sh", "-c", "exit 3"])()
    for cancelled in ("kill -TERM $$", "exit 143"):
        with pytest.raises(SystemExit):  # so that submitit writes no result, and Slurm may start the job again
            Work(job, ["sh", "-c", cancelled])()
    monkeypatch.setattr(sys, "executable", "false")
    code, out, err = call(*words(tmp_path, "--cluster=debug"))
    number = out.split()[-3]
    assert code == 1 and err.endswith(f"{number}  train it-s0: failed\nsynopsis: 1 of 1 jobs failed\n")


def test_a_training_that_submitit_cuts_short_is_queued_again_and_ends_as_one_that_it_did_not(
    call: Call, tmp_path: Path
) -> None:
    """The signal goes to all processes of the job, as from Slurm."""
    compressor = autocompressor(steps=60, checkpoint_every=5, log_every=20)
    found: Any = experiment(tmp_path, compressor)
    code, out, err = call(*words(tmp_path, "--compressor=it", "--seed=0", "--cluster=local"))
    assert code == 0, err
    number, layout = out.split()[-3], Layout(found)
    lock = layout.checkpoints("it-s0") / "lock.json"
    controller = psutil.Process(int(number))
    wait_until(lambda: (layout.checkpoints("it-s0") / "checkpoint-10" / "manifest.json").exists(), controller)
    (submitted,) = controller.children()
    training = psutil.Process(int(lock.read_text().partition('"process": ')[2].partition(",")[0]))
    training.suspend()
    for process in (training, submitted):
        process.send_signal(signal.SIGUSR2)
    training.resume()
    wait_until(lambda: layout.model("it-s0").exists(), controller)
    controller.wait(SECONDS)
    (log,) = layout.root.rglob(f"logs/submit/train-*/{number}_0_log.err")
    assert "SIGTERM received: saving a checkpoint after this step" in log.read_text()
    assert "it-s0: resumes from " in log.read_text()
    assert "Requeued job" in log.with_suffix(".out").read_text()
    code, out, err = call(*words(tmp_path, "--cluster=debug"))
    assert (code, out, err) == (0, "", f"up to date: {layout.model('it-s0')}; delete it to make it again\n")

    (tmp_path / "undisturbed").mkdir()
    undisturbed = experiment(tmp_path / "undisturbed", compressor)
    train(undisturbed, "it-s0")
    weights = [(Layout(each).model("it-s0") / "model.safetensors").read_bytes() for each in (found, undisturbed)]
    assert weights[0] == weights[1]


def wait_until(ready: Callable[[], bool], process: psutil.Process) -> None:
    end = time.monotonic() + SECONDS
    while not ready():
        assert process.is_running() and process.status() != psutil.STATUS_ZOMBIE and time.monotonic() < end
        time.sleep(0.005)
