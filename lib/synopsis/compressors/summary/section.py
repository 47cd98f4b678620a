"""AutoCompressor and RMT: their section of the YAML."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field

from synopsis.compressors.architectures import DECODERS
from synopsis.compressors.section import TrainedCompressor
from synopsis.config.checks import corpus_for, too_long
from synopsis.config.training import SegmentTraining
from synopsis.config.types import Key, Problem

if TYPE_CHECKING:
    from synopsis.config.experiment import Experiment


def vectors_after(before: int, made: int, accumulates: bool) -> int:
    """Summary vectors after a step that made `made` of them behind `before` earlier ones."""
    return before + made if accumulates else made


class SummaryCompressor(TrainedCompressor):
    """AutoCompressor, or RMT (its summary vectors are replaced at each segment instead of accumulated)."""

    method: Literal["autocompressor", "rmt"]
    trained_on = "corpus"
    architectures = frozenset(DECODERS)
    kind = "summary"
    mixin = "synopsis.compressors.published.summary:AutoCompressorMixin"
    explicit: ClassVar[dict[str, str]] = {"opt": "synopsis.compressors.summary.opt:OPTAutoCompressorModel"}
    class_name = "{stem}AutoCompressorModel"
    summary_length: Annotated[int, Field(ge=1, le=2**16)]
    """Summary tokens at the end of each segment."""
    training: SegmentTraining

    @property
    def accumulates(self) -> bool:
        return self.method == "autocompressor"

    def vectors(self, steps: int) -> int:
        vectors = 0
        for _ in range(steps):
            vectors = vectors_after(vectors, self.summary_length, self.accumulates)
        return vectors

    def new_embeddings(self) -> int:
        return self.summary_length

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

    def check(self, key: Key, name: str, experiment: Experiment) -> Iterator[Problem]:
        training, inside = self.training, (*key, "training")
        yield from corpus_for(experiment, (*inside, "corpus"), training.corpus, self.base)
        # The shortest that the longest segment of a step can be, beside what stands before and after it.
        parts = {
            "summary vectors": self.most_vectors(),
            "tokens of a segment": max(training.segment_lengths or [-(-training.sequence_length // training.segments)]),
            "summary tokens": self.summary_length,
        }
        yield from too_long(experiment, (*inside, "sequence_length"), name, parts)

    def settings(self) -> dict[str, Any]:
        return {
            "summary_length": self.summary_length,
            "accumulate_summary": self.accumulates,
            "random_summary_length": self.training.random_summary_length,
            "segment_gradient_checkpointing": self.training.segment_gradient_checkpointing,
        }

    def new_model(self, base: Path, tokenizer: Any, device: Any = "cpu", dtype: Any = "float32", **options: Any) -> Any:
        from synopsis.compressors.loading import build
        from synopsis.compressors.published.names import SUMMARY_KEY, input_embeddings

        checkpoint = self.open_base(base)
        fresh, words = SUMMARY_KEY not in checkpoint.weights, input_embeddings(checkpoint.weights)
        if fresh and words is not None:
            checkpoint.weights[SUMMARY_KEY] = words.new_zeros(self.summary_length, words.shape[1])
        model: Any = build(checkpoint, device, dtype, **options)
        if fresh:
            model.initialize_summary_embeddings()
        return model

    def longest_segment(self, model: Any) -> int:
        """Beside the soft prompt and the summary tokens."""
        beside = model.positions_beside(self.most_vectors(), self.summary_length)
        return int(model.config.max_position_embeddings - beside)
