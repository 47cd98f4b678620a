"""Paired differences, against numbers that are known from elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from synopsis.reporting.statistics import holm, paired_difference


def pairs(a: Any, b: Any, **more: Any) -> pd.DataFrame:
    return pd.DataFrame({"a": a, "b": b, "weight": 1, "cluster": range(len(a)), **more})


def test_right_and_wrong_answers_are_tested_by_mcnemar() -> None:
    found = paired_difference(pairs([1.0] * 9 + [0.0] * 3 + [1.0] * 8, [0.0] * 9 + [1.0] * 3 + [1.0] * 8))
    assert (found.a, found.b, found.value) == pytest.approx((0.85, 0.55, 0.3))
    assert found.p == pytest.approx(2 * sum([1, 12, 66, 220]) / 2**12)  # both tails of a binomial of 12 with 3 or fewer
    assert found.interval is not None and found.interval[0] < 0.3 < found.interval[1] <= 1


def test_the_smallest_difference_follows_from_spread_and_number() -> None:
    """34 pairs show half a standard deviation in 80 % of experiments: Cohen (1988), G*Power."""
    noise = np.random.default_rng(0).normal(size=34)
    found = paired_difference(pairs(noise, np.zeros(34)))
    assert found.smallest == pytest.approx(0.5 * noise.std(ddof=1), rel=0.02)


def test_examples_of_one_document_count_as_one() -> None:
    a, b = np.random.default_rng(1).normal(size=(2, 40))
    once = paired_difference(pairs(a, b))
    copies = paired_difference(pairs([*a, *a, *a], [*b, *b, *b], cluster=[*range(40)] * 3))
    assert (copies.examples, copies.clusters) == (120, 40)
    assert (copies.p, *copies.interval, copies.smallest) == pytest.approx((once.p, *once.interval, once.smallest))
    apart = paired_difference(pairs([*a, *a, *a], [*b, *b, *b]))
    assert apart.interval[1] - apart.interval[0] < 0.7 * (once.interval[1] - once.interval[0])


def test_a_mean_over_tokens_weighs_documents_by_them() -> None:
    found = paired_difference(pairs([1.0, 2.0], [0.0, 0.0], weight=[3, 1]))
    assert (found.value, found.interval) == (1.25, (1.0, 2.0))


@pytest.mark.parametrize(("a", "p"), [([0.5], None), ([0.5, 0.5, 0.5], None), ([0.0, 0.0, 0.0], 1.0)])
def test_examples_without_spread_show_nothing(a: list[float], p: float | None) -> None:
    found = paired_difference(pairs(a, [0.0] * len(a)))
    assert (found.p, found.smallest) == (p, None)


def test_corrected_p_values_keep_their_places() -> None:
    assert holm([0.04, None, 0.01, 0.03]) == [0.06, None, 0.03, 0.06]
    assert holm([None]) == [None]
