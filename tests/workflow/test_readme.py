"""Every command and every Python example of the README runs, in the order in which it stands there."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", README, re.S) for line in block.strip().splitlines()]
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.S)

INSTEAD = {
    # This test is a part of it; planning it shows that the target exists and what it calls.
    "make test": "make -n test",
    # It takes long and needs data that are not shipped: its plan is made instead.
    "make smollm2": "make -n smollm2 && snakemake -n --configfile config/smollm2.yaml",
    # The released data are not shipped; tests/paper reads them where they are.
    "make paper RELEASE=gisting/data": "make -n paper RELEASE=gisting/data && synopsis paper --help",
    # No cluster is at hand; the trainings of the demo's seeds are there, so that nothing is left to submit.
    "synopsis submit train --config config/demo.yaml --compressor gist-1,pos_control-1,neg_control-1 --seed 0:3 "
    "--slurm account=lab --wait": "synopsis submit train --config config/demo.yaml --compressor gist-1,pos_control-1 "
    "--seed 0:2 --cluster debug",
    "source .venv/bin/activate": ". .venv/bin/activate",
}


def run(command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{ROOT / '.venv/bin'}:{os.environ['PATH']}"}
    return subprocess.run(command, shell=True, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=3000)


def test_the_readme_has_commands() -> None:
    assert "make demo" in COMMANDS
    assert len(COMMANDS) > 8
    assert EXAMPLES


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command: str) -> None:
    done = run(INSTEAD.get(command, command))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example(number: int) -> None:
    """After the commands above, so that the demo's models are there."""
    done = subprocess.run(
        [ROOT / ".venv/bin/python", "-c", EXAMPLES[number]], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip()


def test_pictures_are_there() -> None:
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README)
    assert len(pictures) >= 2
    for picture in pictures:
        assert (ROOT / picture).is_file(), picture
