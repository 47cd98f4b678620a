"""What a set of judgements says: win rates with their intervals, and the judge's own biases.

An example is scored when every judgement of it is valid (both orders of its answers; recorded judgements may have one).
Its score is the mean over them of 1 where run a wins, 0.5 for a tie and 0 where run b wins. Examples are independent,
judgements are not: intervals and tests are over examples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from synopsis.stages.judge.pairs import Pair
from synopsis.stages.judge.records import Judgement

POINTS = {"A": 1.0, "tie": 0.5, "B": 0.0}
SAMPLES = 10_000
RIDGE = 1e-3
"""Penalty on the slope of length: where length alone decides, there is no finite slope without it."""


def summarise(pairs: Sequence[Pair], judgements: Sequence[Judgement]) -> dict[str, Any]:
    """Counts and shares over the judgements of all pairs, from the side of run a; a share that does not exist is None.

    n: pairs. judgements, parse_error, api_error: of all pairs. scored: examples whose judgements are all valid; what
    follows is over them. win, tie, lose: judgements. win_rate, tie_rate: 0 to 1, a tie counts half. interval: 95 %
    bootstrap of the win rate over examples; clopper_pearson: as published, with half ties as halves of a success.
    sign_test: two-sided p value. length_controlled: win rate at equal lengths. both_orders, consistent: examples judged
    in both orders, and those of them judged alike. first_wins: share of decisions for the answer shown first,
    longer_wins: for the longer one; both without identical answers. length_a, length_b: mean characters. identical:
    pairs with equal answers; identical_decided: judgements of them that name a winner. scores: id -> score.
    """
    by_id = verdicts(judgements)
    by_pair = {pair.id: pair for pair in pairs}
    scores = {id: score for id, found in by_id.items() if (score := score_of(found)) is not None}
    states, valid = Counter(one.state for one in judgements), [one for id in scores for one in by_id[id]]
    counts = Counter(one.state for one in valid)
    both = [by_id[id] for id in scores if len(by_id[id]) == 2]
    lengths = {pair.id: len(pair.answer_a) - len(pair.answer_b) for pair in pairs}
    decided = [one for one in valid if one.state != "tie" and by_pair[one.id].answer_a != by_pair[one.id].answer_b]
    unequal = [one for one in decided if lengths[one.id]]
    return {
        "n": len(pairs),
        "judgements": len(judgements),
        "parse_error": states["parse_error"],
        "api_error": states["api_error"],
        "scored": len(scores),
        "win": counts["A"],
        "tie": counts["tie"],
        "lose": counts["B"],
        "win_rate": _share(sum(scores.values()), len(scores)),
        "tie_rate": _share(counts["tie"], len(valid)),
        "interval": bootstrap_interval(list(scores.values())),
        "clopper_pearson": clopper_pearson(sum(scores.values()), len(scores)),
        "sign_test": sign_test(list(scores.values())),
        "length_controlled": length_controlled(list(scores.values()), [lengths[id] for id in scores]),
        "both_orders": len(both),
        "consistent": sum(one.state == other.state for one, other in both),
        "decided": len(decided),
        "first_position_wins": sum(one.first_won for one in decided),
        "first_wins": _share(sum(one.first_won for one in decided), len(decided)),
        "longer_wins": _share(sum((one.state == "A") == (lengths[one.id] > 0) for one in unequal), len(unequal)),
        "length_a": _share(sum(len(pair.answer_a) for pair in pairs), len(pairs)),
        "length_b": _share(sum(len(pair.answer_b) for pair in pairs), len(pairs)),
        "identical": sum(pair.answer_a == pair.answer_b for pair in pairs),
        "identical_decided": sum(one.state != "tie" for one in valid) - len(decided),
        "scores": scores,
    }


def verdicts(judgements: Sequence[Judgement]) -> dict[str, list[Judgement]]:
    """Id -> its judgements."""
    found: dict[str, list[Judgement]] = {}
    for one in judgements:
        found.setdefault(one.id, []).append(one)
    return found


def score_of(judgements: Sequence[Judgement]) -> float | None:
    """The score of an example; None where it has no judgement, or one that is not valid."""
    if not judgements or any(one.state not in POINTS for one in judgements):
        return None
    return sum(POINTS[one.state] for one in judgements) / len(judgements)


def verdict(judgements: Sequence[Judgement]) -> str | None:
    """Who won an example: A, B or tie; None where it is not scored."""
    score = score_of(judgements)
    return None if score is None else winner(score)


def _share(part: float, whole: int) -> float | None:
    return part / whole if whole else None


def bootstrap_interval(scores: Sequence[float]) -> tuple[float, float] | None:
    """95 % percentile interval of the mean score, examples drawn again with a fixed seed; None without scores.

    Examples of equal score are alike, so that drawing how often each score occurs is the same bootstrap.

    >>> bootstrap_interval([0.5] * 64)
    (0.5, 0.5)
    """
    if not scores:
        return None
    import numpy as np

    values, counts = np.unique(scores, return_counts=True)
    drawn = np.random.default_rng(0).multinomial(len(scores), counts / len(scores), SAMPLES)
    low, high = np.percentile(drawn @ values / len(scores), [2.5, 97.5])
    return float(low), float(high)


def clopper_pearson(successes: float, trials: int) -> tuple[float, float] | None:
    """Exact 95 % interval of a share; as published, ties are half successes. None without trials.

    >>> [round(100 * bound, 1) for bound in clopper_pearson(115.5, 252)]
    [39.6, 52.2]
    """
    if not trials:
        return None
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(successes, trials, method="beta")
    return float(low), float(high)


def sign_test(scores: Sequence[float]) -> float | None:
    """Two-sided p value of as many examples above as below a tie; None where all are ties.

    >>> round(sign_test([1.0] * 8 + [0.25] * 2 + [0.5] * 5), 4)
    0.1094
    """
    wins, losses = (sum(score > 0.5 for score in scores), sum(score < 0.5 for score in scores))
    if not wins + losses:
        return None
    from scipy.stats import binomtest

    return float(binomtest(wins, wins + losses).pvalue)


def length_controlled(scores: Sequence[float], differences: Sequence[int]) -> float | None:
    """Win rate that is to be expected at equal lengths (Dubois et al., 2024): that of a logistic regression of the
    scores on tanh of the standardised difference in length, predicted at a difference of 0.

    Scores between 0 and 1 are soft labels. None without scores.
    """
    if not scores:
        return None
    import numpy as np

    found, lengths = np.array(scores), np.array(differences, float)
    if lengths.min() == lengths.max() or found.min() == found.max():
        return float(found.mean())
    from statsmodels.genmod.families import Binomial
    from statsmodels.genmod.generalized_linear_model import GLM

    inputs = np.column_stack([np.ones(len(scores)), np.tanh(lengths / lengths.std())])
    fitted = GLM(found, inputs, family=Binomial()).fit_regularized(alpha=np.array([0.0, RIDGE]), L1_wt=0.0)
    return float(1 / (1 + np.exp(-fitted.params[0])))


def agreement(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, Any]:
    """How far two judges agree about who won, over the examples that both have scored.

    one, other: id -> score. examples; agreement: share of equal verdicts (A, tie, B); kappa: Cohen's, None where chance
    alone would agree always.

    >>> agreement({"1": 1.0, "2": 0.75, "3": 0.0, "4": 0.0}, {"1": 1.0, "2": 0.0, "3": 0.25, "4": 0.0, "9": 1.0})
    {'examples': 4, 'agreement': 0.75, 'kappa': 0.5}
    """
    shared = [(winner(score), winner(other[id])) for id, score in one.items() if id in other]
    kappa = None
    if len({name for pair in shared for name in pair}) > 1:
        import numpy as np
        from statsmodels.stats.inter_rater import cohens_kappa

        counts = Counter(shared)
        kappa = float(cohens_kappa(np.array([[counts[a, b] for b in POINTS] for a in POINTS])).kappa)
    return {"examples": len(shared), "agreement": _share(sum(a == b for a, b in shared), len(shared)), "kappa": kappa}


def winner(score: float) -> str:
    return "A" if score > 0.5 else "B" if score < 0.5 else "tie"
