"""The benchmark: its section of the YAML."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from synopsis.artifacts import Layout
from synopsis.compressors.section import steps
from synopsis.config.checks import chosen_runs, measured, too_long
from synopsis.config.types import Distinct, Name, NonNegativeInt, PositiveInt, Problem, Strict
from synopsis.stages.record import AMOUNT, Stage, of_runs, untrained

if TYPE_CHECKING:
    from synopsis.config.experiment import Experiment


METRICS = (
    *("compress_seconds", "load_seconds", "prefill_seconds", "first_token_seconds", "token_seconds"),
    *("wall_seconds", "cpu_seconds", "profiler_cpu_seconds", "profiler_cuda_seconds", "profiler_flops"),
    "deepspeed_flops",
    *("flops", "peak_bytes", "peak_with_weights_bytes", "stored_bytes", "used_bytes", "floor_seconds", "times_floor"),
)
Dtype = Literal["float32", "bfloat16", "float16"]
OTHER_LOAD = "other load"
"""Note of a sample whose cores another process took."""


class Benchmark(Strict):
    """Time and memory of decoding with a compressed context, against a cached prefix and reading the context again."""

    context_lengths: Annotated[list[PositiveInt], Field(min_length=1), Distinct()]
    batch_sizes: Annotated[list[PositiveInt], Field(min_length=1), Distinct()] = Field(default_factory=lambda: [1])
    new_tokens: Annotated[list[PositiveInt], Field(min_length=1), Distinct()] = Field(default_factory=lambda: [16])
    segments: Annotated[list[PositiveInt], Field(min_length=1), Distinct()] = Field(default_factory=lambda: [1])
    """Into how many a context is cut when it is compressed, by methods that read in steps."""
    dtypes: Annotated[list[Dtype], Field(min_length=1), Distinct()] = Field(default=["float32"])
    compile: bool = False
    """Compile the layers with torch.compile; FLOPs and memory are those of the eager model."""
    deepspeed: bool = False
    """Count FLOPs with DeepSpeed's profiler too, the second back end of the published benchmark."""
    warmup: NonNegativeInt = 1
    repeats: PositiveInt = 3
    runs: Annotated[list[Name], Field(min_length=1), Distinct()] | None = None
    """Compressors; None: all that compress."""

    def check(self, experiment: Experiment) -> Iterator[Problem]:
        """What does not fit the rest of the experiment."""
        yield from chosen_runs(experiment, "benchmark")
        key, longest, shortest = ("benchmark", "context_lengths"), max(self.context_lengths), min(self.context_lengths)
        for name, subject in measured(experiment, "benchmark").items():
            # Longer contexts can be compressed in several segments alone; the other modes say that they cannot.
            whole = {"tokens of context": longest, "new tokens": max(self.new_tokens)}
            segments = min(self._segments(subject))
            passes = subject.passes(steps(longest, -(-longest // segments)))
            yield from too_long(experiment, key, name, *([whole] if segments == 1 else []), *passes)
            if shortest < subject.shortest_context():
                wanted = f"at least {subject.shortest_context()}, the fewest that '{name}' compresses"
                yield Problem(key, f"a context of {shortest}", wanted)

    def _segments(self, subject: Any) -> list[int]:
        """Of a method that reads a context in one piece one."""
        return self.segments if subject.passes([1]) else [1]

    def cases(self, subject: Any) -> list[Any]:
        """The points of the sweep, the largest last."""
        from synopsis.stages.benchmark.modes import Case

        axes = self.batch_sizes, self.context_lengths, self.new_tokens, self._segments(subject)
        return [Case(*values) for values in product(*axes)]


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
    axes={
        **{"mode": str, "batch_size": int, "context_length": int, "new_tokens": int, "segments": int},
        **{"dtype": str},
    },
    metrics=dict.fromkeys(METRICS, AMOUNT),
)
