"""Parity with the published code: against the outputs in golden/, and in FOLDER with `--golden FOLDER`.

A test marked `golden("ac_opt*", ...)` runs once for each case of every folder that fits, with the argument `case`, or,
with the argument `golden`, once for each set that has a folder or file that fits. Sizes, ids and layer counts are read
from the files.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from published import golden_sets, parameters


def pytest_addoption(parser: pytest.Parser) -> None:
    with suppress(ValueError):  # tests/conftest.py has the option too, for runs from the root
        parser.addoption("--golden", default=None, help="folder with more outputs of the published code")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "golden(*patterns): run for each case or set of the folders that fit")
    given = config.getoption("--golden", default=None)
    if given and not Path(given).is_dir():
        raise pytest.UsageError(f"--golden {given}: no such folder")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marker = metafunc.definition.get_closest_marker("golden")
    if marker is None:
        return
    sets = golden_sets(metafunc.config)
    if "case" in metafunc.fixturenames:
        cases = {
            f"{golden.name}-{fixture}-{name}": case
            for golden in sets
            for fixture in golden.folders(*marker.args)
            for name, case in golden.cases(fixture).items()
        }
        metafunc.parametrize("case", parameters(cases, *marker.args))
    else:
        fitting = {golden.name: golden for golden in sets if golden.paths(*marker.args)}
        metafunc.parametrize("golden", parameters(fitting, *marker.args))
