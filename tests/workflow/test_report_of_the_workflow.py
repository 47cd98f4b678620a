"""`snakemake --report` of the finished experiment, opened in a browser."""

from __future__ import annotations

from pathlib import Path

from report_browser import chromium, look_at
from running import CONFIG, Project
from synopsis.config.experiment import load_experiment
from synopsis.reporting.items import items

CATEGORIES = {"Perplexity", "In-context learning", "Needle", "Instructions", "Time and memory", "Training"}


def test_the_report_is_one_page_that_shows_every_table_and_figure(finished: Project, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    done = finished.snakemake("--report", str(page))
    assert done.returncode == 0, done.stdout + done.stderr
    # Alone in a folder: whatever the page needs has to be inside it.
    alone = tmp_path / "elsewhere" / "report.html"
    alone.parent.mkdir()
    page.rename(alone)
    assert "Every stage at its smallest" in alone.read_text(encoding="utf-8")
    with chromium() as browser:
        shown = look_at(browser, alone, tmp_path / "screenshots")
    assert {category for category, _ in shown} == CATEGORIES
    tables = {label: text for (_, label), text in shown.items() if isinstance(text, str)}
    experiment = load_experiment(finished.folder / CONFIG)
    declared = {kind: len(items(experiment, kind)) for kind in ("table", "figure", "page")}
    assert all(declared.values())
    assert (len(tables), len(shown) - len(tables)) == (declared["table"] + declared["page"], declared["figure"])
    for label, text in tables.items():
        assert "autocompressor" in text or "gist-1" in text, label
