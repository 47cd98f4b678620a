"""Perplexity: its section of the YAML."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from synopsis.artifacts import Layout
from synopsis.compressors.section import Compressor, steps
from synopsis.config.checks import chosen_runs, corpus_for, measured, too_long
from synopsis.config.types import LARGEST, Distinct, Name, NonNegativeInt, PositiveInt, Problem, Strict
from synopsis.stages.record import AMOUNT, COUNT, Bounds, Stage, of_runs, untrained

if TYPE_CHECKING:
    from synopsis.config.experiment import Experiment


class Perplexity(Strict):
    """Loss of the last segment of a document, by the number of tokens read before it."""

    corpus: Name
    split: Literal["validation", "test"] = "test"
    context_lengths: Annotated[list[NonNegativeInt], Field(min_length=1), Distinct()]
    scored_tokens: Annotated[int, Field(ge=2, le=LARGEST)]
    """Length of the last segment, whose loss is reported; nothing predicts its first token."""
    tokens_per_step: PositiveInt
    """Context tokens compressed in one step."""
    summary_lengths: Annotated[list[PositiveInt], Field(min_length=1), Distinct()] | None = None
    """Summary tokens at the end of each step, one measurement for each number; None: all that a compressor has. Fewer
    than all are of use only to compressors trained with `random_summary_length`."""
    max_documents: PositiveInt | None = None
    """Documents of each domain, at most."""
    batch_size: PositiveInt = 8
    """Documents read at once, halved when memory does not suffice."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    runs: Annotated[list[Name], Field(min_length=1), Distinct()] | None = None
    """Models and compressors; None: all that read plain text."""

    def check(self, experiment: Experiment) -> Iterator[Problem]:
        """What does not fit the rest of the experiment."""
        yield from chosen_runs(experiment, "perplexity")
        at, longest, shortest = ("perplexity", "context_lengths"), max(self.context_lengths), min(self.context_lengths)
        for name, subject in measured(experiment, "perplexity").items():
            yield from corpus_for(experiment, ("perplexity", "corpus"), self.corpus, experiment.base_named(name))
            for index, length in enumerate(self.summary_lengths or []):
                wanted = subject.wrong_length(length)
                if wanted is not None:
                    key = ("perplexity", "summary_lengths", str(index))
                    yield Problem(key, f"{length} summary tokens for '{name}'", wanted)
            most = subject.with_length(max(self.summary_lengths)) if self.summary_lengths else subject
            # What reads whole contexts leaves out those that are too long for it, but one must be left.
            chunks = steps(longest if subject.compresses else shortest, self.tokens_per_step)
            scored = {**most.context(chunks), "scored tokens": self.scored_tokens}
            yield from too_long(experiment, at, name, *most.passes(chunks), scored)


def _inputs(experiment: Experiment, run: str) -> list[Path]:
    layout, base = Layout(experiment), experiment.base_of(run)
    return [layout.weights(run), layout.tokenizer(base), layout.corpus(experiment.perplexity.corpus, base)]


def _parts(experiment: Experiment, run: str) -> tuple[Any, ...]:
    subject, unused = experiment.subject(run), {"runs", "batch_size"}
    if isinstance(subject, Compressor) and not subject.compresses:
        unused |= {"tokens_per_step", "summary_lengths"}
    return "perplexity", experiment.perplexity.model_dump(exclude=unused), run, *untrained(experiment, run)


STAGE = Stage(
    name="perplexity",
    kind="perplexity",
    wildcards=("run",),
    outputs=lambda layout, run: [layout.perplexity(run), layout.examples(layout.perplexity(run))],
    inputs=_inputs,
    parts=_parts,
    grid=of_runs("perplexity"),
    section=Perplexity,
    place=1,
    title="Perplexity",
    axes={"domain": str, "context_length": int, "tokens": str, "summary_length": int},
    metrics={
        "loss": Bounds(due=True, lower_is_better=True),
        **dict.fromkeys(("loss_low", "loss_high", "perplexity", "bits_per_byte"), AMOUNT),
        **dict.fromkeys(("summary_vectors", "n_documents", "skipped", "too_short"), COUNT),
    },
)
