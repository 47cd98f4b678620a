"""What Weights & Biases gets, read back from its offline files, and what its failures cost: nothing."""

from __future__ import annotations

import csv
import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import reporting_artifacts as artifacts
from synopsis.artifacts import Layout, read_json
from synopsis.config.experiment import Experiment, load_experiment
from synopsis.errors import InputError
from synopsis.reporting import tracking
from synopsis.reporting.report import report
from synopsis.reporting.scores import score
from synopsis.stages.generate.run import generate
from synopsis.stages.record import stages
from synopsis.training import stage
from training_runs import autocompressor, experiment, gist, metrics
from wandb_files import Part, parts

wandb = pytest.importorskip("wandb")
SHIPPED = Path(__file__).parents[2] / "config" / "paper" / "gist-llama-7b.yaml"
SECTION = {"project": "compression", "tag": "first"}
GENERATE = {"instructions": "translations", "splits": ["seen"], "max_new_tokens": 4}


@pytest.fixture(autouse=True)
def no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


def tracked(folder: Path, compressor: dict[str, Any] | None = None, **sections: Any) -> Experiment:
    return experiment(folder, compressor or autocompressor(), tracking=SECTION, **sections)


def left(experiment: Experiment) -> list[Part]:
    return parts(Layout(experiment).root / "logs" / "wandb")


def losses(folder: Path) -> dict[int, float]:
    return {int(row["step"]): row["loss"] for row in metrics(folder) if "loss" in row}


def test_a_run_has_the_curves_of_its_training_and_its_rouge(tmp_path: Path) -> None:
    found = tracked(tmp_path, gist("pos_control", gist_tokens=2), generate=GENERATE)
    stage.train(found, "it-s0")
    generate(found, "it-s0", "seen")
    generate(found, "base", "seen")
    training, outputs, base = left(found)
    assert {(part.run.project, part.run.run_group, part.run.job_type) for part in (training, outputs, base)} == {
        ("compression", "first-runs", "")
    }
    assert training.run.run_id == outputs.run.run_id != base.run.run_id
    assert [part.run.display_name for part in (training, outputs, base)] == [
        *2 * ["first-runs-it-run-0"], "first-runs-base",
    ]  # fmt: skip
    assert {key: outputs.config[key] for key in ("compressor", "condition", "gist_tokens", "seed")} == {
        "compressor": "it", "condition": "pos_control", "gist_tokens": 2, "seed": 0,
    }  # fmt: skip
    assert training.column("train/loss") == losses(tmp_path) != {}
    assert training.column("eval/loss") == {4: metrics(tmp_path)[-1]["eval_loss"]}
    result = read_json(Layout(found).generations("it-s0", "seen").with_suffix(".json"), "rouge")
    for kind in ("rouge1", "rouge2", "rougeL"):
        assert outputs.column(f"seen_{kind}") == {5: result[kind]}, "after the last step of the training"


def test_a_run_that_was_killed_resumes_with_its_whole_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    rows: list[tuple[dict[str, Any], int]] = []
    run = SimpleNamespace(step=3, log=lambda row, step: rows.append((row, step)), finish=lambda exit_code: None)
    settings: dict[str, Any] = {}
    monkeypatch.setattr(wandb, "init", lambda **given: (settings.update(given), run)[1])
    monkeypatch.setenv("WANDB_API_KEY", "x")
    found = tracked(tmp_path)
    with tracking.Tracked(found, "it-s0") as it:
        it.log({"train/loss": 2.0}, 2)
        it.log({"train/loss": 1.0}, 3)
    tracking.publish(found, "it-s0", lambda: {"seen_rouge1": 50.0}, 1)
    assert (settings["mode"], settings["resume"]) == ("online", "allow")
    assert rows == [({"train/loss": 1.0}, 3), ({"seen_rouge1": 50.0}, 3)]


def test_tracking_reruns_nothing(tmp_path: Path) -> None:
    plain, other = artifacts.experiment(tmp_path), artifacts.experiment(tmp_path, tracking=SECTION)
    jobs = [[job for it in stages().values() for job in it.jobs(subject)] for subject in (plain, other)]
    assert jobs[0] == jobs[1] != []


def test_the_report_is_a_run_with_tables_and_figures(tmp_path: Path) -> None:
    subject = artifacts.experiment(tmp_path, only="icl", tracking={"project": "compression"})
    artifacts.write_artifacts(subject)
    score(subject)
    report(subject)
    (part,) = left(subject)
    assert (part.run.run_group, part.run.job_type, part.run.display_name) == ("small", "report", "small-report")
    (row,) = part.rows.values()
    layout = Layout(subject)
    for name in artifacts.names(subject, "table"):
        (file,) = (layout.root / "logs").rglob(row[f"tables/{name}"]["path"])
        columns, *lines = csv.reader((layout.tables / f"{name}.csv").read_text().splitlines())
        logged = json.loads(file.read_text())
        assert logged["columns"] == columns
        assert [[_read(text) for text in line] for line in lines] == logged["data"]
    for name in artifacts.names(subject, "figure"):
        (file,) = (layout.root / "logs").rglob(row[f"figures/{name}"]["path"])
        assert file.read_bytes() == (layout.figures / f"{name}.png").read_bytes()


def _read(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return None if text == "–" else text


# ----------------------------------------------------------------------------------------------------------- failures


def refuses(error: Exception, *, online_alone: bool = False) -> Any:
    init = wandb.init

    def begin(**given: Any) -> Any:
        if given["mode"] == "online" or not online_alone:
            raise error
        return init(**given)

    return begin


def test_without_a_network_a_run_is_tracked_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "x")
    monkeypatch.setattr(wandb, "init", refuses(wandb.errors.CommError("no\nnetwork"), online_alone=True))
    found = tracked(tmp_path)
    tracking.publish(found, "it-s0", lambda: {"seen_rouge1": 50.0}, 5)
    assert "warning: Weights & Biases: no network; tracked offline instead" in capsys.readouterr().err.splitlines()
    assert [part.column("seen_rouge1") for part in left(found)] == [{5: 50.0}]


@pytest.mark.parametrize("where", ["init", "log", "finish"])
def test_a_failure_is_one_warning_and_costs_nothing(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fault = OSError(28, "No space left on device")
    if where == "init":
        monkeypatch.setattr(wandb, "init", refuses(fault))
    else:

        def fails(*_: Any, **__: Any) -> None:
            raise fault

        run = SimpleNamespace(step=0, log=lambda row, step: None, finish=lambda exit_code: None)
        setattr(run, where, fails)
        monkeypatch.setattr(wandb, "init", lambda **_: run)
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
