"""What each kind of prepared artifact follows from: the parts of the configuration that its fingerprint is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from synopsis.config.data import WORLD_VERSION

if TYPE_CHECKING:
    from synopsis.config.experiment import Experiment


def parts(experiment: Experiment, kind: str, name: str) -> tuple[Any, ...]:
    """kind: model, tokenizer, corpus, instructions or task."""
    if kind == "tokenizer":
        return kind, WORLD_VERSION
    section = getattr(experiment, {"model": "models", "corpus": "corpora", "task": "tasks"}.get(kind, kind))[name]
    # How often a domain is drawn is the business of training.
    plain = section.model_dump(mode="json", exclude={"pretraining": True, "domains": {"__all__": {"weight"}}})
    source = plain.get("source")
    generated = source == "world" or (isinstance(source, dict) and source.get("world"))
    return kind, plain, WORLD_VERSION if generated else None


def prepare_fingerprint(experiment: Experiment, kind: str, name: str) -> str:
    return experiment.fingerprint(*parts(experiment, kind, name))
