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
from pathlib import Path
from typing import Any

import pytest
import yaml
from synopsis.reporting.rendering import Cell, Column, Table, as_html

ROOT = Path(__file__).parents[2]
NAMED = os.environ.get("SYNOPSIS_REPORT")
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


@pytest.fixture
def screenshots(tmp_path: Path) -> Path:
    folder = Path(os.environ.get("SYNOPSIS_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def until(look: Callable[[], Any], what: str) -> Any:
    """What `look` gives once it gives something."""
    end = time.monotonic() + WAIT_SECONDS
    while not (seen := look()):
        assert time.monotonic() < end, f"{what} did not appear within {WAIT_SECONDS:.0f} s"
        time.sleep(0.05)
    return seen


def opened(browser: Any, report: Path) -> None:
    """The start page anew; nothing of what was looked at before may be left."""
    browser.get("about:blank")
    browser.get(report.resolve().as_uri())
    until(lambda: browser.find_elements("css selector", "#app nav"), "the menu of the report")


def test_every_figure_and_table_can_be_looked_at(report_html: Path, browser: Any, screenshots: Path) -> None:
    opened(browser, report_html)
    assert browser.title == "Snakemake Report"
    text = browser.find_element("tag name", "body").text
    browser.save_screenshot(str(screenshots / "start.png"))
    categories = browser.execute_script("return Object.keys(categories)")
    assert categories and "Language models that compress their context" in text
    assert all(category in text for category in categories)
    shown: dict[tuple[str, str], str | int] = {}
    for category in categories:
        opened(browser, report_html)
        until(lambda: browser.find_elements("link text", category), category)[0].click()  # noqa: B023
        for eye in until(lambda: browser.find_elements("css selector", "a[iconname=eye]"), category):
            label = eye.find_element("xpath", "./ancestor::tr").text.strip()
            assert not eye.get_attribute("href").startswith("data:"), f"{label}: can be downloaded only"
            eye.click()
            selector = "img[src*='filename']:not(nav *), iframe"
            view = until(lambda: browser.find_elements("css selector", selector), label)[-1]  # noqa: B023
            shown[category, label] = content(browser, view)
            browser.save_screenshot(str(screenshots / f"{len(shown):02d}.png"))
    for (_, label), seen in shown.items():
        if label.endswith("(figure)"):
            assert isinstance(seen, int) and seen > 100, f"{label}: the picture cannot be decoded"
        else:
            assert label.endswith("(table)") and isinstance(seen, str)
            assert len(seen.splitlines()) >= 3, f"{label}: a title, a header and a row at least"
    if not NAMED:
        assert "A title to be seen" in text and set(shown) == set(RESULTS.values())
        assert "a_b 71.25 ± 2.50" in str(shown["In-context learning", "accuracy (table)"])
    assert [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    names = browser.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert [name for name in names if not name.startswith("data:")] == []  # nothing is loaded from elsewhere


def content(browser: Any, view: Any) -> str | int:
    """Width of a picture as decoded, 0 if it cannot be; or the text of a frame."""
    if view.tag_name == "img":
        until(lambda: browser.execute_script("return arguments[0].complete", view), "the picture")
        return int(browser.execute_script("return arguments[0].naturalWidth", view))
    browser.switch_to.frame(view)
    try:
        return str(until(lambda: browser.find_element("tag name", "body").text, "the text of a table"))
    finally:
        browser.switch_to.default_content()


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
