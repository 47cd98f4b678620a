"""The page to read judgements in a real browser: what it shows and hides, and that no answer is taken for HTML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from report_browser import chromium
from synopsis.stages.judge.page import judgement_page
from synopsis.stages.judge.pairs import ORDERS, Pair, Question
from synopsis.stages.judge.records import Judgement, Reply

ATTACK = "</pre></article><script>document.title = 'taken'</script><img src=x onerror=\"document.title='taken'\">"
# Example -> choices with the answer of a shown first and second: A twice, B twice, a position twice, a tie, an error.
CHOICES: dict[str, tuple[int | None, int | None]] = {
    "e1": (0, 1),
    "e2": (1, 0),
    "e3": (0, 0),
    "e4": (2, 2),
    "e5": (0, None),
}


def written(folder: Path, labels: dict[str, str] | None = None) -> Path:
    pairs = [Pair(id, f"Task of {id}", ATTACK, f"{id} {ATTACK}", f"{id} other", ATTACK) for id in CHOICES]
    judgements = [
        Judgement.of(Question(pair, order), Reply(choice, text=f"said of {pair.id} {ATTACK}"), "p", "j")
        for pair in pairs
        for order, choice in zip(ORDERS, CHOICES[pair.id], strict=True)
    ]
    path = folder / "judgements.html"
    path.write_text(judgement_page(f"Judgements {ATTACK}", ("run <a>", "run <b>"), pairs, judgements, labels))
    return path


def seen(browser: Any) -> list[str]:
    return [it.text.split(":")[0] for it in browser.find_elements("css selector", "article h2") if it.is_displayed()]


def test_judgements_can_be_read_and_narrowed(tmp_path: Path) -> None:
    with chromium() as browser:
        browser.get(written(tmp_path).as_uri())
        assert seen(browser) == ["e1", "e2", "e3", "e4", "e5"]
        assert browser.title.startswith("Judgements </pre>") and not browser.find_elements("css selector", "img")
        first = browser.find_element("css selector", "article").text
        assert "e1: A wins" in first and "Task of e1" in first and "e1 other" in first and "said of e1 </pre>" in first
        winner = browser.find_element("id", "winner")
        for choice, expected in (("A", ["e1"]), ("B", ["e2"]), ("tie", ["e3", "e4"]), ("none", ["e5"])):
            winner.find_element("css selector", f"option[value={choice}]").click()
            assert seen(browser) == expected
            assert browser.find_element("id", "shown").text == f"{len(expected)} of 5"
        winner.find_element("css selector", "option[value='']").click()
        browser.find_element("id", "differ").click()
        assert seen(browser) == ["e3", "e5"]
        assert [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
        assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0


def test_labels_stand_beside_the_verdicts(tmp_path: Path) -> None:
    with chromium() as browser:
        browser.get(written(tmp_path, {"e1": "B", "e2": "B"}).as_uri())
        browser.find_element("id", "differ").click()
        assert seen(browser) == ["e1", "e3", "e5"]
        assert browser.find_element("css selector", "article h2").text == "e1: A wins; labelled B wins"
