"""Where a run is tracked, and how the command line names it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from synopsis.commands.options import run_to_train
from synopsis.errors import InputError
from synopsis.training import tracking
from training_runs import autocompressor, experiment, gist, metrics, trained

# ------------------------------------------------------------------------------------------------------------ tracking


@pytest.fixture
def no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


@pytest.mark.usefixtures("no_account")
def test_a_tracked_run_stays_here_without_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    begun: list[dict[str, Any]] = []
    logged: list[dict[str, Any]] = []
    init = wandb.init

    def begin(**settings: Any) -> Any:
        begun.append(settings)
        run = init(**settings)
        log = run.log
        monkeypatch.setattr(wandb, "log", lambda row, **more: (logged.append(row), log(row, **more))[1])
        return run

    monkeypatch.setattr(wandb, "init", begin)
    trained(tmp_path, autocompressor(), tracking={"project": "compression"})
    (settings,) = begun
    assert {key: settings[key] for key in ("project", "group", "name", "mode")} == {
        "project": "compression", "group": "runs", "name": "it-s0", "mode": "offline",
    }  # fmt: skip
    (folder,) = (tmp_path / "results" / "runs" / "logs" / "wandb").glob("wandb/offline-run-*")
    assert any(file.stat().st_size > 1000 for file in folder.glob("*.wandb"))
    losses = [row["train/loss"] for row in logged if "train/loss" in row]
    assert losses == [row["loss"] for row in metrics(tmp_path) if "loss" in row]
    assert any("eval/loss/segment=4" in row for row in logged)


@pytest.mark.usefixtures("no_account")
@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "offline"),
        ({"WANDB_API_KEY": "x"}, "online"),
        ({"WANDB_API_KEY": "x", "WANDB_MODE": "offline"}, "offline"),
        ({"WANDB_MODE": "online"}, "online"),
    ],
)
def test_where_a_tracked_run_goes(environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert tracking._mode() == expected


@pytest.mark.usefixtures("no_account")
def test_a_login_is_found(tmp_path: Path) -> None:
    (tmp_path / "no-netrc").write_text("machine api.wandb.ai login user password x\n")
    assert tracking._mode() == "online"


# -------------------------------------------------------------------------------------------------------- command line


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
