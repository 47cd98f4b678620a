"""The record of a stage: which jobs an experiment has, what they read and write, and what their fingerprints follow."""

from __future__ import annotations

from pathlib import Path

import pytest
from experiment_text import spoilt, write
from synopsis.artifacts import Layout
from synopsis.config.experiment import load_experiment
from synopsis.stages.prepare.section import PREPARE
from synopsis.stages.record import stages
from synopsis.stages.train.section import STAGE as TRAIN


def fingerprints(folder: Path, **changes: object) -> dict[str, str]:
    """Of every job of the small experiment, by its kind and wildcards."""
    overrides = {key.replace("__", ".").replace("gist_1", "gist-1"): value for key, value in changes.items()}
    experiment = load_experiment(write(folder), overrides=overrides)
    return {
        " ".join(["prepare" if jobs.name in PREPARE else "", jobs.name, *map(str, job.wildcards.values())]).strip(): (
            job.fingerprint
        )
        for jobs in (*PREPARE.values(), *stages().values())
        for job in jobs.jobs(experiment)
    }


@pytest.mark.parametrize(
    ("changes", "touched"),
    [
        ({"title": "another"}, ()),
        ({"icl__settings__icl_90__plain_tokens": 80}, ("icl",)),
        ({"icl__settings__summary_12__compressed_tokens": [30]}, ("icl auto", "icl rmt")),
        ({"icl__max_examples": 5}, ("icl",)),
        ({"icl__batch_tokens": 1}, ()),
        ({"perplexity__context_lengths": [0, 30]}, ("perplexity",)),
        ({"perplexity__batch_size": 1}, ()),
        ({"needle__depths": [0.5]}, ("needle",)),
        ({"needle__batch_tokens": 64}, ()),
        ({"generate__max_new_tokens": 8}, ("generate",)),
        ({"benchmark__repeats": 9}, ("benchmark",)),
        ({"benchmark__runs": ["auto"]}, ("benchmark gist-1",)),
        ({"compressors__gist_1__training__steps": 11}, ("train gist-1",)),
        ({"compressors__gist_1__training__checkpoint_every": 3}, ()),
        ({"compressors__gist_1__training__log_every": 3}, ()),
        ({"models__base__pretraining__checkpoint_every": 3}, ()),
        ({"models__base__pretraining__learning_rate": 0.5}, ("train base",)),
        ({"models__base__architecture__hidden_size": 64}, ("train base",)),
        ({"corpora__stories__seed": 9}, ("prepare corpus",)),
        ({"instructions__translations__held_out": 9}, ("prepare instructions",)),
        ({"training_seeds": [0, 1, 2]}, ()),
        ({"evaluation_seeds": [0, 5]}, ("icl",)),
    ],
)
def test_a_change_touches_the_jobs_that_depend_on_it(tmp_path, changes, touched):
    before, after = fingerprints(tmp_path), fingerprints(tmp_path, **changes)
    found = {job for job in before if before[job] != after.get(job)}
    if "evaluation_seeds" in changes:  # jobs of a seed that is no longer there
        found = {job for job in found if job in after}
        touched = ()
    assert found == {job for job in before if job.startswith(touched or ("nothing",))}


def test_no_two_jobs_of_a_stage_have_one_fingerprint(tmp_path):
    found = fingerprints(tmp_path, evaluation_seeds=[0, 1])
    del found["icl base animals 1"], found["icl base animals 0"]
    for one, other in [
        ("train auto-s0", "train auto-s1"),
        ("generate gist-1-s0 seen", "generate gist-1-s0 unseen"),
        ("train gist-1-s0", "train pos-1-s0"),
    ]:
        assert found[one] != found[other]


def test_training_reads_data_tokenizer_and_the_weights_that_it_starts_from(tmp_path):
    experiment = load_experiment(write(tmp_path))
    root, tokenizer = Path("results/small"), Path("results/small/data/tokenizers/base")
    inputs = {job.wildcards["run"]: set(job.inputs) for job in TRAIN.jobs(experiment)}
    assert inputs["base"] == {tokenizer, root / "data/stories/base"}
    assert inputs["auto-s1"] == {root / "models/base", root / "data/stories/base", tokenizer}
    assert inputs["gist-1-s0"] == {root / "models/base", root / "data/instructions/translations.json", tokenizer}


def test_a_job_is_found_by_its_wildcards_and_a_rule_has_their_patterns(tmp_path):
    experiment, icl = load_experiment(write(tmp_path)), stages()["icl"]
    job = icl.job(experiment, run="auto-s0", dataset="animals", seed="7")
    assert job.record == Path("results/small/icl/auto-s0/animals/seed7.json") == job.outputs[0]
    assert job.fingerprint == icl.job(experiment, run="auto-s0", dataset="animals", seed=7).fingerprint
    result, examples = icl.patterns(Layout(experiment))
    assert result == "results/small/icl/{run}/{dataset}/seed{seed}.json" and examples.endswith(".examples.jsonl.gz")


def test_how_often_a_domain_is_drawn_is_the_business_of_training(tmp_path):
    training = "{corpus: novels, sequence_length: 16, steps: 1, batch_size: 1, learning_rate: 0.1}"
    changed = []
    for weight in (1.0, 3.0):
        corpus = f"  novels: {{source: text, domains: {{prose: {{hub: some/texts, weight: {weight}}}}}}}\n"
        reader = f"compressors:\n  reader: {{method: full_attention, base: opt, training: {training}}}\n"
        text = spoilt(("corpora:\n", f"corpora:\n{corpus}"), ("compressors:\n", reader))
        experiment = load_experiment(write(tmp_path, text))
        prepared = PREPARE["corpus"].fingerprint(experiment, corpus="novels", model="opt")
        changed.append((prepared, TRAIN.fingerprint(experiment, run="reader-s0")))
    assert changed[0][0] == changed[1][0] and changed[0][1] != changed[1][1]


def test_jobs_of_a_compressor_without_training_read_its_base_and_follow_its_settings(tmp_path):
    found = []
    for budget in (8, 16):
        compressor = f"compressors:\n  last: {{method: truncation, base: base, budget: {budget}}}\n"
        experiment = load_experiment(write(tmp_path, spoilt(("compressors:\n", compressor))))
        job = stages()["perplexity"].job(experiment, run="last")
        assert job.inputs[0] == Path("results/small/models/base")
        found.append(job.fingerprint)
    assert found[0] != found[1]
