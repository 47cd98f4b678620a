"""How the command line names a run to train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from synopsis.commands.options import run_to_train
from synopsis.errors import InputError
from training_runs import experiment, gist


def chosen(folder: Path, run: str | None, compressor: str | None, seed: int | None, *changes: str) -> Any:
    experiment(folder, gist())
    return run_to_train([folder / "experiment.yaml"], run, compressor, seed, list(changes))


def test_a_run_is_chosen_by_its_parts(tmp_path: Path) -> None:
    changed = ["title=x", "compressors.it.training.learning_rate=1e-4"]
    assert chosen(tmp_path, None, "it", 0, "training.learning_rate=1e-4", "title=x") == ("it-s0", changed)
    assert chosen(tmp_path, None, "it", None) == ("it-s0", [])
    assert chosen(tmp_path, None, "it", 7) == ("it-s7", ["compressors.it.training_seeds=[0, 7]"])
    assert chosen(tmp_path, "it-s0", None, None, "training.steps=3") == ("it-s0", ["compressors.it.training.steps=3"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((None, None, None), "name a run, for instance gist-1-s0"),
        (("it-s0", "it", None), "name a run, for instance gist-1-s0"),
        ((None, "that", 0), "compressor 'that': the experiment has it"),
        (("it-s9", None, None), "run 'it-s9': the experiment has base, it-s0"),
    ],
)
def test_words_that_name_no_run(words: tuple[Any, Any, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        chosen(tmp_path, *words)
