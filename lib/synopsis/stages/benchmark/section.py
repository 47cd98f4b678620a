"""The benchmark: its section of the YAML."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from synopsis.artifacts import Layout
from synopsis.config.checks import chosen_runs, measured, too_long
from synopsis.config.types import Distinct, Name, NonNegativeInt, PositiveInt, Problem, Strict
from synopsis.stages.record import AMOUNT, Stage, of_runs, untrained

if TYPE_CHECKING:
    from synopsis.config.experiment import Experiment


METRICS = ("wall_seconds", "cpu_seconds", "cuda_seconds", "flops", "peak_bytes", "context_bytes", "floor_seconds")


class Benchmark(Strict):
    """Time and memory of decoding with a compressed context against reading the context again."""

    context_lengths: Annotated[list[PositiveInt], Field(min_length=1), Distinct()]
    batch_sizes: Annotated[list[PositiveInt], Field(min_length=1), Distinct()] = Field(default_factory=lambda: [1])
    new_tokens: PositiveInt = 16
    warmup: NonNegativeInt = 1
    repeats: PositiveInt = 3
    runs: Annotated[list[Name], Field(min_length=1), Distinct()] | None = None
    """Compressors; None: all that compress."""

    def check(self, experiment: Experiment) -> Iterator[Problem]:
        """What does not fit the rest of the experiment."""
        yield from chosen_runs(experiment, "benchmark")
        key, longest, shortest = ("benchmark", "context_lengths"), max(self.context_lengths), min(self.context_lengths)
        for name, subject in measured(experiment, "benchmark").items():
            uncached = {"tokens of context": longest, "new tokens": self.new_tokens}
            yield from too_long(experiment, key, name, uncached, *subject.passes([longest]))
            if shortest < subject.shortest_context():
                wanted = f"at least {subject.shortest_context()}, the fewest that '{name}' compresses"
                yield Problem(key, f"a context of {shortest}", wanted)


def _outputs(layout: Layout, run: str) -> list[Path]:
    samples = layout.benchmark(run)
    return [samples.with_suffix(".json"), samples]


def _parts(experiment: Experiment, run: str) -> tuple[Any, ...]:
    return "benchmark", experiment.benchmark.model_dump(exclude={"runs"}), run, *untrained(experiment, run)


STAGE = Stage(
    name="benchmark",
    kind="benchmark",
    wildcards=("run",),
    outputs=_outputs,
    inputs=lambda experiment, run: [Layout(experiment).weights(run)],
    parts=_parts,
    grid=of_runs("benchmark"),
    section=Benchmark,
    place=6,
    title="Time and memory",
    axes={"mode": str, "batch_size": int, "context_length": int, "new_tokens": int},
    metrics=dict.fromkeys(METRICS, AMOUNT),
)
