"""Checks of the sections that say what is measured, against the models and compressors that there are."""

from __future__ import annotations

from collections.abc import Iterator

from synopsis.compressors.gist.section import GistCompressor
from synopsis.compressors.section import Compressor, sections
from synopsis.compressors.summary.section import SummaryCompressor
from synopsis.config.data import WorldInstructions
from synopsis.config.experiment import Experiment, Model
from synopsis.config.findings import (
    Finding,
    corpus_for,
    instructions_for,
    not_its_language,
    too_long,
    too_short,
    unknown,
)
from synopsis.config.yaml_files import Key
from synopsis.stages.icl.section import InContextLearning
from synopsis.stages.needle.section import Needle
from synopsis.stages.perplexity.section import Perplexity


def check_stages(experiment: Experiment) -> Iterator[Finding]:
    """Faults of every stage after training."""
    for check in (_perplexity, _icl, _needle, _generate, _judge, _benchmark):
        yield from check(experiment)


def _chosen_runs(experiment: Experiment, stage: str) -> Iterator[Finding]:
    section = getattr(experiment, stage)
    subjects, able = experiment.subjects, [name for name in experiment.subjects if experiment.can_measure(stage, name)]
    for index, name in enumerate(section.runs or []):
        key = (stage, "runs", str(index))
        if name in subjects and name not in able:
            subject, base = subjects[name], getattr(subjects[name], "base", name)
            kind = f"of the method {subject.method}" if base != name else "a model without compression"
            if stage in subject.measured_by:
                kind = f"an encoder-decoder ({experiment.models[base].model_type})"
            wanted = f"a run that '{stage}' can measure ({', '.join(able) or 'there is none'})"
            yield Finding(key, f"'{name}', {kind}", wanted, (("models", base, "type"),))
        elif name not in able:
            what = f"a model or compressor that '{stage}' can measure"
            for finding in unknown(key, name, what, "models", able):
                yield Finding(key, finding.found, finding.expected, (("models", name), ("compressors", name)))
    if section.runs is None and not able:
        allowed = [method for method, found in sections().items() if stage in found.measured_by]
        wanted = f"a compressor of the method {', '.join(sorted(allowed))}"
        wanted = f"a decoder among the models, or {wanted}" if stage in Model.measured_by else wanted
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
        yield from compressor.passes([min(section.tokens_per_step, longest)] * steps)
        yield {"summary vectors": compressor.vectors(steps), "scored tokens": scored}
    else:
        # Plain models leave out the contexts that are too long for them, but one must be left.
        yield {"tokens of context": min(section.context_lengths), "scored tokens": scored}


def _measured(experiment: Experiment, stage: str) -> list[tuple[str, str]]:
    """Models and compressors that a stage is computed for, and the models that they start from."""
    found = {}
    for run in experiment.runs_of(stage):
        found[experiment.name_of(run)] = experiment.base_of(run)
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
    trained, key = compressor.most_vectors(), ("compressors", name)
    for setting, row in section.settings.items():
        steps = len(row.compressed_tokens)
        if compressor.vectors(steps) <= trained:
            continue
        found = f"{compressor.vectors(steps)} summary vectors for '{name}' ({steps} x {compressor.summary_length})"
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
        vectors = compressor.vectors(len(row.compressed_tokens))
        for parts in compressor.passes(row.compressed_tokens):
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
            passes = [*compressor.passes([min(step, shortest)] * count)]
            passes.append({"summary vectors": compressor.vectors(count), **asked})
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
        yield from instructions_for(experiment, ("generate", "instructions"), section.instructions, base)
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
            for parts in compressor.passes([longest]):
                yield from too_long(experiment, key, parts, name, *needs, ("compressors", name, "summary_length"))
        elif isinstance(compressor, GistCompressor) and shortest <= compressor.gist_tokens:
            found = f"a context of {shortest}, of which {compressor.gist_tokens} gist tokens of '{name}'"
            of_gist = (key, *needs, ("compressors", name, "gist_tokens"))
            yield Finding(key, found, "more tokens than gist tokens: they are part of the context", of_gist)
