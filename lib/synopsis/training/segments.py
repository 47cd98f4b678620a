"""How a training sequence is cut (Chevalier et al. 2023, section 3.3)."""

from __future__ import annotations

import math
from itertools import accumulate, pairwise

import torch


def fixed_segment_lengths(length: int, segments: int) -> list[int]:
    """`segments` lengths that differ by one token at most and add up to `length`.

    ValueError when there are more segments than tokens.
    """
    if not 1 <= segments <= length:
        raise ValueError(f"{length} tokens cannot be cut into {segments} segments of one token or more")
    edges = [round(index * length / segments) for index in range(segments + 1)]
    return [end - start for start, end in pairwise(edges)]


def random_segment_lengths(length: int, segments: int, longest: int) -> list[int]:
    """Lengths between distinct random breakpoints, drawn from torch's global generator.

    `longest`: tokens that fit one forward pass. No segment is shorter than what the others need to stay within it (and
    than 2). Where that leaves nothing to draw, the segments are equal; ValueError when those would not fit either.
    """
    if segments == 1:
        return [length]
    if length < 2 * segments or length > longest * segments:
        raise ValueError(f"{length} tokens cannot be cut into {segments} segments of 2 to {longest} tokens")
    shortest = max(math.ceil((length - longest) / (segments - 1)), 2)
    free = length - segments * shortest
    if free < segments - 1:
        return fixed_segment_lengths(length, segments)
    breakpoints = torch.multinomial(torch.ones(free), segments - 1).sort().values.tolist()
    edges = [0, *breakpoints, free]
    return [shortest + end - start for start, end in pairwise(edges)]


def substep_slices(length: int, substeps: int) -> list[slice]:
    """Equal parts of a sequence, between two of which gradients stop."""
    edges = [0, *accumulate(fixed_segment_lengths(length, substeps))]
    return [slice(start, end) for start, end in pairwise(edges)]
