"""The benchmark of reporting runs and counts its rows; its timings are not tested here."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
from synopsis.artifacts import read_json


def test_it_measures_as_many_rows_as_are_asked_for(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    monkeypatch.setattr(sys, "argv", ["reporting.py", "--rows", "1000", "--out", str(tmp_path / "out.json")])
    benchmark = importlib.import_module("reporting")
    for name, value in {"MOST_SECONDS": 1e9, "MOST_BYTES": 1e12, "DATASETS": 2, "SEEDS": 2}.items():
        monkeypatch.setattr(benchmark, name, value)
    with pytest.raises(SystemExit) as ended:
        benchmark.main()
    sys.modules.pop("reporting")
    assert ended.value.code == 0 and capsys.readouterr().out.startswith("1,045 rows: collected in ")
    assert set(read_json(tmp_path / "out.json", "reporting-benchmark")["seconds"]) == {
        *("collected", "read", "pivoted", "rendered")
    }
