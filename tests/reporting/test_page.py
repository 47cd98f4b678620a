"""The front page: sentences from the numbers, links that lead somewhere, and what failed or is missing."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path
from urllib.parse import unquote

import pytest
import reporting_artifacts as artifacts
from synopsis.artifacts import Layout, write_json
from synopsis.config.experiment import Experiment
from synopsis.errors import ArtifactError
from synopsis.reporting.page import front_page
from synopsis.reporting.report import headline, report, tables
from synopsis.reporting.scores import read_scores, score

ODD = 'A "title" of <script>alert(1)</script> & more'


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    subject = artifacts.experiment(tmp_path_factory.mktemp("page"), needle=artifacts.NEEDLE, title=ODD)
    artifacts.write_artifacts(subject)
    score(subject)
    report(subject, ["--config", "my file.yaml"])
    return subject


def text_of(subject: Experiment) -> str:
    """The words of the page, one space between them."""
    page = re.sub(r"<style>.*?</style>", "", Layout(subject).page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", page)).split())


def test_the_findings_are_sentences_with_their_uncertainty(reported: Experiment) -> None:
    text = text_of(reported)
    for sentence in (
        "autocompressor: loss of tokens that only context predicts 2.550 ± 0.071 nats after 0 tokens of context, "
        "1.750 ± 0.071 after 100, read as 8 summary vectors.",
        "rmt: loss of tokens that only context predicts 2.500 [2.450, 2.550] nats after 0 tokens of context",
        "rmt: mean accuracy on 2 data sets 40.0 % with zero shot, 72.0 ± 2.0 % with plain 48, 62.0 ± 2.0 % with "
        "summary 4 (draws: 1–3).",
        "gist-1 against pos_control on seen: win rate 68.8 [60.0, 75.0] % (judge: reference, ties half).",
        "gist-1: ROUGE-L 50.0 [46.0, 53.0] on seen (75 % recovered), 45.0 [41.0, 48.0] on unseen (75 % recovered).",
        "rmt: reading 128 tokens of context again (batch 8) takes 2.60 [2.60, 2.60] times as long as using them "
        "compressed, and 32.0 times the cache. Compressing pays from use 7 on.",
        "base finds 85 [64, 95] % of the keys in contexts of 60 tokens (chance: 25 %).",
    ):
        assert sentence in text
    assert "judge/reference/gist-1-vs-pos_control/seen/win_rate 0.6875" in text
    assert "rmt-s0, benchmark" in text and "tokens of the mode 'prefix' differ from one pass by 0.2" in text
    assert "Failed or missing (1)" in text


def test_every_number_leads_to_its_files_and_a_command(reported: Experiment) -> None:
    layout = Layout(reported)
    links = re.findall(r'href="([^"#]+)"', layout.page.read_text(encoding="utf-8"))
    paths = {unquote(unescape(link)) for link in links if not link.startswith("data:")}
    assert {path for path in paths if not (layout.root / path).is_file()} == {"snakemake-report.html"}
    assert {
        "tables/icl.csv",
        "pages/reference-gist-1-s0-vs-pos_control-s0-seen.html",
        "figures/icl.pdf",
        "needle/base.json",
        "icl/rmt-s0/world_eats/seed2.json",
    } <= paths
    text = text_of(reported)
    assert "synopsis icl --config 'my file.yaml' base world_eats --seed 0" in text
    assert "synopsis train --config 'my file.yaml' base" in text
    assert "snakemake --cores all --configfile 'my file.yaml'" in text


def test_the_page_is_whole_in_itself_and_takes_no_text_for_markup(reported: Experiment) -> None:
    page = Layout(reported).page.read_text(encoding="utf-8")
    assert not re.search(r"<script|<link (?!rel=\"icon\" href=\"data:)|@import|url\(|src=\"(?!data:)", page)
    assert not re.search(r"href=\"[a-z]+:(?!,)", page)
    assert text_of(reported).startswith(f"{ODD} {ODD} Experiment small")


def test_equal_results_give_an_equal_page(reported: Experiment) -> None:
    layout = Layout(reported)
    scores = read_scores(layout.scores)
    options = ["--config", "my file.yaml"]
    again = front_page(reported, scores, tables(reported, scores), headline(reported), options)
    assert layout.page.read_text(encoding="utf-8") == again


def test_what_failed_is_missing_or_does_not_belong_together_is_named(tmp_path: Path) -> None:
    subject = artifacts.experiment(tmp_path, only="icl")
    layout = artifacts.write_artifacts(subject)
    artifacts.write_icl_result(subject, "rmt-s0", "world_eats", 1, plain_48={"error": "no <room> left"})
    for run, commit in (("base", "a" * 40), ("rmt-s0", "b" * 40)):
        record = {"commit": commit, "dirty": False, "config": "of before"}
        write_json(layout.model(run) / "provenance.json", "model", {}, record)
    score(subject)
    layout.icl("base", "world_wears", 2).unlink()
    layout.icl("base", "world_wears", 1).write_text("{")
    report(subject)
    text = text_of(subject)
    assert "rmt-s0, icl, dataset world_eats, split validation, setting plain_48, seed 1: no <room> left" in text
    assert "1 of 30 results are missing (logs: logs/icl): icl/base/world_wears/seed2.json." in text
    assert "seed1.json: not valid JSON" in text
    assert "Training: 2 of 8 results were made with other settings than the experiment has now: models/base" in text
    assert "2 states of the sources: aaaaaaaaaa, bbbbbbbbbb" in text


def test_an_experiment_without_results_has_a_page_that_says_so(tmp_path: Path) -> None:
    subject = artifacts.experiment(tmp_path)
    layout = Layout(subject)
    with pytest.raises(ArtifactError, match=r"scores\.parquet: no such file; .*report\.html says which"):
        report(subject)
    assert [path.name for path in layout.root.iterdir()] == ["report.html"]
    text = text_of(subject)
    assert "No results yet: nothing was scored." in text
    assert "Perplexity: 5 of 5 results are missing (logs: logs/perplexity)." in text and "Time and memory 0 of" in text
