"""Judging: its section of the YAML."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from synopsis.config.types import Distinct, Name, Strict
from synopsis.stages.record import Stage


class Judge(Strict):
    """Pairwise judgements of the outputs of two compressors."""

    judges: Annotated[list[Name], Field(min_length=1), Distinct()]
    """Names of files in config/judges."""
    pairs: Annotated[list[Annotated[tuple[Name, Name], Field(strict=False)]], Field(min_length=1), Distinct()]
    """Compressors: the one in question, and the one it is compared with."""


STAGE = Stage("judge", Judge, place=5)
