"""The benchmark of planning runs and counts its jobs; its timings are not tested here."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
from synopsis.artifacts import read_json


def test_it_plans_as_many_jobs_as_are_asked_for(monkeypatch, tmp_path, capsys) -> None:
    pytest.importorskip("snakemake", reason="the package snakemake is not installed")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    monkeypatch.setattr(sys, "argv", ["planning.py", "--jobs", "30", "--out", str(tmp_path / "out.json")])
    benchmark = importlib.import_module("planning")
    monkeypatch.setattr(benchmark, "MOST_SECONDS", 1e9)
    with pytest.raises(SystemExit) as ended:
        benchmark.main()
    sys.modules.pop("planning")
    assert ended.value.code == 0 and capsys.readouterr().out.startswith("30 jobs planned in ")
    numbers = read_json(tmp_path / "out.json", "planning-benchmark")
    assert numbers["jobs"] == 30 and numbers["cpu_seconds"] > 0 and numbers["peak_bytes"] > 0
