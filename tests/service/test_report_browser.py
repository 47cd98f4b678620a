"""The HTML report in a real browser: what a person sees on opening it, and that each result can be looked at.

Without further settings a small workflow makes the report; `SYNOPSIS_REPORT=path/to/report.html` has a finished one
looked at instead. Screenshots go to the test's folder, or to the one that `SYNOPSIS_SCREENSHOTS` names.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CAPTIONS = ROOT / "workflow" / "report"
WAIT_SECONDS = 30.0
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1400,900",
)
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="300" height="200"><circle cx="150" cy="100" r="80"/></svg>'


@dataclass
class Shown:
    """One result as it appears after a click on its eye.

    width: of the picture as decoded, 0 if it cannot be; text: of the page inside a frame; screenshot: PNG file.
    """

    category: str
    label: str
    width: int
    text: str
    screenshot: Path


@dataclass
class ReportPage:
    """What an opened report shows: visible text of the start page, categories, results, and what went wrong."""

    title: str
    text: str
    categories: list[str]
    results: list[Shown] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)
    """Addresses that the page loaded, those inside the file itself left out."""


def open_report(path: Path, screenshots: Path) -> ReportPage:
    """Open a Snakemake report and look at every result of every category."""
    screenshots.mkdir(parents=True, exist_ok=True)
    with _browser() as browser:
        browser.get(path.resolve().as_uri())
        _until(lambda: browser.find_elements("css selector", "#app nav"), "the menu of the report")
        body = browser.find_element("tag name", "body")
        categories = browser.execute_script("return Object.keys(categories)")
        page = ReportPage(browser.title, body.text, categories)
        browser.save_screenshot(str(screenshots / "start.png"))
        for category in categories:
            # From the start page anew for each category, as a person comes to it; nothing of the last one may be left.
            browser.get("about:blank")
            browser.get(path.resolve().as_uri())
            _until(lambda: browser.find_elements("link text", category), f"the category {category}")[0].click()  # noqa: B023
            page.results += _look_at_results(browser, category, screenshots)
        page.errors = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
        names = browser.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
        page.loaded = [name for name in names if not name.startswith("data:")]
    return page


def _look_at_results(browser: Any, category: str, screenshots: Path) -> list[Shown]:
    eyes = _until(lambda: browser.find_elements("css selector", "a[iconname=eye]"), f"the results of {category}")
    found = []
    for eye in eyes:
        label = eye.find_element("xpath", "./ancestor::tr").text.strip()
        address = eye.get_attribute("href")
        if address.startswith("data:"):
            raise AssertionError(f"{category}, {label}: can be downloaded only, not looked at")
        eye.click()
        view = _until(lambda: browser.find_elements("css selector", "img[src*='filename']:not(nav *), iframe"), label)[
            -1
        ]
        screenshot = screenshots / f"{len(list(screenshots.iterdir())):02d}.png"
        width, text = _content(browser, view)
        browser.save_screenshot(str(screenshot))
        found.append(Shown(category, label, width, text, screenshot))
    return found


def _content(browser: Any, view: Any) -> tuple[int, str]:
    """Width of a picture, or text of a frame."""
    if view.tag_name == "img":
        loaded = _until(lambda: browser.execute_script("return arguments[0].complete", view), "the picture")
        return (browser.execute_script("return arguments[0].naturalWidth", view) if loaded else 0), ""
    browser.switch_to.frame(view)
    try:
        return 0, _until(lambda: browser.find_element("tag name", "body").text, "the text of a table")
    finally:
        browser.switch_to.default_content()


def _until(look: Callable[[], Any], what: str) -> Any:
    """What `look` gives once it gives something."""
    end = time.monotonic() + WAIT_SECONDS
    while not (seen := look()):
        if time.monotonic() > end:
            raise AssertionError(f"{what} did not appear within {WAIT_SECONDS:.0f} s")
        time.sleep(0.05)
    return seen


@contextmanager
def _browser() -> Iterator[Any]:
    """A browser with a profile of its own, closed at the end; skips the test where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="the package selenium is not installed")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("no chromium with its chromedriver on this machine")
    profile = tempfile.mkdtemp(prefix="synopsis-browser-")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # With the driver's path given, selenium does not look for one on the network.
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield browser
    finally:
        browser.quit()
        shutil.rmtree(profile, ignore_errors=True)


@pytest.fixture(scope="module")
def report_html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report that the environment names, or one of a workflow with a table and a figure."""
    if named := os.environ.get("SYNOPSIS_REPORT"):
        return Path(named)
    pytest.importorskip("snakemake", reason="the package snakemake is not installed")
    from synopsis.reporting.rendering import Cell, Column, Table, as_html

    folder = tmp_path_factory.mktemp("workflow")
    (folder / "source").mkdir()
    columns = [Column("Run", lambda row: row[0], key=True), Column("Mean", lambda row: row[1])]
    table = Table("Accuracy & spread", columns, [("a_b", Cell(71.25, 2.5))])
    (folder / "source" / "icl.html").write_text(as_html(table), encoding="utf-8")
    for name in ("icl.svg", "training.svg"):
        (folder / "source" / name).write_text(SVG, encoding="utf-8")
    targets = ["tables/icl.html", "figures/icl.svg", "figures/training.svg"]
    rules = [
        f'report: "{CAPTIONS / "workflow.rst"}"',
        f"rule all:\n    input: {targets}",
    ]
    for target in targets:
        name, kind = Path(target), target.split("s/")[0]
        (folder / "caption.rst").write_text("How to read it.", encoding="utf-8")
        category = {"icl": "In-context learning", "training": "Training"}[name.stem]
        labels = {"result": f"{name.stem} ({kind})"}
        declared = f'report("{target}", caption="caption.rst", category="{category}", labels={labels})'
        rules.append(
            f'rule {name.stem}_{name.parent}:\n    output: {declared}\n    shell: "cp source/{name.name} {{output}}"'
        )
    (folder / "Snakefile").write_text("\n".join(rules) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--config", "title=A title to be seen"]
    profile = yaml.safe_load((ROOT / "workflow" / "profiles" / "default" / "config.yaml").read_text())
    style = str(ROOT / profile["report-stylesheet"])
    for arguments in (["--quiet"], ["--report", "report.html", "--report-stylesheet", style]):
        done = subprocess.run([*command, *arguments], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return folder / "report.html"


@pytest.fixture(scope="module")
def page(report_html: Path, tmp_path_factory: pytest.TempPathFactory) -> ReportPage:
    named = os.environ.get("SYNOPSIS_SCREENSHOTS")
    return open_report(report_html, Path(named) if named else tmp_path_factory.mktemp("screenshots"))


def test_the_start_page_says_what_the_report_is_about(page: ReportPage) -> None:
    assert page.title == "Snakemake Report"
    assert "Language models that compress their context" in page.text
    for category in page.categories:
        assert category in page.text
    if "SYNOPSIS_REPORT" not in os.environ:
        assert "A title to be seen" in page.text
        assert set(page.categories) == {"In-context learning", "Training"}


def test_every_figure_and_table_can_be_looked_at(page: ReportPage) -> None:
    assert page.results
    assert {result.category for result in page.results} == set(page.categories)
    for result in page.results:
        if result.label.endswith("(figure)"):
            assert result.width > 100, f"{result.label}: the picture cannot be decoded"
        else:
            assert result.label.endswith("(table)")
            assert len(result.text.splitlines()) >= 3, f"{result.label}: a title, a header and a row at least"
        assert result.screenshot.read_bytes().startswith(b"\x89PNG")
    if "SYNOPSIS_REPORT" not in os.environ:
        (table,) = (result for result in page.results if result.label.endswith("(table)"))
        assert "a_b 71.25 ± 2.50" in table.text


def test_the_page_has_no_errors_and_loads_nothing_from_elsewhere(page: ReportPage) -> None:
    assert page.errors == []
    assert page.loaded == []


def test_on_a_phone_the_menu_covers_nothing(report_html: Path, tmp_path: Path) -> None:
    with _browser() as browser:
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True},
        )
        browser.get(report_html.resolve().as_uri())
        _until(lambda: browser.find_elements("css selector", "#app nav"), "the menu of the report")

        def stacked() -> bool:
            places = [
                browser.execute_script(
                    "return document.querySelector(arguments[0]).getBoundingClientRect().toJSON()", selector
                )
                for selector in ("#app > div > nav", "#app > div > nav + div")
            ]
            menu, content = places
            return menu["bottom"] <= content["top"] and content["width"] == 390 and content["height"] > 844 / 3

        # The styles are made by a script, after the elements.
        _until(stacked, "a menu above the contents")
        browser.save_screenshot(str(Path(os.environ.get("SYNOPSIS_SCREENSHOTS", tmp_path)) / "phone.png"))
