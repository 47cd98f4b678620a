"""Sequences in rows in which each common beginning stands once."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from synopsis.engine.packing import pack

SEQUENCES = st.lists(st.lists(st.integers(0, 2), max_size=6).map(tuple), min_size=1, max_size=12, unique=True)


@given(sequences=SEQUENCES, budget=st.integers(1, 20))
def test_every_sequence_is_in_one_pack_and_sees_itself_alone(sequences: list[tuple[int, ...]], budget: int) -> None:
    packs = pack(sequences, budget)
    assert sorted(member for packed in packs for member in packed.members) == list(range(len(sequences)))
    for packed in packs:
        sees = packed.sees()
        for member, path in zip(packed.members, packed.paths, strict=True):
            assert tuple(packed.ids[place] for place in path) == sequences[member]
            for depth, place in enumerate(path):
                assert np.flatnonzero(sees[place]).tolist() == path[: depth + 1] and packed.depths[place] == depth
    sizes = [len(packed.ids) for packed in packs]
    assert sizes == sorted(sizes, reverse=True)
    (whole,) = pack(sequences, 1000)
    assert len(whole.ids) == len({tokens[: end + 1] for tokens in sequences for end in range(len(tokens))})


def test_budgets() -> None:
    apart = [(number, 7, 8) for number in range(10)]
    assert [len(packed.ids) for packed in pack(apart, 7)] == [6] * 5
    assert [len(packed.ids) for packed in pack([(1,) * 30], 7)] == [30]
    # Questions about one long text stay with it, up to twice the budget; then it is read again.
    text = tuple(range(100, 110))
    assert [len(packed.ids) for packed in pack([(*text, number) for number in range(14)], 10)] == [20, 14]
