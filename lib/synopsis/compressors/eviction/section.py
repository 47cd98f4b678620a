"""Eviction of keys and values: its section of the YAML."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from synopsis.compressors.section import Compressor

SINKS = 4
"""First tokens that are never evicted: attention needs them, whatever they say (Xiao et al. 2024)."""


class StreamingCompressor(Compressor):
    """StreamingLLM: keeps the keys and values of the first tokens and of the newest ones. Nothing is trained."""

    method: Literal["streaming_llm"]
    kind = "eviction"
    mixin = "synopsis.compressors.eviction.model:StreamingMixin"
    class_name = "Streaming{stem}ForCausalLM"
    budget: Annotated[int, Field(gt=SINKS, le=2**24)]
    """Pairs of a key and a value that are kept, the first tokens' among them."""
    rerotate: bool = False
    """Turn the kept keys to the positions 0, 1, 2, ..., so that what follows goes on at the budget instead of at the
    length of the context."""

    def settings(self) -> dict[str, Any]:
        return {"budget": self.budget, "rerotate": self.rerotate}

    def vectors(self, steps: int) -> int:
        return self.budget if steps else 0

    def passes(self, chunks: Sequence[int]) -> list[dict[str, int]]:
        return [{**self.context(chunks[:step]), "tokens": tokens} for step, tokens in enumerate(chunks)]

    def context(self, chunks: Sequence[int]) -> dict[str, int]:
        """Evicted tokens keep their positions, unless the others are turned."""
        tokens = sum(chunks)
        return {"kept tokens": min(tokens, self.budget)} if self.rerotate else {"tokens of context": tokens}
