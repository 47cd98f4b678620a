"""The benchmark of ROUGE runs and compares both sides; its timings are not tested here."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
from synopsis.artifacts import read_json


def test_both_sides_agree(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    benchmark = importlib.import_module("rouge")
    monkeypatch.setattr(benchmark, "LIMIT", 0.0)
    (tmp_path / "o.csv").write_text('y_pred,y_true\n"the dogs\nran","a dog runs\nhome"\nx,\n')
    sizes = benchmark.Sizes(rounds=1, rows=5, words=20)
    try:
        words = ["--out", str(tmp_path / "o.json"), "--outputs", str(tmp_path / "o.csv")]
        assert benchmark.main(words, sizes) == 0
        rows = read_json(tmp_path / "o.json", "rouge-benchmark")["rows"]
        assert [(row["case"], row["met"]) for row in rows] == [("one_line", True), ("lines", True), ("file", True)]
        monkeypatch.setattr(benchmark, "TOLERANCE", -1)
        assert benchmark.main(["--only", "lines"], sizes) == 1
    finally:
        for name in ("rouge", "compressors"):
            sys.modules.pop(name, None)
