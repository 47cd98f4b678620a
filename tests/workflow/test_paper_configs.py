"""The configurations of the published runs: each parses, has a cost, and makes a whole DAG."""

from __future__ import annotations

from pathlib import Path

import pytest
from running import ROOT, Project
from synopsis.compressors.gist.section import GistCompressor
from synopsis.compressors.summary.section import SummaryCompressor
from synopsis.config.experiment import Experiment, load_experiment
from synopsis.costs.cost_tables import jobs
from synopsis.costs.run_costs import Machine, training_costs

FOLDER = ROOT / "config" / "paper"
FILES = sorted(FOLDER.glob("*.yaml"))
TABLE_4 = ["ag_news", "sst2", "boolq", "wic", "wsc", "rte", "cb", "copa", "multirc", "mr", "subj"]
SETTINGS = ["zero_shot", "icl_150", "icl_750", "summary_50", "summary_100", "summary_150"]
PREPARED = {"prepare_model", "prepare_tokenizer", "prepare_corpus", "prepare_instructions", "prepare_task"}


def paper(name: str) -> Experiment:
    return load_experiment(FOLDER / f"{name}.yaml")


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # where DeepSpeed files are found


def test_every_published_run_is_there() -> None:
    found = {path.stem: set(load_experiment(path).compressors) for path in FILES}
    gist = {"gist-1", "gist-2", "gist-5", "gist-10", "pos_control-1", "neg_control-1"}
    assert found["autocompressor-opt-2.7b"] == {
        *("autocompressor-6k", "rmt-8k", "full_attention-4k", "full_attention-2k")
    }
    assert found["autocompressor-opt-30k"] == {"autocompressor-1.3b", "autocompressor-2.7b", "rmt-1.3b"}
    assert found["autocompressor-llama-2-7b"] == {"autocompressor-6k", "full_attention-6k"}
    for name in ("gist-llama-7b", "gist-flan-t5-xxl", "gist-flan-t5-base", "gist-flan-t5-large"):
        assert found[name] == gist, name
    assert {name for name in found if name.startswith("debug")} == {"debug-flan-t5-small", "debug-llama"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_run_has_a_cost(path: Path) -> None:
    experiment = load_experiment(path)
    assert experiment.name == f"paper-{path.stem}" and experiment.title
    costs = training_costs(experiment, Machine(processes=1), beside=[path])
    trained = [run for run in experiment.run_names if run in experiment.trained_runs]
    assert [cost.run for cost in costs if cost.run not in experiment.models] == trained
    for cost in costs:
        assert cost.parameters and cost.trained and cost.memory and cost.memory.total, cost.run
        assert cost.flops and cost.flops.model > 0, cost.run


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_number_has_its_source(path: Path) -> None:
    text = path.read_text()
    assert "Source" in text or "published" in text
    assert f"--configfile config/paper/{path.name}" in text, "the head of the file says how to run it"


# -------------------------------------------------------------------------------------------------------- what it says


@pytest.mark.parametrize(
    ("name", "compressor", "tokens"),
    [
        ("autocompressor-opt-2.7b", "autocompressor-6k", 2e9),
        ("autocompressor-opt-2.7b", "rmt-8k", 2e9),
        ("autocompressor-opt-2.7b", "full_attention-4k", 2e9),
        ("autocompressor-opt-2.7b", "full_attention-2k", 2e9),
        ("autocompressor-opt-30k", "autocompressor-1.3b", 2e9),
        ("autocompressor-opt-30k", "autocompressor-2.7b", 2e9),
        ("autocompressor-opt-30k", "rmt-1.3b", 2e9),
        ("autocompressor-llama-2-7b", "autocompressor-6k", 15e9),
        ("autocompressor-llama-2-7b", "full_attention-6k", 15e9),
    ],
)
def test_an_epoch_is_the_published_number_of_tokens(name: str, compressor: str, tokens: float) -> None:
    costs = {cost.run: cost for cost in training_costs(paper(name), Machine())}
    assert costs[f"{compressor}-s42"].tokens == pytest.approx(tokens, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "compressor", "steps_of_compression", "substeps", "length"),
    [
        ("autocompressor-opt-2.7b", "autocompressor-6k", 4, 2, 6144),
        ("autocompressor-opt-2.7b", "rmt-8k", 4, 1, 8192),
        ("autocompressor-opt-30k", "autocompressor-1.3b", 20, 10, 30720),
        ("autocompressor-opt-30k", "autocompressor-2.7b", 20, 10, 30720),
        ("autocompressor-opt-30k", "rmt-1.3b", 15, 1, 30720),
        ("autocompressor-llama-2-7b", "autocompressor-6k", 4, 2, 6144),
    ],
)
def test_sequences_are_cut_as_published(
    name: str, compressor: str, steps_of_compression: int, substeps: int, length: int
) -> None:
    given = paper(name).compressors[compressor]
    assert isinstance(given, SummaryCompressor)
    training = given.training
    assert (training.segments, training.substeps, training.sequence_length) == (steps_of_compression, substeps, length)
    assert given.summary_length == 50 and training.randomize_segments == (given.method == "autocompressor")
    if given.method == "rmt":
        assert length / steps_of_compression == 2048


@pytest.mark.parametrize(
    ("name", "rows", "steps", "rate"),
    [
        ("gist-llama-7b", 128, 3000, 2e-5),
        ("gist-flan-t5-xxl", 16, 16000, 5e-5),
        ("gist-flan-t5-base", 16, 16000, 5e-5),
        ("gist-flan-t5-large", 16, 16000, 5e-5),
    ],
)
def test_gist_runs_differ_in_nothing_but_mask_and_tokens(name: str, rows: int, steps: int, rate: float) -> None:
    experiment = paper(name)
    compressors = experiment.compressors.values()
    assert all(isinstance(compressor, GistCompressor) for compressor in compressors)
    assert len({compressor.training.model_dump_json() for compressor in compressors}) == 1
    training = experiment.compressors["gist-1"].training
    assert (training.steps, training.learning_rate, training.sequences(4)) == (steps, rate, rows)
    assert experiment.judge is not None and len(experiment.judge.pairs) == 5
    assert {b for _, b in experiment.judge.pairs} == {"pos_control-1"}


@pytest.mark.parametrize("name", ["autocompressor-opt-2.7b", "autocompressor-llama-2-7b"])
def test_in_context_learning_is_the_published_grid(name: str) -> None:
    experiment = paper(name)
    assert experiment.icl is not None and experiment.icl.datasets == TABLE_4
    assert list(experiment.icl.settings) == SETTINGS and experiment.evaluation_seeds == list(range(7))
    assert list(experiment.settings_of("autocompressor-6k-s42")) == SETTINGS
    base = next(iter(experiment.models))
    assert list(experiment.settings_of(base)) == SETTINGS[:3]


@pytest.mark.parametrize("name", ["autocompressor-opt-2.7b", "autocompressor-opt-30k", "autocompressor-llama-2-7b"])
def test_perplexity_compresses_no_more_than_training_did(name: str) -> None:
    experiment = paper(name)
    section = experiment.perplexity
    assert section is not None and section.scored_tokens == section.tokens_per_step == 2048
    steps = -(-max(section.context_lengths) // section.tokens_per_step)
    for run in experiment.runs_of("perplexity"):
        subject = experiment.subject(run)
        if isinstance(subject, SummaryCompressor) and subject.method == "autocompressor":
            assert steps < subject.training.segments


# -------------------------------------------------------------------------------------------------------------- the DAG


@pytest.mark.parametrize("name", ["autocompressor-opt-2.7b", "debug-llama"])
def test_a_dry_run_shows_the_whole_dag(tmp_path: Path, name: str) -> None:
    pytest.importorskip("snakemake", reason="the package snakemake is not installed")
    project = Project.new(tmp_path)
    planned = project.plan(config=f"config/paper/{name}.yaml")
    experiment = paper(name)
    assert planned.pop("train") == len(experiment.trained_runs)
    assert {"score": planned.pop("score"), "report": planned.pop("report")} == {"score": 1, "report": 1}
    assert planned.pop("pretrain", 0) + planned.get("prepare_model", 0) == len(experiment.models)
    for rule in PREPARED:
        planned.pop(rule, None)
    assert planned == {stage: count for stage, count in jobs(experiment).items() if count}
