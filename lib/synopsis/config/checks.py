"""Checks between the sections of an experiment: names that point nowhere and combinations that cannot work."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from synopsis.compressors.architectures import DECODERS
from synopsis.compressors.full_attention.section import FullAttentionCompressor
from synopsis.compressors.gist.section import GistCompressor
from synopsis.compressors.section import Compressor
from synopsis.compressors.summary.section import SummaryCompressor
from synopsis.config.data import TextCorpus, WorldCorpus, WorldInstructions
from synopsis.config.experiment import Experiment, Model
from synopsis.config.findings import Finding, corpus_for, instructions_for, too_long, too_short, unknown
from synopsis.config.form import overlap, within
from synopsis.config.stage_checks import check_stages
from synopsis.config.training import LanguageModelTraining, Optimisation, SegmentTraining
from synopsis.config.yaml_files import Key

RESERVED = frozenset({"instructions", "tasks", "tokenizers"})
"""Names of corpora that would mix their files with other data (see `synopsis.artifacts.Layout`)."""

SPLITS = ("train", "validation", "test")


def check_experiment(experiment: Experiment, doubtful: Collection[Key] = ()) -> list[Finding]:
    """Every fault between sections that does not follow from a `doubtful` key (one that was told, and made up)."""
    found = [
        finding
        for finding in _check(experiment)
        if not within(finding.key, doubtful) and not any(overlap(need, doubtful) for need in finding.needs)
    ]
    # Of several passes that are too long for the same reason the longest is told.
    longest = {(finding.key, finding.expected): finding for finding in sorted(found, key=lambda finding: finding.size)}
    return [finding for finding in found if not finding.size or finding is longest[finding.key, finding.expected]]


def _check(experiment: Experiment) -> list[Finding]:
    names = list(_names(experiment))
    stages = list(check_stages(experiment))
    # What two things have as their name says nothing about either.
    twice = {f"'{name}'" for finding in names for name in finding.names}
    stages = [finding for finding in stages if not any(name in finding.found + finding.expected for name in twice)]
    return [*names, *_corpora(experiment), *_models(experiment), *_compressors(experiment), *stages]


# ------------------------------------------------------------------------------------------------------ by section


@dataclass(frozen=True)
class _Collision(Finding):
    """Two things of one name; `names`: those that nothing more can be said of."""

    names: tuple[str, ...] = ()


def _names(experiment: Experiment) -> Iterator[_Collision]:
    for name in experiment.models:
        if name in experiment.compressors:
            yield _Collision(
                ("compressors", name), f"'{name}', the name of a model", "a name of its own", names=(name,)
            )
        if name in experiment.trained_runs:
            compressor, seed = experiment.trained_runs[name]
            wanted = f"another name: it is the run of the compressor '{compressor}' with the training seed {seed}"
            needs: tuple[Key, ...] = (("training_seeds",), ("compressors", compressor, "training_seeds"))
            yield _Collision(("models", name), f"the name '{name}'", wanted, needs, names=(name, compressor))


def _corpora(experiment: Experiment) -> Iterator[Finding]:
    for name, corpus in experiment.corpora.items():
        if name in RESERVED:
            yield Finding(
                ("corpora", name), f"the name '{name}'", "another name: other data lie in a folder of this one"
            )
        if isinstance(corpus, TextCorpus):
            sources = corpus.domains.values()
            missing = [split for split in SPLITS if not any(source.hub or split in source.files for source in sources)]
            if missing:
                found = f"no source of the split {', '.join(missing)}"
                yield Finding(("corpora", name, "domains"), found, "'hub' or a file for each split in some domain")


def _models(experiment: Experiment) -> Iterator[Finding]:
    for name, model in experiment.models.items():
        if model.pretraining is not None:
            yield from _whole_sequences(experiment, ("models", name, "pretraining"), model.pretraining, name, name)


def _compressors(experiment: Experiment) -> Iterator[Finding]:
    for name, compressor in experiment.compressors.items():
        key, base = ("compressors", name), compressor.base
        yield from unknown((*key, "base"), base, "a model", "models", experiment.models)
        yield from _unsupported(key, compressor, base, experiment.models.get(base))
        inside = (*key, "training")
        yield from _wide_adapter(experiment, (*inside, "lora", "rank"), compressor.training, base)
        if isinstance(compressor, GistCompressor):
            instructions = compressor.training.instructions
            rows = experiment.instructions.get(instructions)
            if isinstance(rows, WorldInstructions):
                place = ("instructions", instructions)
                yield from _too_few(inside, compressor.training, rows.train, place, (*inside, "instructions"))
            yield from instructions_for(experiment, (*inside, "instructions"), instructions, base)
            tokens = {"tokens": compressor.training.max_length}
            yield from too_long(experiment, (*inside, "max_length"), tokens, name)
            continue
        if isinstance(compressor, FullAttentionCompressor):
            yield from _whole_sequences(experiment, inside, compressor.training, base, name)
        elif isinstance(compressor, SummaryCompressor):
            yield from corpus_for(experiment, (*inside, "corpus"), compressor.training.corpus, base)
            yield from _segments(experiment, key, name, compressor)


def _whole_sequences(
    experiment: Experiment, key: Key, training: LanguageModelTraining, base: str, name: str
) -> Iterator[Finding]:
    yield from corpus_for(experiment, (*key, "corpus"), training.corpus, base)
    length, at = training.sequence_length, (*key, "sequence_length")
    yield from too_long(experiment, at, {"tokens": length}, name)
    if not training.pack_documents:
        yield from too_short(experiment, at, length, training.corpus, (*key, "corpus"), (*key, "pack_documents"))
    yield from _few_documents(experiment, key, training, training.pack_documents)


def _few_documents(
    experiment: Experiment, key: Key, training: LanguageModelTraining | SegmentTraining, pack: bool = False
) -> Iterator[Finding]:
    """A generated corpus holds a known number of sequences; with instructions among the stories it is the most."""
    corpus, length = experiment.corpora.get(training.corpus), training.sequence_length
    if isinstance(corpus, WorldCorpus) and (pack or length <= corpus.most_tokens):
        tokens, needs = corpus.most_tokens, ((*key, "corpus"), (*key, "sequence_length"), (*key, "pack_documents"))
        held = corpus.documents * tokens // length if pack else corpus.documents * (tokens // length)
        yield from _too_few(key, training, held, ("corpora", training.corpus), *needs)


def _too_few(key: Key, training: Optimisation, held: int, place: Key, *needs: Key) -> Iterator[Finding]:
    """An optimizer step that wants more sequences than there are would silently be a smaller one."""
    if training.sequences() > held:
        asked = "batch_size" if training.sequences_per_step is None else "sequences_per_step"
        found = f"{training.sequences()} sequences in an optimizer step"
        wanted = f"at most {held}, as many as there are in '{place[-1]}'"
        yield Finding((*key, asked), found, wanted, (place, (*key, "gradient_accumulation"), *needs))


def _wide_adapter(experiment: Experiment, key: Key, training: Optimisation, base: str) -> Iterator[Finding]:
    """Of a loaded model the width is known when it is trained."""
    model = experiment.models.get(base)
    if training.lora is not None and model is not None and model.architecture is not None:
        width = model.architecture.hidden_size
        if training.lora.rank > width:
            needs: Key = ("models", base, "architecture", "hidden_size")
            yield Finding(key, str(training.lora.rank), f"at most {width}, the hidden_size of '{base}'", (needs,))


def _unsupported(key: Key, compressor: Compressor, base: str, model: Model | None) -> Iterator[Finding]:
    if model is None or compressor.serves(model.model_type):
        return
    method, allowed = compressor.method, compressor.architectures or DECODERS
    found = f"'{base}' of the architecture {model.model_type}"
    wanted = f"for the method {method} a model of the architecture {', '.join(sorted(allowed))}"
    yield Finding((*key, "base"), found, wanted, (("models", base, "type"), ("models", base, "architecture", "type")))


def _segments(experiment: Experiment, key: Key, name: str, compressor: SummaryCompressor) -> Iterator[Finding]:
    training, inside = compressor.training, (*key, "training")
    at = (*inside, "sequence_length")
    cut = ((*inside, "substeps"), (*inside, "segments_per_substep"))
    length, segments = training.sequence_length, training.segments
    if segments < 2:
        yield Finding(inside, "one segment in all", "at least two (substeps x segments_per_substep)", cut)
        return
    if length % training.substeps:
        yield Finding(at, str(length), f"a multiple of substeps ({training.substeps})", cut)
    if length < 2 * segments:
        wanted = f"at least {2 * segments}, 2 tokens for each of {segments} segments"
        yield Finding(at, str(length), wanted, cut)
    # The shortest that the longest segment of a step can be, beside what stands before and after it.
    parts = {
        "summary vectors": compressor.most_vectors(),
        "tokens of a segment": max(training.segment_lengths or [-(-length // segments)]),
        "summary tokens": compressor.summary_length,
    }
    yield from too_long(experiment, at, parts, name, (*key, "summary_length"), *cut)
    yield from too_short(experiment, at, length, training.corpus, (*inside, "corpus"))
    yield from _few_documents(experiment, inside, training)
