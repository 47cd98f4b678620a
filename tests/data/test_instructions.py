"""Alpaca+: rows and splits of the artifact, and what is reported about files that do not fit."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from synopsis.artifacts import Layout, write_json
from synopsis.config.experiment import Experiment
from synopsis.data.instructions import load_instructions, prepare_alpaca_plus
from synopsis.data.sources import MIRROR_VARIABLE
from synopsis.errors import ArtifactError, DataError

MIRROR = Path(os.environ.get(MIRROR_VARIABLE) or Path(__file__).parents[2].parent / "shared" / "data")
ROWS = [{"instruction": f"Do {n}.", "input": "", "output": f"Done {n}", "source": "test"} for n in range(4)]


def experiment(tmp_path: Path, mirror: Path | None = None, **settings: Any) -> Experiment:
    models: Any = {"base": {"path": "nowhere"}}
    instructions: Any = {"alpaca": {"source": "alpaca_plus", **settings}}
    results, folder = str(tmp_path / "results"), str(mirror or tmp_path)
    return Experiment(name="test", results=results, models=models, data_mirror=folder, instructions=instructions)


def write(tmp_path: Path, train: list[dict], seen: list[dict]) -> dict[str, Any]:
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in train))
    (tmp_path / "seen.json").write_text(json.dumps(seen))
    return {"train": "train.jsonl", "splits": {"seen": "seen.json"}}


def test_splits_and_limits(tmp_path: Path) -> None:
    train = [ROWS[0], {**ROWS[1], "output": ""}, {**ROWS[2], "input": None}, ROWS[3]]
    files = write(tmp_path, train, ROWS)
    path = prepare_alpaca_plus(experiment(tmp_path, **files, max_train=2, max_held_out=3), "alpaca")
    splits = load_instructions(path)
    assert [row["id"] for row in splits["train"]] == ["train-0", "train-2"]
    assert splits["train"][1] == {"id": "train-2", "instruction": "Do 2.", "input": "", "output": "Done 2"}
    assert [row["id"] for row in splits["seen"]] == ["seen-0", "seen-1", "seen-2"]
    sources = json.loads(path.read_text())["provenance"]["sources"]
    assert (sources["train"]["left_out"], sources["seen"]["left_out"]) == (1, 0)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (
            [ROWS[0], {"instruction": "a", "input": ""}],
            r"train\.jsonl: row 1: column 'output' is missing \(found instruction, input\)",
        ),
        ([{**ROWS[0], "instruction": 5}], r"train\.jsonl: row 0: column 'instruction' is 5; expected text"),
        ([{"instruction": "a", "output": "b"}], r"row 0: column 'input' is missing"),
        ([{**ROWS[0], "output": " "}], r"train\.jsonl: has no usable rows"),
        ([], r"train\.jsonl: has no usable rows"),
    ],
)
def test_rows_that_do_not_fit_are_reported(tmp_path: Path, train: list[dict], message: str) -> None:
    given = experiment(tmp_path, **write(tmp_path, train, ROWS))
    with pytest.raises(DataError, match=message):
        prepare_alpaca_plus(given, "alpaca")
    assert not Layout(given).instructions("alpaca").exists()


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"alpaca_part_of_alpaca_plus_train\.jsonl\.gz: no such file"):
        prepare_alpaca_plus(experiment(tmp_path), "alpaca")


def test_an_artifact_without_training_rows_is_reported(tmp_path: Path) -> None:
    path = prepare_alpaca_plus(experiment(tmp_path, **write(tmp_path, ROWS, ROWS)), "alpaca")
    write_json(path, "instructions", {"splits": {"train": []}}, {})
    with pytest.raises(ArtifactError, match="has no training rows"):
        load_instructions(path)


@pytest.mark.skipif(
    not (MIRROR / "alpaca_plus").is_dir(), reason=f"no data mirror with alpaca_plus/ (set {MIRROR_VARIABLE})"
)
def test_the_released_files_are_read(tmp_path: Path) -> None:
    splits = load_instructions(prepare_alpaca_plus(experiment(tmp_path, mirror=MIRROR, max_train=50), "alpaca"))
    assert {split: len(rows) for split, rows in splits.items()} == {
        "train": 50,
        "seen": 1000,
        "unseen": 1000,
        "human": 252,
    }
    assert any(not row["input"] for row in splits["human"]) and all(row["input"] for row in splits["seen"])
