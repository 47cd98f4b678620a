"""The needle in table, figure and headline numbers: found keys by length and depth, and what was left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import reporting_artifacts as artifacts
from reporting_artifacts import row
from synopsis.artifacts import Layout, read_json, write_json
from synopsis.config.experiment import Experiment
from synopsis.errors import ArtifactError
from synopsis.reporting.rendering import DASH, as_csv
from synopsis.reporting.report import headline, report, tables
from synopsis.reporting.scores import score


@pytest.fixture
def subject(tmp_path: Path) -> Experiment:
    found = artifacts.experiment(tmp_path, only="needle", needle=artifacts.NEEDLE)
    artifacts.write_artifacts(found)
    return found


@pytest.fixture
def scores(subject: Experiment) -> pd.DataFrame:
    return score(subject)


def test_table(subject: Experiment, scores: pd.DataFrame) -> None:
    (table,) = tables(subject, scores).values()
    assert [tuple(texts[:2]) for texts in table.texts()] == [
        (name, length) for name in ("base", "full_attention", "autocompressor", "rmt") for length in ("60", "200")
    ]
    expected = {"at 0 %": "45.0 ± 7.1", "at 50 %": "55.0 ± 7.1", "Mean": "50.0", "Mean written": "25.0"}
    expected |= {"Written at 50 %": "25.0 ± 0.0", "Loss of the key": "1.75", "Summary vectors": "24"}
    assert row(table, "autocompressor", "200").items() >= (expected | {"Texts": "10", "Runs": "2"}).items()
    assert row(table, "rmt", "200")["Summary vectors"] == "4" and row(table, "base", "60")["Summary vectors"] == "0"
    assert "chance: 25 %" in table.title
    # Lengths that were left out are dashes.
    left_out = row(table, "base", "200")
    assert {text for name, text in left_out.items() if name not in ("Compressor", "Length", "Runs")} == {DASH}
    assert left_out["Runs"] == "0" and f"base,200,{DASH}" in as_csv(table)
    assert table.remarks == [
        f"{name}: 200 tokens were left out, which need more than the model's 128 positions."
        for name in ("base", "full_attention")
    ]


def test_heatmaps_show_each_share(subject: Experiment, scores: pd.DataFrame) -> None:
    figure = artifacts.figure(subject, "needle", scores)
    panels = {panel.get_title(): panel for panel in figure.axes if panel.get_title()}
    assert list(panels) == ["base", "full_attention", "autocompressor", "rmt"]
    assert [text.get_text() for text in panels["autocompressor"].texts] == ["45", "55", "45", "55"]
    assert [text.get_text() for text in panels["base"].texts] == ["80", "90", DASH, DASH]
    (image,) = panels["base"].images
    assert np.ma.filled(image.get_array(), -1.0) == pytest.approx(np.array([[80.0, 90.0], [-1.0, -1.0]]))
    assert image.get_clim() == (0, 100)
    assert [label.get_text() for label in panels["base"].get_yticklabels()] == ["60", "200"]
    assert [label.get_text() for label in panels["base"].get_xticklabels()] == ["0", "50"]
    assert [text.get_text() for axes in figure.axes for text in axes.texts].count("chance") == 1


def test_headline_numbers(subject: Experiment, scores: pd.DataFrame) -> None:
    numbers = headline(subject)
    assert numbers["needle/rmt/length=200/choice"] == pytest.approx(0.35)
    assert numbers["needle/base/length=60/exact"] == pytest.approx(0.4)
    assert not any("base/length=200" in key for key in numbers)


def test_a_cell_that_failed_is_a_dash_with_its_reason(subject: Experiment) -> None:
    path = Layout(subject).needle("autocompressor-s1")
    failed = [{"length": 200, "depth": 0.5, "error": "example 3: the text does not fit in memory"}]
    rows = [one for one in read_json(path, "needle")["rows"] if (one["length"], one["depth"]) != (200, 0.5)]
    write_json(path, "needle", {"rows": rows, "failed": failed, "skipped": []}, {})
    (table,) = tables(subject, score(subject)).values()
    # The other run of the compressor stands alone in its cell.
    assert row(table, "autocompressor", "200")["at 50 %"] == "60.0"
    assert row(table, "autocompressor", "200")["at 0 %"] == "45.0 ± 7.1"
    reason = "autocompressor-s1, length=200/depth=0.5: example 3: the text does not fit in memory."
    assert table.remarks[-1] == reason
    report(subject)
    assert reason in (Layout(subject).tables / "needle.md").read_text()


def test_a_damaged_result_is_named(subject: Experiment) -> None:
    path = Layout(subject).needle("rmt-s0")
    rows = read_json(path, "needle")["rows"]
    del rows[0]["exact"]
    write_json(path, "needle", {"rows": rows}, {})
    with pytest.raises(ArtifactError, match=r"needle/rmt-s0\.json: the key 'exact' is missing"):
        score(subject)
