"""Checks between the sections of an experiment: names that point nowhere and combinations that cannot work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from string import Formatter

from synopsis.config import (
    STAGE_FAMILIES,
    Experiment,
    FullAttentionCompressor,
    GistCompressor,
    SegmentTraining,
    SummaryCompressor,
    WorldCorpus,
    WorldInstructions,
)
from synopsis.errors import Fault

SUPPORTED: dict[str, frozenset[str]] = {
    "autocompressor": frozenset({"llama"}),
    "rmt": frozenset({"llama"}),
    "gist": frozenset({"llama"}),
}
"""Family -> architectures it can be built on. Families that are not named work on any causal language model."""


def check_experiment(experiment: Experiment) -> list[Fault]:
    """Every fault between sections; files and lines are filled in by the reader."""
    return [
        *_models(experiment),
        *_compressors(experiment),
        *_perplexity(experiment),
        *_icl(experiment),
        *_generate_and_judge(experiment),
        *_benchmark(experiment),
    ]


def _fault(key: str, found: object, expected: str) -> Fault:
    return Fault("", key, found if isinstance(found, str) and " " in found else repr(found), expected)


def _unknown(key: str, name: str, what: str, known: Iterable[str]) -> Iterator[Fault]:
    known = list(known)
    if name not in known:
        yield _fault(key, name, f"the name of {what} ({', '.join(known) or 'none is defined'})")


def _too_long(key: str, length: int, positions: int | None, base: str) -> Iterator[Fault]:
    if positions is not None and length > positions:
        yield _fault(key, f"{length} positions in one forward pass", f"at most {positions}, the positions of '{base}'")


def _models(experiment: Experiment) -> Iterator[Fault]:
    for name, model in experiment.models.items():
        if model.pretraining:
            key = f"models.{name}.pretraining"
            yield from _unknown(f"{key}.corpus", model.pretraining.corpus, "a corpus", experiment.corpora)
            yield from _too_long(f"{key}.sequence_length", model.pretraining.sequence_length, model.positions, name)
            corpus = experiment.corpora.get(model.pretraining.corpus)
            if corpus is not None and not isinstance(corpus, WorldCorpus):
                yield _fault(f"{key}.corpus", model.pretraining.corpus, "a corpus of source 'world' (its tokenizer is made with it)")
        if model.architecture and model.architecture.hidden_size % model.architecture.num_attention_heads:
            yield _fault(
                f"models.{name}.architecture.hidden_size",
                model.architecture.hidden_size,
                f"a multiple of num_attention_heads ({model.architecture.num_attention_heads})",
            )
        if name in experiment.compressors:
            yield _fault(f"models.{name}", name, "a name that no compressor has")


def _compressors(experiment: Experiment) -> Iterator[Fault]:
    for name, compressor in experiment.compressors.items():
        key = f"compressors.{name}"
        training = compressor.training
        yield from _unknown(f"{key}.base", compressor.base, "a model", experiment.models)
        if isinstance(compressor, GistCompressor):
            yield from _unknown(
                f"{key}.training.instructions", compressor.training.instructions, "an instruction set", experiment.instructions
            )
        else:
            yield from _unknown(f"{key}.training.corpus", training.corpus, "a corpus", experiment.corpora)  # type: ignore[union-attr]
        base = experiment.models.get(compressor.base)
        if base is None:
            continue
        allowed = SUPPORTED.get(compressor.family)
        if allowed is not None and base.model_type is not None and base.model_type not in allowed:
            yield _fault(
                f"{key}.base",
                f"'{compressor.base}' of architecture {base.model_type!r}",
                f"for the family '{compressor.family}' a model of architecture {', '.join(sorted(allowed))}",
            )
        if isinstance(training, SegmentTraining) and isinstance(compressor, SummaryCompressor):
            yield from _segments(key, compressor, base.positions)
        elif isinstance(compressor, FullAttentionCompressor):
            yield from _too_long(
                f"{key}.training.sequence_length", compressor.training.sequence_length, base.positions, compressor.base
            )
        elif isinstance(compressor, GistCompressor):
            length = compressor.training.max_length
            yield from _too_long(f"{key}.training.max_length", length, base.positions, compressor.base)


def _segments(key: str, compressor: SummaryCompressor, positions: int | None) -> Iterator[Fault]:
    training = compressor.training
    if training.sequence_length % training.substeps:
        yield _fault(
            f"{key}.training.sequence_length",
            training.sequence_length,
            f"a multiple of substeps ({training.substeps})",
        )
    if training.segments < 2:
        yield _fault(f"{key}.training", "one segment in all", "at least two: nothing is compressed otherwise")
    shortest = training.sequence_length // max(training.segments, 1)
    if shortest < 2:
        yield _fault(f"{key}.training.sequence_length", training.sequence_length, f"at least 2 tokens for each of {training.segments} segments")
    soft = compressor.trained_summary_vectors
    yield from _too_long(
        f"{key}.training.sequence_length", shortest + soft + compressor.summary_length, positions, compressor.base
    )


def _perplexity(experiment: Experiment) -> Iterator[Fault]:
    section = experiment.perplexity
    if section is None:
        return
    yield from _unknown("perplexity.corpus", section.corpus, "a corpus", experiment.corpora)
    yield from _chosen_runs(experiment, "perplexity")
    for run in experiment.runs_of("perplexity"):
        subject, base = experiment.subject(run), experiment.base_of(run)
        positions = experiment.models[base].positions if base in experiment.models else None
        if isinstance(subject, SummaryCompressor):
            yield from _steps(
                "perplexity.context_lengths",
                run,
                subject,
                -(-max(section.context_lengths) // section.tokens_per_step),
                limit=False,
            )
            soft = subject.trained_summary_vectors
            yield from _too_long(
                "perplexity.tokens_per_step",
                soft + max(section.tokens_per_step + subject.summary_length, section.scored_tokens),
                positions,
                base,
            )
        elif subject is not None and not isinstance(subject, GistCompressor):
            yield from _too_long("perplexity.scored_tokens", section.scored_tokens, positions, base)


def _steps(key: str, run: str, compressor: SummaryCompressor, steps: int, *, limit: bool = True) -> Iterator[Fault]:
    """More compression steps than in training give more summary vectors than the model ever saw."""
    vectors = compressor.summary_length * (steps if compressor.family == "autocompressor" else min(steps, 1))
    if limit and vectors > compressor.trained_summary_vectors:
        yield _fault(
            key,
            f"{steps} compression steps of {compressor.summary_length} summary vectors for '{run}'",
            f"at most {compressor.trained_summary_vectors} summary vectors, as many as it is trained with",
        )


def _icl(experiment: Experiment) -> Iterator[Fault]:
    section = experiment.icl
    if section is None:
        return
    yield from _chosen_runs(experiment, "icl")
    for run in experiment.runs_of("icl"):
        subject, base = experiment.subject(run), experiment.base_of(run)
        if base not in experiment.models:
            continue
        positions = experiment.models[base].positions
        for name, setting in experiment.settings_of(run).items():
            key = f"icl.settings.{name}"
            soft = 0
            if isinstance(subject, SummaryCompressor) and setting.compressed_tokens:
                yield from _steps(f"{key}.compressed_tokens", run, subject, len(setting.compressed_tokens))
                soft = subject.summary_length * len(setting.compressed_tokens)
                longest = max(setting.compressed_tokens) + soft
                yield from _too_long(f"{key}.compressed_tokens", longest, positions, base)
            yield from _too_long(f"{key}.plain_tokens", setting.plain_tokens + soft, positions, base)
    for name, task in experiment.tasks.items():
        fields = {field for _, field, _, _ in Formatter().parse(task.template) if field}
        for field in sorted(set(task.input_fields) - fields):
            yield _fault("icl.datasets", f"'{name}' with the input field '{field}'", "input fields that its template shows")


def _generate_and_judge(experiment: Experiment) -> Iterator[Fault]:
    section = experiment.generate
    if section is not None:
        yield from _unknown("generate.instructions", section.instructions, "an instruction set", experiment.instructions)
        yield from _chosen_runs(experiment, "generate")
        instructions = experiment.instructions.get(section.instructions)
        if instructions is not None:
            splits = ["seen", "unseen"] if isinstance(instructions, WorldInstructions) else list(instructions.splits)
            for index, split in enumerate(section.splits):
                yield from _unknown(f"generate.splits.{index}", split, "a validation split", splits)
    if experiment.judge is None:
        return
    if section is None:
        yield _fault("judge", "judgements without outputs", "a section 'generate' beside it")
        return
    generating = {experiment.trained_runs[run][0] for run in experiment.runs_of("generate")}
    for index, pair in enumerate(experiment.judge.pairs):
        for side, name in enumerate(pair):
            yield from _unknown(f"judge.pairs.{index}.{side}", name, "a compressor whose outputs are generated", generating)
        if pair[0] == pair[1]:
            yield _fault(f"judge.pairs.{index}", f"'{pair[0]}' against itself", "two different compressors")


def _benchmark(experiment: Experiment) -> Iterator[Fault]:
    section = experiment.benchmark
    if section is None:
        return
    yield from _chosen_runs(experiment, "benchmark")
    for run in experiment.runs_of("benchmark"):
        base = experiment.base_of(run)
        positions = experiment.models[base].positions if base in experiment.models else None
        longest = max(section.context_lengths) + section.new_tokens
        yield from _too_long("benchmark.context_lengths", longest, positions, base)


def _chosen_runs(experiment: Experiment, stage: str) -> Iterator[Fault]:
    section = getattr(experiment, stage)
    able = [
        name
        for name in [*experiment.models, *experiment.compressors]
        if (experiment.compressors[name].family if name in experiment.compressors else "base") in STAGE_FAMILIES[stage]
    ]
    for index, name in enumerate(section.runs or []):
        yield from _unknown(f"{stage}.runs.{index}", name, f"a model or compressor that '{stage}' can measure", able)
