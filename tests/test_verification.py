"""`synopsis verify`: every file that has changed or is missing is named, and those without a hash are counted."""

from __future__ import annotations

from pathlib import Path

import pytest
from synopsis.artifacts import PROVENANCE, write_json, write_json_lines, write_text
from synopsis.cli import app
from synopsis.errors import ArtifactError
from typer.testing import CliRunner, Result


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A model folder, a result with its records, a store of judgements, a log and a checkpoint."""
    root = tmp_path / "results" / "small"
    model, result = root / "models" / "base", root / "icl" / "seed0.json"
    write_text(model / "weights.safetensors", "weights")
    write_text(model / "config.json", "{}")
    write_json(model / PROVENANCE, "model", {}, {}, [model])
    records = result.with_suffix(".examples.jsonl.gz")
    write_json_lines(records, [{"id": 0}])
    write_json(result, "icl", {"accuracy": 0.5}, {}, [records])
    for name in ("judgements/seen.jsonl", "logs/icl.log", "checkpoints/base/step-1/weights.bin", ".base.x.partial/a"):
        write_text(root / name, "x")
    return root


def verify(folder: Path) -> Result:
    return CliRunner().invoke(app, ["verify", str(folder)])


def test_whole_results(results: Path) -> None:
    found = verify(results)
    assert found.exit_code == 0, found.output
    assert f"{results}: 5 files are as they were written; 1 have no hash\n" in found.stdout


@pytest.mark.parametrize(
    "names",
    [
        ["icl/seed0.examples.jsonl.gz", "models/base/config.json", "models/base/weights.safetensors"],
        ["icl/seed0.json"],
        [f"models/base/{PROVENANCE}"],
    ],
)
@pytest.mark.parametrize("place", [0, -2])
def test_each_damaged_file_is_named_once(results: Path, names: list[str], place: int) -> None:
    for name in names:
        content = bytearray((results / name).read_bytes())
        content[place] ^= 1
        (results / name).write_bytes(content)
    found = verify(results)
    assert [line.split(": ")[0] for line in found.stdout.splitlines()] == [str(results / name) for name in names]
    assert isinstance(found.exception, ArtifactError)
    assert str(found.exception).startswith(f"{results}: {len(names)} of ")


def test_a_missing_file_is_named(results: Path) -> None:
    (results / "models/base/weights.safetensors").unlink()
    found = verify(results)
    assert found.exit_code != 0
    assert f"{results}/models/base/weights.safetensors: is missing. " in found.stdout


def test_files_of_any_size_are_read(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("synopsis.artifacts.CHECKED_BYTES", 0)
    (results / "models/base/weights.safetensors").write_text("Weights")
    assert "weights.safetensors: has changed since it was written. " in verify(results).stdout


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert "none: no such folder; expected one of results" in str(verify(tmp_path / "none").exception)
