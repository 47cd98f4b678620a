"""How the tests of this folder call Snakemake, and the training that their accidents befall."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from typing import Any

from running import CONFIG, Project, wait_for

RUN = "autocompressor-s0"
TARGET = f"results/micro/models/{RUN}"
STEPS = 60
OPTIONS = ("--profile", "slurm", "--configfile", CONFIG, "--default-resources", "slurm_account='lab'")
SECONDS = 1200.0
"""For one Snakemake, with room for a machine that has much else to do."""
FIRST = ("prepare_tokenizer", "prepare_corpus", "pretrain")
BEGIN = ("--until", *FIRST, "prepare_instructions", "prepare_task", "--groups", *(f"{rule}=first" for rule in FIRST))
END = ("--groups", "generate=cells", "score=last", "report=last", "--group-components", "cells=2")
"""A job of Slurm starts Python twice before the work begins: few of them make the same in less time."""


def longer(content: dict[str, Any]) -> None:
    """Long enough that an accident lands in the middle; one stage that runs a model for each way to submit one."""
    for stage in ("perplexity", "needle", "judge", "benchmark"):
        del content[stage]
    content["compressors"]["autocompressor"]["training"].update(
        steps=STEPS, checkpoint_every=5, keep_checkpoints=3, log_every=3, batch_size=2, sequences_per_step=8
    )


def started(project: Project, *words: str) -> subprocess.Popen[str]:
    return project.start("snakemake", *words, *OPTIONS)


def ended(controller: subprocess.Popen[str]) -> str:
    output, _ = controller.communicate(timeout=SECONDS)
    assert controller.returncode == 0, output
    return output


def held(project: Project, controller: subprocess.Popen[str]) -> int:
    """The process that trains, standing still after its second checkpoint."""
    folder = project.results / "checkpoints" / RUN
    wait_for(folder / "checkpoint-10" / "manifest.json", controller, SECONDS)
    process = int(re.findall(r'"process": (\d+)', (folder / "lock.json").read_text())[0])
    os.kill(process, signal.SIGSTOP)
    return process
