"""What `synopsis doctor` says of machines that lack something, or have it broken."""

from __future__ import annotations

import errno
import fcntl
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from synopsis.commands import doctor

SINFO = 'case "$1" in --version) echo slurm 23.11;; *) echo "gpu: up, 4 nodes, 1-00:00:00, gpu:h100:8";; esac'
PROGRAMS = {
    "no Slurm": ({}, "note  slurm  not on this machine"),
    "a part": ({"sbatch": "", "sinfo": SINFO}, "fault slurm  not on PATH: squeue, sacct, scontrol"),
    "no controller": (
        {**dict.fromkeys(doctor.SLURM, ""), "sinfo": "echo no route to host >&2; exit 1"},
        "fault slurm  the controller does not answer (no route to host)",
    ),
    "a partition": ({**dict.fromkeys(doctor.SLURM, ""), "sinfo": SINFO}, "ok    partition  gpu: up, 4 nodes"),
    "a short memory": (
        {**dict.fromkeys(doctor.SLURM, ""), "sinfo": SINFO, "scontrol": "echo 'MinJobAge = 10 sec'"},
        "fault slurm  MinJobAge is 10 s; 30 are needed",
    ),
    "GPUs that torch does not see": (
        {"nvidia-smi": "echo 'GPU 0: NVIDIA H100'; echo 'GPU 1: NVIDIA H100'"},
        "sees 0 of 2 GPUs: ",
    ),
}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    """A PATH with nothing but these programs, each with its shell script."""

    def make(programs: dict[str, str]) -> None:
        for name, script in programs.items():
            (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
            (tmp_path / name).chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return make


def findings() -> str:
    return "\n".join(f"{it.state:<6}{it.subject}  {it.text}" for it in doctor.examine())


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs(machine: Callable[[dict[str, str]], None], monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    programs, expected = PROGRAMS[name]
    machine(programs)
    assert expected in findings()


def test_files_without_locks_and_a_hub_without_a_network(
    machine: Callable[[dict[str, str]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine({})
    assert "note  hub  HF_HUB_OFFLINE is set" in findings()

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    found = findings()
    assert "cannot be locked (No locks available): give each" in found
    assert "note  hub  no network to http://127.0.0.1:9" in found


def test_keys_are_not_shown_and_a_fault_is_the_exit_code(
    machine: Callable[[dict[str, str]], None],
    monkeypatch: pytest.MonkeyPatch,
    call: Callable[..., tuple[int, str, str]],
) -> None:
    machine({"sbatch": ""})
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    code, out, _ = call("doctor", "--json")
    by_subject = {each["subject"]: each for each in json.loads(out)}
    assert code == 1 and by_subject["slurm"]["state"] == "fault"
    assert by_subject["OPENAI_API_KEY"]["state"] == "ok" and "secret" not in out
