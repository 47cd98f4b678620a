"""Scores on the terminal, and two runs over the same examples."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import reporting_artifacts as artifacts
from reporting_artifacts import cell
from synopsis.artifacts import read_json, write_csv, write_json, write_json_lines
from synopsis.cli import app
from synopsis.errors import ArtifactError, InputError
from synopsis.reporting.comparison import comparison, ranking
from synopsis.reporting.scores import read_scores, score
from synopsis.reporting.selection import pivoted, selected
from typer.testing import CliRunner


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    subject = artifacts.experiment(tmp_path_factory.mktemp("scores"), needle=artifacts.NEEDLE)
    layout = artifacts.write_artifacts(subject)
    artifacts.write_icl_result(subject, "rmt-s0", "world_eats", 0, dropped=range(5))
    for run, answer in (("gist-1-s0", "old fox"), ("neg_control-s0", "no"), ("pos_control-s0", "old 50 % & Ünï_x")):
        rows = [{"id": number, "x": "", "y_pred": answer, "y_true": "old fox"} for number in range(64)]
        for split in ("seen", "unseen"):
            write_csv(layout.generations(run, split), rows, ["id", "x", "y_pred", "y_true"])
    score(subject)
    return layout.root


def printed(*words: str) -> str:
    return CliRunner().invoke(app, list(words), catch_exceptions=False).output


def test_scores_are_filtered_and_pivoted(folder: Path) -> None:
    scores = read_scores(folder / "scores.parquet")
    found = selected(scores, ["stage=icl", "metric=accuracy", "run=rmt-s0", "run=base", "seed=1"])
    assert set(found["run"]) == {"base", "rmt-s0"} and set(found["seed"]) == {1}
    table = pivoted(selected(scores, ["metric=accuracy"]), ["compressor", "setting"], "dataset")
    assert table.names == ["compressor", "setting", "world_eats", "world_wears"]
    plain = cell(table, "world_wears", "base", "plain_48")
    assert (plain.value, plain.deviation) == pytest.approx((0.72, 0.02))
    assert "seed" in table.note
    by_depth = pivoted(selected(scores, ["metric=choice", "length=60"]), ["run"], "depth")
    assert by_depth.names == ["run", "0", "0.5"] and cell(by_depth, "0.5", "base").value == 0.9


def test_scores_are_printed(folder: Path) -> None:
    text = printed("scores", str(folder), "--stage", "needle", "--where", "run=base", "--where", "depth=0.5")
    assert text.startswith("4 scores\n") and "context_length" not in text
    csv = printed("scores", str(folder), "--metric", "rougeL", "--rows", "run", "--columns", "split", "--csv")
    assert csv.splitlines()[:2] == ["run,seen,unseen", "gist-1-s0,50,45"]


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        (["run"], "--where run: expected COLUMN=VALUE"),
        (["modle=x"], "--where modle: expected one of the columns run, compressor"),
        (["stage=icl", "run=bse"], "run=bse: no such row among those asked for; found base, full_attention-s0"),
    ],
)
def test_a_condition_that_nothing_meets_is_an_error(folder: Path, conditions: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        selected(read_scores(folder / "scores.parquet"), conditions)


def test_a_table_of_several_metrics_is_an_error(folder: Path, tmp_path: Path) -> None:
    scores = read_scores(folder / "scores.parquet")
    with pytest.raises(InputError, match="--metric: expected one of choice, exact"):
        pivoted(selected(scores, ["stage=needle"]), ["run"], None)
    with pytest.raises(ArtifactError, match=r"nothing/scores\.parquet: no such file"):
        comparison(tmp_path / "nothing", "base", "rmt")


def test_two_compressors_are_compared_on_the_examples_that_both_have(folder: Path) -> None:
    loss, icl, needle = comparison(folder, "rmt", "base")
    assert cell(loss, "difference", 50, "all", "loss").value == pytest.approx(0.3)
    assert (icl.title, needle.title) == ("In-context learning: rmt against base", "Needle: rmt against base")
    assert [cell(icl, name, "world_eats", "zero_shot").value for name in ("examples", "left out")] == [95, 5]
    same = cell(icl, "difference", "world_wears", "plain_48")
    assert (same.value, same.interval, same.mark) == (0.0, (0.0, 0.0), "")
    found = cell(needle, "difference", 60, "choice")
    assert found.value == pytest.approx(0.35 - 0.85) and found.mark == "*"
    assert found.interval[0] < found.value < found.interval[1] < 0
    assert cell(needle, "detectable", 60, "choice").value > 0.1


def test_the_best_of_each_row_is_marked_and_what_is_not_worse(folder: Path) -> None:
    loss, icl, needle, rouge = ranking(folder)
    assert [cell(loss, name, 100, "all", "loss").mark for name in ("full_attention", "base")] == ["*", ""]
    assert {cell(icl, name, "world_wears", "plain_48").mark for name in icl.names[3:-1]} == {"*"}, "all are equal"
    assert cell(icl, "base", "world_eats", "summary_4").value is None
    marks = {name: cell(needle, name, 60, "choice").mark for name in needle.names[2:-1]}
    assert marks == {"full_attention": "*", "base": "+", "autocompressor": "", "rmt": ""}
    assert [cell(rouge, name, "seen", "rougeL").mark for name in ("gist-1", "neg_control")] == ["*", ""]
    assert "* The best." in printed("compare", str(folder), "--stage", "needle")
    with pytest.raises(InputError, match="--stage judge: expected a stage with records of examples: "):
        ranking(folder, "judge")


def test_outputs_are_compared_by_rouge(folder: Path) -> None:
    (table,) = comparison(folder, "gist-1", "neg_control")
    assert [cell(table, name, "seen", "rougeL").value for name in ("gist-1", "neg_control")] == [100, 0]
    assert "gist-1" in printed("compare", str(folder), "gist-1-s0", "pos_control-s0", "--stage", "generate")


def test_runs_that_share_nothing_or_saw_other_examples_are_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="has no run or compressor 'gist'; found base, full_attention"):
        comparison(folder, "gist", "base")
    with pytest.raises(InputError, match="'gist-1' and 'base' have no examples in common"):
        comparison(folder, "gist-1", "base")
    result, records = (folder / "needle" / f"base.{suffix}" for suffix in ("json", "examples.jsonl.gz"))
    kept = records.read_bytes()
    rows = pd.read_json(records, lines=True).to_dict("records")
    write_json_lines(records, [{**row, "key": "another"} for row in rows])
    with pytest.raises(ArtifactError, match=r"needle: length 60, .* different examples, of the truths 'lantern'"):
        comparison(folder, "rmt", "base")
    write_json(result, "needle", read_json(result, "needle"), {}, [records])
    records.write_bytes(kept)
    with pytest.raises(ArtifactError, match=r"base\.examples\.jsonl\.gz: has changed since it was written"):
        comparison(folder, "rmt", "base")
