"""ROUGE, judgements and the benchmark in tables and figures: each number is the one worked out by hand."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import pytest
import reporting_artifacts as artifacts
from reporting_artifacts import cell
from synopsis.config.experiment import Experiment
from synopsis.reporting.rendering import Table, as_markdown
from synopsis.reporting.report import tables as build_tables
from synopsis.reporting.scores import score
from synopsis.stages.benchmark.front import qualities


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    subject = artifacts.experiment(tmp_path_factory.mktemp("tables"), perplexity=None, icl=None)
    artifacts.write_artifacts(subject)
    return subject


@pytest.fixture(scope="module")
def tables(subject: Experiment) -> dict[str, Table]:
    return build_tables(subject, score(subject))


def test_rouge_says_how_much_of_the_way_between_the_controls_is_recovered(tables: dict[str, Table]) -> None:
    table = tables["rouge"]
    assert cell(table, "ROUGE-L", "seen", "gist-1").value == 50
    assert cell(table, "ROUGE-L", "seen", "gist-1").interval == (46, 53)
    assert cell(table, "ROUGE-1", "seen", "gist-1").interval is None
    assert cell(table, "Recovered (%)", "seen", "gist-1").value == pytest.approx(100 * (50 - 20) / (60 - 20))
    assert cell(table, "Recovered (%)", "unseen", "neg_control").value == 0
    assert cell(table, "Recovered (%)", "unseen", "pos_control").value == 100
    assert cell(table, "Examples", "unseen", "gist-1").value == "64"
    assert cell(table, "ROUGE-L, published", "seen", "gist-1").value == pytest.approx(49.9)
    assert not any("Lsum" in name for name in table.names) and "No ROUGE-Lsum" in table.note


def test_equal_outputs_are_counted_over_the_examples_of_both(tables: dict[str, Table]) -> None:
    table = tables["equal_outputs"]
    assert cell(table, "Equal outputs (%)", "seen", "gist-1", "pos_control").value == pytest.approx(200 / 3)
    assert cell(table, "Examples of one alone", "seen", "gist-1", "pos_control").value == 1
    assert cell(table, "Equal outputs (%)", "unseen", "pos_control", "neg_control").value == 50
    assert cell(table, "Examples", "unseen", "pos_control", "neg_control").value == "4"


def test_nothing_is_recovered_without_both_controls(tmp_path: Path) -> None:
    whole = artifacts.experiment(tmp_path).model_dump()["compressors"]
    subject = artifacts.experiment(
        tmp_path, only="generate", compressors={name: whole[name] for name in ("gist-1", "neg_control")}
    )
    artifacts.write_artifacts(subject)
    table = build_tables(subject, score(subject))["rouge"]
    assert cell(table, "Recovered (%)", "seen", "gist-1").value is None
    assert "–" in as_markdown(table).splitlines()[4]


def test_judgements_leave_errors_out_and_say_what_the_judge_prefers(tables: dict[str, Table]) -> None:
    names, table = ("reference", "seen", "gist-1", "pos_control"), tables["judgements"]
    found = cell(table, "Win rate of A (%)", *names)
    assert found.value == pytest.approx(100 * (60 + 12 / 2) / 96)
    assert found.interval == pytest.approx((60, 75))
    counted = {
        "Unparsed": 3,
        "Failed": 1,
        "Not scored": 2,
        "Of one run only": 2,
        "Length of A": 30,
        "Sign test p": 0.012,
    }
    shares = {"Consistent (%)": 75, "First wins (%)": 52.5, "Longer wins (%)": 62.5, "Equal lengths (%)": 55}
    assert {name: cell(table, name, *names).value for name in counted} == counted
    assert {name: cell(table, name, *names).value for name in shares} == pytest.approx(shares)


def test_plain_models_and_what_is_not_trained_have_rows(tmp_path: Path) -> None:
    trained = artifacts.experiment(tmp_path).model_dump()["compressors"]["gist-1"]
    subject = artifacts.experiment(
        tmp_path,
        only="judge",
        compressors={"gist-1": trained, "cut": {"method": "truncation", "base": "base", "budget": 4}},
        generate={"instructions": "words", "splits": ["seen"], "max_new_tokens": 8},
        judge={"judges": ["reference"], "pairs": [["gist-1", "cut"]]},
    )
    artifacts.write_artifacts(subject)
    found = build_tables(subject, score(subject))
    assert cell(found["judgements"], "A wins", "reference", "seen", "gist-1", "cut").value == 60
    assert cell(found["rouge"], "Recovered (%)", "seen", "base").value is None


def test_two_judges_are_compared_on_the_examples_that_both_have_scored(tmp_path: Path) -> None:
    judges = {"reference": {"kind": "reference"}, "strict": {"kind": "reference", "tie_margin": 0.5}}
    section = {"judges": list(judges), "pairs": [["gist-1", "pos_control"]]}
    subject = artifacts.experiment(tmp_path, perplexity=None, icl=None, judges=judges, judge=section)
    artifacts.write_artifacts(subject)
    table = build_tables(subject, score(subject))["judge_agreement"]
    keys = ("strict", "reference", "seen", "gist-1", "pos_control")
    assert [cell(table, name, *keys).value for name in ("Agreement (%)", "Kappa", "Examples")] == [100, 1, "2"]
    assert "judge_agreement" not in artifacts.names(artifacts.experiment(tmp_path), "table")


def test_benchmark_compares_paired_samples(tables: dict[str, Table]) -> None:
    keys, table, root = ("rmt", 8, 128), tables["benchmark"], math.sqrt(8)
    assert cell(table, "None (ms)", *keys).value == pytest.approx(1.1 * 26 * root)
    assert cell(table, "Faster than none (×)", *keys).value == pytest.approx(2.6)
    assert cell(table, "Faster than none (×)", *keys).interval == pytest.approx((2.6, 2.6)), "all pairs agree"
    assert cell(table, "Faster than prefix (×)", *keys).value == pytest.approx(1.8)
    saved = cell(table, "Saved of none (ms)", *keys)
    assert saved.value == pytest.approx(1.1 * 16 * root)
    assert saved.interval == pytest.approx((16 * root, 3 * 16 * root)), "medians of three samples drawn again"
    assert cell(table, "Compressed peak (MiB)", *keys).value == pytest.approx(28)
    assert cell(table, "None context in use (KiB)", *keys).value == pytest.approx(8 * 128 * 3)
    assert cell(table, "Context smaller in use (×)", *keys).value == pytest.approx(32)


def test_benchmark_says_from_when_on_compressing_pays(tables: dict[str, Table]) -> None:
    table = tables["benchmark"]
    # A row's 40 ms against 1.1 * 8 ms saved each time, of the prefix 10 ms more against 4.4 ms.
    assert cell(table, "Pays from use", "rmt", 1, 64).value == 5
    assert cell(table, "Pays against prefix from use", "rmt", 1, 64).value == 3
    said = next(remark for remark in table.remarks if "included, rmt pays" in remark)
    assert "against reading the context again from 64 tokens and 5 uses on (batch 1), from" in said
    assert any("lost CPU time" in remark for remark in table.remarks)
    assert "rmt-s0, float32, batch 1, context 64: tokens of the mode 'prefix' differ from one pass by 0.2" in "\n".join(
        table.remarks
    )
    assert cell(table, "Compressed largest batch", "rmt", 8, 128).value == 100


def test_the_published_form_of_the_benchmark(tables: dict[str, Table]) -> None:
    keys, table = ("rmt", 1, 64, "wall time (ms)"), tables["efficiency"]
    # Compressed 10, 11 and 30 ms, each 8 ms less than twice that.
    assert cell(table, "None", *keys).value == pytest.approx(1.8 * 17)
    assert cell(table, "Compressed", *keys).deviation == pytest.approx(statistics.stdev([10, 11, 30]))
    less = cell(table, "None − compressed", *keys)
    half = 4.302653 * statistics.stdev([8, 8.8, 24]) / math.sqrt(3)
    assert (less.value, less.interval) == (pytest.approx(13.6), pytest.approx((13.6 - half, 13.6 + half)))
    assert cell(table, "% of none", *keys).value == pytest.approx(100 * 8 / 18)
    assert cell(table, "Mean % of none", *keys).value == pytest.approx(100 * 8 / 18)
    measures = ["CPU time (ms)", "GFLOP", "GFLOP by DeepSpeed", "wall time (ms)"]
    assert [row[3].value for row in table.rows[:4]] == measures, "there is no GPU"


def test_the_front_has_a_point_for_each_compressor_and_base_with_a_quality(tmp_path: Path) -> None:
    subject = artifacts.experiment(tmp_path, icl=None)
    artifacts.write_artifacts(subject)
    scores = score(subject)
    figure = artifacts.figure(subject, "front", scores)
    by_panel = [[line.get_xydata()[0].tolist() for line in panel.get_lines()] for panel in figure.axes]
    loss_time, loss_bytes, rouge_time, rouge_bytes = by_panel
    base, compressor = (qualities(scores, "perplexity")[name] for name in ("base", "rmt"))
    assert [1.1 * (10 + 128 / 16), base] in [pytest.approx(point) for point in loss_time], "with the cached prefix"
    assert [1.1 * 10, compressor] in [pytest.approx(point) for point in loss_time]
    assert [128 * 3, base] in loss_bytes and [4 * 3, compressor] in loss_bytes
    assert [point[0] for point in rouge_time] == pytest.approx(3 * [11]) and [4 * 3, 47.5] in rouge_bytes


def test_missing_numbers_leave_gaps_and_say_so(subject: Experiment) -> None:
    scores = score(subject)
    scores.loc[scores["metric"] == "peak_bytes", "value"] = float("nan")
    figure = artifacts.figure(subject, "benchmark", scores)
    said = {panel.get_ylabel(): [text.get_text() for text in panel.texts] for panel in figure.axes}
    assert said["peak memory (MiB)"] == ["not measured"] and said["wall time (milliseconds)"] == []
