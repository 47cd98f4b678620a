"""Gist tokens: their section of the YAML."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from synopsis.compressors.architectures import DECODERS, ENCODER_DECODERS
from synopsis.compressors.section import TrainedCompressor
from synopsis.config.checks import instructions_for, too_long
from synopsis.config.training import InstructionTraining
from synopsis.config.types import Key, Problem

if TYPE_CHECKING:
    from synopsis.config.experiment import Experiment


class GistCompressor(TrainedCompressor):
    """Gist tokens, or one of their controls."""

    method: Literal["gist"]
    trained_on = "instructions"
    measured_by = frozenset({"generate", "benchmark"})
    architectures = frozenset({*DECODERS, *ENCODER_DECODERS})
    kind = "gist"
    mixin = "synopsis.compressors.published.gist:GistMixin"
    explicit: ClassVar[dict[str, str]] = {"t5": "synopsis.compressors.gist.t5:GistT5ForConditionalGeneration"}
    class_name = "Gist{stem}ForCausalLM"
    condition: Literal["gist", "pos_control", "neg_control"]
    gist_tokens: Annotated[int, Field(ge=1, le=10)] = 1
    training: InstructionTraining

    def vectors(self, steps: int) -> int:
        return self.gist_tokens if steps else 0

    def new_embeddings(self) -> int:
        return 1

    def shortest_context(self) -> int:
        """The gist tokens are part of the context, and something stands before them."""
        return self.gist_tokens + 1

    def check(self, key: Key, name: str, experiment: Experiment) -> Iterator[Problem]:
        inside, instructions = (*key, "training"), self.training.instructions
        yield from instructions_for(experiment, (*inside, "instructions"), instructions, self.base)
        yield from too_long(experiment, (*inside, "max_length"), name, {"tokens": self.training.max_length})

    def settings(self) -> dict[str, Any]:
        return {"gist_condition": self.condition, "gist_tokens": self.gist_tokens}

    def new_model(self, base: Path, tokenizer: Any, device: Any = "cpu", dtype: Any = "float32", **options: Any) -> Any:
        from synopsis.compressors.published.names import GIST_TOKEN

        # The base may have spare rows that are no tokens; this one becomes a token like those before it.
        tokenizer.add_tokens([GIST_TOKEN], special_tokens=True)
        model = super().new_model(base, tokenizer, device, dtype, **options)
        model.add_gist_token(tokenizer.convert_tokens_to_ids(GIST_TOKEN))
        return model
