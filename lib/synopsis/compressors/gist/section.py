"""Gist tokens: their section of the YAML."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from synopsis.compressors.section import Compressor
from synopsis.config.training import InstructionTraining


class GistCompressor(Compressor):
    """Gist tokens, or one of their controls."""

    method: Literal["gist"]
    trained_on = "instructions"
    measured_by = frozenset({"generate", "benchmark"})
    condition: Literal["gist", "pos_control", "neg_control"]
    gist_tokens: Annotated[int, Field(ge=1, le=10)] = 1
    training: InstructionTraining
