"""Perplexity: its section of the YAML."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from synopsis.config.types import LARGEST, Distinct, Name, NonNegativeInt, PositiveInt, Strict
from synopsis.stages.record import Stage


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


STAGE = Stage("perplexity", Perplexity, place=1)
