"""A Snakemake report in a real browser: what is seen when each of its results is looked at."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

WAIT_SECONDS = 60.0
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


@contextmanager
def chromium() -> Iterator[Any]:
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


def click(browser: Any, element: Any) -> None:
    """Wherever the menu, which moves as it opens, has brought the element just then."""
    browser.execute_script("arguments[0].click()", element)


def look_at(browser: Any, report: Path, screenshots: Path) -> dict[tuple[str, str], str | int]:
    """(category, label) of each result -> the text of a table, or the width of a figure's picture.

    Fails where a result can be downloaded only, where a script of the page failed, and where something was loaded from
    elsewhere.
    """
    screenshots.mkdir(parents=True, exist_ok=True)
    opened(browser, report)
    shown: dict[tuple[str, str], str | int] = {}
    for category in browser.execute_script("return Object.keys(categories)"):
        opened(browser, report)
        click(browser, until(lambda: browser.find_elements("link text", category), category)[0])  # noqa: B023
        for eye in until(lambda: browser.find_elements("css selector", "a[iconname=eye]"), category):
            label = eye.find_element("xpath", "./ancestor::tr").text.strip()
            assert not eye.get_attribute("href").startswith("data:"), f"{label}: can be downloaded only"
            click(browser, eye)
            selector = "img[src*='filename']:not(nav *), iframe"
            view = until(lambda: browser.find_elements("css selector", selector), label)[-1]  # noqa: B023
            shown[category, label] = _content(browser, view)
            browser.save_screenshot(str(screenshots / f"{len(shown):02d}.png"))
    assert [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    names = browser.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert [name for name in names if not name.startswith("data:")] == []
    for (_, label), seen in shown.items():
        if label.endswith("(figure)"):
            assert isinstance(seen, int) and seen > 100, f"{label}: the picture cannot be decoded"
        else:
            assert label.endswith(("(table)", "(page)")) and isinstance(seen, str)
            assert len(seen.splitlines()) >= 3, f"{label}: a title, a header and a row at least"
    return shown


def _content(browser: Any, view: Any) -> str | int:
    """Width of a picture as decoded, 0 if it cannot be; or the text of a frame."""
    if view.tag_name == "img":
        until(lambda: browser.execute_script("return arguments[0].complete", view), "the picture")
        return int(browser.execute_script("return arguments[0].naturalWidth", view))
    browser.switch_to.frame(view)
    try:
        return str(until(lambda: browser.find_element("tag name", "body").text, "the text of a table"))
    finally:
        browser.switch_to.default_content()
