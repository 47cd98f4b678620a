"""The statistics of judgements: against numbers worked out by hand, other libraries and planted truths."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synopsis.stages.judge import statistics
from synopsis.stages.judge.pairs import Pair, Question
from synopsis.stages.judge.records import Judgement, Reply, State
from synopsis.stages.judge.statistics import agreement, bootstrap_interval, length_controlled, sign_test, summarise


def judged(states: dict[str, tuple[State, ...]]) -> list[Judgement]:
    pair = Pair("", "", "", "", "", "")
    return [
        Judgement.of(Question(pair, order), Reply(), "p", "j").model_copy(update={"id": id, "state": state})
        for id, both in states.items()
        for order, state in zip(("ab", "ba"), both, strict=False)
    ]


def test_doctests():
    result = doctest.testmod(statistics)
    assert result.attempted > 0 and result.failed == 0


def test_summary_numbers_by_hand():
    texts = {"e1": ("same", "same"), "e2": ("long one", "b")}
    pairs = [Pair(f"e{n}", "", "", *texts.get(f"e{n}", ("one", "four")), "") for n in range(1, 7)]
    states: dict[str, tuple[State, ...]] = {
        "e1": ("tie", "A"),  # identical answers, one of which won
        "e2": ("A", "A"),  # the longer one
        "e3": ("A", "B"),  # the first position wins twice; the longer one once
        "e4": ("A", "parse_error"),  # not scored
        "e5": ("api_error", "api_error"),  # two errors agree about nothing
        "e6": ("B", "B"),  # the longer one, twice
    }
    found = summarise(pairs, judged(states))
    counts = {
        **{"n": 6, "judgements": 12, "parse_error": 1, "api_error": 2, "scored": 4},
        **{"win": 4, "tie": 1, "lose": 3, "win_rate": (0.75 + 1 + 0.5 + 0) / 4, "tie_rate": 1 / 8},
        **{"both_orders": 4, "consistent": 2, "decided": 6, "first_position_wins": 4, "first_wins": 4 / 6},
        **{"longer_wins": 5 / 6, "length_a": (4 + 8 + 4 * 3) / 6, "length_b": (4 + 1 + 4 * 4) / 6},
        **{"identical": 1, "identical_decided": 1, "scores": {"e1": 0.75, "e2": 1.0, "e3": 0.5, "e6": 0.0}},
    }
    assert {key: found[key] for key in counts} == counts
    assert found["sign_test"] == 1.0


def test_a_judge_without_position_bias_is_consistent_whatever_its_errors():
    states: dict[str, tuple[State, ...]] = {str(n): ("A", "A") if n % 10 else ("A", "api_error") for n in range(200)}
    found = summarise([Pair(id, "", "", "x", "y", "") for id in states], judged(states))
    assert found["consistent"] == found["both_orders"] == 180 == found["scored"]


def test_nothing_valid_is_unknown_and_no_tie():
    found = summarise([Pair("e1", "", "", "one", "two", "")], judged({"e1": ("parse_error", "api_error")}))
    names = ("win_rate", "tie_rate", "interval", "clopper_pearson", "sign_test", "length_controlled", "first_wins")
    assert [found[name] for name in names] == [None] * len(names) and found["tie"] == 0


def test_recorded_judgements_of_one_order_are_scored_but_say_nothing_about_consistency():
    found = summarise([Pair("e1", "", "", "one", "two", "")], judged({"e1": ("A",)}))
    assert (found["scored"], found["win_rate"], found["both_orders"], found["consistent"]) == (1, 1.0, 0, 0)


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), min_size=1, max_size=60))
def test_the_interval_holds_the_mean_and_stays_within_its_bounds(scores):
    low, high = bootstrap_interval(scores)
    assert 0 <= low <= np.mean(scores) + 1e-9 and np.mean(scores) - 1e-9 <= high <= 1


def test_the_interval_is_that_of_drawing_examples_again():
    from scipy.stats import bootstrap

    scores = np.random.default_rng(1).choice([0.0, 0.25, 0.5, 1.0], 300)
    other = bootstrap((scores,), np.mean, method="percentile", rng=np.random.default_rng(2)).confidence_interval
    assert bootstrap_interval(list(scores)) == pytest.approx((other.low, other.high), abs=0.003)


def test_the_interval_covers_the_true_win_rate():
    rng, truth = np.random.default_rng(0), 0.2 * 0.5 + 0.5
    drawn = [rng.choice([0.0, 0.5, 1.0], 150, p=[0.3, 0.2, 0.5]) for _ in range(200)]
    covered = sum(low <= truth <= high for low, high in (bootstrap_interval(list(scores)) for scores in drawn))
    assert 0.90 * 200 <= covered <= 0.99 * 200


def test_the_sign_test_leaves_ties_out():
    assert sign_test([0.5] * 10) is None
    assert sign_test([1.0] * 10 + [0.5] * 90) == pytest.approx(2 / 2**10)


def test_length_control_takes_away_what_length_alone_explains():
    # A is longer most of the time and as good: with a judge that likes length it wins 0.6, at equal lengths half.
    rng = np.random.default_rng(0)
    lengths = rng.normal(40, 60, 4000).round()
    logits = 1.5 * np.tanh(lengths / lengths.std())
    scores = (rng.random(4000) < 1 / (1 + np.exp(-logits))).astype(float)
    assert scores.mean() > 0.6
    assert length_controlled(list(scores), [int(one) for one in lengths]) == pytest.approx(0.5, abs=0.03)


def test_length_control_is_a_logistic_regression():
    import statsmodels.api as sm

    rng = np.random.default_rng(3)
    lengths = rng.integers(-200, 300, 500)
    scores = rng.choice([0.0, 0.25, 0.5, 0.75, 1.0], 500)
    inputs = sm.add_constant(np.tanh(lengths / lengths.std()))
    intercept = sm.GLM(scores, inputs, family=sm.families.Binomial()).fit().params[0]
    assert length_controlled(list(scores), list(lengths)) == pytest.approx(1 / (1 + math.exp(-intercept)), abs=1e-3)


@pytest.mark.parametrize(
    ("scores", "differences", "expected"),
    [([1.0] * 5, [1, 2, 3, 4, 5], 1.0), ([0.5] * 5, [1, -2, 3, 4, 5], 0.5), ([0.0, 1.0, 1.0], [7, 7, 7], 2 / 3)],
)
def test_length_control_where_there_is_nothing_to_fit(scores, differences, expected):
    assert length_controlled(scores, differences) == pytest.approx(expected)


def test_length_that_decides_alone_leaves_a_finite_answer():
    assert length_controlled([1.0, 1.0, 0.0, 0.0], [5, 5, -5, -5]) == pytest.approx(0.5, abs=1e-3)


def test_kappa_is_that_of_another_library():
    from statsmodels.stats.inter_rater import cohens_kappa

    rng = np.random.default_rng(5)
    one, other = rng.choice([0.0, 0.5, 1.0], 200), rng.choice([0.0, 0.5, 1.0], 200, p=[0.2, 0.2, 0.6])
    other = np.where(rng.random(200) < 0.5, one, other)
    table = [[int(((one == a) & (other == b)).sum()) for b in (0.0, 0.5, 1.0)] for a in (0.0, 0.5, 1.0)]
    found = agreement(*({str(n): score for n, score in enumerate(scores)} for scores in (one, other)))
    assert found["kappa"] == pytest.approx(cohens_kappa(np.array(table)).kappa)
    assert found["examples"] == 200


def test_kappa_does_not_exist_without_examples_or_where_chance_agrees_always():
    assert agreement({"1": 1.0}, {"2": 1.0}) == {"examples": 0, "agreement": None, "kappa": None}
    assert agreement({"1": 1.0}, {"1": 0.75}) == {"examples": 1, "agreement": 1.0, "kappa": None}
