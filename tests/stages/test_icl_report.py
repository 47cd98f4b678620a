"""In-context learning in scores, tables and figure: the same examples for all, and failures that are never zero."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import reporting_artifacts as artifacts
from reporting_artifacts import cell, row
from synopsis.artifacts import Layout, read_json, write_json, write_json_lines
from synopsis.config.experiment import Experiment
from synopsis.config.files import Task
from synopsis.errors import ArtifactError
from synopsis.reporting.rendering import Cell, as_csv, as_html, as_latex, as_markdown, as_terminal_text
from synopsis.reporting.report import headline, main_tables, tables
from synopsis.reporting.scores import read_scores, score
from synopsis.reporting.statistics import failures
from synopsis.reporting.style import styles
from synopsis.stages.icl.section import settings_of

MESSAGE = "row 17: the template shows {premise}, which is missing"


@pytest.fixture
def subject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """Nothing but in-context learning, of which every result is written."""
    # Each test writes some hundred small files, and no machine goes down meanwhile.
    monkeypatch.setattr("synopsis.artifacts._flush", lambda path: None)
    subject = artifacts.experiment(tmp_path, only="icl")
    artifacts.write_artifacts(subject)
    return subject


def accuracy(frame: pd.DataFrame, run: str, dataset: str, setting: str, seed: int) -> pd.Series:
    where = "metric == 'accuracy' and run == @run and dataset == @dataset and setting == @setting and seed == @seed"
    (found,) = [found for _, found in frame.query(where).iterrows()]
    return found


def icl_table(subject: Experiment, name: str = "icl") -> Any:
    return tables(subject, score(subject))[name]


def with_task(subject: Experiment, dataset: str, **changes: Any) -> Experiment:
    task = Task.model_validate({**artifacts.TASK, **changes})
    return subject.model_copy(update={"tasks": {**subject.tasks, dataset: task}})


# ------------------------------------------------------------------------------------------------------- scores


def test_accuracy_json_is_the_published_dictionary_and_nothing_else(subject: Experiment) -> None:
    score(subject)
    dictionary = json.loads(Layout(subject).accuracy.read_text())
    assert set(dictionary) == set(subject.runs_of("icl"))
    assert dictionary["autocompressor-s0"]["world_eats"]["plain_48"] == {
        "0": pytest.approx(0.7),
        "1": pytest.approx(0.72),
        "2": pytest.approx(0.74),
    }
    assert "summary_4" not in dictionary["base"]["world_eats"], "a model without summary vectors cannot do the setting"


def test_zero_shot_is_computed_once_and_stands_under_every_seed_of_the_published_dictionary(
    subject: Experiment,
) -> None:
    frame = score(subject)
    assert set(frame.loc[frame["setting"] == "zero_shot", "seed"]) == {0}
    found = json.loads(Layout(subject).accuracy.read_text())["base"]["world_eats"]["zero_shot"]
    assert found == {"0": 0.4, "1": 0.4, "2": 0.4}


def test_examples_that_one_run_drops_are_left_out_for_all(subject: Experiment) -> None:
    # Of 100 examples the first 40 (zero-shot) or 70, 72, 74 (plain_48) are right. Two runs drop different ones.
    artifacts.write_icl_result(subject, "base", "world_eats", 1, dropped=[0, 1, 99])
    artifacts.write_icl_result(subject, "rmt-s0", "world_eats", 2, dropped=[1, 98])
    frame = score(subject)
    for run in subject.runs_of("icl"):
        for seed, right in enumerate((70, 72, 74)):
            found = accuracy(frame, run, "world_eats", "plain_48", seed)
            assert (found["value"], found["n"]) == (pytest.approx((right - 2) / 96), 96), f"{run} seed {seed}"
        found = accuracy(frame, run, "world_eats", "zero_shot", 0)
        assert (found["value"], found["n"]) == (pytest.approx(38 / 96), 96)
        found = accuracy(frame, run, "world_wears", "plain_48", 0)
        assert (found["value"], found["n"]) == (pytest.approx(0.7), 50), "the other data set stays whole"
    excluded = frame[frame["metric"] == "excluded"].groupby("dataset")["value"].unique()
    assert (list(excluded["world_eats"]), list(excluded["world_wears"])) == ([4], [0])


def test_nothing_is_left_when_a_run_drops_everything(subject: Experiment) -> None:
    artifacts.write_icl_result(subject, "base", "world_eats", 1, dropped=range(60))
    artifacts.write_icl_result(subject, "base", "world_eats", 2, dropped=range(60, 100))
    frame = score(subject)
    assert accuracy(frame, "rmt-s0", "world_eats", "plain_48", 0)["n"] == 0
    assert json.loads(Layout(subject).accuracy.read_text())["rmt-s0"]["world_eats"]["plain_48"]["0"] is None
    table = tables(subject, frame)["icl"]
    assert cell(table, "world_eats", "rmt", "plain_48") == Cell(None)
    assert cell(table, "world_wears", "rmt", "plain_48").value == pytest.approx(72)
    assert cell(table, "Mean", "rmt", "plain_48").value is None, "a mean over data sets needs all of them"


def test_a_failed_cell_has_no_accuracy_and_keeps_its_message(subject: Experiment) -> None:
    artifacts.write_icl_result(subject, "base", "world_eats", 1, plain_48={"error": MESSAGE})
    frame = score(subject)
    found = accuracy(frame, "base", "world_eats", "plain_48", 1)
    assert pd.isna(found["value"]) and pd.isna(found["n"])
    failed = frame[(frame["metric"] == "failed") & (frame["value"] == 1)]
    assert failed[["run", "dataset", "setting", "seed"]].to_dict("records") == [
        {"run": "base", "dataset": "world_eats", "setting": "plain_48", "seed": 1}
    ]
    assert json.loads(Layout(subject).accuracy.read_text())["base"]["world_eats"]["plain_48"]["1"] is None
    place = {"run": "base", "stage": "icl", "dataset": "world_eats", "setting": "plain_48", "seed": 1}
    (failure,) = failures(frame, "icl")
    assert {key: failure[key] for key in place} == place and failure["message"] == MESSAGE
    assert failures(read_scores(Layout(subject).scores), "icl") == [failure]


def test_records_are_read_only_where_examples_are_left_out(subject: Experiment) -> None:
    records = Layout.examples(Layout(subject).icl("rmt-s0", "world_eats", 2))
    records.write_bytes(records.read_bytes()[:-30])
    score(subject)
    artifacts.write_icl_result(subject, "base", "world_eats", 0, dropped=[3])
    with pytest.raises(ArtifactError, match=rf"{records}: after line \d+: truncated or damaged"):
        score(subject)
    records.unlink()
    with pytest.raises(ArtifactError, match=f"{records}: no such file"):
        score(subject)


def record(**changes: Any) -> dict[str, Any]:
    return {"setting": "plain_48", "id": 3, "label": 1, "prediction": 0, **changes}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            [record(setting="zero_shot")],
            "setting 'plain_48' has 0 examples, 0 of them .*expected 100 and 72, as in seed1",
        ),
        (
            [record(id=n) for n in range(100)],
            "setting 'plain_48' has 100 examples, 0 of .* right; expected 100 and 72",
        ),
        ([record(id=n + 1, prediction=int(n < 72)) for n in range(100)], "setting 'plain_48' has other examples than"),
        ([{"setting": "plain_48", "id": 3}], "line 1 is no JSON object with the keys .*'prediction'"),
    ],
)
def test_records_that_disagree_with_their_result_are_reported(
    subject: Experiment, rows: list[dict[str, Any]], said: str
) -> None:
    artifacts.write_icl_result(subject, "base", "world_eats", 0, dropped=[3])
    records = Layout.examples(Layout(subject).icl("full_attention-s0", "world_eats", 1))
    write_json_lines(records, rows)
    with pytest.raises(ArtifactError, match=f"{records}: {said}"):
        score(subject)


def test_results_made_from_other_examples_are_reported(subject: Experiment) -> None:
    path = Layout(subject).icl("rmt-s0", "world_eats", 1)
    document = read_json(path, "icl") | {"examples": 90}
    write_json(path, "icl", {key: document[key] for key in ("examples", "dropped", "settings")}, {})
    with pytest.raises(ArtifactError, match=f"{path}: made from 90 test examples, .*base.*seed0.json from 100"):
        score(subject)


@pytest.mark.parametrize("key", ["accuracy", "n", "cost"])
def test_a_result_without_a_key_is_an_error(subject: Experiment, key: str) -> None:
    path = Layout(subject).icl("base", "world_eats", 0)
    document = read_json(path, "icl")
    del document["settings"]["zero_shot"][key]
    write_json(path, "icl", {name: document[name] for name in ("examples", "dropped", "settings")}, {})
    with pytest.raises(ArtifactError, match=f"{path}.*'{key}'"):
        score(subject)


# ------------------------------------------------------------------------------------------------------- tables


def test_spread_is_over_draws_of_both_kinds_of_seed(subject: Experiment) -> None:
    table = icl_table(subject)
    found = cell(table, "world_eats", "autocompressor", "plain_48")
    assert found == Cell(pytest.approx(72), pytest.approx(statistics.stdev([70.0, 72.0, 74.0] * 2)))
    assert row(table, "autocompressor", "plain_48")["Draws"] == "6"
    shown = {"Draws": "3", "Examples": "50–100", "Demonstrations": "6"}
    assert row(table, "rmt", "plain_48").items() >= shown.items()
    assert cell(table, "Mean", "rmt", "summary_4").value == pytest.approx(62)
    assert table.remarks == [] and "Asked for" not in table.names
    # Zero-shot has one draw, and no deviation but over training seeds.
    assert row(table, "rmt", "zero_shot").items() >= {"Draws": "1", "world_eats": "40.0", "Mean": "40.0"}.items()
    assert row(table, "autocompressor", "zero_shot").items() >= {"Draws": "2", "world_eats": "40.0 ± 0.0"}.items()


def test_what_the_published_counts_leave_empty_is_computed_once_and_is_part_of_every_mean(subject: Experiment) -> None:
    subject = with_task(subject, "world_wears", tokens_per_demonstration=60)
    for run in subject.runs_of("icl"):
        empty = {"plain_48": {"demonstrations": 0, "asked": 0, "unfilled": 1, "accuracy": 0.4, "n": 50}}
        artifacts.write_icl_result(subject, run, "world_wears", 0, **empty)
        for seed in subject.evaluation_seeds[1:]:
            artifacts.write_icl_result(subject, run, "world_wears", seed)
    shown = {"world_wears": "40.0†", "Mean": "56.0 ± 1.0", "Draws": "3"}
    assert row(icl_table(subject), "rmt", "plain_48").items() >= shown.items()
    found = json.loads(Layout(subject).accuracy.read_text())["rmt-s0"]["world_wears"]["plain_48"]
    assert found == {"0": 0.4, "1": 0.4, "2": 0.4}


def test_failed_cells_say_so_and_why(subject: Experiment) -> None:
    for seed in subject.evaluation_seeds:
        artifacts.write_icl_result(subject, "base", "world_eats", seed, plain_48={"error": MESSAGE})
    artifacts.write_icl_result(subject, "rmt-s0", "world_wears", 1, plain_48={"error": "out of memory " * 40})
    table, speed = tables(subject, score(subject)).values()
    shown = {"world_eats": "failed", "Mean": "–", "Failed cells": "3"}
    assert row(table, "base", "plain_48").items() >= shown.items()
    assert (
        row(table, "rmt", "plain_48")["world_wears"] == "72.0 ± 2.8‡" and "‡" in row(table, "rmt", "plain_48")["Mean"]
    )
    assert cell(table, "world_wears", "autocompressor", "plain_48").mark == ""
    assert table.names.index("Failed cells") in table.brief()
    partial, first, second = table.remarks
    assert partial == "‡ Over the draws that did not fail."
    assert first == f"Failed on world_eats (base, plain_48, seeds 0, 1, 2): {MESSAGE}"
    assert second.startswith("Failed on world_wears (rmt-s0, plain_48, seed 1): out of memory") and len(second) < 280
    assert cell(speed, "Examples", "base", "plain_48").value == 3 * 50, "only what was scored"
    for text in (as_markdown(table), as_html(table), as_terminal_text(table, 100)):
        assert "failed" in text and "the template shows" in " ".join(text.split())
    assert "base,plain_48,failed," in as_csv(table)
    assert r"\{premise\}" in as_latex(table, "icl") and r"$\ddagger$ Over the draws" in as_latex(table, "icl")


def test_one_fault_that_fails_many_cells_is_named_once(subject: Experiment) -> None:
    for run in subject.runs_of("icl"):
        for seed in subject.evaluation_seeds:
            every = {name: {"error": MESSAGE} for name in settings_of(subject, run, "world_eats", seed)}
            artifacts.write_icl_result(subject, run, "world_eats", seed, **every)
    for number, seed in enumerate(subject.evaluation_seeds * 3):
        run = subject.runs_of("icl")[number // 3]
        artifacts.write_icl_result(subject, run, "world_wears", seed, plain_48={"error": f"fault {number}"})
    table = icl_table(subject)
    assert [remark for remark in table.remarks if "world_eats" in remark] == [
        "Failed on world_eats (base, zero_shot, seed 0; base, plain_48, seeds 0, 1, 2; full_attention-s0, zero_shot, "
        f"seed 0; 10 more): {MESSAGE}"
    ]
    assert table.remarks[-1] == "4 more reasons of failures stand in the results."
    assert row(table, "base", "zero_shot")["world_eats"] == "failed"


def test_a_budget_that_holds_no_demonstration_is_marked(subject: Experiment) -> None:
    empty = {"demonstrations": 0, "unfilled": 1}
    for seed in subject.evaluation_seeds:
        artifacts.write_icl_result(subject, "base", "world_eats", seed, plain_48=empty)
    artifacts.write_icl_result(subject, "rmt-s0", "world_eats", 1, plain_48=empty)
    table = icl_table(subject)
    shown = {"world_eats": "72.0 ± 2.0†", "world_wears": "72.0 ± 2.0", "Unfilled budgets": "3", "Demonstrations": "0–6"}
    assert row(table, "base", "plain_48").items() >= shown.items()
    # Two draws of three have demonstrations; zero-shot has no budget.
    assert (
        row(table, "rmt", "plain_48")["world_eats"] == "72.0 ± 2.0"
        and row(table, "base", "zero_shot")["Mean"] == "40.0"
    )
    assert table.remarks == ["† No demonstration fits the budget: the same as zero-shot."]
    assert "†" not in as_csv(table), "a number is a number"


def test_what_is_excluded_or_asked_for_is_shown_where_it_differs(subject: Experiment) -> None:
    artifacts.write_icl_result(subject, "base", "world_eats", 1, [0, 1, 99], plain_48={"asked": 8, "over_budget": 12})
    table = icl_table(subject)
    assert table.remarks == [
        "world_eats: 3 of 100 examples are left out for all, since they are longer than the positions of base."
    ]
    assert row(table, "rmt", "plain_48").items() >= {"Excluded": "3", "Examples": "50–97"}.items()
    shown = {"Asked for": "8", "Over budget (tokens)": "0–12", "Failed cells": "0"}
    assert row(table, "base", "plain_48").items() >= shown.items()


def test_speed_and_headline_numbers_are_over_data_sets_and_draws(subject: Experiment) -> None:
    speed = icl_table(subject, "icl_speed")
    # Per draw 100 + 50 examples of 20 tokens after 48 tokens of demonstrations, in 2 seconds a data set.
    tokens = 3 * (150 * 20 + 2 * 48)
    expected = {"Examples": 450, "Tokens computed": tokens, "Naive tokens": 4 * tokens, "Fewer (×)": 4.0}
    expected |= {"Seconds": 12.0, "Examples/s": 450 / 12}
    assert {name: cell(speed, name, "rmt", "plain_48").value for name in expected} == pytest.approx(expected)
    numbers = headline(subject)
    assert numbers["icl/rmt/plain_48/examples_per_second"] == pytest.approx(450 / 12)
    assert numbers["icl/rmt/plain_48/token_saving"] == pytest.approx(4)
    artifacts.write_icl_result(subject, "base", "world_eats", 0, zero_shot={"error": MESSAGE})
    score(subject)
    assert set(numbers) - set(headline(subject)) == {f"icl/base/zero_shot/{name}" for name in ("mean_accuracy",)}
    assert all(math.isfinite(value) for value in headline(subject).values())
    assert MESSAGE in " ".join(main_tables(subject).split())


# --------------------------------------------------------------------------------------------------------- figure


def test_the_figure_shows_chance_failures_and_empty_budgets(subject: Experiment) -> None:
    of_rows = {"source": {"mirror": "wears"}, "options": None, "option_fields": ["one", "two", "three", "four"]}
    subject = with_task(subject, "world_wears", **of_rows)
    for seed in subject.evaluation_seeds:
        empty, failed = {"demonstrations": 0, "unfilled": 1}, {"error": MESSAGE}
        artifacts.write_icl_result(subject, "base", "world_eats", seed, plain_48=empty)
        artifacts.write_icl_result(subject, "rmt-s0", "world_eats", seed, plain_48=failed)
    figure = artifacts.figure(subject, "icl", score(subject))
    panels = {panel.get_title(): panel for panel in figure.axes}
    assert set(panels) == {"world_eats", "world_wears", "mean of the data sets"}
    for title, chance in {"world_eats": 50, "world_wears": 25, "mean of the data sets": 37.5}.items():
        upright = {line.get_xdata()[0] for line in panels[title].get_lines() if list(line.get_ydata()) == [0, 1]}
        assert chance in upright
    looks = styles(subject)
    said = [(text.get_text(), text.get_color()) for text in panels["world_eats"].texts]
    assert said == [("failed", looks["rmt"].colour)]
    open_points = [line for line in panels["world_eats"].get_lines() if line.get_markerfacecolor() == "w"]
    assert [line.get_color() for line in open_points] == [looks["base"].colour]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[-4:] == ["draw", "without demonstrations", "no demonstration fits", "uniform chance"]


def test_a_figure_without_known_options_has_no_chance_line(subject: Experiment) -> None:
    frame = score(subject)
    figure = artifacts.figure(subject.model_copy(update={"tasks": {}}), "icl", frame)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["base", "full_attention", "autocompressor", "rmt", "draw", "without demonstrations"]
