"""Checks between the sections of an experiment: names that point nowhere and combinations that cannot work.

What concerns one method or one stage stands in its own section (`check`); here is what they share, and the rest.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from synopsis.compressors.architectures import DECODERS, LEARNED_POSITIONS
from synopsis.compressors.section import Subject, TrainedCompressor, sections
from synopsis.config.data import SPLITS, TextCorpus, WorldCorpus, WorldInstructions
from synopsis.config.training import LanguageModelTraining
from synopsis.config.types import Key, Problem
from synopsis.stages.record import COMMON_COLUMNS, stages

if TYPE_CHECKING:
    from synopsis.config.experiment import Experiment

RESERVED = frozenset({"instructions", "tasks", "tokenizers"})
"""Names of corpora that would mix their files with other data (see `synopsis.artifacts.Layout`)."""


def check_experiment(experiment: Experiment) -> list[Problem]:
    """Every problem between sections; of several with one key and one remedy the first."""
    found = [*_names(experiment), *_corpora(experiment), *_trainings(experiment), *_tables(experiment)]
    for name in stages():
        section: Any = getattr(experiment, name, None)
        found += [] if section is None else section.check(experiment)
    return list({(problem.key, problem.expected): problem for problem in reversed(found)}.values())[::-1]


def _names(experiment: Experiment) -> Iterator[Problem]:
    for name in experiment.models.keys() & experiment.compressors.keys():
        yield Problem(("compressors", name), f"'{name}', the name of a model", "a name of its own")
    for section in ("models", "compressors"):
        for name in getattr(experiment, section).keys() & experiment.trained_runs.keys():
            compressor, seed = experiment.trained_runs[name]
            wanted = f"another name: it is the run of the compressor '{compressor}' with the training seed {seed}"
            yield Problem((section, name), f"the name '{name}'", wanted)


def _corpora(experiment: Experiment) -> Iterator[Problem]:
    for name, corpus in experiment.corpora.items():
        if name in RESERVED:
            yield Problem(
                ("corpora", name), f"the name '{name}'", "another name: other data lie in a folder of this one"
            )
        if isinstance(corpus, TextCorpus):
            sources = corpus.domains.values()
            missing = [split for split in SPLITS if not any(source.hub or split in source.files for source in sources)]
            if missing:
                found = f"no source of the split {', '.join(missing)}"
                yield Problem(("corpora", name, "domains"), found, "'hub' or a file for each split in some domain")


def _trainings(experiment: Experiment) -> Iterator[Problem]:
    for name, model in experiment.models.items():
        if model.pretraining is not None:
            yield from whole_sequences(experiment, ("models", name, "pretraining"), model.pretraining, name)
    for name, compressor in experiment.compressors.items():
        key, base = ("compressors", name), experiment.models.get(compressor.base)
        yield from unknown((*key, "base"), compressor.base, "a model", experiment.models)
        if base is not None and not compressor.serves(base.model_type):
            found = f"'{compressor.base}' of the architecture {base.model_type}"
            allowed = ", ".join(sorted(compressor.architectures or DECODERS))
            wanted = f"for the method {compressor.method} a model of the architecture {allowed}"
            yield Problem((*key, "base"), found, wanted)
        lora = compressor.training.lora if isinstance(compressor, TrainedCompressor) else None
        if lora is not None and base is not None and base.architecture is not None:
            width = base.architecture.hidden_size  # of a loaded model it is known when it is trained
            if lora.rank > width:
                wanted = f"at most {width}, the hidden_size of '{compressor.base}'"
                yield Problem((*key, "training", "lora", "rank"), str(lora.rank), wanted)
        yield from compressor.check(key, name, experiment)


def _tables(experiment: Experiment) -> Iterator[Problem]:
    """Tables of columns and metrics that the scores will not have."""
    for name, table in experiment.tables.items():
        key = ("report", "tables", name)
        measured = [stage.name for stage in stages().values() if any(True for _ in stage.grid(experiment))]
        yield from unknown((*key, "stage"), table.stage, "a stage of this experiment", measured)
        if table.stage in measured:
            stage = stages()[table.stage]
            yield from unknown((*key, "metric"), table.metric, f"a metric of {table.stage}", stage.metrics)
            known = [*COMMON_COLUMNS, *stage.axes]
            for part, columns in (
                ("rows", table.rows),
                ("columns", [table.columns or known[0]]),
                ("where", table.where),
            ):
                for column in columns:
                    yield from unknown((*key, part), column, "a column of the scores", known)


# ----------------------------------------------------------------------------------------- what sections ask as well


def hint(name: str, known: Iterable[str]) -> str:
    """A suggestion for a name that is not known, or nothing."""
    near = difflib.get_close_matches(name[:100], list(known), n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""


def unknown(key: Key, name: str, what: str, known: Iterable[str]) -> Iterator[Problem]:
    known = list(known)
    if name not in known:
        wanted = f"the name of {what} ({', '.join(known) or 'none is defined'}){hint(name, known)}"
        yield Problem(key, repr(name), wanted)


def too_long(experiment: Experiment, key: Key, name: str, *passes: dict[str, int]) -> Iterator[Problem]:
    """A forward pass (what -> positions) longer than the model or compressor `name`; of several the longest."""
    base = experiment.base_named(name)
    model, subject = experiment.models.get(base), experiment.subjects[name]
    if model is None:
        return
    own, learned = subject.own_positions(), model.model_type in LEARNED_POSITIONS
    free = ("summary vectors", "summary tokens") if learned else ()
    counted = [{what: count for what, count in parts.items() if count and what not in free} for parts in passes]
    longest, positions = max(counted, key=lambda parts: sum(parts.values()), default={}), own or model.positions
    length = sum(longest.values())
    if positions is not None and length > positions:
        sum_of = " + ".join(f"{count} {what}" for what, count in longest.items())
        found = f"{length} positions in one pass" + (f" ({sum_of})" if len(longest) > 1 else "")
        yield Problem(key, found, f"at most {positions}, the positions of '{name if own else base}'")


def not_its_language(experiment: Experiment, key: Key, base: str, world: bool, what: str) -> Iterator[Problem]:
    """A model from scratch knows the words of the generated language alone, and corpora of it are for such models."""
    model = experiment.models.get(base)
    if model is not None and (model.architecture is not None) != world:
        written = "real text" if model.architecture else "the generated language"
        trained = "trained from scratch" if model.architecture else "a loaded model"
        wanted = "source 'world'" if model.architecture else "real text"
        yield Problem(key, f"{what} of {written} for '{base}', {trained}", f"{what} of {wanted}")


def corpus_for(experiment: Experiment, key: Key, corpus: str, base: str) -> Iterator[Problem]:
    yield from unknown(key, corpus, "a corpus", experiment.corpora)
    if corpus in experiment.corpora:
        world = isinstance(experiment.corpora[corpus], WorldCorpus)
        yield from not_its_language(experiment, key, base, world, "a corpus")


def instructions_for(experiment: Experiment, key: Key, name: str, base: str) -> Iterator[Problem]:
    yield from unknown(key, name, "an instruction set", experiment.instructions)
    definition, model = experiment.instructions.get(name), experiment.models.get(base)
    if definition is not None and model is not None and model.architecture is not None:
        world = isinstance(definition, WorldInstructions)
        yield from not_its_language(experiment, key, base, world, "an instruction set")


def whole_sequences(experiment: Experiment, key: Key, training: LanguageModelTraining, name: str) -> Iterator[Problem]:
    """Next-token training of a model or compressor."""
    at = (*key, "sequence_length")
    yield from corpus_for(experiment, (*key, "corpus"), training.corpus, experiment.base_named(name))
    yield from too_long(experiment, at, name, {"tokens": training.sequence_length})


def measured(experiment: Experiment, stage: str) -> dict[str, Subject]:
    """The models and compressors that a stage is computed for."""
    return {(name := experiment.name_of(run)): experiment.subjects[name] for run in experiment.runs_of(stage)}


def chosen_runs(experiment: Experiment, stage: str) -> Iterator[Problem]:
    """Names under `runs` that the stage cannot measure, or nothing that it could."""
    chosen, subjects = getattr(experiment, stage).runs, experiment.subjects
    able = [name for name in subjects if experiment.can_measure(stage, name)]
    for index, name in enumerate(chosen or []):
        key = (stage, "runs", str(index))
        if name not in subjects:
            yield from unknown(key, name, f"a model or compressor that '{stage}' can measure", able)
        elif name not in able:
            kind = (
                "a model without compression" if name in experiment.models else f"of the method {subjects[name].method}"
            )
            if stage in subjects[name].measured_by:
                kind = f"of the architecture {experiment.models[experiment.base_named(name)].model_type}"
            wanted = f"a run that '{stage}' can measure ({', '.join(able) or 'there is none'})"
            yield Problem(key, f"'{name}', {kind}", wanted)
    if chosen is None and not able:
        allowed = [method for method, found in sections().items() if stage in found.measured_by]
        wanted = f"a compressor of the method {', '.join(sorted(allowed))}"
        wanted = f"a decoder among the models, or {wanted}" if stage in Subject.measured_by else wanted
        yield Problem((stage,), "nothing that it can measure", wanted)
