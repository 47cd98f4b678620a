"""What is said before the first job is submitted to a Slurm that would take none."""

from __future__ import annotations

from pathlib import Path

import pytest
from synopsis.errors import SynopsisError
from synopsis.stages.workflow import check_slurm


@pytest.mark.parametrize(
    ("programs", "message", "code"),
    [
        ({}, "--profile slurm: found no sbatch; expected a machine that submits jobs to Slurm", 2),
        ({"sbatch": "", "sinfo": "echo no route >&2; exit 1"}, r"Slurm does not answer \(no route\); type the same", 1),
        ({"sbatch": "", "sinfo": "echo cpu; echo gpu"}, "slurm_partition: found 'gpus'; this cluster has cpu, gpu", 2),
    ],
)
def test_a_slurm_that_takes_no_job(
    programs: dict[str, str], message: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, script in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SynopsisError, match=message) as fault:
        check_slurm([None, "cpu,gpus"])
    assert fault.value.exit_code == code
