"""Which jobs an experiment has, and what each depends on. Pure: used by the Snakefile and by the stages alike.

A job's *facts* are a short hash of the part of the configuration that its result follows from. Snakemake keeps it as a
parameter of the job, so a changed setting makes exactly those jobs run again that it touches; provenance keeps it too.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from synopsis.artifacts import Layout
from synopsis.compressors.gist.section import GistCompressor
from synopsis.config.data import WORLD_VERSION, TextCorpus
from synopsis.config.experiment import Experiment, Model
from synopsis.errors import InputError

SCHEDULE_ONLY = {"checkpoint_every", "keep_checkpoints", "log_every", "compile", "attention"}
"""Fields of a training section that change when something is written and not what is learned."""


def prepare_facts(experiment: Experiment, kind: str, name: str) -> str:
    """kind: model, tokenizer, corpus, instructions or task."""
    sections: dict[str, Mapping[str, BaseModel]] = {
        "model": experiment.models,
        "corpus": experiment.corpora,
        "instructions": experiment.instructions,
        "task": experiment.tasks,
    }
    if kind == "tokenizer":
        return experiment.fingerprint(kind, WORLD_VERSION)
    # How often a domain is drawn is the business of training.
    plain = sections[kind][name].model_dump(
        mode="json", exclude={"pretraining": True, "domains": {"__all__": {"weight"}}}
    )
    source = plain.get("source")
    generated = source == "world" or (isinstance(source, dict) and source.get("world"))
    return experiment.fingerprint(kind, plain, WORLD_VERSION if generated else None)


def train_facts(experiment: Experiment, run: str) -> str:
    subject = experiment.subject(run)
    seed = experiment.trained_runs[run][1] if run in experiment.trained_runs else 0
    section = "pretraining" if isinstance(subject, Model) else "training"
    plain = subject.model_dump(mode="json", exclude={"training_seeds": True, section: SCHEDULE_ONLY})
    return experiment.fingerprint("train", plain, seed, _weights(experiment, getattr(subject, section)))


def _weights(experiment: Experiment, training: BaseModel | None) -> dict[str, float]:
    """How often a training draws each domain of its corpus, where they differ from 1."""
    corpus = experiment.corpora.get(getattr(training, "corpus", ""))
    domains = corpus.domains if isinstance(corpus, TextCorpus) else {}
    return {name: domain.weight for name, domain in domains.items() if domain.weight != 1.0}


def perplexity_facts(experiment: Experiment, run: str) -> str:
    assert experiment.perplexity is not None
    unused = {"runs", "batch_size"}
    if experiment.method_of(run) == "full_attention":
        unused |= {"tokens_per_step", "summary_lengths"}
    return experiment.fingerprint("perplexity", experiment.perplexity.model_dump(exclude=unused), run)


def icl_facts(experiment: Experiment, run: str, dataset: str, seed: int) -> str:
    assert experiment.icl is not None
    settings = {name: setting.model_dump() for name, setting in experiment.settings_of(run, dataset, seed).items()}
    section = experiment.icl.model_dump(exclude={"datasets", "settings", "batch_tokens", "runs"})
    return experiment.fingerprint("icl", experiment.tasks[dataset], settings, section, seed)


def needle_facts(experiment: Experiment, run: str) -> str:
    assert experiment.needle is not None
    return experiment.fingerprint("needle", experiment.needle.model_dump(exclude={"runs", "batch_tokens"}), run)


def generate_facts(experiment: Experiment, run: str, split: str) -> str:
    assert experiment.generate is not None
    section = experiment.generate.model_dump(exclude={"runs", "splits", "batch_size"})
    return experiment.fingerprint("generate", section, run, split)


def judge_facts(experiment: Experiment, judge: str) -> str:
    return experiment.fingerprint("judge", experiment.judges[judge])


def benchmark_facts(experiment: Experiment, run: str) -> str:
    assert experiment.benchmark is not None
    return experiment.fingerprint("benchmark", experiment.benchmark.model_dump(exclude={"runs"}), run)


def training_inputs(experiment: Experiment, run: str) -> list[Path]:
    """Artifacts that a training run reads: data, tokenizer, and the weights it starts from."""
    layout, subject, base = Layout(experiment), experiment.subject(run), experiment.base_of(run)
    if isinstance(subject, Model):
        assert subject.pretraining is not None
        return [layout.tokenizer(run), layout.corpus(subject.pretraining.corpus, run)]
    if isinstance(subject, GistCompressor):
        data = layout.instructions(subject.training.instructions)
    else:
        data = layout.corpus(subject.training.corpus, base)
    return [layout.model(base), data, layout.tokenizer(base)]


def check_submitted(options: Iterable[tuple[str, Any]]) -> None:
    """InputError for a value of Snakemake's command line that the jobs of a cluster would not get as it is.

    Snakemake repeats its options in the command that it submits, without quoting them for the shells on the way.
    """
    for option, value in options:
        if re.search(r"[$`'\\]", json.dumps(value, ensure_ascii=False)):  # where quotes stand behind a backslash
            wanted = "a text without quotes, '$', '`' and '\\' when jobs are submitted"
            raise InputError(f"{option}: found {value!r}; expected {wanted}; a file for --configfile may hold any text")


def find_own_commands() -> None:
    """Let jobs find the `synopsis` of the environment that runs Snakemake, activated or not."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
