"""What the checks between sections find, and the findings that several of them share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from synopsis.config.data import WorldCorpus, WorldInstructions
from synopsis.config.experiment import Experiment
from synopsis.config.form import hint
from synopsis.config.yaml_files import Key


@dataclass(frozen=True)
class Finding:
    """A fault between sections. `needs`: the keys besides `key` that it follows from."""

    key: Key
    found: str
    expected: str
    needs: tuple[Key, ...] = ()
    size: int = 0
    """Of a pass that is too long: its positions."""


def unknown(key: Key, name: str, what: str, section: str, known: Iterable[str]) -> Iterator[Finding]:
    known = list(known)
    if name not in known:
        wanted = f"the name of {what} ({', '.join(known) or 'none is defined'}){hint(name, known)}"
        yield Finding(key, repr(name), wanted, ((section, name),))


WITHOUT_POSITIONS = {"opt": ("summary vectors", "summary tokens")}
"""Architecture -> parts of a pass that take none of its positions."""


def too_long(experiment: Experiment, key: Key, parts: dict[str, int], name: str, *needs: Key) -> Iterator[Finding]:
    """A forward pass over `parts` (what -> positions) that has more positions than the model or compressor `name`."""
    compressor = experiment.compressors.get(name)
    base = name if compressor is None else compressor.base
    model, own = experiment.models.get(base), None if compressor is None else compressor.own_positions()
    if model is None:
        return
    positions = own or model.positions
    parts = {what: n for what, n in parts.items() if what not in WITHOUT_POSITIONS.get(model.model_type or "", ())}
    length = sum(parts.values())
    if positions is None or length <= positions:
        return
    sum_of = " + ".join(f"{count} {what}" for what, count in parts.items() if count)
    found = f"{length} positions in one pass" + (f" ({sum_of})" if " + " in sum_of else "")
    wanted = f"at most {positions}, the positions of '{name if own else base}'"
    of_model = (("compressors", name, "max_positions"),) if own else _positions_of(base)
    yield Finding(key, found, wanted, (*of_model, *needs), length)


def _positions_of(base: str) -> tuple[Key, ...]:
    """Where the positions of a model stand."""
    return ("models", base, "architecture", "max_position_embeddings"), ("models", base, "max_positions")


def not_its_language(experiment: Experiment, key: Key, base: str, world: bool, what: str) -> Iterator[Finding]:
    """A model from scratch knows the words of the generated language alone, and corpora of it are for such models."""
    model = experiment.models.get(base)
    if model is not None and (model.architecture is not None) != world:
        written = "real text" if model.architecture else "the generated language"
        trained = "trained from scratch" if model.architecture else "a loaded model"
        wanted = "source 'world'" if model.architecture else "real text"
        yield Finding(key, f"{what} of {written} for '{base}', {trained}", f"{what} of {wanted}", (("models", base),))


def corpus_for(experiment: Experiment, key: Key, corpus: str, base: str) -> Iterator[Finding]:
    yield from unknown(key, corpus, "a corpus", "corpora", experiment.corpora)
    definition = experiment.corpora.get(corpus)
    if definition is not None:
        world = isinstance(definition, WorldCorpus)
        for finding in not_its_language(experiment, key, base, world, "a corpus"):
            yield Finding(finding.key, finding.found, finding.expected, (*finding.needs, ("corpora", corpus, "source")))


def instructions_for(experiment: Experiment, key: Key, name: str, base: str) -> Iterator[Finding]:
    yield from unknown(key, name, "an instruction set", "instructions", experiment.instructions)
    definition, model = experiment.instructions.get(name), experiment.models.get(base)
    if model is not None and model.architecture is not None and definition is not None:
        world = isinstance(definition, WorldInstructions)
        yield from not_its_language(experiment, key, base, world, "an instruction set")


def too_short(experiment: Experiment, key: Key, tokens: int, corpus: str, *needs: Key) -> Iterator[Finding]:
    """Documents of the generated language have a known length."""
    definition = experiment.corpora.get(corpus)
    if isinstance(definition, WorldCorpus) and not definition.instruction_share and tokens > definition.story_tokens:
        wanted = f"at most {definition.story_tokens}, the tokens of a document of '{corpus}' (5 for each of its facts)"
        place = ("corpora", corpus)
        yield Finding(key, f"{tokens} tokens of one document", wanted, (place, *needs))
