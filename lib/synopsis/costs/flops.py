"""FLOPs of reading and of training: those of matrix products, as torch's FlopCounterMode counts them.

    flops = training_flops(size, training, training_passes(training, compressor.vectors))
    flops.model, flops.total                     # of one sequence; the second with what is computed again

A multiplication and an addition each; attention over the whole square of queries and keys, though a causal mask needs
half of it (Chowdhery et al. 2022, appendix B). A model FLOPs utilisation leaves out what the backward pass computes
again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from synopsis.config.training import InstructionTraining, Optimisation, SegmentTraining
from synopsis.costs.model_size import ModelSize, model_size

Vectors = Callable[[int], int]
"""Steps of compression -> vectors that stand before what follows (see `compressors.section.Subject.vectors`)."""


@dataclass(frozen=True)
class Pass:
    """One forward pass of a sequence: `positions` through the (decoder's) layers, logits for `predicted` of them.

    source: positions through the encoder, for T5.
    """

    positions: int
    predicted: int
    source: int = 0


Substeps = Sequence[Sequence[Pass]]
"""The passes of a training sequence, by substep: what one backward pass goes through."""


def training_passes(
    training: Optimisation,
    vectors: Vectors,
    tokens: int | None = None,
    target_tokens: int | None = None,
    encoder: bool = False,
) -> list[list[Pass]]:
    """Passes of one training sequence: [soft prompt | tokens | summary tokens] for each of equal segments.

    tokens, target_tokens: lengths of an instruction example, with its gist tokens; None: the longest allowed.
    Segments of random lengths have as many positions, and some more pairs; a summary length that is drawn in each step
    counts as the longest.
    """
    if isinstance(training, SegmentTraining):
        count, segments = training.segments, training.segments_per_substep
        edges = [round(index * training.sequence_length / count) for index in range(count + 1)]
        passes = []
        for index in range(count):
            read, ends = edges[index + 1] - edges[index], vectors(1) if index < count - 1 else 0
            # Nothing predicts the first token of a substep.
            passes.append(Pass(vectors(index) + read + ends, read - (index % segments == 0)))
        return [passes[start : start + segments] for start in range(0, count, segments)]
    if not isinstance(training, InstructionTraining):
        length = training.sequence_length  # type: ignore[attr-defined]
        return [[Pass(length, length - 1)]]
    read = tokens or training.max_length
    if not encoder:
        return [[Pass(read, read - 1)]]
    written = target_tokens or training.max_target_length
    return [[Pass(written, written, source=read)]]


def layer_flops(size: ModelSize, one: Pass) -> tuple[int, int]:
    """(of the weights, of queries with keys and weights with values) in all layers in one forward pass."""
    pairs = size.layers * one.positions * (one.positions + one.source) + size.encoder_layers * one.source**2
    return 2 * (size.decoder * one.positions + size.encoder * one.source), 4 * size.attention * pairs


def output_flops(size: ModelSize, one: Pass) -> int:
    """Of the output layer in one forward pass."""
    return 2 * one.predicted * size.embedding * size.vocabulary


@dataclass(frozen=True)
class TrainingFlops:
    """FLOPs of forward and backward passes, and of what is computed again in the backward pass."""

    model: int
    """What learning needs, however it is computed: the FLOPs of a model FLOPs utilisation."""
    recomputed: int = 0

    @property
    def total(self) -> int:
        """What the device does."""
        return self.model + self.recomputed


def training_flops(size: ModelSize, training: Optimisation, substeps: Substeps) -> TrainingFlops:
    """FLOPs of training on one sequence.

    The backward pass makes two products for each of the forward pass, and for frozen weights one: no gradient of the
    weight. Adapters come on top.
    """
    passes = [one for substep in substeps for one in substep]
    frozen = training.lora is not None or training.train_only == "new_embeddings"
    linear, attention = (sum(parts) for parts in zip(*(layer_flops(size, one) for one in passes), strict=True))
    output = sum(output_flops(size, one) for one in passes)
    adapters = 2 * adapter_parameters(size, training) * sum(one.positions for one in passes)
    layers = linear + attention + adapters
    backward = (linear + output) * (1 if frozen else 2) + 2 * (attention + adapters)
    again = int(training.gradient_checkpointing)
    if isinstance(training, SegmentTraining):
        again += int(training.segment_gradient_checkpointing)
    return TrainingFlops(layers + output + backward, again * layers)


def step_flops(config: Any, training: Optimisation, vectors: Vectors, processes: int, tokens: int) -> int | None:
    """Model FLOPs of an optimizer step of all processes on sequences of (in the mean) `tokens` tokens.

    config: the transformers configuration of the model. None for an architecture whose size is not known.
    """
    size = model_size(config)
    if size is None:
        return None
    passes = training_passes(training, vectors, tokens, encoder=size.encoder_layers > 0)
    return training.sequences(processes) * training_flops(size, training, passes).model


def adapter_parameters(size: ModelSize, training: Optimisation) -> int:
    """Weights of the LoRA adapters; 0 without LoRA."""
    if training.lora is None:
        return 0
    return training.lora.rank * sum(size.adapter_widths.get(name, 0) for name in training.lora.targets)
