"""Options of the whole suite, and the command line as a fixture."""

from __future__ import annotations

import io
import signal
import sys
from collections.abc import Callable

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden", default=None, help="folder with more outputs of the published code (tests/parity)")


LONGEST = ("/tests/workflow/test_demo", "/tests/slurm/", "/tests/workflow/")
"""Parts of the suite that share what they set up, the longest first."""


@pytest.hookimpl(tryfirst=True)  # xdist reads the marks in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """For `pytest -n 2 --dist loadgroup`: which tests run in one process, and in which order."""

    def part(item: pytest.Item) -> str:
        # The README's commands and examples use what the demo made.
        place = item.path.as_posix().replace("test_readme", "test_demo")
        return next((part for part in LONGEST if part in place), place)

    items.sort(key=lambda item: LONGEST.index(part(item)) if part(item) in LONGEST else len(LONGEST))
    for item in items:
        item.add_marker(pytest.mark.xdist_group(part(item)))


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command line as the installed program does: (exit code, standard output, standard error)."""
    from synopsis.cli import main

    monkeypatch.setattr(signal, "signal", lambda *_: None)

    def run(*words: object, stdin: str | bytes = "") -> tuple[int, str, str]:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
        monkeypatch.setattr(sys, "argv", ["synopsis", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return int(end.value.code or 0), out, err

    return run
