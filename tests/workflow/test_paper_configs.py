"""The configurations of the published runs: each parses, has a cost, and makes a whole DAG."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from running import ROOT, Project
from synopsis.config.experiment import Experiment, load_experiment
from synopsis.costs.plan import Machine, training_costs
from synopsis.stages.icl.section import settings_of
from synopsis.stages.record import stages

FOLDER = ROOT / "config" / "paper"
FILES = sorted(FOLDER.glob("*.yaml"))
OPT, OPT_30K, LLAMA = "autocompressor-opt-2.7b", "autocompressor-opt-30k", "autocompressor-llama-2-7b"
GIST = {"gist-llama-7b": (128, 3000, 2e-5)} | dict.fromkeys(
    ("gist-flan-t5-xxl", "gist-flan-t5-base", "gist-flan-t5-large"), (16, 16000, 5e-5)
)
"""Rows of a step, steps, learning rate."""
CUTS = {
    (OPT, "autocompressor-6k"): (4, 2, 6144),
    (OPT, "rmt-8k"): (4, 1, 8192),
    (OPT, "full_attention-4k"): None,
    (OPT, "full_attention-2k"): None,
    (OPT_30K, "autocompressor-1.3b"): (20, 10, 30720),
    (OPT_30K, "autocompressor-2.7b"): (20, 10, 30720),
    (OPT_30K, "rmt-1.3b"): (15, 1, 30720),
    (LLAMA, "autocompressor-6k"): (4, 2, 6144),
    (LLAMA, "full_attention-6k"): None,
}
"""Segments, substeps and tokens of a sequence; None for full attention."""
TABLE_4 = ["ag_news", "sst2", "boolq", "wic", "wsc", "rte", "cb", "copa", "multirc", "mr", "subj"]
SETTINGS = ["zero_shot", "icl_150", "icl_750", "summary_50", "summary_100", "summary_150"]
PREPARED = {"prepare_model", "prepare_tokenizer", "prepare_corpus", "prepare_instructions", "prepare_task"}


@cache
def paper(name: str) -> Experiment:
    return load_experiment(FOLDER / f"{name}.yaml")


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # where DeepSpeed files are found


def test_every_published_run_is_there() -> None:
    found = {path.stem: set(paper(path.stem).compressors) for path in FILES}
    for name in (OPT, OPT_30K, LLAMA):
        assert found[name] == {compressor for file, compressor in CUTS if file == name}
    for name in GIST:
        assert found[name] == {"gist-1", "gist-2", "gist-5", "gist-10", "pos_control-1", "neg_control-1"}, name
    assert {name for name in found if name.startswith("debug")} == {"debug-flan-t5-small", "debug-llama"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_run_has_a_cost_and_every_number_a_source(path: Path) -> None:
    """An epoch is the published number of tokens."""
    experiment = paper(path.stem)
    assert experiment.name == f"paper-{path.stem}" and experiment.title
    costs = training_costs(experiment, Machine(processes=1), beside=[path])
    trained = [run for run in experiment.run_names if run in experiment.trained_runs]
    assert [cost.run for cost in costs if cost.run not in experiment.models] == trained
    for cost in costs:
        assert cost.parameters and cost.trained and cost.memory_bytes and cost.memory_bytes["total"], cost.run
        assert cost.flops and cost.flops.model > 0, cost.run
        if path.stem in (OPT, OPT_30K, LLAMA) and cost.run in trained:
            assert cost.tokens == pytest.approx(15e9 if path.stem == LLAMA else 2e9, rel=1e-3)
    text = path.read_text()
    assert "Source" in text or "published" in text
    assert f"--configfile config/paper/{path.name}" in text, "the head of the file says how to run it"


@pytest.mark.parametrize(("name", "compressor"), [key for key, cut in CUTS.items() if cut])
def test_sequences_are_cut_as_published(name: str, compressor: str) -> None:
    """Perplexity compresses no more than training did."""
    given, section = paper(name).compressors[compressor], paper(name).perplexity
    training, cut = given.training, CUTS[name, compressor]
    assert cut == (training.segments, training.substeps, training.sequence_length)
    assert given.summary_length == 50 and training.randomize_segments == (given.method == "autocompressor")
    assert given.method != "rmt" or cut[2] / cut[0] == 2048
    assert section is not None and section.scored_tokens == section.tokens_per_step == 2048
    assert given.method == "rmt" or -(-max(section.context_lengths) // section.tokens_per_step) < cut[0]


@pytest.mark.parametrize("name", GIST)
def test_gist_runs_differ_in_nothing_but_mask_and_tokens(name: str) -> None:
    experiment = paper(name)
    compressors = experiment.compressors.values()
    assert {compressor.method for compressor in compressors} == {"gist"}
    assert len({compressor.training.model_dump_json() for compressor in compressors}) == 1
    training = experiment.compressors["gist-1"].training
    assert (training.sequences(4), training.steps, training.learning_rate) == GIST[name]
    assert experiment.judge is not None and len(experiment.judge.pairs) == 5
    assert {b for _, b in experiment.judge.pairs} == {"pos_control-1"}


@pytest.mark.parametrize("name", [OPT, LLAMA])
def test_in_context_learning_is_the_published_grid(name: str) -> None:
    experiment = paper(name)
    assert experiment.icl is not None and experiment.icl.datasets == TABLE_4
    assert list(experiment.icl.settings) == SETTINGS and experiment.evaluation_seeds == list(range(7))
    assert list(settings_of(experiment, "autocompressor-6k-s42")) == SETTINGS
    base = next(iter(experiment.models))
    assert list(settings_of(experiment, base)) == SETTINGS[:3]


@pytest.mark.parametrize("name", [OPT, "debug-llama"])
def test_a_dry_run_shows_the_whole_dag(tmp_path: Path, name: str) -> None:
    pytest.importorskip("snakemake", reason="the package snakemake is not installed")
    planned = Project.new(tmp_path).plan(config=f"config/paper/{name}.yaml")
    experiment = paper(name)
    assert planned.pop("train") == len(experiment.trained_runs)
    assert {"score": planned.pop("score"), "report": planned.pop("report")} == {"score": 1, "report": 1}
    assert planned.pop("pretrain", 0) + planned.get("prepare_model", 0) == len(experiment.models)
    for rule in PREPARED:
        planned.pop(rule, None)
    counts = {stage.name: len(stage.jobs(experiment)) for stage in stages().values() if stage.section}
    assert planned == {stage: count for stage, count in counts.items() if count}
