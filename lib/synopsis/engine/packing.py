"""Token sequences that begin alike, packed into one row so that each token is read once.

The options of a query share the query, examples of one task share the words of its template, questions about one text
share the text. A pack is a tree: a token hangs below the one before it, sequences part where they first differ, and a
token sees those that lead to it. One forward pass over the row, with each token at its depth as its position, gives
what a pass for each sequence would give.

    packs = pack([(5, 6, 7), (5, 6, 8), (5, 9)], budget=512)
    packs[0].ids                    # [5, 6, 7, 8, 9]
    packs[0].paths                  # places in `ids` of each sequence's tokens: [[0, 1, 2], [0, 1, 3], [0, 4]]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

Tokens = tuple[int, ...]


@dataclass
class Pack:
    """Sequences as one row. ids, depths: of each token; parents: its place's predecessor, -1 at the beginning."""

    members: list[int] = field(default_factory=list)
    """Which of the sequences given to `pack` are in it."""
    paths: list[list[int]] = field(default_factory=list)
    """Of each member, the places of its tokens in the row."""
    ids: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)

    def add(self, member: int, tokens: Tokens, shared: int) -> None:
        """Add a sequence whose first `shared` tokens are those of the last one that was added."""
        path = self.paths[-1][:shared] if shared else []
        for depth in range(shared, len(tokens)):
            self.parents.append(path[-1] if path else -1)
            path.append(len(self.ids))
            self.ids.append(tokens[depth])
            self.depths.append(depth)
        self.members.append(member)
        self.paths.append(path)

    def sees(self) -> np.ndarray:
        """(tokens, tokens) boolean: which tokens of the row each one sees, itself included."""
        sees = np.eye(len(self.ids), dtype=bool)
        for place, parent in enumerate(self.parents):
            if parent >= 0:
                sees[place] |= sees[parent]
        return sees


def pack(sequences: Sequence[Tokens], budget: int) -> list[Pack]:
    """Packs of about `budget` tokens each, the largest first; a longer sequence is a pack of its own.

    Sorted sequences that share a beginning are neighbours, and a sequence shares most with the one before it. One that
    shares most of its tokens is added beyond the budget, up to twice that: many questions share their one long text.
    """
    packs: list[Pack] = []
    last: Tokens = ()
    for member in sorted(range(len(sequences)), key=sequences.__getitem__):
        tokens = sequences[member]
        shared = _shared(last, tokens)
        most = 2 * budget if 2 * shared > len(tokens) else budget
        if not packs or len(packs[-1].ids) + len(tokens) - shared > most:
            packs.append(Pack())
            shared = 0
        packs[-1].add(member, tokens, shared)
        last = tokens
    return sorted(packs, key=lambda packed: -len(packed.ids))


def _shared(first: Tokens, second: Tokens) -> int:
    """How many tokens two sequences have in common at their beginning."""
    for place, (left, right) in enumerate(zip(first, second, strict=False)):
        if left != right:
            return place
    return min(len(first), len(second))
