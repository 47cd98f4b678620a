"""The prepare stage: everything that a later stage reads is fetched, converted and tokenised here.

    synopsis prepare --config config/demo.yaml corpus stories base

No other stage uses the network.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from synopsis.config.data import WORLD_VERSION
from synopsis.errors import InputError

if TYPE_CHECKING:
    from synopsis.config.experiment import Experiment

KINDS = {
    "model": "models", "tokenizer": "models", "corpus": "corpora", "instructions": "instructions", "task": "tasks",
}  # fmt: skip
"""Kind of artifact -> the part of the experiment that describes it."""


def parts(experiment: Experiment, kind: str, name: str) -> tuple[Any, ...]:
    """What an artifact follows from: its fingerprint is made of these parts of the configuration."""
    if kind == "tokenizer":
        return kind, WORLD_VERSION
    described = getattr(experiment, KINDS[kind])[name]
    # How often a domain is drawn is the business of training.
    plain = described.model_dump(mode="json", exclude={"pretraining": True, "domains": {"__all__": {"weight"}}})
    return kind, plain, WORLD_VERSION if _generated(described) else None


def prepare_fingerprint(experiment: Experiment, kind: str, name: str) -> str:
    return experiment.fingerprint(*parts(experiment, kind, name))


def _generated(described: Any) -> bool:
    source = getattr(described, "source", None)
    return source == "world" or getattr(source, "world", None) is not None


def prepare(experiment: Experiment, kind: str, name: str, model: str | None = None) -> Path:
    """Make one artifact and return its path; a corpus also needs the `model` whose tokenizer it is for."""
    if kind not in KINDS:
        raise InputError(f"prepare: {kind!r} cannot be prepared; expected one of {', '.join(KINDS)}")
    known = getattr(experiment, KINDS[kind])
    if name not in known:
        raise InputError(f"prepare {kind}: {name!r} is not in the configuration; it has {', '.join(known) or 'none'}")
    if kind == "corpus" and model not in experiment.models:
        raise InputError(
            f"prepare corpus: name the model whose tokenizer to use, one of {', '.join(experiment.models)}"
        )
    from synopsis.data import corpora, instructions, models, tasks, world_data

    makers: dict[tuple[str, bool], Any] = {
        ("model", False): models.prepare_model,
        ("tokenizer", False): world_data.prepare_world_tokenizer,
        ("corpus", False): corpora.prepare_text_corpus,
        ("corpus", True): world_data.prepare_world_corpus,
        ("instructions", False): instructions.prepare_alpaca_plus,
        ("instructions", True): world_data.prepare_world_instructions,
        ("task", False): tasks.prepare_task,
        ("task", True): world_data.prepare_world_task,
    }
    of_corpus = (model,) if kind == "corpus" else ()
    path: Path = makers[kind, _generated(known[name])](experiment, name, *of_corpus)
    return path
