"""What a run costs, before anyone starts it: FLOPs, memory, and the share of a device's peak that it reaches.

Formulas alone, on the numbers of a configuration (see `synopsis.costs.dimensions`); no torch, no weights.

    flops = training_flops_per_step(model.config, training, processes=8)
    mfu(flops / seconds_per_step, torch.cuda.get_device_name(), processes=8, dtype="bfloat16")

FLOPs are those of matrix products, a multiplication and an addition each, as torch's FlopCounterMode counts them:
attention over the whole square of queries and keys, though a causal mask needs half of it (Chowdhery et al. 2022,
appendix B). Where a layer is computed again in the backward pass, this is counted apart: a model FLOPs utilisation
leaves it out. Memory is what tensors take; the CUDA context, communication buffers and fragmentation come on top.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from synopsis.config.training import InstructionTraining, LanguageModelTraining, Optimisation, SegmentTraining
from synopsis.costs.dimensions import Dimensions

LOGITS_AT_ONCE = 2**25
"""Logits that exist at a time in training (see `synopsis.compressors.loss`)."""

# ------------------------------------------------------------------------------------------------------------- passes


@dataclass(frozen=True)
class Pass:
    """One forward pass of a sequence: `positions` through the (decoder's) layers, logits for `predicted` of them.

    source: positions through the encoder, for T5.
    """

    positions: int
    predicted: int
    source: int = 0


Substeps = Sequence[Sequence[Pass]]
"""The passes of a training sequence, by substep: what one backward pass goes back through."""


def segment_passes(
    length: int, substeps: int, segments: int, summary_length: int, accumulate: bool = True
) -> list[list[Pass]]:
    """Passes over `substeps` x `segments` equal segments: [soft prompt | tokens | summary tokens] each.

    The last segment has no summary tokens. Segments of random lengths have as many positions, and some more pairs.
    """
    count = substeps * segments
    edges = [round(index * length / count) for index in range(count + 1)]
    passes = []
    for index in range(count):
        tokens = edges[index + 1] - edges[index]
        soft = summary_length * (index if accumulate else min(index, 1))
        ends = summary_length if index < count - 1 else 0
        # Nothing predicts the first token of a substep.
        passes.append(Pass(soft + tokens + ends, tokens - (index % segments == 0)))
    return [passes[start : start + segments] for start in range(0, count, segments)]


def training_passes(
    training: Optimisation,
    summary_length: int = 0,
    accumulate: bool = True,
    tokens: int | None = None,
    target_tokens: int | None = None,
    encoder: bool = False,
) -> list[list[Pass]]:
    """Passes of one training sequence. A summary length that is drawn anew in each step counts as the longest.

    tokens, target_tokens: mean lengths of an instruction example, with its gist tokens; None: the longest allowed.
    """
    if isinstance(training, SegmentTraining):
        lengths = training.sequence_length, training.substeps, training.segments_per_substep
        return segment_passes(*lengths, summary_length, accumulate)
    if isinstance(training, LanguageModelTraining):
        return [[Pass(training.sequence_length, training.sequence_length - 1)]]
    if not isinstance(training, InstructionTraining):
        raise TypeError(f"unknown kind of training: {type(training).__name__}")
    read = tokens or training.max_length
    if not encoder:
        return [[Pass(read, read - 1)]]
    written = target_tokens or training.max_target_length
    return [[Pass(written, written, source=read)]]


# -------------------------------------------------------------------------------------------------------------- FLOPs


def linear_flops(size: Dimensions, one: Pass) -> int:
    """Of the weights of all layers in one forward pass, without the output layer."""
    decoder = size.layers * (size.layer + size.cross_attention // 2) * one.positions
    encoder = (size.encoder_layers * size.layer + size.layers * size.cross_attention // 2) * one.source
    return 2 * (decoder + encoder)


def attention_flops(size: Dimensions, one: Pass) -> int:
    """Of queries with keys, and of weights with values, in one forward pass: the whole squares."""
    pairs = size.layers * one.positions * (one.positions + one.source) + size.encoder_layers * one.source**2
    return 4 * size.attention * pairs


def output_flops(size: Dimensions, one: Pass) -> int:
    """Of the output layer in one forward pass."""
    width = size.embedding or size.hidden
    return 2 * one.predicted * width * size.vocabulary


def prefill_flops(size: Dimensions, tokens: int, causal: bool = False) -> int:
    """Of reading `tokens` in one pass and predicting one; `causal`: the half of attention that the mask leaves."""
    one = Pass(tokens, 1)
    return linear_flops(size, one) + attention_flops(size, one) // (2 if causal else 1) + output_flops(size, one)


@dataclass(frozen=True)
class TrainingFlops:
    """FLOPs of forward and backward passes, and of what is computed again in the backward pass."""

    forward: int
    backward: int
    recomputed: int = 0

    @property
    def model(self) -> int:
        """What learning needs, however it is computed: the FLOPs of a model FLOPs utilisation."""
        return self.forward + self.backward

    @property
    def total(self) -> int:
        """What the device does."""
        return self.model + self.recomputed


def training_flops(size: Dimensions, training: Optimisation, substeps: Substeps) -> TrainingFlops:
    """FLOPs of training on one sequence.

    The backward pass makes two products for each of the forward pass, and for frozen weights one: no gradient of the
    weight. Adapters come on top.
    """
    passes = [one for substep in substeps for one in substep]
    frozen = training.lora is not None or training.train_only == "new_embeddings"
    linear = sum(linear_flops(size, one) for one in passes)
    output = sum(output_flops(size, one) for one in passes)
    attention = sum(attention_flops(size, one) for one in passes)
    adapters = 2 * adapter_parameters(size, training) * sum(one.positions for one in passes)
    layers = linear + attention + adapters
    backward = (linear + output) * (1 if frozen else 2) + 2 * (attention + adapters)
    again = int(training.gradient_checkpointing)
    if isinstance(training, SegmentTraining):
        again += int(training.segment_gradient_checkpointing)
    return TrainingFlops(layers + output, backward, again * layers)


def training_flops_per_step(
    config: Any,
    training: Optimisation,
    processes: int = 1,
    tokens: int | None = None,
    target_tokens: int | None = None,
) -> int | None:
    """Model FLOPs of an optimizer step of all processes: summary tokens and soft prompts are positions like others.

    config: the transformers configuration of the model, with `summary_length` and `accumulate_summary` where it has
    them, or the values of its config.json. tokens, target_tokens: mean lengths of instruction examples; None: the
    longest allowed. None for an architecture whose size is not known.
    """
    size = Dimensions.of(config)
    if size is None:
        return None
    values = config if isinstance(config, dict) else config.to_dict()
    summary = values.get("summary_length") or 0, values.get("accumulate_summary", True)
    substeps = training_passes(training, *summary, tokens, target_tokens, encoder=size.encoder_layers > 0)
    sequences = training.sequences(processes)
    return sequences * training_flops(size, training, substeps).model


# --------------------------------------------------------------------------------------------------------- parameters


def adapter_parameters(size: Dimensions, training: Optimisation) -> int:
    """Weights of the LoRA adapters; 0 without LoRA."""
    if training.lora is None:
        return 0
    shapes = [size.matrix(name) for name in training.lora.targets]
    return sum(training.lora.rank * (inputs + outputs) * count for inputs, outputs, count in shapes)


def trained_parameters(size: Dimensions, training: Optimisation, new_embeddings: int = 0) -> int:
    """Weights that learn; `new_embeddings`: rows that were added for summary or gist tokens."""
    new = new_embeddings * (size.embedding or size.hidden)
    if training.lora is not None:
        return adapter_parameters(size, training) + new
    return new if training.train_only == "new_embeddings" else size.parameters + new


# ------------------------------------------------------------------------------------------------------------- memory


@dataclass(frozen=True)
class Memory:
    """Bytes on one device at the peak of a training step, by what they hold."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits


def training_memory(
    size: Dimensions,
    training: Optimisation,
    substeps: Substeps,
    trained: int,
    processes: int = 1,
    zero_stage: int = 0,
) -> Memory:
    """Bytes on each of `processes` devices.

    trained: weights that learn. zero_stage: what the processes share out (DeepSpeed ZeRO): 1 the optimizer, 2 gradients
    as well, 3 weights as well (FSDP). Weights are float32 with Adam's two moments; in bfloat16 a copy of each weight
    stands beside it, except with DeepSpeed, whose optimizer holds the float32 weights and whose gradients are bfloat16.
    """
    all_weights = size.parameters + adapter_parameters(size, training)
    low = training.dtype == "bfloat16"
    if low and training.deepspeed:
        weight, gradient, optimizer = 2, 2, 12
    else:
        weight, gradient, optimizer = 4 + 2 * low, 4, 8
    shares = [processes if zero_stage >= stage else 1 for stage in (3, 2, 1)]
    peak = max(activation_bytes(size, training, passes) for passes in substeps)
    predicted = max(sum(one.predicted for one in passes) for passes in substeps) * training.batch_size
    return Memory(
        weights=weight * all_weights // shares[0],
        gradients=gradient * trained // shares[1],
        optimizer=optimizer * trained // shares[2],
        activations=training.batch_size * peak,
        # Logits, their float32 copy and its gradient.
        logits=min(predicted * size.vocabulary, LOGITS_AT_ONCE) * (8 + (2 if low else 4)),
    )


def activation_bytes(size: Dimensions, training: Optimisation, passes: Sequence[Pass]) -> int:
    """What the backward pass of one substep of one sequence needs, at its peak."""
    element = 2 if training.dtype == "bfloat16" else 4
    eager = training.attention == "eager"
    whole = [_of_layers(size, one, element, eager) for one in passes]
    kept = [_between_layers(size, one) for one in passes]
    deepest = max(_of_layer(size, max(one.positions, one.source), element, eager) for one in passes)
    by_segment = isinstance(training, SegmentTraining) and training.segment_gradient_checkpointing
    inputs = sum(4 * size.hidden * one.positions for one in passes)
    if training.gradient_checkpointing and by_segment:
        return inputs + max(kept) + deepest
    if training.gradient_checkpointing:
        return sum(kept) + deepest
    return inputs + max(whole) if by_segment else sum(whole)


def _between_layers(size: Dimensions, one: Pass) -> int:
    """The float32 inputs of every layer."""
    return 4 * size.hidden * (size.layers * one.positions + size.encoder_layers * one.source)


def _of_layers(size: Dimensions, one: Pass, element: int, eager: bool) -> int:
    decoder = size.layers * _of_layer(size, one.positions, element, eager)
    if not size.encoder_layers:
        return decoder
    # Attention to the encoder: a normalisation and queries of each position, keys and values of the source.
    norm = (8 + element) * size.hidden + 3 * element * size.attention
    cross = size.layers * (norm * one.positions + 2 * element * size.keys * one.source)
    return decoder + cross + size.encoder_layers * _of_layer(size, one.source, element, eager)


def _of_layer(size: Dimensions, positions: int, element: int, eager: bool) -> int:
    """What one layer keeps for its backward pass.

    The stream between layers is float32, as are the insides of normalisations. Queries, keys, values, what attention
    gives and its copy for the next matrix; of a gated block both halves, the opened gate and their product.
    """
    norms = 2 * (4 + element) * size.hidden if size.model_type == "opt" else 2 * (8 + element) * size.hidden
    attention = element * (3 * size.attention + 2 * size.keys)
    if eager:
        attention += (4 + element) * size.heads * positions
    feed_forward = element * (4 if size.gated else 1) * size.intermediate
    return positions * (norms + attention + feed_forward)


# ------------------------------------------------------------------------------------------------------------ devices


@dataclass(frozen=True)
class Device:
    """Peak rates without sparsity (FLOP/s), and memory in bytes, of a vendor's data sheet; None: not stated there."""

    bfloat16: float
    float32: float | None
    memory: float


DEVICES = {
    "H100 NVL": Device(835e12, 60e12, 94e9),
    "H100 PCIe": Device(756e12, 51e12, 80e9),
    "H100": Device(989e12, 67e12, 80e9),
    "H200": Device(989e12, 67e12, 141e9),
    "GH200": Device(990e12, 67e12, 96e9),
    "B200": Device(2250e12, None, 180e9),
    "A100-SXM4-40GB": Device(312e12, 19.5e12, 40e9),
    "A100-PCIE-40GB": Device(312e12, 19.5e12, 40e9),
    "A100": Device(312e12, 19.5e12, 80e9),
    "L40S": Device(362e12, 91.6e12, 48e9),
    "L4": Device(121e12, 30.3e12, 24e9),
    "A10": Device(125e12, 31.2e12, 24e9),
    "RTX A6000": Device(154.8e12, 38.7e12, 48e9),
    "RTX 4090": Device(165.2e12, 82.6e12, 24e9),
    "RTX 3090": Device(71e12, 35.6e12, 24e9),
    "MI300X": Device(1307e12, 163.4e12, 192e9),
}
"""Name -> device; the first whose name is a word of what the driver says is taken, so variants stand first."""


def find_device(name: str) -> Device | None:
    """The device of a driver's name such as `NVIDIA H100 80GB HBM3`; None when it is not known (CPUs are not)."""
    for known, device in DEVICES.items():
        if re.search(rf"(?<![A-Z0-9]){re.escape(known.upper())}(?![A-Z0-9])", name.upper()):
            return device
    return None


def peak_flops(device_name: str, dtype: str = "bfloat16") -> float | None:
    """FLOP/s at most of one device in `bfloat16` or `float32`; None where it is not known."""
    device = find_device(device_name)
    if device is None:
        return None
    return {"bfloat16": device.bfloat16, "float16": device.bfloat16, "float32": device.float32}.get(dtype)


def mfu(flops_per_second: float, device_name: str, processes: int = 1, dtype: str = "bfloat16") -> float | None:
    """Model FLOPs utilisation of `processes` devices, as a share of 1; None where their peak is not known."""
    peak = peak_flops(device_name, dtype)
    return None if peak is None else flops_per_second / (peak * processes)
