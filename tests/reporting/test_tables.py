"""Tables: each number is the one worked out by hand, and each form shows it."""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path

import pytest
import reporting_artifacts as artifacts
from synopsis.artifacts import Layout
from synopsis.config.experiment import Experiment
from synopsis.errors import ArtifactError
from synopsis.reporting.rendering import Cell, Column, Table, as_csv, as_html, as_latex, as_markdown, as_terminal_text
from synopsis.reporting.report import headline, main_tables
from synopsis.reporting.report import tables as build_tables
from synopsis.reporting.scores import read_scores, score
from synopsis.reporting.statistics import Estimate, recovered_percent, wilson_interval


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    subject = artifacts.experiment(tmp_path_factory.mktemp("tables"))
    artifacts.write_artifacts(subject)
    score(subject)
    return subject


@pytest.fixture(scope="module")
def tables(subject: Experiment) -> dict[str, Table]:
    return build_tables(subject, read_scores(Layout(subject).scores))


def cell(table: Table, column: str, *keys: str) -> Cell:
    """The cell under `column` in the only row that starts with `keys`."""
    names = [other.name for other in table.columns]
    rows = [row for row in table.rows if tuple(str(found.value) for found in row[: len(keys)]) == keys]
    assert len(rows) == 1, f"{len(rows)} rows of {keys}"
    return rows[0][names.index(column)]


def test_perplexity_is_averaged_over_training_seeds(tables: dict[str, Table]) -> None:
    found = cell(tables["perplexity"], "100 tokens", "recall", "autocompressor")
    seeds = [math.exp(2.4 - 0.8), math.exp(2.4 - 0.8 + 0.1)]
    assert found.value == pytest.approx(sum(seeds) / 2)
    assert found.deviation == pytest.approx(abs(seeds[0] - seeds[1]) / math.sqrt(2))
    assert cell(tables["perplexity"], "100 tokens", "all", "rmt").deviation is None, (
        "one seed says nothing about spread"
    )
    assert cell(tables["perplexity"], "Runs", "all", "autocompressor").value == 2
    assert cell(tables["perplexity"], "Scored tokens", "all", "rmt").value == "640"


def test_classes_of_tokens_stand_together(tables: dict[str, Table]) -> None:
    classes = [row[0].value for row in tables["perplexity"].rows]
    assert classes == [tokens for tokens in ("all", "dependent", "topic", "recall") for _ in range(4)]


def test_rouge_says_how_much_of_the_way_between_the_controls_is_recovered(tables: dict[str, Table]) -> None:
    table = tables["rouge"]
    assert cell(table, "ROUGE-L", "seen", "gist-1").value == 50
    assert cell(table, "Recovered (%)", "seen", "gist-1").value == pytest.approx(100 * (50 - 20) / (60 - 20))
    assert cell(table, "Recovered (%)", "unseen", "neg_control").value == 0
    assert cell(table, "Recovered (%)", "unseen", "pos_control").value == 100
    assert cell(table, "Examples", "unseen", "gist-1").value == "64"


def test_nothing_is_recovered_without_both_controls(tmp_path: Path) -> None:
    whole = artifacts.experiment(tmp_path).model_dump()
    compressors = {name: whole["compressors"][name] for name in ("gist-1", "neg_control")}
    subject = artifacts.experiment(
        tmp_path, compressors=compressors, judge=None, perplexity=None, icl=None, benchmark=None
    )
    artifacts.write_artifacts(subject)
    (table,) = build_tables(subject, score(subject)).values()
    assert cell(table, "Recovered (%)", "seen", "gist-1").value is None
    assert "–" in as_markdown(table).splitlines()[4]


def test_judgements_leave_errors_out_and_count_an_example_once(tables: dict[str, Table]) -> None:
    found = cell(tables["judgements"], "Win rate of A (%)", "reference", "seen", "gist-1", "pos_control")
    assert found.value == pytest.approx(100 * (60 + 12 / 2) / 96)
    # 50 examples, 96 of whose 100 judgements are valid: 48 independent observations.
    expected = wilson_interval(48 * 66 / 96, 48)
    assert expected is not None
    assert found.interval == pytest.approx((100 * expected[0], 100 * expected[1]))
    names = ("reference", "seen", "gist-1", "pos_control")
    assert [cell(tables["judgements"], column, *names).value for column in ("Unparsed", "Failed")] == [3, 1]
    assert cell(tables["judgements"], "Consistent (%)", *names).value == pytest.approx(80)
    assert cell(tables["judgements"], "First wins (%)", *names).value == pytest.approx(100 * 42 / 84)


def test_benchmark_compares_medians(tables: dict[str, Table]) -> None:
    keys = ("rmt", "8", "128")
    table = tables["benchmark"]
    assert cell(table, "Uncached (ms)", *keys).value == pytest.approx(1.1 * 26 * math.sqrt(8))
    assert cell(table, "Faster (×)", *keys).value == pytest.approx(2.6)
    assert cell(table, "Cached peak (MiB)", *keys).value == pytest.approx(28)
    assert cell(table, "Uncached context (KiB)", *keys).value == pytest.approx(8 * 128 * 3)
    assert cell(table, "Context smaller (×)", *keys).value == pytest.approx(32)


def test_sections_that_are_absent_have_no_table(tmp_path: Path) -> None:
    subject = artifacts.experiment(tmp_path, icl=None, judge=None, benchmark=None)
    assert artifacts.names(subject, "table") == ["perplexity", "perplexity_details", "rouge"]


def test_a_corpus_with_several_domains_has_a_table_of_them(tmp_path: Path) -> None:
    corpus = {"source": "text", "domains": {"books": {"hub": "a"}, "code": {"hub": "b"}}}
    subject = artifacts.experiment(
        tmp_path, corpora={"world": corpus}, icl=None, judge=None, generate=None, benchmark=None
    )
    artifacts.write_artifacts(subject)
    found = build_tables(subject, score(subject))
    assert list(found) == ["perplexity", "perplexity_domains", "perplexity_details"]
    over_all, by_domain, _ = found.values()
    assert cell(over_all, "50 tokens", "all", "rmt").value == pytest.approx(math.exp(2.0 - 0.2))
    assert cell(by_domain, "50 tokens", "books", "rmt").value == pytest.approx(math.exp(2.0 - 0.2 + 0.2))
    assert cell(by_domain, "50 tokens", "code", "rmt").value == pytest.approx(math.exp(2.0 - 0.2 - 0.2))
    assert len(by_domain.rows) == 2 * 4


def test_scores_of_another_configuration_are_refused(tmp_path: Path) -> None:
    small = artifacts.experiment(tmp_path, icl=None)
    artifacts.write_artifacts(small)
    scores = score(small)
    with pytest.raises(ArtifactError, match="nothing of the stage 'icl'"):
        build_tables(artifacts.experiment(tmp_path), scores)


def test_headline_numbers(subject: Experiment) -> None:
    numbers = headline(subject)
    expected = {
        "perplexity/autocompressor/context=100/tokens=dependent/loss": 2.5 - 0.8 + 0.05,
        "icl/autocompressor/summary_4/mean_accuracy": 0.62,
        "rouge/gist-1/seen/rougeL": 50,
        "rouge/gist-1/seen/recovered_percent": 75,
        "judge/reference/gist-1-vs-pos_control/seen/win_rate": 66 / 96,
        "benchmark/rmt/batch=8/context=128/speed_up": 2.6,
        "benchmark/rmt/batch=8/context=128/memory_saving": 32,
    }
    assert {key: numbers[key] for key in expected} == pytest.approx(expected)


def test_main_tables_fit_the_terminal(subject: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "72")
    text = main_tables(subject)
    assert max(len(line) for line in text.splitlines()) <= 72
    for title in ("Perplexity by context length", "In-context learning", "ROUGE", "Pairwise", "Time and memory"):
        assert title in text


# --------------------------------------------------------------------------------------------- forms of a table

EXAMPLE = Table(
    "Share & more",
    [
        Column("Run", lambda row: row[0], key=True),
        Column("Accuracy (%)", lambda row: row[1], digits=1),
        Column("Count", lambda row: row[2]),
    ],
    [
        [Cell("pos_control"), Cell(71.25, deviation=2.5), Cell(12000)],
        [Cell("a_b"), Cell(None), Cell(float("nan"))],
        [Cell("c"), Cell(1 / 3, interval=(0.1, 0.5)), Cell(0)],
    ],
    "How to read it.",
)


def test_csv_holds_plain_numbers_with_spread_beside_them() -> None:
    rows = list(csv.reader(as_csv(EXAMPLE).splitlines()))
    name = "Accuracy (%)"
    assert rows[0] == ["Run", name, f"{name} standard deviation", f"{name} low", f"{name} high", "Count"]
    assert rows[1] == ["pos_control", "71.25", "2.5", "–", "–", "12000"]
    assert rows[2] == ["a_b", "–", "–", "–", "–", "–"]
    assert rows[3] == ["c", "0.333333", "–", "0.1", "0.5", "0"]


def test_latex_is_escaped() -> None:
    text = as_latex(EXAMPLE, "an_example")
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert r"pos\_control & 71.2 $\pm$ 2.5 & 12,000 \\" in lines
    assert r"a\_b & -- & -- \\" in lines
    assert r"\caption{Share \& more. How to read it.}" in text
    assert r"Accuracy (\%)" in text
    assert r"\label{tab:an-example}" in text
    assert r"\begin{tabular}{lrr}" in text


def test_markdown_has_one_line_a_row_of_equal_columns() -> None:
    lines = [line for line in as_markdown(EXAMPLE).splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(EXAMPLE.rows)
    assert {line.count("|") for line in lines} == {4}
    assert re.sub("-+", "-", lines[1]) == "|:-|-:|-:|"


def test_html_is_escaped_and_needs_nothing_else() -> None:
    text = as_html(EXAMPLE)
    assert "<h1>Share &amp; more</h1>" in text
    cells = [re.sub("<.*?>", " ", line).split() for line in text.splitlines() if line.startswith("<tr>")]
    assert cells[1:3] == [["pos_control", "71.2", "±", "2.5", "12,000"], ["a_b", "–", "–"]]
    assert not any(word in text for word in ("http", "src=", "<script"))


def test_a_wide_table_is_shown_in_blocks_with_the_keys_repeated() -> None:
    text = as_terminal_text(EXAMPLE, 32)
    assert text.count("pos_control") == 2
    assert as_terminal_text(EXAMPLE, 80).count("pos_control") == 1


# --------------------------------------------------------------------------------------------------- estimates


def test_estimates_leave_out_what_is_missing() -> None:
    assert Estimate.of([1.0, None, float("nan"), 4.0]) == Estimate(2.5, pytest.approx(4.5**0.5), 2)
    assert Estimate.of([0.1]) == Estimate(0.1, None, 1)
    assert Estimate.of([]).mean is None


def test_wilson_interval_against_published_values() -> None:
    # Newcombe (1998), table I, method 3: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    expected = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for (successes, trials), interval in expected.items():
        assert wilson_interval(successes, trials) == pytest.approx(interval, abs=5e-5)
    assert wilson_interval(0, 0) is None
    for trials in range(1, 200):  # drawn as error bars, which must not be negative
        assert wilson_interval(0, trials)[0] == 0 and wilson_interval(trials, trials)[1] == 1


def test_recovered_percent_is_undefined_between_equal_controls() -> None:
    assert recovered_percent(30.0, 20.0, 20.0) is None
    assert recovered_percent(10.0, 20.0, 40.0) == -50
