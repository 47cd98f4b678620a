"""Memory of training: what tensors take on each device. CUDA's context, communication and fragmentation come on top."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from synopsis.config.deepspeed import read_deepspeed
from synopsis.config.training import Optimisation, SegmentTraining
from synopsis.costs.flops import Pass, Substeps, adapter_parameters
from synopsis.costs.model_size import ModelSize
from synopsis.errors import InputError


def training_memory(
    size: ModelSize, training: Optimisation, substeps: Substeps, trained: int, processes: int = 1, zero_stage: int = 0
) -> dict[str, int]:
    """Bytes on each of `processes` devices at the peak of a training step, by what they hold.

    trained: weights that learn. zero_stage: what the processes share out (DeepSpeed ZeRO): 1 the optimizer, 2 gradients
    as well, 3 weights as well (FSDP). Weights are float32 with Adam's two moments; in bfloat16 a copy of each weight
    stands beside it, except with DeepSpeed, whose optimizer holds the float32 weights and whose gradients are bfloat16.
    """
    from synopsis.compressors.loss import LOGITS_AT_ONCE

    low = training.dtype == "bfloat16"
    if low and training.deepspeed:
        weight, gradient, optimizer = 2, 2, 12
    else:
        weight, gradient, optimizer = 4 + 2 * low, 4, 8
    shares = [processes if zero_stage >= stage else 1 for stage in (3, 2, 1)]
    predicted = max(sum(one.predicted for one in passes) for passes in substeps) * training.batch_size
    return {
        "weights": weight * (size.parameters + adapter_parameters(size, training)) // shares[0],
        "gradients": gradient * trained // shares[1],
        "optimizer": optimizer * trained // shares[2],
        "activations": training.batch_size * max(activation_bytes(size, training, passes) for passes in substeps),
        # Logits, their float32 copy and its gradient.
        "logits": min(predicted * size.vocabulary, LOGITS_AT_ONCE) * (8 + (2 if low else 4)),
    }


def generation_bytes(size: ModelSize, batch: int, held: int, new_tokens: int, element: int) -> int:
    """What greedy decoding after a cache of `held` positions a row reads at least, with numbers of `element` bytes.

    The weights in each pass, those of the source once, and the cache in each pass but the first, which may make it.
    """
    weights = new_tokens * (size.decoder + size.embedding * size.vocabulary) + size.encoder
    return element * weights + (new_tokens - 1) * batch * held * cache_bytes(size, element)


def cache_bytes(size: ModelSize, element: int) -> int:
    """What one position of the cache takes: a key and a value in each layer of the decoder."""
    return 2 * size.layers * size.keys * element


def activation_bytes(size: ModelSize, training: Optimisation, passes: Sequence[Pass]) -> int:
    """What the backward pass of one substep of one sequence needs, at its peak."""
    element, eager = (2 if training.dtype == "bfloat16" else 4), training.attention == "eager"
    by_segment = isinstance(training, SegmentTraining) and training.segment_gradient_checkpointing
    inputs = sum(4 * size.hidden * one.positions for one in passes)
    if training.gradient_checkpointing:  # the float32 inputs of every layer, and one layer
        layers = [size.layers * one.positions + size.encoder_layers * one.source for one in passes]
        kept = [4 * size.hidden * positions for positions in layers]
        deepest = max(_of_layer(size, max(one.positions, one.source), element, eager) for one in passes)
        return deepest + (inputs + max(kept) if by_segment else sum(kept))
    whole = [_of_layers(size, one, element, eager) for one in passes]
    return inputs + max(whole) if by_segment else sum(whole)


def _of_layers(size: ModelSize, one: Pass, element: int, eager: bool) -> int:
    decoder = size.layers * _of_layer(size, one.positions, element, eager)
    if not size.encoder_layers:
        return decoder
    # Attention to the encoder: a normalisation and queries of each position, keys and values of the source.
    norm = (8 + element) * size.hidden + 3 * element * size.attention
    cross = size.layers * (norm * one.positions + 2 * element * size.keys * one.source)
    return decoder + cross + size.encoder_layers * _of_layer(size, one.source, element, eager)


def _of_layer(size: ModelSize, positions: int, element: int, eager: bool) -> int:
    """What one layer keeps for its backward pass.

    The stream between layers is float32, as are the insides of normalisations. Queries, keys, values, what attention
    gives and its copy for the next matrix; of a gated block both halves, the opened gate and their product.
    """
    norms = 2 * (4 + element) * size.hidden if size.layer_norm else 2 * (8 + element) * size.hidden
    attention = element * (3 * size.attention + 2 * size.keys)
    if eager:
        attention += (4 + element) * size.heads * positions
    feed_forward = element * (4 if size.gated else 1) * size.intermediate
    return positions * (norms + attention + feed_forward)


def zero_stage(training: Optimisation, beside: Sequence[Path] = ()) -> tuple[int, frozenset[str]]:
    """What processes share out (0 to 3), and what lies in the machine's own memory (`optimizer`, `weights`)."""
    if training.deepspeed is None:
        return (3 if training.fsdp else 0), frozenset()
    path, settings = read_deepspeed(training.deepspeed, beside)
    zero = settings.get("zero_optimization", {})
    try:
        moved = {"weights": zero.get("offload_param") or {}, "optimizer": zero.get("offload_optimizer") or {}}
        stage = int(zero.get("stage", 0))
        return stage, frozenset(part for part, to in moved.items() if to.get("device") in ("cpu", "nvme"))
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: zero_optimization cannot be read: {error}") from None
