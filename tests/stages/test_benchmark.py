"""The benchmark stage on small models of every method: what it measures, writes, names as the floor, and survives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from compressor_models import GIST, configuration, gist_model, summary_model
from experiment_text import faults, spoilt, write
from model_folders import FIELDS, GIST_FIELDS, world_tokenizer, write_folder
from synopsis.artifacts import Layout, read_csv, read_json
from synopsis.compressors import GistLlamaForCausalLM, compressor_class
from synopsis.config.experiment import Experiment, load_experiment
from synopsis.stages.benchmark import run as stage
from synopsis.stages.benchmark.checks import checks
from synopsis.stages.benchmark.modes import PROMPT_TOKENS, Case, Mode, modes_of
from synopsis.stages.benchmark.report import failed_check
from synopsis.stages.benchmark.run import COLUMNS, benchmark, headline, largest, marked
from synopsis.stages.benchmark.section import OTHER_LOAD
from t5_models import t5_model
from transformers import LlamaForCausalLM

NEW, LENGTHS, BATCHES = 5, (12, 40), (1, 3)
OPTIONS = {
    "benchmark.context_lengths": list(LENGTHS),
    "benchmark.batch_sizes": list(BATCHES),
    "benchmark.new_tokens": [NEW],
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
    # As models that the Trainer saved, which say that they use no cache.
    write_folder(summary_model(seed=1, use_cache=False, **FIELDS), layout.model("auto-s0"))
    write_folder(GistLlamaForCausalLM(configuration(**GIST_FIELDS)).eval(), layout.model("gist-1-s0"))
    return found


@pytest.fixture(autouse=True)
def known_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "device_name", lambda device: H100)


def changed(experiment: Experiment, **fields: Any) -> Experiment:
    return experiment.model_copy(update={"benchmark": experiment.benchmark.model_copy(update=fields)})


@pytest.mark.parametrize(("run", "vectors"), [("auto-s0", 3), ("gist-1-s0", 1)])
def test_every_case_is_measured_in_every_mode(experiment: Experiment, run: str, vectors: int) -> None:
    rows = benchmark(experiment, run)
    cases = [(row["mode"], row["batch_size"], row["context_length"], row["sample"]) for row in rows]
    assert sorted(cases) == sorted(
        (mode, batch, length, sample)
        for mode in ("none", "prefix", "compressed")
        for batch in BATCHES
        for length in LENGTHS
        for sample in (0, 1)
    )
    orders = {tuple(row["mode"] for row in rows[start : start + 3]) for start in range(0, len(rows), 3)}
    assert len(orders) > 1, "the modes take turns in a random order"
    by_case = dict(zip(cases, rows, strict=True))
    for (mode, batch, length, _), row in by_case.items():
        assert row["first_token_seconds"] < row["wall_seconds"] and row["token_seconds"] > 0 < row["prefill_seconds"]
        assert row["peak_bytes"] > 0 and row["profiler_cuda_seconds"] is None and row["profiler_cpu_seconds"] > 0
        assert (row["run"], row["new_tokens"], row["segments"], row["dtype"]) == (run, NEW, 1, "float32")
        none = by_case["none", batch, length, 0]
        assert mode == "none" or row["flops"] < none["flops"]
        # Each further token is read alone; reading all of them again would take five times as much.
        assert none["flops"] < 2 * none["profiler_flops"]
        assert (row["compress_seconds"] is None) == (row["load_seconds"] is None) == (mode == "none")
        # Two layers with keys and values of 32 numbers of four bytes; a summary vector is stored as one embedding.
        held = vectors if mode == "compressed" else length
        assert row["used_bytes"] == batch * held * 2 * 2 * 32 * 4
        numbers = 32 if (run, mode) == ("auto-s0", "compressed") else 2 * 2 * 32
        assert mode == "none" or row["stored_bytes"] == batch * (held * numbers * 4 + 2 * 8)
        # Nothing is as fast as reading the weights of five passes, and the cache in four of them.
        widths = (FIELDS if run == "auto-s0" else GIST_FIELDS)["vocab_size"] * 32
        weights = NEW * (2 * (4 * 32 * 32 + 3 * 32 * 48) + widths)
        read = weights + (NEW - 1) * batch * (held + PROMPT_TOKENS) * 2 * 2 * 32
        assert row["floor_seconds"] == pytest.approx(4 * read / 3.35e12)
        assert row["times_floor"] == row["wall_seconds"] / row["floor_seconds"]
    layout = Layout(experiment)
    written = read_csv(layout.benchmark(run), COLUMNS)
    assert [(row["mode"], int(row["flops"])) for row in written] == [(row["mode"], row["flops"]) for row in rows]
    document = read_json(layout.benchmark(run).with_suffix(".json"), "benchmark")
    assert document["run"] == run and document["provenance"]["dtype"] == "float32"
    facts = document["by_dtype"]["float32"]
    assert facts["cache_bytes_per_token"] == 2 * 2 * 32 * 4 and all(check["agrees"] for check in facts["checks"])
    assert len(headline(rows)) == len(cases) / 2 and "wall_seconds/compressed/batch=3/context=40" in headline(rows)


def test_segments_are_for_methods_that_read_in_steps(experiment: Experiment) -> None:
    few = changed(experiment, context_lengths=[12], batch_sizes=[1], segments=[1, 3], repeats=1)
    used = {(row["segments"], row["mode"]): row["used_bytes"] for row in benchmark(few, "auto-s0")}
    assert used[3, "compressed"] == 3 * used[1, "compressed"] and used[3, "none"] == used[1, "none"]
    assert {row["segments"] for row in benchmark(few, "gist-1-s0")} == {1}


def test_what_does_not_fit_is_marked_and_the_sweep_goes_on(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Mode.generate

    def generate(mode: Mode, *arguments: Any) -> Any:
        if mode.name == "prefix" and mode.case.batch_size == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(mode, *arguments)

    monkeypatch.setattr(Mode, "generate", generate)
    few = changed(experiment, context_lengths=[12, 253], dtypes=["float32", "bfloat16"])
    notes = {
        (row["mode"], row["batch_size"], row["context_length"], row["dtype"]): row["note"]
        for row in benchmark(few, "gist-1-s0")
        if row["sample"] is None
    }
    assert {key[:3] for key in notes} == {
        ("prefix", 3, 12),
        *((mode, b, 253) for mode in ("none", "prefix", "compressed") for b in BATCHES),
    }
    assert {key[3] for key in notes} == {"float32", "bfloat16"}
    assert notes["prefix", 3, 12, "float32"] == "out of memory"
    assert "this model has 256 (max_position_embeddings)" in notes["none", 1, 253, "bfloat16"]


def test_an_encoder_that_reads_both_ways_has_no_prefix(tmp_path: Path) -> None:
    modes = modes_of(t5_model(), Case(2, 12, NEW, 1))
    with torch.no_grad():
        assert all(check["agrees"] for check in checks(modes, tmp_path, "float32"))
    assert list(modes) == ["none", "compressed"] and modes["compressed"].held == 1


@pytest.mark.parametrize("kind", ["eviction", "truncation"])
def test_methods_without_training_pass_the_checks(kind: str, tmp_path: Path) -> None:
    model = compressor_class(kind, "llama")(configuration(budget=8, rerotate=False)).eval()
    modes = modes_of(model, Case(2, 20, NEW, 1))
    with torch.no_grad():
        found = checks(modes, tmp_path, "float32")
    assert [check["check"] for check in found if not check["agrees"]] == [] and modes["compressed"].held == 8


def test_a_context_that_keeps_everything_does_not_compress(tmp_path: Path) -> None:
    model = gist_model("pos_control")
    with torch.no_grad():
        found = checks(modes_of(model, Case(1, 12, NEW, 1)), tmp_path, "float32")
    (failed,) = [check for check in found if not check["agrees"]]
    assert failed["check"] == "compresses" and failed["difference"] == 1
    assert failed_check(failed).startswith("not compressing: the cache holds 100% of the context's positions")


def test_a_cache_that_is_wrong_fails_with_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes = modes_of(summary_model(), Case(2, 20, NEW, 1))
    prefix: Any = modes["prefix"]
    plain = prefix.cache

    def spoilt_cache() -> Any:
        cache = plain()
        cache.layers[0].keys *= 1.5
        return cache

    monkeypatch.setattr(prefix, "cache", spoilt_cache)
    with torch.no_grad():
        failed = {(one["check"], one["mode"]): one for one in checks(modes, tmp_path, "float32") if not one["agrees"]}
    assert {"logits", "hidden states", "keys and values"} <= {check for check, _ in failed}
    assert {mode for _, mode in failed} == {"prefix"}
    assert 1e-3 < failed["logits", "prefix"]["difference"] < 1


def test_generated_tokens_of_the_method_end_a_check(tmp_path: Path) -> None:
    model = gist_model()
    model.lm_head.weight.data[GIST] *= 50  # likely, and read again it would hide what stands before it
    modes = modes_of(model, Case(4, 12, NEW, 1))
    with torch.no_grad():
        assert bool((modes["none"].generate() == GIST).any())
        assert all(check["agrees"] for check in checks(modes, tmp_path, "float32"))


def test_samples_that_lost_their_cores_are_marked() -> None:
    pairs = [(2.0, 4.0), (2.0, 4.0), (4.0, 4.0), (1.0, 1.9)]
    rows: list[dict[str, Any]] = [{"mode": "none", "wall_seconds": wall, "cpu_seconds": cpu} for wall, cpu in pairs]
    assert [row["note"] for row in marked(rows)] == ["", "", OTHER_LOAD, ""]
    assert marked([{"mode": "none", "wall_seconds": 2.0, "cpu_seconds": 1.5}])[0]["note"] == OTHER_LOAD


def test_the_largest_batch_is_found_to_an_eighth() -> None:
    assert [largest(lambda size, most=most: size <= most) for most in (0, 1, 7)] == [0, 1, 7]
    assert 875 <= largest(lambda size: size <= 1000) <= 1000 and largest(lambda size: True, most=64) == 64


def test_one_repeat_is_worth_a_warning(experiment: Experiment, capsys: pytest.CaptureFixture[str]) -> None:
    few = changed(experiment, context_lengths=[12], batch_sizes=[1], repeats=1)
    benchmark(few, "auto-s0")
    assert "warning: one repeat has no interval; set benchmark.repeats" in capsys.readouterr().err


def test_longer_contexts_than_the_positions_need_segments(tmp_path: Path) -> None:
    path = write(tmp_path)
    (fault,) = faults(path, benchmark__context_lengths=[300])
    assert "316 positions in one pass (300 tokens of context + 16 new tokens)" in fault
    assert faults(path, benchmark__context_lengths=[300], benchmark__segments=[2], benchmark__runs=["auto"]) == []
    assert "benchmark.dtypes.0" in faults(path, benchmark__dtypes=["int8"])[0]


def test_deepspeed_counts_the_same_pass(experiment: Experiment) -> None:
    pytest.importorskip("deepspeed", reason="the package deepspeed is not installed")
    few = changed(experiment, context_lengths=[40], batch_sizes=[3], repeats=1, deepspeed=True)
    rows = {row["mode"]: row for row in benchmark(few, "auto-s0")}
    # torch's profiler leaves out attention: two products of (44, 44, 32) for each row in both layers.
    attention = 2 * 2 * 2 * 3 * (40 + PROMPT_TOKENS) ** 2 * 32
    assert rows["none"]["deepspeed_flops"] == pytest.approx(rows["none"]["profiler_flops"] + attention, rel=0.02)
    assert rows["compressed"]["deepspeed_flops"] < rows["none"]["deepspeed_flops"] / 5
