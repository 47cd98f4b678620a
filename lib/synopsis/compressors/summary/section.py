"""AutoCompressor and RMT: their section of the YAML."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from synopsis.compressors.section import Compressor
from synopsis.config.training import SegmentTraining


class SummaryCompressor(Compressor):
    """AutoCompressor, or RMT (its summary vectors are replaced at each segment instead of accumulated)."""

    method: Literal["autocompressor", "rmt"]
    trained_on = "corpus"
    summary_length: Annotated[int, Field(ge=1, le=2**16)]
    """Summary tokens at the end of each segment."""
    training: SegmentTraining

    @property
    def trained_summary_vectors(self) -> int:
        """The most summary vectors that stood before a segment in training."""
        steps = self.training.segments - 1
        return self.summary_length * (steps if self.method == "autocompressor" else min(steps, 1))
