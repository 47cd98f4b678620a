"""ROUGE of outputs for instructions: of each row, their mean, and the number that the gist paper prints.

    scores = score_rouge([("the cat sat", "a cat sat down")])       # pairs of prediction and truth
    scores.rows[0]["rougeL"].fmeasure                               # precision, recall, fmeasure, 0..1
    scores.mean()["rougeL"]                                         # mean of F x 100
    scores.published()["rougeL"].mid                                # the published recipe, F x 100

The published recipe is that of `evaluate` in 2023: rouge-score with the Porter stemmer, then the middle of 1,000
bootstrap samples drawn by NumPy's global generator from seed 42 on, type after type in the order of ROUGE_TYPES. It
gives all 36 values of the published rouge.csv to its four decimals; the mean differs from them by up to 0.17.

Only rougeLsum depends on line breaks. The published outputs have one sentence a line (nltk's punkt model split them
before they were written); rougeLsum of outputs without these breaks cannot be compared with theirs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from synopsis.errors import DataError

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
PUBLISHED_SEED = 42
# Padding, the end of text, and what SentencePiece writes for an id that it does not know (padding, for Llama).
SPECIAL_TEXTS = ("<pad>", "</s>", "⁇")


class Score(NamedTuple):
    """One row, all from 0 to 1."""

    precision: float
    recall: float
    fmeasure: float


class Bootstrap(NamedTuple):
    """F x 100 over bootstrap samples: the 2.5th percentile, the median and the 97.5th percentile."""

    low: float
    mid: float
    high: float


@dataclass(frozen=True)
class RougeScores:
    """Scores of each row by ROUGE type."""

    rows: tuple[Mapping[str, Score], ...]

    def mean(self) -> dict[str, float]:
        """Mean F x 100 of each type."""
        return {kind: 100 * sum(row[kind].fmeasure for row in self.rows) / len(self.rows) for kind in self.rows[0]}

    def published(self, seed: int = PUBLISHED_SEED) -> dict[str, Bootstrap]:
        """F x 100 of each type over bootstrap samples; `mid` with the default seed is the published number.

        The draws depend on the number of rows and on the types, not on the order in which other code draws: NumPy's
        global generator, which rouge-score takes them from, is left as it was found.
        """
        from rouge_score.scoring import BootstrapAggregator

        aggregator = BootstrapAggregator()
        for row in self.rows:
            aggregator.add_scores(row)
        with _seeded(seed):
            found = aggregator.aggregate()
        return {
            kind: Bootstrap(*(100 * float(level.fmeasure) for level in (score.low, score.mid, score.high)))
            for kind, score in found.items()
        }


def score_rouge(
    pairs: Sequence[tuple[str, str]], types: Sequence[str] = ROUGE_TYPES, use_stemmer: bool = True
) -> RougeScores:
    """ROUGE of (prediction, truth) pairs, as they are written.

    `types`, in their order: a type's bootstrap does not depend on the types after it. DataError names the row of what
    is not text; an empty sequence is one too.
    """
    from rouge_score.rouge_scorer import RougeScorer

    if not pairs:
        raise DataError("there are no outputs to score")
    for number, pair in enumerate(pairs):
        for field, text in zip(("prediction", "truth"), pair, strict=True):
            if not isinstance(text, str):
                raise DataError(f"row {number}: the {field} is {text!r}; expected text")
    scorer = RougeScorer(list(types), tokenizer=_Words() if use_stemmer else None)
    return RougeScores(tuple(_row(scorer.score(truth, prediction)) for prediction, truth in pairs))


def exact_match(pairs: Sequence[tuple[str, str]]) -> float:
    """Percent of predictions that equal the truth, white space around both aside."""
    if not pairs:
        raise DataError("there are no outputs to score")
    return 100 * sum(prediction.strip() == truth.strip() for prediction, truth in pairs) / len(pairs)


def strip_special_tokens(text: str) -> str:
    """Text as the published code scores it: without padding and end of text written out; other tokens stay."""
    for special in SPECIAL_TEXTS:
        text = text.replace(special, "")
    return text.strip()


class _Words:
    """rouge-score's words, stemmed; each word's stem is made once, which is half of the time."""

    def __init__(self) -> None:
        from nltk.stem.porter import PorterStemmer

        self.stem = cache(PorterStemmer().stem)

    def tokenize(self, text: str) -> list[str]:
        from rouge_score.tokenize import tokenize

        return tokenize(text, self)


def _row(scores: Mapping[str, Any]) -> dict[str, Score]:
    return {kind: Score(*map(float, score)) for kind, score in scores.items()}


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """NumPy's global generator begins at `seed`, and afterwards continues from where it was."""
    import numpy

    before = numpy.random.get_state()
    numpy.random.seed(seed)
    try:
        yield
    finally:
        numpy.random.set_state(before)
