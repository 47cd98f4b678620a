"""Preparation: the jobs of each kind of input. It has no section of the YAML and no scores."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from synopsis.artifacts import Layout
from synopsis.data.prepare import parts
from synopsis.stages.record import Jobs

if TYPE_CHECKING:
    from synopsis.config.experiment import Experiment


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
    parts=lambda experiment, model: parts(experiment, "model", model),
    grid=lambda experiment: _models(experiment, scratch=False),
    folder=True,
)
TOKENIZER = Jobs(
    name="tokenizer",
    kind="tokenizer",
    wildcards=("model",),
    outputs=lambda layout, model: [layout.made_tokenizer(model)],
    inputs=_nothing,
    parts=lambda experiment, model: parts(experiment, "tokenizer", model),
    grid=lambda experiment: _models(experiment, scratch=True),
    folder=True,
)
CORPUS = Jobs(
    name="corpus",
    kind="corpus",
    wildcards=("corpus", "model"),
    outputs=lambda layout, corpus, model: [layout.corpus(corpus, model)],
    inputs=lambda experiment, corpus, model: [Layout(experiment).tokenizer(model)],
    parts=lambda experiment, corpus, model: parts(experiment, "corpus", corpus),
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
    parts=lambda experiment, instructions: parts(experiment, "instructions", instructions),
    grid=lambda experiment: [{"instructions": name} for name in experiment.instructions],
)
TASK = Jobs(
    name="task",
    kind="task",
    wildcards=("dataset",),
    outputs=lambda layout, dataset: [layout.task(dataset)],
    inputs=_nothing,
    parts=lambda experiment, dataset: parts(experiment, "task", dataset),
    grid=lambda experiment: [{"dataset": name} for name in experiment.tasks],
)
PREPARE = {jobs.name: jobs for jobs in (MODEL, TOKENIZER, CORPUS, INSTRUCTIONS, TASK)}
"""Kind -> its jobs."""
