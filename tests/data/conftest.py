"""No test of data reads the mirror that the environment names, unless it says so itself."""

from __future__ import annotations

import pytest
from synopsis.data.sources import MIRROR_VARIABLE


@pytest.fixture(autouse=True)
def _no_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MIRROR_VARIABLE, raising=False)
