"""AutoCompressor and RMT: their section of the YAML."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field

from synopsis.compressors.architectures import DECODERS
from synopsis.compressors.section import TrainedCompressor
from synopsis.config.training import SegmentTraining


class SummaryCompressor(TrainedCompressor):
    """AutoCompressor, or RMT (its summary vectors are replaced at each segment instead of accumulated)."""

    method: Literal["autocompressor", "rmt"]
    trained_on = "corpus"
    architectures = frozenset(DECODERS)
    summary_length: Annotated[int, Field(ge=1, le=2**16)]
    """Summary tokens at the end of each segment."""
    training: SegmentTraining

    @property
    def accumulates(self) -> bool:
        return self.method == "autocompressor"

    def vectors(self, steps: int) -> int:
        return self.summary_length * (steps if self.accumulates else min(steps, 1))

    def most_vectors(self) -> int:
        return self.vectors(self.training.segments - 1)

    def passes(self, chunks: Sequence[int]) -> list[dict[str, int]]:
        return [
            {"summary vectors": self.vectors(step), "tokens": tokens, "summary tokens": self.summary_length}
            for step, tokens in enumerate(chunks)
        ]

    def context(self, chunks: Sequence[int]) -> dict[str, int]:
        return {"summary vectors": self.vectors(len(chunks))}

    def with_length(self, length: int) -> Self:
        return self.model_copy(update={"summary_length": length})

    def wrong_length(self, length: int) -> str | None:
        if length > self.summary_length:
            return f"at most {self.summary_length}, the summary_length"
        if length < self.summary_length and not self.training.random_summary_length:
            return f"{self.summary_length}: fewer are of use only to a compressor trained with random_summary_length"
        return None
