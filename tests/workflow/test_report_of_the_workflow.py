"""`snakemake --report` of the finished experiment, opened in a browser."""

from __future__ import annotations

import sys
from pathlib import Path

from running import Project

sys.path.insert(0, str(Path(__file__).parents[1] / "service"))
from test_report_browser import open_report

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
    seen = open_report(alone, tmp_path / "screenshots")
    assert "Every stage at its smallest" in seen.text
    assert set(seen.categories) == CATEGORIES == {result.category for result in seen.results}
    figures = [result for result in seen.results if result.label.endswith("(figure)")]
    tables = [result for result in seen.results if result.label.endswith("(table)")]
    assert (len(tables), len(figures)) == (TABLES, FIGURES)
    assert all(figure.width > 100 for figure in figures)
    for table in tables:
        assert "autocompressor" in table.text or "gist-1" in table.text, table.label
    assert seen.errors == [] and seen.loaded == []
