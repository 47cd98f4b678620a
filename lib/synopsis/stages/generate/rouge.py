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

Rows are scored here and not by rouge-score, to the same numbers in a small part of the time (benchmarks/rouge.py): the
longest common subsequence is counted in bits (Hyyrö 2004), a line each for rougeLsum, and every word is stemmed once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import NamedTuple

from synopsis.errors import DataError

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
PUBLISHED_SEED = 42
SAMPLES, DRAWN_AT_ONCE = 1000, 2_000_000
"""Bootstrap samples of the published recipe; rows drawn in one piece."""
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

        The draws depend on the number of rows and on the types alone; they are those that NumPy's global generator
        would give, which is left alone.
        """
        import numpy

        draws, count = numpy.random.RandomState(seed), len(self.rows)
        at_once = max(1, DRAWN_AT_ONCE // count)
        found = {}
        for kind in self.rows[0]:
            values = numpy.array([row[kind].fmeasure for row in self.rows])
            parts = [min(at_once, SAMPLES - done) for done in range(0, SAMPLES, at_once)]
            means = [values[draws.randint(0, count, (samples, count))].mean(-1) for samples in parts]
            low, mid, high = 100 * numpy.percentile(numpy.concatenate(means), [2.5, 50, 97.5])
            found[kind] = Bootstrap(float(low), float(mid), float(high))
        return found


def score_rouge(
    pairs: Sequence[tuple[str, str]], types: Sequence[str] = ROUGE_TYPES, use_stemmer: bool = True
) -> RougeScores:
    """ROUGE of (prediction, truth) pairs, as they are written.

    `types`, in their order: a type's bootstrap does not depend on the types after it. DataError names the row of what
    is not text; an empty sequence is one too.
    """
    if not pairs:
        raise DataError("there are no outputs to score")
    for number, pair in enumerate(pairs):
        for field, text in zip(("prediction", "truth"), pair, strict=True):
            if not isinstance(text, str):
                raise DataError(f"row {number}: the {field} is {text!r}; expected text")
    words = _words(use_stemmer)
    lines = [tuple([words(line) for line in text.split("\n") if line] for text in pair) for pair in pairs]
    return RougeScores(tuple({kind: _score(kind, *pair) for kind in types} for pair in lines))


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


def _words(use_stemmer: bool) -> Callable[[str], list[str]]:
    """rouge-score's words of a text; each word's stem is made once."""
    from nltk.stem.porter import PorterStemmer
    from rouge_score.tokenize import tokenize

    class Stems:
        stem = staticmethod(cache(PorterStemmer().stem))

    return lambda text: tokenize(text, Stems if use_stemmer else None)


def _score(kind: str, prediction: list[list[str]], truth: list[list[str]]) -> Score:
    """Of two texts, given as the words of each line."""
    said, wanted = ([*chain.from_iterable(lines)] for lines in (prediction, truth))
    if kind == "rougeLsum" and max(len(prediction), len(truth)) > 1:
        return _shares(_summary_hits(prediction, truth), len(said), len(wanted))
    if kind in ("rougeL", "rougeLsum"):
        return _shares(_subsequences(said, wanted)[-1].bit_count(), len(said), len(wanted))
    size = int(kind.removeprefix("rouge"))
    one, other = (Counter(zip(*(text[start:] for start in range(size)), strict=False)) for text in (said, wanted))
    return _shares((one & other).total(), one.total(), other.total())


def _shares(hits: int, said: int, wanted: int) -> Score:
    precision, recall = hits / max(said, 1), hits / max(wanted, 1)
    return Score(precision, recall, 2 * precision * recall / (precision + recall) if hits else 0.0)


def _subsequences(said: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """For the first 0, 1, ... words of `said` a number: its lowest n bits count their longest common subsequence with
    the first n words of `wanted`."""
    full, places = (1 << len(wanted)) - 1, dict.fromkeys(said, 0)
    for place, word in enumerate(wanted):
        if word in places:
            places[word] |= 1 << place
    counts, free = [0], full
    for word in said:
        hit = free & places[word]
        free = ((free + hit) | (free - hit)) & full
        counts.append(free ^ full)
    return counts


def _summary_hits(prediction: Iterable[list[str]], truth: Iterable[list[str]]) -> int:
    """Words of the truth's lines in a longest common subsequence with any line of the prediction (Lin 2004, 3.2).

    No word counts more often than it occurs. Of several subsequences rouge-score's is taken: the last places first.
    """
    left = Counter(word for line in prediction for word in line)
    hits = 0
    for wanted in truth:
        places: set[int] = set()
        for said in prediction:
            counts, i, j = _subsequences(said, wanted), len(wanted), len(said)
            while i and j:
                if wanted[i - 1] == said[j - 1]:
                    i, j = i - 1, j - 1
                    places.add(i)
                elif (counts[j - 1] & ((1 << i) - 1)).bit_count() > (counts[j] & ((1 << i - 1) - 1)).bit_count():
                    j -= 1
                else:
                    i -= 1
        for place in places:
            if left[wanted[place]]:
                left[wanted[place]] -= 1
                hits += 1
    return hits
