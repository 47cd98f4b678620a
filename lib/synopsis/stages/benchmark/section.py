"""The benchmark: its section of the YAML."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from synopsis.config.types import Distinct, Name, NonNegativeInt, PositiveInt, Strict
from synopsis.stages.record import Stage


class Benchmark(Strict):
    """Time and memory of decoding with a compressed context against reading the context again."""

    context_lengths: Annotated[list[PositiveInt], Field(min_length=1), Distinct()]
    batch_sizes: Annotated[list[PositiveInt], Field(min_length=1), Distinct()] = Field(default_factory=lambda: [1])
    new_tokens: PositiveInt = 16
    warmup: NonNegativeInt = 1
    repeats: PositiveInt = 3
    runs: Annotated[list[Name], Field(min_length=1), Distinct()] | None = None
    """Compressors; None: all that compress."""


STAGE = Stage("benchmark", Benchmark, place=6)
