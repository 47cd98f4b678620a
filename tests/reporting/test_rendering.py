"""The forms of a table, and the estimates in its cells."""

from __future__ import annotations

import csv
import re

import pytest
from synopsis.reporting.rendering import Cell, Column, Table, as_csv, as_html, as_latex, as_markdown, as_terminal_text
from synopsis.reporting.statistics import Estimate, recovered_percent, wilson_interval

EXAMPLE = Table(
    "Share & more",
    [
        Column("Run", lambda row: row[0], key=True),
        Column("Accuracy (%)", lambda row: row[1], digits=1),
        Column("Count", lambda row: row[2]),
    ],
    [
        ("pos_control", Cell(71.25, deviation=2.5), 12000),
        ("a_b", None, float("nan")),
        ("c", Cell(1 / 3, interval=(0.1, 0.5)), 0),
    ],
    note="How to read it.",
)


def wide_table() -> Table:
    def column(n: int) -> Column:
        return Column(f"data_set_{n}", lambda name: Cell(50.0 + n, deviation=1.0), digits=1)

    return Table("Wide", [Column("Compressor", str, key=True), *map(column, range(12))], ("base", "rmt"))


def test_csv_holds_plain_numbers_with_spread_beside_them() -> None:
    rows, name = list(csv.reader(as_csv(EXAMPLE).splitlines())), "Accuracy (%)"
    assert rows[0] == ["Run", name, f"{name} standard deviation", f"{name} low", f"{name} high", "Count"]
    assert rows[1] == ["pos_control", "71.25", "2.5", "–", "–", "12000"]
    assert rows[2] == ["a_b", "–", "–", "–", "–", "–"]
    assert rows[3] == ["c", "0.333333", "–", "0.1", "0.5", "0"]


def test_latex_is_escaped() -> None:
    text = as_latex(EXAMPLE, "an_example")
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert r"pos\_control & 71.2 $\pm$ 2.5 & 12,000 \\" in lines and r"a\_b & -- & -- \\" in lines
    for part in (
        r"\caption{Share \& more. How to",
        r"Accuracy (\%)",
        r"\label{tab:an-example}",
        r"\begin{tabular}{lrr}",
    ):
        assert part in text


def test_markdown_has_one_line_a_row_of_equal_columns() -> None:
    lines = [line for line in as_markdown(EXAMPLE).splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(EXAMPLE.rows) and {line.count("|") for line in lines} == {4}
    assert re.sub("-+", "-", lines[1]) == "|:-|-:|-:|"


def test_html_is_escaped_and_needs_nothing_else() -> None:
    text = as_html(EXAMPLE)
    assert "<h1>Share &amp; more</h1>" in text
    cells = [re.sub("<.*?>", " ", line).split() for line in text.splitlines() if line.startswith("<tr>")]
    assert cells[1:3] == [["pos_control", "71.2", "±", "2.5", "12,000"], ["a_b", "–", "–"]]
    assert not any(word in text for word in ("http", "src=", "<script"))


def test_wide_tables_are_set_in_blocks_with_the_keys_repeated() -> None:
    assert [as_terminal_text(EXAMPLE, width).count("pos_control") for width in (32, 80)] == [2, 1]
    lines = as_markdown(wide_table()).splitlines()
    assert max(map(len, lines)) <= 170
    headers = [line.count("data_set") for line in lines if "data_set" in line]
    assert headers == [6, 6], "blocks of about equal width"
    assert sum(line.startswith("| rmt") for line in lines) == 2
    assert len(as_csv(wide_table()).splitlines()) == 3, "a program reads one table"
    text = as_latex(wide_table(), "wide")
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == text.count(r"\par\medskip") == 1
    assert text.count(r"\begin{tabular}{l") == text.count(r"\end{tabular}") == text.count(r"rmt ") == 2
    assert all(text.count(rf"data\_set\_{number} ") == 1 for number in range(12))


def test_estimates_leave_out_what_is_missing() -> None:
    assert Estimate.of([1.0, None, float("nan"), 4.0]) == Estimate(2.5, pytest.approx(4.5**0.5), 2)
    assert Estimate.of([0.1]) == Estimate(0.1, None, 1)
    assert Estimate.of([]).mean is None


def test_wilson_interval_against_published_values() -> None:
    # Newcombe (1998), table I, method 3.
    published = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for (successes, trials), interval in published.items():
        assert wilson_interval(successes, trials) == pytest.approx(interval, abs=5e-5)
    assert wilson_interval(0, 0) is None
    for trials in range(1, 200):  # drawn as error bars, which must not be negative
        assert wilson_interval(0, trials)[0] == 0 and wilson_interval(trials, trials)[1] == 1


def test_recovered_percent_is_undefined_between_equal_controls() -> None:
    assert recovered_percent(30.0, 20.0, 20.0) is None
    assert recovered_percent(10.0, 20.0, 40.0) == -50
