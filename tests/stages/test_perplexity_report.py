"""Perplexity in tables and figures: every number of vectors, intervals, bits per byte, and what was not measured."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import reporting_artifacts as artifacts
from reporting_artifacts import cell
from synopsis.artifacts import read_json, write_json
from synopsis.config.experiment import Experiment
from synopsis.reporting.rendering import as_csv
from synopsis.reporting.report import headline, tables
from synopsis.reporting.scores import score
from synopsis.reporting.style import styles

KEYS = ("corpus", "split", "rows", "skipped", "not_finite", "documents", "too_short")


def written(found: Experiment, **changes: Any) -> pd.DataFrame:
    """Scores of artifacts in which results were changed: run -> a function of its document."""
    layout = artifacts.write_artifacts(found)
    for run, change in changes.items():
        path = layout.perplexity(run.replace("_s", "-s"))
        document = read_json(path, "perplexity")
        change(document)
        write_json(path, "perplexity", {key: document[key] for key in KEYS}, {})
    return score(found)


def without_100(document: dict[str, Any]) -> None:
    document["rows"] = [row for row in document["rows"] if row["context_length"] < 100]
    skipped = {"context_length": 100, "summary_length": None, "positions": 132, "model_positions": 128}
    document.update(skipped=[skipped], too_short=3)


def fewer_vectors(document: dict[str, Any]) -> None:
    """As with summary_lengths [1, 4]: the row without context is shared."""
    rows = [row for row in document["rows"] if row["context_length"]]
    document["rows"] += [
        {**row, "summary_length": 1, "summary_vectors": row["summary_vectors"] // 4, "loss": row["loss"] + 0.3}
        for row in rows
    ]


def not_finite(document: dict[str, Any]) -> None:
    for row in document["rows"]:
        if row["context_length"] == 50:
            row |= dict.fromkeys(("loss", "perplexity", "bits_per_byte", "loss_low", "loss_high"))
    record = {"document": 17, "domain": "stories", "context_length": 50, "summary_length": None, "tokens": 31}
    document["not_finite"] = [record]


def test_a_context_that_a_run_cannot_read_is_a_dash_and_told(tmp_path: Path) -> None:
    found = artifacts.experiment(tmp_path, only="perplexity")
    table = tables(found, written(found, base=without_100))["perplexity"]
    assert cell(table, "50 tokens", "all", "base").value is not None
    assert cell(table, "100 tokens", "all", "base").value is None
    assert next(line for line in as_csv(table).splitlines() if line.startswith("all,base")).endswith("–,–,640,1")
    assert table.remarks == [
        "base: not measured after 100 tokens of context, which need more than the model's 128 positions.",
        "3 documents are shorter than the longest reading and left out; 20 are not.",
    ]


def test_the_detail_table_has_intervals_bits_per_byte_and_vectors(tmp_path: Path) -> None:
    found = artifacts.experiment(tmp_path, only="perplexity")
    table = tables(found, written(found))["perplexity_details"]
    assert len(table.rows) == 4 * 3 and table.remarks == []
    loss = cell(table, "Loss", "rmt", 100)
    assert loss.value == pytest.approx(1.6) and loss.interval == pytest.approx((1.55, 1.65))
    assert cell(table, "Loss", "autocompressor", 100).deviation == pytest.approx(0.1 / math.sqrt(2))
    assert cell(table, "Bits per byte", "rmt", 100).value == pytest.approx(1.6 / math.log(2) / 4)
    assert cell(table, "Summary vectors", "rmt", 100).value == 4
    assert cell(table, "Documents", "rmt", 100).value == "20"


def test_fewer_vectors_have_rows_and_a_line_of_their_own(tmp_path: Path) -> None:
    found = artifacts.experiment(tmp_path, only="perplexity")
    scores = written(found, autocompressor_s0=fewer_vectors, autocompressor_s1=fewer_vectors)
    by_name = tables(found, scores)
    wide = cell(by_name["perplexity"], "100 tokens", "all", "autocompressor")
    assert wide.value == pytest.approx((math.exp(1.2) + math.exp(1.3)) / 2), "all summary tokens alone"
    names = [column.name for column in by_name["perplexity_details"].columns]
    rows = [
        [row[names.index(name)].value for name in ("Context", "Summary vectors", "Loss")]
        for row in by_name["perplexity_details"].rows
        if row[0].value == "autocompressor"
    ]
    expected = [[0, 0, 2.05], [50, 4, 1.65], [50, 1, 1.95], [100, 8, 1.25], [100, 2, 1.55]]
    assert [row[:2] for row in rows] == [row[:2] for row in expected]
    assert [row[2] for row in rows] == pytest.approx([row[2] for row in expected])
    assert headline(found)["perplexity/autocompressor/context=100/tokens=all/summary_length=1/loss"] == pytest.approx(
        1.55
    )
    figure = artifacts.figure(found, "perplexity_vectors", scores)
    panel = next(panel for panel in figure.axes if panel.get_title() == "all tokens")
    lines = {tuple(line.get_xdata()): list(line.get_ydata()) for line in panel.get_lines()}
    assert set(lines) == {(0, 4, 8), (0, 1, 2), (0, 4, 4)}
    assert lines[0, 4, 8] == pytest.approx([2.05, 1.65, 1.25])
    assert lines[0, 1, 2] == pytest.approx([2.05, 1.95, 1.55])
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["autocompressor", "autocompressor, 1 a step", "rmt", "small numbers: context (tokens)"]


def test_losses_that_are_not_finite_are_no_number_and_told(tmp_path: Path) -> None:
    found = artifacts.experiment(tmp_path, only="perplexity")
    table = tables(found, written(found, base=not_finite))["perplexity"]
    assert cell(table, "50 tokens", "all", "base").value is None
    assert cell(table, "100 tokens", "all", "base").value is not None
    assert table.remarks == [
        "base, context=50: losses that are not finite in 1 of its documents, the first in document 17 (domain stories)."
    ]


def test_classes_of_tokens_stand_together_and_training_seeds_are_averaged(tmp_path: Path) -> None:
    found = artifacts.experiment(tmp_path, only="perplexity")
    scores = written(found)
    table = tables(found, scores)["perplexity"]
    assert [row[0].value for row in table.rows] == [
        tokens for tokens in artifacts.LOSS_WITHOUT_CONTEXT for _ in range(4)
    ]
    seeds = [math.exp(2.4 - 0.8), math.exp(2.4 - 0.8 + 0.1)]
    mean = cell(table, "100 tokens", "recall", "autocompressor")
    assert mean.value == pytest.approx(sum(seeds) / 2)
    assert mean.deviation == pytest.approx(abs(seeds[0] - seeds[1]) / math.sqrt(2))
    assert cell(table, "100 tokens", "all", "rmt").deviation is None, "one seed says nothing about spread"
    assert cell(table, "Runs", "all", "autocompressor").value == 2
    assert cell(table, "Scored tokens", "all", "rmt").value == "640"
    figure, looks = artifacts.figure(found, "perplexity", scores), styles(found)
    panels = {panel.get_title(): panel for panel in figure.axes}
    assert set(panels) == {"all tokens", "tokens that only context predicts", "topic words", "recalled words"}
    lines = {line.get_color(): list(line.get_ydata()) for line in panels["recalled words"].get_lines()}
    assert lines[looks["rmt"].colour] == pytest.approx([2.4, 2.2, 2.0])
    assert lines[looks["autocompressor"].colour] == pytest.approx([2.45, 2.05, 1.65])
    band = panels["all tokens"].collections[-1].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(1.6 - 0.05), "one training seed: the interval over documents"


def test_a_corpus_with_several_domains_has_a_table_of_them(tmp_path: Path) -> None:
    corpus = {"source": "text", "domains": {"books": {"hub": "a"}, "code": {"hub": "b"}}}
    found = artifacts.experiment(tmp_path, only="perplexity", corpora={"world": corpus})
    by_name = tables(found, written(found))
    assert list(by_name) == ["perplexity", "perplexity_domains", "perplexity_details"]
    assert cell(by_name["perplexity"], "50 tokens", "all", "rmt").value == pytest.approx(math.exp(2.0 - 0.2))
    domains = by_name["perplexity_domains"]
    assert cell(domains, "50 tokens", "books", "rmt").value == pytest.approx(math.exp(2.0 - 0.2 + 0.2))
    assert cell(domains, "50 tokens", "code", "rmt").value == pytest.approx(math.exp(2.0 - 0.2 - 0.2))
    assert len(domains.rows) == 2 * 4


def test_without_compressors_there_is_no_figure_of_vectors(tmp_path: Path) -> None:
    section = {"corpus": "world", "context_lengths": [0, 50], "scored_tokens": 32, "tokens_per_step": 50}
    for runs, vectors in ((["base", "full_attention"], []), (["base", "rmt"], ["perplexity_vectors"])):
        found = artifacts.experiment(tmp_path, only="perplexity", perplexity={**section, "runs": runs})
        assert artifacts.names(found, "figure") == ["perplexity", *vectors, "training"]
