"""`snakemake --report` of the finished experiment, opened in a browser."""

from __future__ import annotations

from pathlib import Path

from report_browser import chromium, look_at
from running import Project

CATEGORIES = {"Perplexity", "In-context learning", "Needle", "Instructions", "Time and memory", "Training"}
TABLES = 8
FIGURES = 8


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
    assert (len(tables), len(shown) - len(tables)) == (TABLES, FIGURES)
    for label, text in tables.items():
        assert "autocompressor" in text or "gist-1" in text, label
