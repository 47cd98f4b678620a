"""ROUGE of a file of outputs, both forms, beside the plain loop of rouge-score, in one process each.

    python benchmarks/rouge.py
    python benchmarks/rouge.py --only file --outputs generations/gist-1-s0/human.csv

The loop is that of the published code: a RougeScorer with the stemmer, then its BootstrapAggregator. Both sides score
ROUGE-1, -2, -L and -Lsum of the same rows; scores that differ by more than 1e-12 miss the limit.

- one_line, lines: 1,000 made-up outputs of about 60 words of 4,000, on one line or with a line a sentence;
- file: the columns y_pred and y_true of a file (`--outputs`); left out where none is named.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from compressors import in_turns, run, speed
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.scoring import BootstrapAggregator
from synopsis.artifacts import read_csv
from synopsis.stages.generate.rouge import PUBLISHED_SEED, ROUGE_TYPES, RougeScores, score_rouge

LIMIT, TOLERANCE = 3.0, 1e-12
ENDINGS = ("", "s", "ed", "ing", "ly", "ness", "ation", "ful")
Pairs = list[tuple[str, str]]


@dataclass(frozen=True)
class Sizes:
    rounds: int = 7
    threads: int = 1
    seed: int = 0
    rows: int = 1000
    words: int = 60
    outputs: str = ""

    def record(self) -> dict[str, Any]:
        return vars(self)


def made_up(sizes: Sizes, end: str) -> Pairs:
    draw = random.Random(sizes.seed)
    stems = ["".join(draw.choices("aeioubcdlmnprst", k=draw.randint(2, 7))) for _ in range(500)]
    words = [stem + ending for stem in stems for ending in ENDINGS]
    often = [1 / (place + 1) for place in range(len(words))]

    def text() -> str:
        chosen = draw.choices(words, often, k=draw.randint(sizes.words // 2, 3 * sizes.words // 2))
        return end.join(" ".join(chosen[start : start + 12]) for start in range(0, len(chosen), 12))

    return [(text(), text()) for _ in range(sizes.rows)]


def measure(case: str, pairs: Pairs, sizes: Sizes) -> Iterator[dict[str, Any]]:
    found: dict[str, Any] = {}

    def ours() -> None:
        scores = score_rouge(pairs)
        found["ours"] = (scores, scores.mean(), scores.published())

    def loop() -> None:
        scorer, aggregator = RougeScorer(list(ROUGE_TYPES), use_stemmer=True), BootstrapAggregator()
        rows = [scorer.score(truth, prediction) for prediction, truth in pairs]
        np.random.seed(PUBLISHED_SEED)
        for scores in rows:
            aggregator.add_scores(scores)
        found["loop"] = (rows, aggregator.aggregate())

    line = speed("rouge", case, [len(pairs)] * 2, in_turns([ours, loop], sizes.rounds), LIMIT, "rows/s")
    yield {**line, "met": line["met"] and _difference(*found["ours"], *found["loop"]) < TOLERANCE}


def _difference(
    scores: RougeScores, means: dict[str, float], published: dict[str, Any], rows: list[Any], aggregated: Any
) -> float:
    """The largest one between the scores of rows, their means, and the published numbers, as shares."""
    differences = [
        abs(one - other)
        for row, theirs in zip(scores.rows, rows, strict=True)
        for kind in ROUGE_TYPES
        for one, other in zip(row[kind], theirs[kind], strict=True)
    ]
    for kind in ROUGE_TYPES:
        mean = sum(row[kind].fmeasure for row in rows) / len(rows)
        differences += [abs(means[kind] / 100 - mean), abs(published[kind].mid / 100 - aggregated[kind].mid.fmeasure)]
    return max(differences)


def of_file(sizes: Sizes) -> Iterator[dict[str, Any]]:
    if sizes.outputs:
        rows = read_csv(sizes.outputs, ["y_pred", "y_true"])
        yield from measure("file", [(row["y_pred"], row["y_true"]) for row in rows], sizes)


MEASURES = {
    "one_line": lambda sizes: measure("one_line", made_up(sizes, " "), sizes),
    "lines": lambda sizes: measure("lines", made_up(sizes, "\n"), sizes),
    "file": of_file,
}


def main(arguments: list[str] | None = None, sizes: Sizes | None = None) -> int:
    settable = {"outputs": "file: a CSV file with the columns y_pred and y_true"}
    return run(__doc__, "rouge-benchmark", MEASURES, sizes or Sizes(), arguments, settable)


if __name__ == "__main__":
    sys.exit(main())
