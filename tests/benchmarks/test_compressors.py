"""The benchmark of the compressors runs and says what it measured; its timings are not tested here."""

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
    yield importlib.import_module("compressors")
    del sys.modules["compressors"]


@pytest.fixture
def tiny(benchmark, monkeypatch):
    """Sizes that take no time, with the steps of `memory` in this process."""
    monkeypatch.setattr(benchmark, "alone", lambda function, *given, **options: function(*given, **options))
    return benchmark.Sizes(
        rounds=2, threads=torch.get_num_threads(), vocabulary=64, hidden=16, layers=1, segment=8, summary=2,
        machinery_limit=0.0, gist_hidden=16, gist_layers=1, instruction=12, prompt=3, new_tokens=3, batch=3,
        batched_limit=0.0, cached_limit=0.0, memory_segments=2, memory_vocabulary=64, memory_limit=float("-inf"),
    )  # fmt: skip


def test_a_table_and_a_file_with_every_measure(benchmark, tiny, tmp_path, capsys, monkeypatch):
    held = iter(range(0, 10**6, 7))
    monkeypatch.setattr(benchmark, "resident", lambda peak=False: float(next(held)))  # a step this small adds nothing
    out = tmp_path / "compressors.json"
    assert benchmark.main(["--out", str(out)], tiny) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert tuple(header.split()) == benchmark.COLUMNS
    document = read_json(out, benchmark.KIND)
    rows = document["rows"]
    assert len(lines) == len(rows) == 8
    assert [row["measure"] for row in rows] == [
        "machinery", "machinery", "batched_decoding",
        "cached_instruction", "cached_instruction", "cached_instruction", "memory", "memory",
    ]  # fmt: skip
    assert all(tuple(row) == benchmark.COLUMNS and row["value"] > 0 and row["beside"] > 0 for row in rows)
    assert [row["met"] for row in rows] == [True] * 4 + [None] * 2 + [True] * 2
    assert [line.split()[-2:] for line in lines[4:6]] == [["-", "-"]] * 2
    assert rows[0]["case"] == "llama, 20 positions"  # 8 + 2 summary tokens, 2 vectors + 8
    assert [row["unit"] for row in rows] == ["tokens/s"] * 6 + ["MiB"] * 2
    assert document["sizes"]["segment"] == 8 and document["provenance"]["packages"]["torch"]


def test_one_measure_and_a_limit_that_is_missed(benchmark, tiny, capsys):
    sizes = benchmark.replace(tiny, batched_limit=float("inf"))
    assert benchmark.main(["--quick", "--only", "batched_decoding"], sizes) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[1].split()[0] == "batched_decoding" and lines[1].endswith("NO")


def test_sides_take_turns_and_the_first_round_does_not_count(benchmark):
    order = []
    seconds = benchmark.in_turns([lambda: order.append("a"), lambda: order.append("b")], rounds=3)
    assert "".join(order) == "baabbaab"
    assert [len(taken) for taken in seconds] == [3, 3]


def test_a_ratio_is_the_median_of_its_rounds(benchmark):
    row = benchmark.speed("m", "c", [30, 10], [[1.0, 2.0, 9.0], [1.0, 1.0, 1.0]], limit=1.5)
    assert (row["value"], row["beside"], row["ratio"]) == (15.0, 10.0, 1.5)
    assert (row["lowest"], row["highest"], row["met"]) == (0.333, 3.0, True)


def test_what_a_process_of_its_own_holds(benchmark):
    assert benchmark.resident(peak=True) >= benchmark.resident() > 10
    assert benchmark.alone(abs, -2) == 2


@pytest.mark.parametrize("name", ["compressors", "icl", "training"])
def test_help_names_every_measure(benchmark, capsys, name):
    module = importlib.import_module(name)
    with pytest.raises(SystemExit) as ending:
        module.main(["--help"])
    assert ending.value.code == 0
    text = capsys.readouterr().out
    assert all(f"- {measure}:" in text for measure in module.MEASURES)
