"""Gist tokens: their section of the YAML."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from synopsis.compressors.architectures import DECODERS, ENCODER_DECODERS
from synopsis.compressors.section import TrainedCompressor
from synopsis.config.training import InstructionTraining


class GistCompressor(TrainedCompressor):
    """Gist tokens, or one of their controls."""

    method: Literal["gist"]
    trained_on = "instructions"
    measured_by = frozenset({"generate", "benchmark"})
    architectures = frozenset({*DECODERS, *ENCODER_DECODERS})
    condition: Literal["gist", "pos_control", "neg_control"]
    gist_tokens: Annotated[int, Field(ge=1, le=10)] = 1
    training: InstructionTraining

    def shortest_context(self) -> int:
        """The gist tokens are part of the context, and something stands before them."""
        return self.gist_tokens + 1
