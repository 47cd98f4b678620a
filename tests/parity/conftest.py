"""Parity with the published code: `pytest tests/parity --golden FOLDER`, by default ../shared/golden.

A test marked `golden("ac_opt*", ...)` runs once for each case of every folder under FOLDER whose name fits, with the
argument `case`; its sizes, ids and layer counts are read from the files.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from published import DEFAULT, Golden


def pytest_addoption(parser: pytest.Parser) -> None:
    with suppress(ValueError):  # tests/conftest.py has told of it already, for runs from the root
        parser.addoption("--golden", default=None, help=f"folder with the published code's outputs ({DEFAULT})")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "golden(*folders): run once for each case of the folders that fit")
    given = config.getoption("--golden", default=None)
    if given and not Path(given).is_dir():
        raise pytest.UsageError(f"--golden {given}: no such folder")


def _golden(config: pytest.Config) -> Golden | None:
    given = config.getoption("--golden", default=None)
    folder = Path(given) if given else config.rootpath / DEFAULT
    return Golden(folder) if folder.is_dir() else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marker = metafunc.definition.get_closest_marker("golden")
    if marker is None:
        return
    golden, parameters = _golden(metafunc.config), []
    for fixture in golden.folders(*marker.args) if golden else ():
        for name in golden.cases(fixture):  # type: ignore[union-attr]
            parameters.append(pytest.param(golden.case(fixture, name), id=f"{fixture}-{name}"))  # type: ignore[union-attr]
    missing = pytest.param(None, id="none", marks=pytest.mark.skip(f"no folder {', '.join(marker.args)} (--golden)"))
    metafunc.parametrize("case", parameters or [missing])


@pytest.fixture(scope="session")
def golden(request: pytest.FixtureRequest) -> Golden:
    found = _golden(request.config)
    if found is None:
        pytest.skip("no outputs of the published code here; give their folder with --golden")
    return found
