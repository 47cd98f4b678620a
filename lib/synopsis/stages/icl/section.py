"""In-context learning: its section of the YAML."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from synopsis.config.types import Distinct, Name, NonNegativeInt, PositiveInt, Strict
from synopsis.stages.record import Stage


class Setting(Strict):
    """A row of the ICL table: how many tokens of demonstrations, compressed and plain."""

    compressed_tokens: list[PositiveInt] = Field(default_factory=list)
    """Budget of each compression step, in order."""
    plain_tokens: NonNegativeInt = 0

    @property
    def largest_budget(self) -> int:
        return max([*self.compressed_tokens, self.plain_tokens])


class InContextLearning(Strict):
    """Classification with demonstrations in the prompt."""

    datasets: Annotated[list[Name], Field(min_length=1), Distinct()]
    """Names of files in config/tasks."""
    settings: dict[Name, Setting] = Field(min_length=1)
    demonstrations: Literal["published", "fitting"] = "published"
    """How many a budget holds: `published`: budget // the task's tokens_per_demonstration, where it states them;
    `fitting`: as many as really fit."""
    repeat_demonstrations: bool = False
    """Show rows again where a balanced draw has fewer than are asked for, as published; False: that cell fails."""
    max_examples: PositiveInt | None = None
    """Test examples of each data set, drawn with a fixed seed; None: all."""
    batch_tokens: PositiveInt | None = None
    """Tokens read in one pass, halved when memory does not suffice; None: 512 on CPUs, 4096 on GPUs."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    runs: Annotated[list[Name], Field(min_length=1), Distinct()] | None = None
    """Models and compressors; None: all that read plain text."""


STAGE = Stage("icl", InContextLearning, place=2)
