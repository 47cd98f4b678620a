"""Options of the whole suite, and the command line as a fixture."""

from __future__ import annotations

import io
import signal
import sys
from collections.abc import Callable
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden", default=None, help="folder with more outputs of the published code (tests/parity)")


LONGEST = ("tests/workflow/test_demo", "tests/slurm/", "tests/workflow/")
"""Parts of the suite that share what they set up, the longest first; each other file is a part by itself."""


def part(nodeid: str) -> str:
    # The README's commands and examples use what the demo made.
    path = nodeid.split("::")[0].replace("test_readme", "test_demo")
    return next((part for part in LONGEST if path.startswith(part)), path)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {part: place for place, part in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(part(item.nodeid), len(order)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """For `pytest -n 2`: a part runs in one process. (The marks of pytest-xdist 3.8 do nothing in pytest 9.2.)"""
    from xdist.scheduler import LoadScopeScheduling

    class ByPart(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return part(nodeid)

    return ByPart(config, log)


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
