"""What Weights & Biases gets, read back from its offline files, and what its failures cost: nothing."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import reporting_artifacts as artifacts
from filelock import FileLock
from synopsis.artifacts import Layout, read_json, write_json
from synopsis.config.experiment import Experiment, load_experiment
from synopsis.errors import InputError
from synopsis.reporting import tracking
from synopsis.stages.generate.run import generate
from synopsis.stages.record import stages
from synopsis.training import stage
from training_runs import autocompressor, experiment, gist, metrics, rows
from wandb_files import Part, parts

wandb = pytest.importorskip("wandb")
SHIPPED = Path(__file__).parents[2] / "config" / "paper" / "gist-llama-7b.yaml"
SECTION = {"project": "compression", "tag": "first"}
SPLITS = {"seen": "none.json", "unseen": "none.json"}
GENERATE = {"instructions": "translations", "splits": [*SPLITS], "max_new_tokens": 4}


@pytest.fixture(autouse=True)
def no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


def tracked(folder: Path, compressor: dict[str, Any] | None = None, **sections: Any) -> Experiment:
    return experiment(folder, compressor or autocompressor(), tracking=SECTION, **sections)


def left(experiment: Experiment) -> list[Part]:
    return parts(Layout(experiment).root / "logs" / "wandb")


def nothing(**other: Any) -> SimpleNamespace:
    """A run of wandb that keeps nothing."""
    does = dict.fromkeys(("log", "finish", "define_metric"), lambda *_, **__: None)
    return SimpleNamespace(**{"step": 0, **does, **other})


def losses(folder: Path) -> dict[int, float]:
    return {int(row["step"]): row["loss"] for row in metrics(folder) if "loss" in row}


def test_a_run_has_the_curves_of_its_training_and_its_rouge(tmp_path: Path) -> None:
    data = {"translations": {"source": "alpaca_plus", "splits": SPLITS}}
    found = tracked(tmp_path, gist("pos_control", gist_tokens=2), generate=GENERATE, instructions=data)
    rows_of = {"train": rows("train", 12), **{split: rows(split, 5) for split in SPLITS}}
    write_json(Layout(found).instructions("translations"), "instructions", {"splits": rows_of}, {})
    stage.train(found, "it-s0")
    for run, split in (("it-s0", "seen"), ("it-s0", "unseen"), ("base", "seen")):
        generate(found, run, split)
    training, first, outputs, base = left(found)
    assert {(part.run.project, part.run.run_group, part.run.job_type) for part in (training, outputs, base)} == {
        ("compression", "first-runs", "")
    }
    assert training.run.run_id == first.run.run_id == outputs.run.run_id != base.run.run_id
    assert [part.run.display_name for part in (training, outputs, base)] == [
        *2 * ["first-runs-it-run-0"], "first-runs-base",
    ]  # fmt: skip
    assert {key: outputs.config[key] for key in ("compressor", "condition", "gist_tokens", "seed")} == {
        "compressor": "it", "condition": "pos_control", "gist_tokens": 2, "seed": 0,
    }  # fmt: skip
    assert training.column("train/loss") == losses(tmp_path) != {}
    assert training.column("train/global_step") == {step: step for step in training.rows}
    assert training.column("eval/loss") == {4: metrics(tmp_path)[-1]["eval_loss"]}
    assert first.column("seen_rouge1") and not first.column("unseen_rouge1")
    for split in SPLITS:
        result = read_json(Layout(found).generations("it-s0", split).with_suffix(".json"), "rouge")
        for kind in ("rouge1", "rouge2", "rougeL"):
            assert outputs.column(f"{split}_{kind}") == {5: result[kind]}, "after the last step of the training"


def test_a_run_that_was_cut_off_resumes_with_its_whole_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = tracked(tmp_path, autocompressor(steps=6))
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(stage, "_write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        stage.train(found, "it-s0")
    checkpoints = Layout(found).checkpoints("it-s0")
    (checkpoints / "checkpoint-6").rename(checkpoints / "gone")
    stage.train(found, "it-s0")
    first, second = left(found)
    assert first.run.run_id == second.run.run_id
    assert first.column("train/loss") == second.column("train/loss") == losses(tmp_path)
    assert sorted(losses(tmp_path)) == [1, 2, 3, 4, 5, 6]


def test_online_a_run_is_resumed_and_gets_what_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[tuple[dict[str, Any], int]] = []
    run = nothing(step=3, log=lambda row, step: logged.append((row, step)))
    settings: dict[str, Any] = {}
    monkeypatch.setattr(wandb, "init", lambda **given: (settings.update(given), run)[1])
    monkeypatch.setenv("WANDB_API_KEY", "x")
    found = tracked(tmp_path)
    with tracking.Tracked(found, "it-s0") as it:
        it.log({"train/loss": 2.0}, 2)
        it.log({"train/loss": 1.0}, 3)
    tracking.publish(found, "it-s0", lambda: {"seen_rouge1": 50.0}, 1)
    assert (settings["mode"], settings["resume"]) == ("online", "allow")
    assert logged == [({"train/loss": 1.0}, 3), ({"seen_rouge1": 50.0}, 3)]


def test_tracking_reruns_nothing(tmp_path: Path) -> None:
    plain, other = artifacts.experiment(tmp_path), artifacts.experiment(tmp_path, tracking=SECTION)
    jobs = [[job for it in stages().values() for job in it.jobs(subject)] for subject in (plain, other)]
    assert jobs[0] == jobs[1] != []


# ----------------------------------------------------------------------------------------------------------- failures


def test_without_a_network_a_run_is_tracked_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"API_KEY": 40 * "x", "BASE_URL": "http://127.0.0.1:9", "INIT_TIMEOUT": "1"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    found = tracked(tmp_path)
    tracking.publish(found, "it-s0", lambda: {"seen_rouge1": 50.0}, 5)
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert warning.startswith("warning: Weights & Biases: ") and warning.endswith("; tracked offline instead")
    assert left(found)[-1].column("seen_rouge1") == {5: 50.0}


def test_two_jobs_of_a_run_take_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracking, "LONGEST_WAIT", 0.1)
    found = tracked(tmp_path)
    with FileLock(tracking._folder(found) / "it-s0.lock"):
        tracking.publish(found, "it-s0", lambda: {"seen_rouge1": 50.0})
    assert "could not be acquired; goes on without it" in capsys.readouterr().err
    assert left(found) == []


@pytest.mark.parametrize("where", ["init", "log", "finish"])
def test_a_failure_is_one_warning_and_costs_nothing(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:

    def fails(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(wandb, "init", fails if where == "init" else lambda **_: nothing(**{where: fails}))
    found = tracked(tmp_path)
    assert stage.train(found, "it-s0")["steps"] == 4
    assert Layout(found).model("it-s0").is_dir()
    warnings = [line for line in capsys.readouterr().err.splitlines() if "Weights & Biases: " in line]
    assert warnings == ["warning: Weights & Biases: [Errno 28] No space left on device; goes on without it"]


def test_a_training_without_wandb_says_so_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="tracking: the package wandb is not installed; pip install"):
        stage.train(tracked(tmp_path), "it-s0")


# --------------------------------------------------------------------------------------------------------------- where


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


def test_a_login_is_found(tmp_path: Path) -> None:
    (tmp_path / "no-netrc").write_text("machine api.wandb.ai login user password x\n")
    assert tracking._mode() == "online"


def test_the_shipped_section_is_one(tmp_path: Path) -> None:
    text = SHIPPED.read_text()
    assert text.count("\n# tracking: ") == 1
    (tmp_path / "it.yaml").write_text(text.replace("\n# tracking: ", "\ntracking: "))
    assert load_experiment(SHIPPED, tmp_path / "it.yaml").tracking.tag is not None
