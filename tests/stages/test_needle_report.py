"""The needle in scores, table, figure and headline numbers: found keys by length and depth, and what was left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import reporting_artifacts as artifacts
from synopsis.artifacts import Layout, read_json, write_json
from synopsis.config.experiment import Experiment
from synopsis.errors import ArtifactError
from synopsis.reporting.items import report_files
from synopsis.reporting.rendering import DASH, Table, as_csv
from synopsis.reporting.report import headline, report
from synopsis.reporting.report import tables as build_tables
from synopsis.reporting.scores import score

OTHERS: dict[str, None] = dict.fromkeys(("perplexity", "icl", "generate", "judge", "benchmark"))


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    found = artifacts.experiment(tmp_path_factory.mktemp("needle"), needle=artifacts.NEEDLE, **OTHERS)
    artifacts.write_artifacts(found)
    return found


@pytest.fixture(scope="module")
def scores(subject: Experiment) -> pd.DataFrame:
    return score(subject)


@pytest.fixture(scope="module")
def table(subject: Experiment, scores: pd.DataFrame) -> Table:
    (found,) = build_tables(subject, scores).values()
    return found


def row(table: Table, compressor: str, length: int) -> dict[str, str]:
    (found,) = [texts for texts in table.texts() if texts[:2] == [compressor, str(length)]]
    return dict(zip(table.names, found, strict=True))


def test_every_cell_is_a_row_of_the_scores(scores: pd.DataFrame) -> None:
    cells = scores[(scores["stage"] == "needle") & (scores["metric"] == "choice")].set_index(["run", "length", "depth"])
    # base, full_attention and rmt have one run, autocompressor two; plain models have positions for one length.
    assert len(cells) == 2 * 2 + 3 * 4
    one = cells.loc[("autocompressor-s1", 200, 0.5)]
    assert one["value"] == pytest.approx(0.5 + 0.1 - 0.1) and one["n"] == 10
    assert (one["compressor"], one["method"], one["training_seed"]) == ("autocompressor", "autocompressor", 1)
    assert ("base", 200, 0.0) not in cells.index


def test_table(table: Table) -> None:
    assert [tuple(texts[:2]) for texts in table.texts()] == [
        (name, length) for name in ("base", "full_attention", "autocompressor", "rmt") for length in ("60", "200")
    ]
    found = row(table, "autocompressor", 200)
    assert (found["at 0 %"], found["at 50 %"], found["Mean"]) == ("45.0 ± 7.1", "55.0 ± 7.1", "50.0")
    assert (found["Mean written"], found["Written at 50 %"]) == ("25.0", "25.0 ± 0.0")
    assert (found["Loss of the key"], found["Summary vectors"], found["Texts"], found["Runs"]) == (
        *("1.75", "24", "10"),
        "2",
    )
    assert row(table, "rmt", 200)["Summary vectors"] == "4" and row(table, "base", 60)["Summary vectors"] == "0"
    assert "chance: 25 %" in table.note


def test_lengths_that_were_left_out_are_dashes(table: Table) -> None:
    found = row(table, "base", 200)
    left_out = {name: text for name, text in found.items() if name not in ("Compressor", "Length", "Runs")}
    assert set(left_out.values()) == {DASH} and found["Runs"] == "0"
    assert table.remarks == [
        f"{name}: 200 tokens were left out, which need more than the model's 128 positions."
        for name in ("base", "full_attention")
    ]
    assert f"base,200,{DASH}" in as_csv(table)


def test_heatmaps_show_each_share(subject: Experiment, scores: pd.DataFrame) -> None:
    figure = artifacts.figure(subject, "needle", scores)
    panels = {panel.get_title(): panel for panel in figure.axes if panel.get_title()}
    assert list(panels) == ["base", "full_attention", "autocompressor", "rmt"]
    texts = [text.get_text() for text in panels["autocompressor"].texts]
    assert texts == ["45", "55", "45", "55"]
    assert [text.get_text() for text in panels["base"].texts] == ["80", "90", DASH, DASH]
    (image,) = panels["base"].images
    values = np.ma.filled(image.get_array(), -1.0)
    assert values == pytest.approx(np.array([[80.0, 90.0], [-1.0, -1.0]]))
    assert image.get_clim() == (0, 100)
    assert [label.get_text() for label in panels["base"].get_yticklabels()] == ["60", "200"]
    assert [label.get_text() for label in panels["base"].get_xticklabels()] == ["0", "50"]
    assert [text.get_text() for axes in figure.axes for text in axes.texts].count("chance") == 1


def test_files_and_headline_numbers(subject: Experiment, scores: pd.DataFrame) -> None:
    assert artifacts.names(subject, "table") == ["needle"] and artifacts.names(subject, "figure") == [
        "needle",
        "training",
    ]
    report(subject)
    assert all(path.stat().st_size > 100 for paths in report_files(subject).values() for path in paths)
    numbers = headline(subject)
    assert numbers["needle/rmt/length=200/choice"] == pytest.approx(0.35)
    assert numbers["needle/base/length=60/exact"] == pytest.approx(0.4)
    assert not any("base/length=200" in key for key in numbers)


def test_a_cell_that_failed_is_a_dash_with_its_reason(tmp_path: Path) -> None:
    subject = artifacts.experiment(tmp_path, needle=artifacts.NEEDLE, **OTHERS)
    path = artifacts.write_artifacts(subject).needle("autocompressor-s1")
    document = read_json(path, "needle")
    failed = [{"length": 200, "depth": 0.5, "error": "example 3: the text does not fit in memory"}]
    rows = [row for row in document["rows"] if (row["length"], row["depth"]) != (200, 0.5)]
    write_json(path, "needle", {"rows": rows, "failed": failed, "skipped": []}, {})
    (table,) = build_tables(subject, score(subject)).values()
    # The other run of the compressor stands alone in its cell.
    assert row(table, "autocompressor", 200)["at 50 %"] == "60.0"
    assert row(table, "autocompressor", 200)["at 0 %"] == "45.0 ± 7.1"
    told = "autocompressor-s1, length=200/depth=0.5: example 3: the text does not fit in memory."
    assert table.remarks[-1] == told
    report(subject)
    assert told in (Layout(subject).tables / "needle.md").read_text()


def test_a_damaged_result_is_named(tmp_path: Path) -> None:
    subject = artifacts.experiment(tmp_path, needle=artifacts.NEEDLE, **OTHERS)
    path = artifacts.write_artifacts(subject).needle("rmt-s0")
    document = read_json(path, "needle")
    del document["rows"][0]["exact"]
    write_json(path, "needle", {"rows": document["rows"]}, {})
    with pytest.raises(ArtifactError, match=r"needle/rmt-s0\.json: the key 'exact' is missing"):
        score(subject)
    Layout(subject).needle("base").unlink()
    with pytest.raises(ArtifactError, match=r"needle/base\.json: no such file"):
        score(subject)
