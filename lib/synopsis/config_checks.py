"""Checks between the sections of an experiment: names that point nowhere and combinations that cannot work."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from synopsis.config import (
    STAGE_FAMILIES,
    Compressor,
    Experiment,
    FullAttentionCompressor,
    GistCompressor,
    InContextLearning,
    Model,
    Needle,
    Perplexity,
    SummaryCompressor,
)
from synopsis.config_data import TextCorpus, WorldInstructions
from synopsis.config_findings import Finding, corpus_for, not_its_language, too_long, too_short, unknown
from synopsis.config_form import overlap, within
from synopsis.config_training import LanguageModelTraining
from synopsis.config_yaml import Key

DECODERS = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "smollm3", "phi3", "opt"})
SUPPORTED: dict[str, frozenset[str]] = {"autocompressor": DECODERS, "rmt": DECODERS, "gist": DECODERS | {"t5"}}
"""Family -> architectures it can be trained on. Families that are not named work on any causal language model."""

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
    stages = [
        *_perplexity(experiment),
        *_icl(experiment),
        *_needle(experiment),
        *_generate(experiment),
        *_judge(experiment),
        *_benchmark(experiment),
    ]
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
        yield from _unsupported(key, compressor.family, base, experiment.models.get(base))
        inside = (*key, "training")
        if isinstance(compressor, GistCompressor):
            instructions = compressor.training.instructions
            yield from _instructions(experiment, (*inside, "instructions"), instructions, base)
            tokens = {"tokens": compressor.training.max_length}
            yield from too_long(experiment, (*inside, "max_length"), tokens, name)
            continue
        if isinstance(compressor, FullAttentionCompressor):
            yield from _whole_sequences(experiment, inside, compressor.training, base, name)
        else:
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


def _unsupported(key: Key, family: str, base: str, model: Model | None) -> Iterator[Finding]:
    allowed = SUPPORTED.get(family)
    if model is None or allowed is None or model.model_type is None or model.model_type in allowed:
        return
    found = f"'{base}' of the architecture {model.model_type}"
    wanted = f"for the family {family} a model of the architecture {', '.join(sorted(allowed))}"
    yield Finding((*key, "base"), found, wanted, (("models", base, "type"), ("models", base, "architecture", "type")))


def _instructions(experiment: Experiment, key: Key, name: str, base: str) -> Iterator[Finding]:
    yield from unknown(key, name, "an instruction set", "instructions", experiment.instructions)
    definition, model = experiment.instructions.get(name), experiment.models.get(base)
    if model is not None and model.architecture is not None and definition is not None:
        world = isinstance(definition, WorldInstructions)
        yield from not_its_language(experiment, key, base, world, "an instruction set")


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
        "summary vectors": compressor.trained_summary_vectors,
        "tokens of a segment": max(training.segment_lengths or [-(-length // segments)]),
        "summary tokens": compressor.summary_length,
    }
    yield from too_long(experiment, at, parts, name, (*key, "summary_length"), *cut)
    yield from too_short(experiment, at, length, training.corpus, (*inside, "corpus"))


def _vectors(compressor: SummaryCompressor, steps: int) -> int:
    """Summary vectors after compressing in `steps`."""
    return compressor.summary_length * (steps if compressor.family == "autocompressor" else min(steps, 1))


def _passes(compressor: SummaryCompressor, chunks: Sequence[int]) -> Iterator[dict[str, int]]:
    """What stands in each pass of a compression of chunks of so many tokens."""
    for index, tokens in enumerate(chunks):
        before = _vectors(compressor, index)
        yield {"summary vectors": before, "tokens": tokens, "summary tokens": compressor.summary_length}


def _chosen_runs(experiment: Experiment, stage: str) -> Iterator[Finding]:
    section = getattr(experiment, stage)
    families = {name: "base" for name in experiment.models}
    families |= {name: compressor.family for name, compressor in experiment.compressors.items()}
    bases = {name: name for name in experiment.models}
    bases |= {name: compressor.base for name, compressor in experiment.compressors.items()}
    able = [name for name, family in families.items() if experiment.can_measure(stage, family, bases[name])]
    for index, name in enumerate(section.runs or []):
        key = (stage, "runs", str(index))
        if name in families and name not in able:
            kind = "a model without compression" if families[name] == "base" else f"of the family {families[name]}"
            if families[name] in STAGE_FAMILIES[stage]:
                kind = f"an encoder-decoder ({experiment.models[bases[name]].model_type})"
            wanted = f"a run that '{stage}' can measure ({', '.join(able) or 'there is none'})"
            yield Finding(key, f"'{name}', {kind}", wanted, (("models", bases[name], "type"),))
        elif name not in able:
            what = f"a model or compressor that '{stage}' can measure"
            for finding in unknown(key, name, what, "models", able):
                yield Finding(key, finding.found, finding.expected, (("models", name), ("compressors", name)))
    if section.runs is None and not able:
        wanted = f"a compressor of the family {', '.join(sorted(STAGE_FAMILIES[stage] - {'base'}))}"
        wanted = f"a decoder among the models, or {wanted}" if "base" in STAGE_FAMILIES[stage] else wanted
        yield Finding((stage,), "nothing that it can measure", wanted, (("compressors",), ("models",)))


def _perplexity(experiment: Experiment) -> Iterator[Finding]:
    section = experiment.perplexity
    if section is None:
        return
    yield from _chosen_runs(experiment, "perplexity")
    lengths = ("perplexity", "context_lengths")
    needs: tuple[Key, ...] = (("perplexity", "scored_tokens"), ("perplexity", "corpus"))
    needed = max(section.context_lengths) + section.scored_tokens
    yield from too_short(experiment, lengths, needed, section.corpus, *needs)
    for name, base in _measured(experiment, "perplexity"):
        yield from corpus_for(experiment, ("perplexity", "corpus"), section.corpus, base)
        needs = (("perplexity", "scored_tokens"), ("perplexity", "tokens_per_step"), ("perplexity", "runs"))
        compressor = experiment.compressors.get(name)
        yield from _unknown_vectors(name, compressor, section)
        if isinstance(compressor, SummaryCompressor) and section.summary_lengths is not None:
            compressor = compressor.model_copy(update={"summary_length": max(section.summary_lengths)})
            needs = (*needs, ("perplexity", "summary_lengths"))
        for parts in _perplexity_passes(compressor, section):
            yield from too_long(experiment, lengths, parts, name, *needs, ("compressors", name, "summary_length"))


def _unknown_vectors(name: str, compressor: Compressor | None, section: Perplexity) -> Iterator[Finding]:
    """Numbers of summary tokens that a compressor does not have, or was not trained to do with."""
    if not isinstance(compressor, SummaryCompressor):
        return
    own, trained = compressor.summary_length, compressor.training.random_summary_length
    needs: tuple[Key, ...] = (("compressors", name, "summary_length"), ("perplexity", "runs"))
    for index, length in enumerate(section.summary_lengths or []):
        key = ("perplexity", "summary_lengths", str(index))
        if length > own:
            yield Finding(key, str(length), f"at most {own}, the summary_length of '{name}'", needs)
        elif length < own and not trained:
            found, training = f"{length} of the {own} summary tokens of '{name}'", ("compressors", name, "training")
            wanted = f"{own}: fewer are of use only to a compressor trained with random_summary_length"
            yield Finding(key, found, wanted, (*needs, (*training, "random_summary_length")))


def _perplexity_passes(compressor: Compressor | None, section: Perplexity) -> Iterator[dict[str, int]]:
    longest, scored = max(section.context_lengths), section.scored_tokens
    if isinstance(compressor, SummaryCompressor):
        steps = -(-longest // section.tokens_per_step)
        yield from _passes(compressor, [min(section.tokens_per_step, longest)] * steps)
        yield {"summary vectors": _vectors(compressor, steps), "scored tokens": scored}
    else:
        # Plain models leave out the contexts that are too long for them, but one must be left.
        yield {"tokens of context": min(section.context_lengths), "scored tokens": scored}


def _measured(experiment: Experiment, stage: str) -> list[tuple[str, str]]:
    """Models and compressors that a stage is computed for, and the models that they start from."""
    found = {}
    for run in experiment.runs_of(stage):
        name = experiment.trained_runs[run][0] if run in experiment.trained_runs else run
        found[name] = experiment.base_of(run)
    return list(found.items())


def _icl(experiment: Experiment) -> Iterator[Finding]:
    section = experiment.icl
    if section is None:
        return
    yield from _chosen_runs(experiment, "icl")
    for name, base in _measured(experiment, "icl"):
        compressor = experiment.compressors.get(name)
        if isinstance(compressor, SummaryCompressor):
            yield from _too_many_vectors(name, compressor, section)
        for setting in section.settings:
            yield from _setting_too_long(experiment, setting, name)
        for index, dataset in enumerate(section.datasets):
            task, model = experiment.tasks.get(dataset), experiment.models.get(base)
            if task is None or model is None or model.architecture is None:
                continue
            key = ("icl", "datasets", str(index))
            for finding in not_its_language(experiment, key, base, task.source.world is not None, "a task"):
                yield Finding(key, finding.found, finding.expected, (*finding.needs, ("tasks", dataset, "source")))


def _too_many_vectors(name: str, compressor: SummaryCompressor, section: InContextLearning) -> Iterator[Finding]:
    """More compression steps than in training give more summary vectors than the model ever saw."""
    trained, key = compressor.trained_summary_vectors, ("compressors", name)
    for setting, row in section.settings.items():
        steps = len(row.compressed_tokens)
        if _vectors(compressor, steps) <= trained:
            continue
        found = f"{_vectors(compressor, steps)} summary vectors for '{name}' ({steps} x {compressor.summary_length})"
        segments = compressor.training.segments
        wanted = f"at most {trained}: it is trained on {segments} segments, so with {segments - 1} x as many"
        needs = tuple((*key, "training", part) for part in ("substeps", "segments_per_substep"))
        at = ("icl", "settings", setting, "compressed_tokens")
        yield Finding(at, found, wanted, ((*key, "summary_length"), *needs, ("icl", "runs")))


def _setting_too_long(experiment: Experiment, setting: str, name: str) -> Iterator[Finding]:
    assert experiment.icl is not None
    row, compressor = experiment.icl.settings[setting], experiment.compressors.get(name)
    key, needs = ("icl", "settings", setting), (("icl", "runs"), ("compressors", name, "summary_length"))
    vectors = 0
    if isinstance(compressor, SummaryCompressor):
        vectors = _vectors(compressor, len(row.compressed_tokens))
        for parts in _passes(compressor, row.compressed_tokens):
            yield from too_long(experiment, (*key, "compressed_tokens"), parts, name, *needs)
    elif row.compressed_tokens:
        return  # a setting that this run leaves out
    parts = {"summary vectors": vectors, "plain tokens": row.plain_tokens, "token of an example": 1}
    yield from too_long(experiment, (*key, "plain_tokens"), parts, name, *needs, (*key, "compressed_tokens"))


def _needle(experiment: Experiment) -> Iterator[Finding]:
    section = experiment.needle
    if section is None:
        return
    yield from _chosen_runs(experiment, "needle")
    shortest, step = min(section.lengths), section.tokens_per_step
    for name, base in _measured(experiment, "needle"):
        compressor, asked = experiment.compressors.get(name), {"tokens of the question and the key": 2}
        if isinstance(compressor, SummaryCompressor):
            count = -(-shortest // step)
            passes = [*_passes(compressor, [min(step, shortest)] * count)]
            passes.append({"summary vectors": _vectors(compressor, count), **asked})
        else:
            passes = [{"tokens of context": shortest, **asked}]
        needs = (("needle", "tokens_per_step"), ("needle", "runs"), ("compressors", name, "summary_length"))
        # Lengths that are too long are left out, but one must be left.
        for parts in passes:
            yield from too_long(experiment, ("needle", "lengths"), parts, name, *needs)
        model = experiment.models.get(base)
        if model is not None and model.architecture is not None:
            yield from _english_needle(base, section)


def _english_needle(base: str, section: Needle) -> Iterator[Finding]:
    """A model from scratch knows the words of the generated language alone; the default texts have others."""
    for field in ("filler", "needle", "question", "keys"):
        if getattr(section, field) == Needle.model_fields[field].default:
            found = f"the default text, English, for '{base}', trained from scratch"
            yield Finding(("needle", field), found, "words of the generated language", (("models", base),))


def _generate(experiment: Experiment) -> Iterator[Finding]:
    section = experiment.generate
    if section is None:
        return
    yield from _chosen_runs(experiment, "generate")
    definition = experiment.instructions.get(section.instructions)
    if definition is None:
        known = experiment.instructions
        yield from unknown(
            ("generate", "instructions"), section.instructions, "an instruction set", "instructions", known
        )
    else:
        splits = ["seen", "unseen"] if isinstance(definition, WorldInstructions) else list(definition.splits)
        place = ("instructions", section.instructions)
        for index, split in enumerate(section.splits):
            what = f"a validation split of '{section.instructions}'"
            for finding in unknown(("generate", "splits", str(index)), split, what, "instructions", splits):
                needs = ((*place, "splits"), (*place, "source"), ("generate", "instructions"))
                yield Finding(finding.key, finding.found, finding.expected, needs)
    for base in dict.fromkeys(base for _, base in _measured(experiment, "generate")):
        yield from _instructions(experiment, ("generate", "instructions"), section.instructions, base)
        parts = {"new tokens": section.max_new_tokens, "token of a prompt": 1}
        yield from too_long(experiment, ("generate", "max_new_tokens"), parts, base, ("generate", "runs"))


def _judge(experiment: Experiment) -> Iterator[Finding]:
    if experiment.judge is None:
        return
    if experiment.generate is None:
        yield Finding(("judge",), "judgements without outputs", "a section 'generate' beside it", (("generate",),))
        return
    generating = [name for name, _ in _measured(experiment, "generate")]
    for index, pair in enumerate(experiment.judge.pairs):
        key = ("judge", "pairs", str(index))
        inside = [(*key, "0"), (*key, "1")]
        for at, name in zip(inside, pair, strict=True):
            for finding in unknown(at, name, "a compressor whose outputs are generated", "compressors", generating):
                yield Finding(at, finding.found, finding.expected, (*finding.needs, ("generate", "runs")))
        a, b = pair
        if a == b:
            yield Finding(key, f"'{a}' against itself", "two different compressors", tuple(inside))
        elif a in generating and b in generating and not set(experiment.seeds_of(a)) & set(experiment.seeds_of(b)):
            found = f"'{a}' with the training seeds {experiment.seeds_of(a)} and '{b}' with {experiment.seeds_of(b)}"
            seeds = (("compressors", a, "training_seeds"), ("compressors", b, "training_seeds"), ("training_seeds",))
            yield Finding(key, found, "two compressors with a training seed in common", seeds)


def _benchmark(experiment: Experiment) -> Iterator[Finding]:
    section = experiment.benchmark
    if section is None:
        return
    yield from _chosen_runs(experiment, "benchmark")
    key, longest = ("benchmark", "context_lengths"), max(section.context_lengths)
    needs: tuple[Key, ...] = (("benchmark", "runs"),)
    for name, _ in _measured(experiment, "benchmark"):
        compressor, shortest = experiment.compressors[name], min(section.context_lengths)
        uncached = {"tokens of context": longest, "new tokens": section.new_tokens}
        yield from too_long(experiment, key, uncached, name, *needs, ("benchmark", "new_tokens"))
        if isinstance(compressor, SummaryCompressor):
            for parts in _passes(compressor, [longest]):
                yield from too_long(experiment, key, parts, name, *needs, ("compressors", name, "summary_length"))
        elif isinstance(compressor, GistCompressor) and shortest <= compressor.gist_tokens:
            found = f"a context of {shortest}, of which {compressor.gist_tokens} gist tokens of '{name}'"
            of_gist = (key, *needs, ("compressors", name, "gist_tokens"))
            yield Finding(key, found, "more tokens than gist tokens: they are part of the context", of_gist)
