"""The script for GPUs runs every step with very small sizes on a CPU, in time, and writes after each result."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch
from synopsis.artifacts import read_json

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module("gpu")
    for name in ("gpu", "training", "compressors"):
        sys.modules.pop(name, None)


def test_every_step_runs_on_a_cpu(gpu, tmp_path):
    out = tmp_path / "gpu.json"
    assert gpu.main(["--minutes", "10", "--out", str(out), "--device", "cpu", "--micro"]) == 0
    results = read_json(out, gpu.KIND)["results"]
    assert list(results) == list(gpu.STEPS)
    assert len(results["parity"]) == 2 * len(gpu.METHODS) and not any(one["failed"] for one in results["parity"])
    assert all(one["difference_from_cpu"] in (None, 0) for one in results["parity"])
    by_attention = {(one["method"], one["attention"]): one for one in results["attention"]}
    assert by_attention["gist", "sdpa"]["difference_from_eager"] < 0.05
    assert "error" in by_attention["summary", "flash_attention_2"]
    assert all(one["speed_up"] > 0 and one["modes"]["none"]["token_seconds"] > 0 for one in results["sweep"])
    # Weights and 48 + 4 or 12 + 4 positions of two layers.
    weights = 512 * 64 + 2 * (4 * 64 * 64 + 3 * 64 * 128)
    assert results["sweep"][0]["ceiling"] == pytest.approx(
        (weights + 2 * 52 * 2 * 2 * 64) / (weights + 2 * 16 * 2 * 2 * 64)
    )
    assert [one["lora"] for one in results["training"]] == [False, True]
    assert results["loss"] == [{"skipped": "needs a GPU and liger-kernel"}]


def test_no_result_is_begun_too_late_and_a_step_that_fails_costs_no_other(gpu, tmp_path, monkeypatch):
    out = tmp_path / "gpu.json"
    given = ["--out", str(out), "--device", "cpu", "--micro"]
    assert gpu.main(["--minutes", "0", *given]) == 0
    assert read_json(out, gpu.KIND)["results"] == {step: [{"skipped": "no time left"}] for step in gpu.STEPS}

    def broken(sizes, device):
        yield {"one": 1}
        raise RuntimeError("a kernel failed\nand more")

    monkeypatch.setattr(gpu, "STEPS", {"broken": broken, "collectives": gpu.collectives})
    assert gpu.main(["--minutes", "1", *given]) == 1
    results = read_json(out, gpu.KIND)["results"]
    assert results["broken"] == [{"one": 1}, {"error": "RuntimeError: a kernel failed"}] and results["collectives"]


def test_a_device_that_is_not_there_is_one_message(gpu, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--minutes", "1", "--out", str(tmp_path / "gpu.json")]) == 2
    assert "--device cuda: torch finds no GPU here" in capsys.readouterr().err and not list(tmp_path.iterdir())
