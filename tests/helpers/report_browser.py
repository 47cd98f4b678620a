"""Reports in a real browser: the front page at several widths, and each result of Snakemake's own report."""

from __future__ import annotations

import base64
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


CUT_OFF = """
return [...document.body.querySelectorAll('*')].filter(element => {
  const box = element.getBoundingClientRect()
  const scrolls = element.parentElement.closest('.scroll, .files, figure, details')
  return box.width && !scrolls && (box.left < 0 || box.right > innerWidth)
}).map(element => element.outerHTML.slice(0, 100))
"""
"""Elements that stick out of the window and cannot be scrolled to in a box of their own."""


def show_at(browser: Any, page: Path, width: int, screenshot: Path) -> None:
    """Open a page in a window of so many pixels and take a picture of all of it.

    Fails where something is cut off, a picture cannot be decoded, a script failed or anything was loaded.
    """
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(page.resolve().as_uri())
    whole = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
    screenshot.write_bytes(base64.b64decode(whole["data"]))
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.execute_script(CUT_OFF) == []
    pictures = browser.execute_script(
        "return [...document.images].map(one => [one.alt, one.complete && one.naturalWidth])"
    )
    assert [alt for alt, decoded in pictures if decoded < 100] == []
    nothing_failed_or_loaded(browser)


def nothing_failed_or_loaded(browser: Any) -> None:
    """No error in the console, and no request since the page was opened."""
    assert [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    names = browser.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert [name for name in names if not name.startswith("data:")] == []


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
    nothing_failed_or_loaded(browser)
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
