"""ROUGE of small texts that can be counted by hand, and the published bootstrap on numbers alone."""

from __future__ import annotations

import random

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from synopsis.errors import DataError
from synopsis.stages.generate.rouge import ROUGE_TYPES, exact_match, score_rouge, strip_special_tokens

PAIRS = [("the cat sat", "the cat sat down"), ("a dog", "cats run"), ("same words", "same words"), ("", "nothing")]


def test_rows_by_hand() -> None:
    scores = score_rouge(PAIRS)
    first = scores.rows[0]
    assert tuple(first) == ROUGE_TYPES
    assert first["rouge1"] == pytest.approx((1.0, 3 / 4, 6 / 7))
    assert first["rouge2"] == pytest.approx((1.0, 2 / 3, 4 / 5))
    assert first["rougeL"] == pytest.approx((1.0, 3 / 4, 6 / 7))
    assert [row["rougeL"].fmeasure for row in scores.rows[1:]] == [0, 1, 0]
    assert scores.mean()["rougeL"] == pytest.approx(100 * (6 / 7 + 1) / 4)


def test_rows_are_those_of_rouge_score() -> None:
    """Texts of few words, so that there are many longest subsequences to choose from; lines, signs and forms."""
    draw, words = random.Random(0), ["a", "the", "run", "runs", "running", "Dogs", "dog's", "7", "é", "!", ""]

    def text() -> str:
        return "".join(draw.choice(words) + draw.choice(" \n ,") for _ in range(draw.randrange(25)))

    pairs = [(text(), text()) for _ in range(300)]
    for stemmed in (True, False):
        scorer = RougeScorer(list(ROUGE_TYPES), use_stemmer=stemmed)
        for (prediction, truth), row in zip(pairs, score_rouge(pairs, use_stemmer=stemmed).rows, strict=True):
            for kind, expected in scorer.score(truth, prediction).items():
                assert row[kind] == pytest.approx(tuple(expected), abs=1e-12)


def test_precision_is_of_the_prediction() -> None:
    (row,) = score_rouge([("one two three four", "one two")]).rows
    assert row["rouge1"] == pytest.approx((1 / 2, 1.0, 2 / 3))


def test_the_stemmer_joins_forms_of_a_word() -> None:
    pair = [("running dogs", "run dog")]
    assert score_rouge(pair).rows[0]["rouge1"].fmeasure > 0
    assert score_rouge(pair, use_stemmer=False).rows[0]["rouge1"].fmeasure == 0


def test_only_summary_level_rouge_reads_line_breaks() -> None:
    truth = "one two three four"
    broken, whole = (score_rouge([(text, truth)]).rows[0] for text in ("three four\none two", "three four one two"))
    assert all(broken[kind] == whole[kind] for kind in ROUGE_TYPES[:3])
    assert broken["rougeLsum"].fmeasure == 1 > whole["rougeLsum"].fmeasure


def test_the_published_number_is_the_middle_of_seeded_samples() -> None:
    """Drawn again here: 1,000 samples of the rows for each type, one type after the other, from one seed."""
    scores = score_rouge(PAIRS)
    draws = np.random.RandomState(42)
    for kind in ROUGE_TYPES:
        values = np.array([row[kind].fmeasure for row in scores.rows])
        means = [values[draws.choice(len(values), len(values))].mean() for _ in range(1000)]
        low, middle, high = scores.published()[kind]
        assert (low, middle, high) == pytest.approx(tuple(100 * np.percentile(means, [2.5, 50, 97.5])))
        assert low < middle < high


def test_the_global_generator_goes_on_as_if_nothing_had_been_drawn() -> None:
    scores = score_rouge([("a b c d e f g h", " ".join("abcdefgh"[:size])) for size in range(1, 9)])
    np.random.seed(7)
    expected = np.random.rand()
    np.random.seed(7)
    first, second = scores.published(), scores.published()
    assert np.random.rand() == expected
    assert first == second != scores.published(seed=1)


def test_a_type_does_not_depend_on_those_after_it() -> None:
    every, three = (score_rouge(PAIRS, types=types).published() for types in (ROUGE_TYPES, ROUGE_TYPES[:3]))
    assert list(three) == list(ROUGE_TYPES[:3])
    assert three["rougeL"] == every["rougeL"]


def test_exact_matches() -> None:
    assert exact_match([("a ", "a"), ("a", "b"), ("", "\n"), ("A", "a")]) == 50


def test_special_tokens_of_raw_text() -> None:
    assert strip_special_tokens("<pad> hi </s><pad>") == "hi"
    assert strip_special_tokens("<GIST> x ⁇ ") == "<GIST> x"


def test_bad_rows_are_named() -> None:
    with pytest.raises(DataError, match="row 1: the truth is None; expected text"):
        score_rouge([("a", "b"), ("a", None)])  # type: ignore[list-item]
    with pytest.raises(DataError, match="row 0: the prediction is nan; expected text"):
        score_rouge([(float("nan"), "b")])  # type: ignore[list-item]
    for score in (score_rouge, exact_match):
        with pytest.raises(DataError, match="there are no outputs to score"):
            score([])  # type: ignore[operator]
