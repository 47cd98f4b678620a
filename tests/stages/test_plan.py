"""A job's facts follow from the configuration that its result depends on, and from nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from experiment_text import spoilt, write
from synopsis.config.experiment import load_experiment
from synopsis.stages import plan


def facts(folder: Path, **changes: object) -> dict[str, str]:
    """Facts of every job of the small experiment."""
    overrides = {key.replace("__", ".").replace("gist_1", "gist-1"): value for key, value in changes.items()}
    experiment = load_experiment(write(folder), overrides=overrides)
    assert experiment.icl and experiment.generate
    jobs = {f"prepare model {name}": plan.prepare_facts(experiment, "model", name) for name in experiment.models}
    jobs |= {f"prepare corpus {name}": plan.prepare_facts(experiment, "corpus", name) for name in experiment.corpora}
    jobs |= {f"prepare task {name}": plan.prepare_facts(experiment, "task", name) for name in experiment.tasks}
    jobs |= {
        f"prepare instructions {name}": plan.prepare_facts(experiment, "instructions", name)
        for name in experiment.instructions
    }
    jobs |= {f"train {run}": plan.train_facts(experiment, run) for run in ["base", *experiment.trained_runs]}
    jobs |= {f"perplexity {run}": plan.perplexity_facts(experiment, run) for run in experiment.runs_of("perplexity")}
    jobs |= {
        f"icl {run} {dataset} {seed}": plan.icl_facts(experiment, run, dataset, seed)
        for run in experiment.runs_of("icl")
        for dataset in experiment.icl.datasets
        for seed in experiment.evaluation_seeds
    }
    jobs |= {f"needle {run}": plan.needle_facts(experiment, run) for run in experiment.runs_of("needle")}
    jobs |= {
        f"generate {run} {split}": plan.generate_facts(experiment, run, split)
        for run in experiment.runs_of("generate")
        for split in experiment.generate.splits
    }
    jobs |= {f"judge {judge}": plan.judge_facts(experiment, judge) for judge in experiment.judges}
    jobs |= {f"benchmark {run}": plan.benchmark_facts(experiment, run) for run in experiment.runs_of("benchmark")}
    return jobs


def changed(folder: Path, **changes: object) -> set[str]:
    before, after = facts(folder), facts(folder, **changes)
    return {job for job in before if before[job] != after.get(job)}


def starting(*starts: str):
    return lambda jobs: {job for job in jobs if job.startswith(starts)}


@pytest.mark.parametrize(
    ("changes", "touched"),
    [
        ({"title": "another"}, starting("nothing")),
        ({"icl__settings__icl_90__plain_tokens": 80}, starting("icl")),
        ({"icl__settings__summary_12__compressed_tokens": [30]}, starting("icl auto", "icl rmt")),
        ({"icl__max_examples": 5}, starting("icl")),
        ({"icl__batch_tokens": 1}, starting("nothing")),
        ({"perplexity__context_lengths": [0, 30]}, starting("perplexity")),
        ({"perplexity__batch_size": 1}, starting("nothing")),
        ({"needle__depths": [0.5]}, starting("needle")),
        ({"needle__batch_tokens": 64}, starting("nothing")),
        ({"generate__max_new_tokens": 8}, starting("generate")),
        ({"benchmark__repeats": 9}, starting("benchmark")),
        ({"benchmark__runs": ["auto"]}, starting("benchmark gist-1")),
        ({"compressors__gist_1__training__steps": 11}, starting("train gist-1")),
        ({"compressors__gist_1__training__checkpoint_every": 3}, starting("nothing")),
        ({"compressors__gist_1__training__log_every": 3}, starting("nothing")),
        ({"models__base__pretraining__checkpoint_every": 3}, starting("nothing")),
        ({"models__base__pretraining__learning_rate": 0.5}, starting("train base")),
        ({"models__base__architecture__hidden_size": 64}, starting("train base", "prepare model base")),
        ({"corpora__stories__seed": 9}, starting("prepare corpus")),
        ({"instructions__translations__seed": 9}, starting("prepare instructions")),
        ({"training_seeds": [0, 1, 2]}, starting("nothing")),
        ({"evaluation_seeds": [0, 5]}, starting("nothing")),
    ],
)
def test_a_change_touches_the_jobs_that_depend_on_it(tmp_path, changes, touched):
    assert changed(tmp_path, **changes) == touched(facts(tmp_path))


def test_seeds_runs_and_splits_tell_jobs_apart(tmp_path):
    jobs = facts(tmp_path, evaluation_seeds=[0, 1])
    for one, other in [
        ("train auto-s0", "train auto-s1"),
        ("icl base animals 0", "icl base animals 1"),
        ("generate gist-1-s0 seen", "generate gist-1-s0 unseen"),
        ("train gist-1-s0", "train pos-1-s0"),
    ]:
        assert jobs[one] != jobs[other]


def test_training_reads_data_tokenizer_and_the_weights_that_it_starts_from(tmp_path):
    experiment = load_experiment(write(tmp_path))
    names = {run: [str(path) for path in plan.training_inputs(experiment, run)] for run in experiment.trained_runs}
    root = "results/small"
    tokenizer = f"{root}/data/tokenizers/base"
    assert [str(path) for path in plan.training_inputs(experiment, "base")] == [tokenizer, f"{root}/data/stories/base"]
    assert set(names["auto-s1"]) == {f"{root}/models/base", f"{root}/data/stories/base", tokenizer}
    assert set(names["gist-1-s0"]) == {f"{root}/models/base", f"{root}/data/instructions/translations.json", tokenizer}


def test_how_often_a_domain_is_drawn_is_the_business_of_training(tmp_path):
    training = "{corpus: novels, sequence_length: 16, steps: 1, batch_size: 1, learning_rate: 0.1}"
    changed = []
    for weight in (1.0, 3.0):
        corpus = f"  novels: {{source: text, domains: {{prose: {{hub: some/texts, weight: {weight}}}}}}}\n"
        text = spoilt(
            ("corpora:\n", f"corpora:\n{corpus}"),
            (
                "compressors:\n",
                f"compressors:\n  reader: {{method: full_attention, base: opt, training: {training}}}\n",
            ),
        )
        experiment = load_experiment(write(tmp_path, text))
        changed.append((plan.prepare_facts(experiment, "corpus", "novels"), plan.train_facts(experiment, "reader-s0")))
    assert changed[0][0] == changed[1][0] and changed[0][1] != changed[1][1]
