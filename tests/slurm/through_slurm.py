"""How the tests of this folder call Snakemake, and the training that their accidents befall."""

from __future__ import annotations

import subprocess
from typing import Any

from running import CONFIG

RUN = "autocompressor-s0"
TARGET = f"results/micro/models/{RUN}"
STEPS = 60
SNAKEMAKE = ("snakemake", "--profile", "slurm", "--configfile", CONFIG, "--default-resources", "slurm_account='lab'")
SECONDS = 1200.0
"""For one Snakemake. Alone on two cores it needs less than a fifth."""


def longer(content: dict[str, Any]) -> None:
    content["compressors"]["autocompressor"]["training"].update(
        steps=STEPS, checkpoint_every=5, keep_checkpoints=3, log_every=3, batch_size=2, sequences_per_step=8
    )


def ended(controller: subprocess.Popen[str]) -> str:
    output, _ = controller.communicate(timeout=SECONDS)
    assert controller.returncode == 0, output
    return output
