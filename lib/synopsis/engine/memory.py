"""Work in parts whose size is halved, for good, where memory does not suffice."""

from __future__ import annotations

from collections.abc import Callable

import torch

from synopsis.progress import say

_MESSAGES = ("not enough memory", "can't allocate memory", "cannot allocate memory", "out of memory")


def out_of_memory(error: BaseException) -> bool:
    """True for what PyTorch raises on GPUs (a class of its own) and on CPUs (a RuntimeError), and for Python's own."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _MESSAGES)


class Halving:
    """size: the most that is worked on at once; halvings: how often it was halved."""

    def __init__(self, size: int):
        self.size, self.halvings = size, 0

    def fits(self, work: Callable[[], object], taken: int, what: str, too_large: Exception | None) -> bool:
        """Whether `work`, on `taken` units, ran; if not, `size` is halved with a message.

        too_large: raised instead where the work cannot be made smaller. Other errors are raised as they are.
        """
        try:
            work()
            return True
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if too_large is not None:
                raise too_large from None
        # Only here, as the error holds what the work had made.
        self.size, self.halvings = max(min(self.size, taken) // 2, 1), self.halvings + 1
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        say(f"out of memory with {taken} {what}; continuing with {self.size}")
        return False
