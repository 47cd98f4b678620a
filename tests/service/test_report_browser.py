"""The front page and Snakemake's own report in a real browser: nothing is cut off, each result can be looked at.

Without further settings made-up results and a small workflow make them; `SYNOPSIS_REPORT=path/to/snakemake-report.html`
and the report.html beside it are looked at instead. Screenshots go to the test's folder, or to the one that
`SYNOPSIS_SCREENSHOTS` names.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import reporting_artifacts as artifacts
import yaml
from report_browser import chromium, look_at, opened, show_at, until
from synopsis.artifacts import Layout
from synopsis.errors import ArtifactError
from synopsis.reporting.rendering import Cell, Column, Table, as_html
from synopsis.reporting.report import report
from synopsis.reporting.scores import score

ROOT = Path(__file__).parents[2]
NAMED = os.environ.get("SYNOPSIS_REPORT")
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="300" height="200"><circle cx="150" cy="100" r="80"/></svg>'
RESULTS = {
    "tables/icl.html": ("In-context learning", "accuracy (table)"),
    "figures/icl.svg": ("In-context learning", "accuracy (figure)"),
    "figures/training.svg": ("Training", "loss (figure)"),
}


@pytest.fixture(scope="module")
def report_html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report that the environment names, or one of a workflow with a table and two figures."""
    if NAMED:
        return Path(NAMED)
    pytest.importorskip("snakemake", reason="the package snakemake is not installed")
    folder = tmp_path_factory.mktemp("workflow")
    (folder / "source").mkdir()
    (folder / "caption.rst").write_text("How to read it.")
    columns = [Column("Run", lambda row: row[0], key=True), Column("Mean", lambda row: row[1])]
    table = as_html(Table("Accuracy & spread", columns, [("a_b", Cell(71.25, 2.5))]))
    rules = [f'report: "{ROOT / "workflow" / "report" / "workflow.rst"}"', f"rule all:\n    input: {list(RESULTS)}"]
    for number, (target, (category, label)) in enumerate(RESULTS.items()):
        (folder / "source" / Path(target).name).write_text(table if target.endswith(".html") else SVG)
        place = f'caption="caption.rst", category="{category}", labels={{"result": "{label}"}}'
        output = f'output: report("{target}", {place})'
        rules.append(f'rule r{number}:\n    {output}\n    shell: "cp source/{Path(target).name} {{output}}"')
    (folder / "Snakefile").write_text("\n".join(rules) + "\n")
    profile = yaml.safe_load((ROOT / "workflow" / "profiles" / "default" / "config.yaml").read_text())
    style = str(ROOT / profile["report-stylesheet"])
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--config", "title=A title to be seen"]
    for arguments in (["--quiet"], ["--report", "report.html", "--report-stylesheet", style]):
        done = subprocess.run([*command, *arguments], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return folder / "report.html"


@pytest.fixture
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture
def screenshots(tmp_path: Path) -> Path:
    folder = Path(os.environ.get("SYNOPSIS_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def front_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if NAMED:
        return Path(NAMED).with_name("report.html")
    long = {"title": "A title of many words, one of them with_no_place_to_break_it_" + "and_more_of_it_" * 8}
    subject = artifacts.experiment(tmp_path_factory.mktemp("page"), needle=artifacts.NEEDLE, **long)
    artifacts.write_artifacts(subject)
    score(subject)
    report(subject)
    return Layout(subject).page


@pytest.mark.parametrize("width", [1400, 390])
def test_the_front_page_fits_the_window_and_loads_nothing(
    front_page: Path, browser: Any, screenshots: Path, width: int, tmp_path: Path
) -> None:
    # Alone in a folder: whatever the page needs has to be inside it.
    alone = tmp_path / "alone" / "report.html"
    alone.parent.mkdir()
    alone.write_bytes(front_page.read_bytes())
    show_at(browser, alone, width, screenshots / f"front-{width}.png")
    browser.execute_script("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    headings = [found.text for found in browser.find_elements("css selector", "h2")]
    assert headings[:3] == ["Main findings", "Failed or missing", "Perplexity"] and headings[-1] == "Files"
    figures = list((front_page.parent / "figures").glob("*.svg"))
    assert len(browser.find_elements("css selector", "figure img")) == len(figures) > 0


def test_a_page_without_results_fits_a_phone(browser: Any, screenshots: Path, tmp_path: Path) -> None:
    subject = artifacts.experiment(tmp_path)
    with pytest.raises(ArtifactError, match="no such file"):
        report(subject)
    show_at(browser, Layout(subject).page, 390, screenshots / "front-empty.png")
    assert "No results yet" in browser.find_element("tag name", "body").text


def test_every_figure_and_table_can_be_looked_at(report_html: Path, browser: Any, screenshots: Path) -> None:
    opened(browser, report_html)
    text = browser.find_element("tag name", "body").text
    browser.save_screenshot(str(screenshots / "start.png"))
    assert browser.title == "Snakemake Report" and "Language models that compress their context" in text
    shown = look_at(browser, report_html, screenshots)
    assert all(category in text for category, _ in shown)
    if not NAMED:
        assert "A title to be seen" in text and set(shown) == set(RESULTS.values())
        assert "a_b 71.25 ± 2.50" in str(shown["In-context learning", "accuracy (table)"])


def test_on_a_phone_the_menu_covers_nothing(report_html: Path, browser: Any, screenshots: Path) -> None:
    size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    opened(browser, report_html)
    measure = "return document.querySelector(arguments[0]).getBoundingClientRect().toJSON()"

    def stacked() -> bool:
        menu = browser.execute_script(measure, "#app > div > nav")
        page = browser.execute_script(measure, "#app > div > nav + div")
        return menu["bottom"] <= page["top"] and page["width"] == 390 and page["height"] > 844 / 3

    until(stacked, "a menu above the contents")  # the styles are made by a script, after the elements
    browser.save_screenshot(str(screenshots / "phone.png"))
