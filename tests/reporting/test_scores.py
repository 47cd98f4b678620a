"""The score stage: every number of the artifacts arrives, and what is missing or damaged is told."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import reporting_artifacts as artifacts
from damage import flips
from synopsis.artifacts import PROVENANCE, Layout, read_json, write_json, write_text
from synopsis.config.experiment import Experiment
from synopsis.errors import ArtifactError
from synopsis.reporting.scores import COLUMNS, read_scores, score, score_inputs


@pytest.fixture
def subject(tmp_path: Path) -> Experiment:
    subject = artifacts.experiment(tmp_path)
    artifacts.write_artifacts(subject)
    return subject


def one(frame: pd.DataFrame, **wanted: object) -> pd.Series:
    """The only row with these values."""
    for column, value in wanted.items():
        frame = frame[frame[column] == value]
    assert len(frame) == 1, f"{len(frame)} rows"
    return frame.iloc[0]


def test_numbers_of_every_stage_arrive_with_their_count(subject: Experiment) -> None:
    frame = score(subject)
    loss = one(frame, run="autocompressor-s1", stage="perplexity", context_length=50, tokens="topic", metric="loss")
    assert loss["value"] == pytest.approx(2.6 - 0.8 * 0.5 + 0.1)
    assert (loss["compressor"], loss["training_seed"], loss["dataset"], loss["split"], loss["n"]) == (
        "autocompressor",
        1,
        "world",
        "test",
        640,
    )
    accuracy = one(
        frame, run="rmt-s0", dataset="world_wears", setting="summary_4", seed=2, stage="icl", metric="accuracy"
    )
    assert (accuracy["value"], accuracy["n"], accuracy["method"]) == (pytest.approx(0.64), 50, "rmt")
    rouge = one(frame, run="gist-1-s0", stage="generate", split="unseen", metric="rougeL")
    assert (rouge["value"], rouge["dataset"], rouge["n"]) == (45.0, "words", 64)
    wins = one(frame, run="gist-1-s0", judge="reference", against="neg_control-s0", split="seen", metric="win")
    assert (wins["value"], wins["n"]) == (60, 50)
    last = one(frame, run="base", stage="train", step=40, metric="eval_loss")
    assert last["value"] == 1.7


def test_a_benchmark_cell_is_the_median_of_its_samples(subject: Experiment) -> None:
    rows = score(subject).query("run == 'rmt-s0' and mode == 'uncached' and batch_size == 1 and context_length == 64")
    seconds = one(rows, metric="wall_seconds")
    assert (seconds["value"], seconds["n"]) == (pytest.approx(1.1 * 18 / 1000), 3)
    assert pd.isna(one(rows, metric="cuda_seconds")["value"]), "what was not measured must not become zero"


def test_the_written_table_is_the_returned_one_and_has_provenance(subject: Experiment) -> None:
    frame, layout = score(subject), Layout(subject)
    assert list(frame.columns) == list(COLUMNS)
    pd.testing.assert_frame_equal(read_scores(layout.scores), frame)
    record = read_json(layout.root / "scores.provenance.json", "scores")
    assert record["rows"] == len(frame)
    assert set(record["provenance"]["outputs"]) == {"scores.parquet", "scores.csv", "accuracy.json"}
    written = pd.read_csv(layout.scores_csv, keep_default_na=False, na_values={"value": ""}, usecols=["run", "value"])
    pd.testing.assert_frame_equal(written, frame[["run", "value"]], check_dtype=False)
    assert str(layout.model("base") / "metrics.jsonl") in record["provenance"]["inputs"]
    assert all(record["provenance"]["inputs"].values()), "every input has a hash"


def test_every_result_is_needed_and_named_when_it_is_missing(subject: Experiment) -> None:
    # The last result of every folder; outputs and records of examples beside them are read where they are needed.
    beside = {path for path in score_inputs(subject) if path.suffix == ".gz" or "generations/" in f"{path.parent}/"}
    inputs = [path for path in score_inputs(subject) if path not in beside or path.suffix == ".json"]
    by_stage = {path.relative_to(Layout(subject).root).parts[0]: path for path in inputs}
    assert set(by_stage) == {"models", "perplexity", "icl", "generations", "judgements", "benchmark"}
    for stage, path in by_stage.items():
        file = path / "metrics.jsonl" if stage == "models" else path
        content = file.read_bytes()
        file.unlink()
        with pytest.raises(ArtifactError, match=str(file)):
            score(subject)
        file.write_bytes(content)
    score(subject)


def test_results_of_other_settings_are_scored_with_a_warning(
    subject: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    same = score(subject)
    assert capsys.readouterr().err == ""
    for run in subject.runs_of("perplexity")[:4]:
        path = Layout(subject).perplexity(run)
        document = json.loads(path.read_text())
        write_text(path, json.dumps({**document, "provenance": {"config": "of other settings"}}))
    pd.testing.assert_frame_equal(score(subject), same)
    [warning] = capsys.readouterr().err.splitlines()
    named = ", ".join(str(Layout(subject).perplexity(run)) for run in subject.runs_of("perplexity")[:3])
    assert warning.startswith("warning: 4 files were made with other settings than the experiment has now: ")
    assert f"now: {named} and 1 more. " in warning and "run the workflow to make them anew" in warning


def test_a_benchmark_value_that_is_no_number_is_an_error(subject: Experiment) -> None:
    path = Layout(subject).benchmark("rmt-s0")
    write_text(path, path.read_text().replace("0.01,", "fast,", 1))
    with pytest.raises(ArtifactError, match=r"benchmark/rmt-s0\.csv: column \w+ holds 'fast'"):
        score(subject)


def test_a_damaged_line_of_metrics_is_an_error(subject: Experiment) -> None:
    path = Layout(subject).model("rmt-s0") / "metrics.jsonl"
    write_text(path, path.read_text() + '{"step": 41, "lo')
    with pytest.raises(ArtifactError, match=r"metrics\.jsonl: line 42"):
        score(subject)


def test_every_change_of_the_table_is_an_error(subject: Experiment) -> None:
    score(subject)
    path = Layout(subject).scores
    for _ in flips(path, 100):
        with pytest.raises(ArtifactError, match=r"scores\.parquet: has changed since it was written"):
            read_scores(path)
    path.with_suffix(".provenance.json").unlink()  # as from an earlier version
    read_scores(path)
    found = 0
    for _ in flips(path, 100):
        try:
            read_scores(path)
        except ArtifactError:
            found += 1
    assert found > 30


def test_a_training_curve_without_rows_is_an_error(subject: Experiment) -> None:
    folder = Layout(subject).model("rmt-s0")
    write_json(folder / PROVENANCE, "model", {}, {}, [folder])
    score(subject)
    write_text(folder / "metrics.jsonl", "")
    with pytest.raises(ArtifactError, match=r"rmt-s0/metrics\.jsonl: has changed since it was written"):
        score(subject)


def test_a_file_that_is_no_table_of_scores_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scores.parquet"
    with pytest.raises(ArtifactError, match="no such file"):
        read_scores(path)
    path.write_bytes(b"PAR1 but not really")
    with pytest.raises(ArtifactError, match="not a readable parquet file"):
        read_scores(path)
    pd.DataFrame({"run": ["base"]}).to_parquet(path)
    with pytest.raises(ArtifactError, match="not a table of scores"):
        read_scores(path)
