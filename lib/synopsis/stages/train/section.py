"""Training: its jobs. What is trained stands under `models` and `compressors` in the YAML."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from synopsis.artifacts import Layout
from synopsis.compressors.section import Compressor
from synopsis.config.data import TextCorpus
from synopsis.stages.record import Bounds, Stage

if TYPE_CHECKING:
    from pydantic import BaseModel

    from synopsis.config.experiment import Experiment

SCHEDULE_ONLY = {"checkpoint_every", "keep_checkpoints", "log_every", "compile", "attention"}
"""Fields of a training section that change when something is written and not what is learned."""


def trained(experiment: Experiment) -> list[str]:
    """Runs that are trained here and so leave a `metrics.jsonl`."""
    scratch = [name for name, model in experiment.models.items() if model.architecture is not None]
    return [*scratch, *experiment.trained_runs]


def _inputs(experiment: Experiment, run: str) -> list[Path]:
    """Data, tokenizer, and the weights that a run starts from."""
    layout, subject, base = Layout(experiment), experiment.subject(run), experiment.base_of(run)
    if not isinstance(subject, Compressor):
        assert subject.pretraining is not None
        return [layout.tokenizer(run), layout.corpus(subject.pretraining.corpus, run)]
    if subject.trained_on == "instructions":
        data = layout.instructions(subject.training.instructions)
    else:
        data = layout.corpus(subject.training.corpus, base)
    return [layout.model(base), data, layout.tokenizer(base)]


def _parts(experiment: Experiment, run: str) -> tuple[Any, ...]:
    subject = experiment.subject(run)
    section = "training" if isinstance(subject, Compressor) else "pretraining"
    plain = subject.model_dump(mode="json", exclude={"training_seeds": True, section: SCHEDULE_ONLY})
    seed = experiment.trained_runs[run][1] if run in experiment.trained_runs else 0
    return "train", plain, seed, _weights(experiment, getattr(subject, section))


def _weights(experiment: Experiment, training: BaseModel | None) -> dict[str, float]:
    """How often a training draws each domain of its corpus, where they differ from 1."""
    corpus = experiment.corpora.get(getattr(training, "corpus", ""))
    domains = corpus.domains if isinstance(corpus, TextCorpus) else {}
    return {name: domain.weight for name, domain in domains.items() if domain.weight != 1.0}


STAGE = Stage(
    name="train",
    kind="model",
    wildcards=("run",),
    outputs=lambda layout, run: [layout.model(run)],
    inputs=_inputs,
    parts=_parts,
    grid=lambda experiment: [{"run": run} for run in trained(experiment)],
    folder=True,
    place=7,
    title="Training",
    resumes=True,
    axes={"step": int},
    metrics=dict.fromkeys(("loss", "eval_loss", "learning_rate"), Bounds()),
)
