"""The benchmark stage on small models of every method: what it measures, writes, and names as the floor."""

from __future__ import annotations

import pytest
import torch
from compressor_models import configuration, summary_model
from experiment_text import spoilt, write
from model_folders import FIELDS, GIST_FIELDS, world_tokenizer, write_folder
from synopsis.artifacts import Layout, read_csv, read_json
from synopsis.compressors import GistLlamaForCausalLM
from synopsis.config.experiment import Experiment, load_experiment
from synopsis.stages.benchmark import run as stage
from synopsis.stages.benchmark.run import COLUMNS, benchmark, headline
from transformers import LlamaForCausalLM

NEW, LENGTHS, BATCHES = 5, (12, 40), (1, 3)
OPTIONS = {
    "benchmark.context_lengths": list(LENGTHS),
    "benchmark.batch_sizes": list(BATCHES),
    "benchmark.new_tokens": NEW,
    "benchmark.repeats": 2,
}
H100 = "NVIDIA H100 80GB HBM3"


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    folder = tmp_path_factory.mktemp("benchmark")
    text = spoilt(("name: small", f"name: small\nresults: {folder}/results"))
    found = load_experiment(write(folder, text), overrides=OPTIONS)
    layout = Layout(found)
    write_folder(LlamaForCausalLM(configuration(**FIELDS)).eval(), layout.model("base"))
    world_tokenizer(gist=False).save_pretrained(layout.tokenizer("base"))
    write_folder(summary_model(seed=1, **FIELDS), layout.model("auto-s0"))
    write_folder(GistLlamaForCausalLM(configuration(**GIST_FIELDS)).eval(), layout.model("gist-1-s0"))
    return found


@pytest.mark.parametrize(("run", "vectors"), [("auto-s0", 3), ("gist-1-s0", 1)])
def test_every_case_is_measured_cached_and_uncached(
    experiment: Experiment, run: str, vectors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "device_name", lambda device: H100)
    rows = benchmark(experiment, run)
    cases = [(row["mode"], row["batch_size"], row["context_length"], row["sample"]) for row in rows]
    assert sorted(cases) == sorted(
        (mode, batch, length, sample)
        for mode in ("cached", "uncached")
        for batch in BATCHES
        for length in LENGTHS
        for sample in (0, 1)
    )
    by_case = dict(zip(cases, rows, strict=True))
    for (mode, batch, length, _), row in by_case.items():
        assert row["wall_seconds"] > 0 and row["flops"] > 0 and row["peak_bytes"] > 0 and row["cuda_seconds"] is None
        assert (row["run"], row["new_tokens"]) == (run, NEW)
        other = by_case["uncached", batch, length, 0]
        assert mode == "uncached" or row["flops"] < other["flops"]
        # Two layers with keys and values of 32 numbers of four bytes; a summary vector is one embedding.
        uncached = batch * length * 2 * 2 * 32 * 4
        assert other["context_bytes"] == uncached
        # Nothing is as fast as reading the weights of five passes, and the cache in four of them.
        held = (vectors if mode == "cached" else length) + 4
        widths = (FIELDS if run == "auto-s0" else GIST_FIELDS)["vocab_size"] * 32
        weights = NEW * (2 * (4 * 32 * 32 + 3 * 32 * 48) + widths)
        assert row["floor_seconds"] == pytest.approx(4 * (weights + (NEW - 1) * batch * held * 2 * 2 * 32) / 3.35e12)
    layout = Layout(experiment)
    written = read_csv(layout.benchmark(run), COLUMNS)
    assert [(row["mode"], int(row["flops"])) for row in written] == [(row["mode"], row["flops"]) for row in rows]
    document = read_json(layout.benchmark(run).with_suffix(".json"), "benchmark")
    assert document["run"] == run and document["provenance"]["dtype"] == "float32"
    assert len(headline(rows)) == len(cases) / 2 and "wall_seconds/cached/batch=3/context=40" in headline(rows)


def test_a_device_that_is_not_known_has_no_floor(experiment: Experiment) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert {row["floor_seconds"] for row in benchmark(experiment, "auto-s0")} == {None}
