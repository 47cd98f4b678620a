"""The prepare stage: everything that a later stage reads is fetched, converted and tokenised here.

    synopsis prepare --config config/demo.yaml corpus stories base

No other stage uses the network.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from synopsis.config.data import WorldCorpus, WorldInstructions
from synopsis.config.experiment import Experiment
from synopsis.errors import InputError

KINDS = ("model", "tokenizer", "corpus", "instructions", "task")


def prepare(experiment: Experiment, kind: str, name: str, model: str | None = None) -> Path:
    """Make one artifact and return its path; a corpus also needs the `model` whose tokenizer it is for."""
    known: dict[str, Mapping[str, object]] = {
        "model": experiment.models,
        "tokenizer": experiment.models,
        "corpus": experiment.corpora,
        "instructions": experiment.instructions,
        "task": experiment.tasks,
    }
    if kind not in known:
        raise InputError(f"prepare: {kind!r} cannot be prepared; expected one of {', '.join(KINDS)}")
    if name not in known[kind]:
        raise InputError(
            f"prepare {kind}: {name!r} is not in the configuration; it has {', '.join(known[kind]) or 'none'}"
        )
    if kind == "corpus" and model not in experiment.models:
        raise InputError(
            f"prepare corpus: name the model whose tokenizer to use, one of {', '.join(experiment.models)}"
        )
    return _prepare(experiment, kind, name, model)


def _prepare(experiment: Experiment, kind: str, name: str, model: str | None) -> Path:
    from synopsis.data import corpora, instructions, models, tasks, world_data

    if kind == "model":
        return models.prepare_model(experiment, name)
    if kind == "tokenizer":
        return world_data.prepare_world_tokenizer(experiment, name)
    if kind == "corpus":
        assert model is not None
        world = isinstance(experiment.corpora[name], WorldCorpus)
        make = world_data.prepare_world_corpus if world else corpora.prepare_text_corpus
        return make(experiment, name, model)
    if kind == "instructions":
        world = isinstance(experiment.instructions[name], WorldInstructions)
        return (world_data.prepare_world_instructions if world else instructions.prepare_alpaca_plus)(experiment, name)
    world = experiment.tasks[name].source.world is not None
    return (world_data.prepare_world_task if world else tasks.prepare_task)(experiment, name)
