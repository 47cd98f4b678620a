"""The benchmark of training runs and says what it measured; its timings are not tested here."""

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
    """The module, with the steps of `memory` in this process."""
    monkeypatch.syspath_prepend(str(FOLDER))
    module = importlib.import_module("training")
    monkeypatch.setattr(module, "alone", lambda function, *given, **options: function(*given, **options))
    yield module
    for name in ("training", "compressors"):
        sys.modules.pop(name, None)


def tiny(benchmark, **changes):
    return benchmark.StepSizes(
        rounds=2, threads=torch.get_num_threads(), vocabulary=64, hidden=16, layers=1, segment=8, summary=2,
        published_limit=0.0, plain_limit=0.0, memory_segment=8, memory_vocabulary=64, **changes,
    )  # fmt: skip


def test_a_table_and_a_file_with_every_measure(benchmark, tmp_path, capsys, monkeypatch):
    held = iter(range(0, 10**6, 7))
    monkeypatch.setattr(benchmark, "resident", lambda peak=False: float(next(held)))  # a step this small adds nothing
    out = tmp_path / "training.json"
    assert benchmark.main(["--out", str(out)], tiny(benchmark)) == 0
    rows, shown = read_json(out, benchmark.KIND)["rows"], capsys.readouterr().out
    assert [row["measure"] for row in rows] == ["step"] * 4 + ["memory"] * 2
    assert all(row["case"] in shown and row["ratio"] > 0 for row in rows)


def test_a_missed_limit_ends_with_1(benchmark):
    assert benchmark.main(["--only", "step"], tiny(benchmark, architectures=("llama",), substeps=1)) == 0
    missed = benchmark.replace(tiny(benchmark, architectures=("llama",)), published_limit=1e9)
    assert benchmark.main(["--only", "step"], missed) == 1


def test_the_published_loop_computes_the_same_gradients(benchmark):
    """What stands beside our step is the same step: the losses agree, so do the gradients of the embeddings."""
    sizes = tiny(benchmark)
    torch.manual_seed(0)
    own = benchmark.compressor_class("summary", "llama")(sizes.config("llama", summary_length=2)).train()
    plain = benchmark.AutoModelForCausalLM.from_config(sizes.config("llama"), attn_implementation="eager").train()
    plain.load_state_dict({k: v for k, v in own.state_dict().items() if k != "embed_summary.weight"})
    text = benchmark.tokens(1, sizes.tokens, sizes.vocabulary)
    benchmark.compressed_step(own, sizes, text)
    benchmark.published_step(plain, own.embed_summary, sizes, text)
    found, expected = (model.get_input_embeddings().weight.grad for model in (own, plain))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)
