"""Preparation: the jobs of each kind of input. It has no section of the YAML and no scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from synopsis.artifacts import Layout
from synopsis.config.data import WORLD_VERSION
from synopsis.stages.record import Jobs

if TYPE_CHECKING:
    from pydantic import BaseModel

    from synopsis.config.experiment import Experiment


def _model_parts(experiment: Experiment, model: str) -> tuple[Any, ...]:
    return _parts("model", experiment.models, model)


def _parts(kind: str, sections: Mapping[str, BaseModel], name: str) -> tuple[Any, ...]:
    # How often a domain is drawn is the business of training.
    plain = sections[name].model_dump(mode="json", exclude={"pretraining": True, "domains": {"__all__": {"weight"}}})
    source = plain.get("source")
    generated = source == "world" or (isinstance(source, dict) and source.get("world"))
    return kind, plain, WORLD_VERSION if generated else None


def _models(experiment: Experiment, scratch: bool) -> Iterable[dict[str, Any]]:
    return [{"model": name} for name, model in experiment.models.items() if (model.architecture is not None) == scratch]


def _nothing(experiment: Experiment, **wildcards: str) -> list[Any]:
    return []


MODEL = Jobs(
    name="model",
    kind="model",
    wildcards=("model",),
    outputs=lambda layout, model: [layout.model(model)],
    inputs=_nothing,
    parts=_model_parts,
    grid=lambda experiment: _models(experiment, scratch=False),
    folder=True,
)
TOKENIZER = Jobs(
    name="tokenizer",
    kind="tokenizer",
    wildcards=("model",),
    outputs=lambda layout, model: [layout.made_tokenizer(model)],
    inputs=_nothing,
    parts=lambda experiment, model: ("tokenizer", WORLD_VERSION),
    grid=lambda experiment: _models(experiment, scratch=True),
    folder=True,
)
CORPUS = Jobs(
    name="corpus",
    kind="corpus",
    wildcards=("corpus", "model"),
    outputs=lambda layout, corpus, model: [layout.corpus(corpus, model)],
    inputs=lambda experiment, corpus, model: [Layout(experiment).tokenizer(model)],
    parts=lambda experiment, corpus, model: _parts("corpus", experiment.corpora, corpus),
    grid=lambda experiment: [
        {"corpus": corpus, "model": model} for corpus in experiment.corpora for model in experiment.models
    ],
    folder=True,
)
INSTRUCTIONS = Jobs(
    name="instructions",
    kind="instructions",
    wildcards=("instructions",),
    outputs=lambda layout, instructions: [layout.instructions(instructions)],
    inputs=_nothing,
    parts=lambda experiment, instructions: _parts("instructions", experiment.instructions, instructions),
    grid=lambda experiment: [{"instructions": name} for name in experiment.instructions],
)
TASK = Jobs(
    name="task",
    kind="task",
    wildcards=("dataset",),
    outputs=lambda layout, dataset: [layout.task(dataset)],
    inputs=_nothing,
    parts=lambda experiment, dataset: _parts("task", experiment.tasks, dataset),
    grid=lambda experiment: [{"dataset": name} for name in experiment.tasks],
)
PREPARE = {jobs.name: jobs for jobs in (MODEL, TOKENIZER, CORPUS, INSTRUCTIONS, TASK)}
"""Kind -> its jobs."""


def prepare_fingerprint(experiment: Experiment, kind: str, name: str) -> str:
    """Of what a job prepares, whatever the model whose tokenizer it is for."""
    jobs = PREPARE[kind]
    return jobs.fingerprint(experiment, **{**dict.fromkeys(jobs.wildcards, ""), jobs.wildcards[0]: name})
