"""Whether an error means that memory did not suffice."""

from __future__ import annotations

import torch

_MESSAGES = ("not enough memory", "can't allocate memory", "cannot allocate memory", "out of memory")


def out_of_memory(error: BaseException) -> bool:
    """True for what PyTorch raises on GPUs (a class of its own) and on CPUs (a RuntimeError), and for Python's own."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _MESSAGES)
