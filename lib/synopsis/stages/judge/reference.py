"""The offline judge: prefers the answer nearer to the true output. It needs no network, so demos and tests use it.

It measures closeness to one reference and not quality; its tables should say so.
"""

from __future__ import annotations

from collections.abc import Sequence

from synopsis.stages.judge.pairs import Question
from synopsis.stages.judge.records import Keep, Reply

BATCH = 64
"""Answers that are stored together."""
ROUNDING = 1e-9
"""Differences of two F measures that are equal on paper: a margin of 0.1 holds for 0.3 against 0.2."""


class ReferenceJudge:
    """Chooses the answer with the higher ROUGE-L F (stemmed) to the true output.

    Both answers are scored alone, so the order in which they are shown cannot matter. Differences up to `tie_margin`
    (0 to 1) are ties.
    """

    def __init__(self, tie_margin: float):
        from rouge_score.rouge_scorer import RougeScorer

        self.tie_margin = tie_margin
        self._scorer = RougeScorer(["rougeL"], use_stemmer=True)

    def ask(self, questions: Sequence[Question], keep: Keep) -> None:
        for start in range(0, len(questions), BATCH):
            keep([(question, self.reply(question)) for question in questions[start : start + BATCH]])

    def reply(self, question: Question) -> Reply:
        first, second = (self._score(text, question.pair.reference) for text in (question.first, question.second))
        if abs(first - second) <= self.tie_margin + ROUNDING:
            choice = 2
        else:
            choice = 0 if first > second else 1
        return Reply(choice=choice, text=f"ROUGE-L F {first:.4f} and {second:.4f}")

    def _score(self, answer: str, reference: str) -> float:
        return float(self._scorer.score(reference, answer)["rougeL"].fmeasure)
