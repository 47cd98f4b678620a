"""The score stage: every number of the artifacts arrives, and what is missing or damaged is reported."""

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
    subject = artifacts.experiment(tmp_path, needle=artifacts.NEEDLE)
    artifacts.write_artifacts(subject)
    return subject


PERPLEXITY = {"run": "autocompressor-s1", "stage": "perplexity", "context_length": 50, "tokens": "topic"}
ICL = {"run": "rmt-s0", "stage": "icl", "dataset": "world_wears", "setting": "summary_4", "seed": 2}
JUDGE = {"run": "gist-1-s0", "judge": "reference", "against": "neg_control-s0", "split": "seen"}
BENCHMARK = {"run": "rmt-s0", "mode": "none", "batch_size": 1, "context_length": 64}


@pytest.mark.parametrize(
    ("place", "metric", "value", "n", "more"),
    [
        (PERPLEXITY, "loss", 2.6 - 0.8 * 0.5 + 0.1, 640, {"compressor": "autocompressor", "training_seed": 1}),
        (PERPLEXITY, "loss", 2.3, 640, {"dataset": "world", "domain": "stories", "split": "test"}),
        (ICL, "accuracy", 0.64, 50, {"method": "rmt"}),
        ({"run": "rmt-s0", "stage": "needle", "length": 200, "depth": 0.5}, "choice", 0.4, 10, {"seed": None}),
        ({"run": "gist-1-s0", "stage": "generate", "split": "unseen"}, "rougeL", 45.0, 64, {"dataset": "words"}),
        (JUDGE, "win", 60, 50, {"stage": "judge"}),
        ({"run": "base", "stage": "train", "step": 40}, "eval_loss", 1.7, None, {}),
        (
            BENCHMARK,
            "wall_seconds",
            1.1 * 18 / 1000,
            3,
            {"new_tokens": 16, "dtype": "float32"},
        ),  # the median of the samples
        (BENCHMARK, "profiler_cuda_seconds", float("nan"), 3, {}),  # what was not measured is not zero
    ],
)
def test_numbers_of_every_stage_arrive_with_their_count(subject, place, metric, value, n, more) -> None:
    frame = score(subject)
    for column, wanted in {**place, "metric": metric}.items():
        frame = frame[frame[column] == wanted]
    (row,) = frame.to_dict("records")
    assert row["value"] == pytest.approx(value, nan_ok=True)
    found = {column: None if pd.isna(value) else value for column, value in row.items()}
    assert found.items() >= {"n": n, **more}.items()


def test_the_written_table_is_the_returned_one_and_has_provenance(subject: Experiment) -> None:
    frame, layout = score(subject), Layout(subject)
    assert list(frame.columns) == list(COLUMNS)
    pd.testing.assert_frame_equal(read_scores(layout.scores), frame)
    written = pd.read_csv(layout.scores_csv, keep_default_na=False, na_values={"value": ""}, usecols=["run", "value"])
    pd.testing.assert_frame_equal(written, frame[["run", "value"]], check_dtype=False)
    record = read_json(layout.root / "scores.provenance.json", "scores")
    assert record["rows"] == len(frame)
    assert set(record["provenance"]["outputs"]) == {"scores.parquet", "scores.csv", "accuracy.json"}
    assert str(layout.model("base") / "metrics.jsonl") in record["provenance"]["inputs"]
    assert all(record["provenance"]["inputs"].values()), "every input has a hash"


def test_every_result_is_needed_and_named_when_it_is_missing(subject: Experiment) -> None:
    # The last result of every folder; outputs and records of examples beside them are read where they are needed.
    beside = {path for path in score_inputs(subject) if path.suffix == ".gz" or "generations" in path.parts}
    inputs = [path for path in score_inputs(subject) if path not in beside or path.suffix == ".json"]
    by_stage = {path.relative_to(Layout(subject).root).parts[0]: path for path in inputs}
    assert set(by_stage) == {"models", "perplexity", "icl", "needle", "generations", "judgements", "benchmark"}
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
    same, paths = score(subject), [Layout(subject).perplexity(run) for run in subject.runs_of("perplexity")]
    assert capsys.readouterr().err == ""
    for path in paths[:4]:
        document = json.loads(path.read_text())
        write_text(path, json.dumps({**document, "provenance": {"config": "of other settings"}}))
    pd.testing.assert_frame_equal(score(subject), same)
    [warning] = capsys.readouterr().err.splitlines()
    named = ", ".join(map(str, paths[:3]))
    assert warning.startswith("warning: 4 files were made with other settings than the experiment has now: ")
    assert f"now: {named} and 1 more. " in warning and "run the workflow to make them anew" in warning


def test_damaged_values_are_errors(subject: Experiment) -> None:
    layout = Layout(subject)
    benchmark, metrics = layout.benchmark("rmt-s0"), layout.model("rmt-s0") / "metrics.jsonl"
    write_text(metrics, metrics.read_text() + '{"step": 41, "lo')
    with pytest.raises(ArtifactError, match=r"metrics\.jsonl: line 42"):
        score(subject)
    write_text(benchmark, benchmark.read_text().replace(",0.01,", ",fast,", 1))
    with pytest.raises(ArtifactError, match=r"benchmark/rmt-s0\.csv: column \w+ holds 'fast'"):
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
