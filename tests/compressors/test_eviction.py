"""Methods without training beyond their laws (`test_law.py`): chains, turned keys, refusals, and a line of YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from compressor_models import TOLERANCE, architecture_model, configuration, tokens
from experiment_text import spoilt, write
from model_folders import FIELDS, world_tokenizer, write_folder
from synopsis.artifacts import Layout
from synopsis.compressors.eviction.section import SINKS
from synopsis.compressors.registry import class_by_name
from synopsis.config.experiment import load_experiment
from synopsis.engine.runs import open_run
from synopsis.errors import InputError
from synopsis.stages.benchmark.run import benchmark
from synopsis.stages.needle.run import needle
from transformers import LlamaForCausalLM

BUDGET = 9
EVERY_KIND = pytest.mark.parametrize(("kind", "method"), [("eviction", "streaming_llm"), ("truncation", "truncation")])
OPTIONS = {
    "needle.lengths": [12, 27],
    "needle.depths": [0.5],
    "needle.examples": 2,
    "needle.tokens_per_step": 10,
    "needle.filler": ["old fox eats plums\n\n", "shy owl visits caves\n\n"],
    "needle.needle": "guest Mira holds {key}\n\n",
    "needle.keys": ["lantern", "compass", "violin", "ladder"],
    "needle.choices": 3,
    "needle.runs": ["base", "short"],
    "benchmark.runs": ["short"],
    "benchmark.context_lengths": [30],
}


def model_of(kind: str = "eviction", architecture: str = "llama", **fields: Any) -> Any:
    return architecture_model(kind, architecture, **{"budget": BUDGET, "rerotate": False, **fields})


def text_of(size: int, seed: int = 0) -> torch.Tensor:
    return torch.tensor([tokens(torch.Generator().manual_seed(seed), size)])


@EVERY_KIND
@pytest.mark.parametrize("architecture", ["llama", "phi3", "glm"])
def test_within_the_budget_nothing_is_lost(kind: str, method: str, architecture: str) -> None:
    first, second, rest = (text_of(size, size) for size in (12, 9, 5))
    expected = model_of(kind, architecture, budget=40, sliding_window=None)(torch.cat([first, second, rest], 1))
    for rerotate in (False, True):
        model = model_of(kind, architecture, budget=40, rerotate=rerotate, sliding_window=None)
        for lengths in (None, 4):
            context = model.compress(second, context=model.compress(first, segment_lengths=lengths))
            assert (context.length, int(context.next_position), int(context.source_tokens)) == (21, 21, 21)
            torch.testing.assert_close(model(rest, context=context).logits, expected.logits[:, 21:], **TOLERANCE)


def test_turned_keys_go_on_at_the_number_of_pairs() -> None:
    turned, plain = (model_of(rerotate=rerotate) for rerotate in (True, False))
    context, other = (model.compress(text_of(30)) for model in (turned, plain))
    assert (int(context.next_position), int(other.next_position)) == (BUDGET, 30)
    torch.testing.assert_close(context.keys[0][:, :, :SINKS], other.keys[0][:, :, :SINKS], **TOLERANCE)
    assert all(torch.equal(a, b) for a, b in zip(context.values, other.values, strict=True))
    twice = turned.compress(text_of(7, 1), context=context)
    assert (twice.length, int(twice.next_position), int(twice.source_tokens)) == (BUDGET, BUDGET, 37)
    for model, after in ((turned, BUDGET), (plain, 30)):
        found = model.demand([10, 20])
        assert (found.positions, found.next_position, found.vectors) == (30, after, BUDGET)


@EVERY_KIND
def test_numbers_that_are_not_finite(kind: str, method: str) -> None:
    model, ids = model_of(kind), text_of(12).repeat(2, 1)
    ids[1, -2] = 58
    with torch.no_grad():
        model.get_input_embeddings().weight[58] = torch.nan
    with pytest.raises(ValueError, match="row 1 of the context holds activations that are not finite"):
        model.compress(ids)
    assert model.compress(ids, check_numbers=False).length == BUDGET


def test_models_whose_layers_slide_or_are_not_rotary_are_refused() -> None:
    with pytest.raises(InputError, match="evict by themselves"):
        model_of(architecture="mistral")
    with pytest.raises(InputError, match="not rotary"):
        model_of(architecture="opt", rerotate=True)
    assert class_by_name("StreamingQwen3ForCausalLM").__name__ == "StreamingQwen3ForCausalLM"


@EVERY_KIND
def test_a_line_of_yaml_is_enough(tmp_path: Path, kind: str, method: str) -> None:
    """Keys that are evicted are not found again; the others are read as the base reads them."""
    text = spoilt(("name: small", f"name: small\nresults: {tmp_path}/results"))
    line = {"compressors.short": {"method": method, "base": "base", "budget": 20}}
    experiment = load_experiment(write(tmp_path, text), overrides={**OPTIONS, **line})
    layout = Layout(experiment)
    torch.manual_seed(3)
    write_folder(LlamaForCausalLM(configuration(**FIELDS)).eval(), layout.model("base"))
    world_tokenizer(gist=False).save_pretrained(layout.tokenizer("base"))
    assert open_run(experiment, "short").compresses and not open_run(experiment, "base").compresses
    rows = {run: {row["length"]: row for row in needle(experiment, run)["rows"]} for run in ("base", "short")}
    assert rows["short"][12]["loss"] == pytest.approx(rows["base"][12]["loss"], abs=1e-5)
    assert abs(rows["short"][27]["loss"] - rows["base"][27]["loss"]) > 1e-3
    assert [row["summary_vectors"] for row in rows["short"].values()] == [12, 20]
    measured = {row["mode"]: row for row in benchmark(experiment, "short")}
    assert measured["compressed"]["flops"] < measured["none"]["flops"]
