"""Truncation: its section of the YAML."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from synopsis.compressors.section import Compressor


class TruncationCompressor(Compressor):
    """Keeps the last tokens of the text, plain: what every other method has to be better than."""

    method: Literal["truncation"]
    kind = "truncation"
    mixin = "synopsis.compressors.truncation.model:TruncationMixin"
    class_name = "Truncating{stem}ForCausalLM"
    budget: Annotated[int, Field(ge=1, le=2**24)]
    """Tokens that are kept."""

    def settings(self) -> dict[str, Any]:
        return {"budget": self.budget}

    def vectors(self, steps: int) -> int:
        return self.budget if steps else 0

    def context(self, chunks: Sequence[int]) -> dict[str, int]:
        return {"kept tokens": min(sum(chunks), self.budget)}
