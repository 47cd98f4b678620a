"""Generation: its section of the YAML."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from synopsis.config.types import Distinct, Name, PositiveInt, Strict
from synopsis.stages.record import Stage


class Generate(Strict):
    """Greedy outputs for the validation splits of an instruction set, and their ROUGE."""

    instructions: Name
    splits: Annotated[list[Name], Field(min_length=1), Distinct()]
    max_new_tokens: PositiveInt = 128
    max_examples: PositiveInt | None = None
    batch_size: PositiveInt = 16
    runs: Annotated[list[Name], Field(min_length=1), Distinct()] | None = None
    """Gist compressors; None: all."""


STAGE = Stage("generate", Generate, place=4)
