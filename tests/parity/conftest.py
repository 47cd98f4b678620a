"""Parity with the published code: `pytest tests/parity --golden FOLDER`, by default ../shared/golden.

A test that asks for a fixture named like `summary_case` runs once for each case of its folders; the cases that this
version does not cover are skipped by name, with what is missing.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from published import DEFAULT, LATER, Golden, reason_to_skip

CASES_OF = {
    "summary_case": ("ac_llama_acc", "ac_llama_rmt", "ac_llama_nosummary", "ac_llama_rope_linear", "ac_llama_gqa"),
    "gist_case": ("gist_llama",),
    "mask_case": ("gist_masks",),
    "training_case": ("ac_train",),
    "later_folder": tuple(LATER),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    with suppress(ValueError):  # tests/conftest.py has told of it already, for runs from the root
        parser.addoption("--golden", default=None, help=f"folder with the published code's outputs ({DEFAULT})")


def _golden(config: pytest.Config) -> Golden | None:
    given = config.getoption("--golden", default=None)
    folder = Path(given) if given else config.rootpath / DEFAULT
    return Golden(folder) if (folder / "README.md").is_file() else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for name in set(CASES_OF) & set(metafunc.fixturenames):
        golden, parameters = _golden(metafunc.config), []
        for fixture in CASES_OF[name] if golden else ():
            if name == "later_folder":
                parameters.append(_parameter(fixture, "", f"not covered yet: {LATER[fixture]}"))
            elif (golden.folder / fixture).is_dir():  # type: ignore[union-attr]
                cases = golden.cases(fixture)  # type: ignore[union-attr]
                parameters += [_parameter(fixture, case, reason_to_skip(fixture, case)) for case in cases]
        metafunc.parametrize(
            name, parameters or [_parameter("none", "", "no outputs of the published code (--golden)")]
        )


def _parameter(fixture: str, case: str, reason: str) -> object:
    marks = [pytest.mark.skip(reason=reason)] if reason else []
    return pytest.param((fixture, case), id="-".join(part for part in (fixture, case) if part), marks=marks)


@pytest.fixture(scope="session")
def golden(request: pytest.FixtureRequest) -> Golden:
    found = _golden(request.config)
    if found is None:
        pytest.skip("no outputs of the published code here; give their folder with --golden")
    return found
