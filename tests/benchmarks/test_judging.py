"""The benchmark of judging runs and says what it measured; its timings are not tested here."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch
from synopsis.artifacts import read_json

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield importlib.import_module("judging")
    for name in ("judging", "compressors"):
        sys.modules.pop(name, None)


def test_a_table_and_a_file_with_every_measure(benchmark, tmp_path, capsys):
    sizes = benchmark.JudgingSizes(
        rounds=1, threads=torch.get_num_threads(), pairs=3, seconds=0.001, concurrency=2, asking_limit=0.0, stored=6,
        resuming_limit=0.0,
    )  # fmt: skip
    out = tmp_path / "judging.json"
    assert benchmark.main(["--out", str(out)], sizes) == 0
    rows, shown = read_json(out, benchmark.KIND)["rows"], capsys.readouterr().out
    assert [(row["measure"], row["met"]) for row in rows] == [("asking", True), ("resuming", True)]
    assert all(row["case"] in shown and row["value"] > 0 for row in rows)
    missed = benchmark.JudgingSizes(rounds=1, threads=torch.get_num_threads(), stored=6, resuming_limit=1e9)
    assert benchmark.main(["--only", "resuming"], missed) == 1
