"""Prompts are data and parsers are pure functions: what a judge reads, and what its answer says."""

from __future__ import annotations

import json
import re

from synopsis.config.files import JudgeDefinition
from synopsis.stages.judge.pairs import Question

FIELDS = ("instruction", "input", "answer_a", "answer_b")
NO_INPUT = "(none)"


def text_for(definition: JudgeDefinition, question: Question) -> str:
    """All that the judge gets to see of a question; its hash says whether an old judgement still holds."""
    if definition.kind == "reference":
        return json.dumps([question.first, question.second, question.pair.reference], ensure_ascii=False)
    return fill(definition.prompt or "", question)


def fill(template: str, question: Question) -> str:
    """The prompt of a question: `{answer_a}` is the answer shown first, `{answer_b}` the one shown second.

    Only the four fields are replaced, in one pass: other braces (the JSON that a prompt asks for) stay as they are,
    and so do braces inside the texts that are filled in.
    """
    pair = question.pair
    values = dict(zip(FIELDS, (pair.instruction, pair.input or NO_INPUT, question.first, question.second), strict=True))
    return re.sub("{(" + "|".join(FIELDS) + ")}", lambda found: values[found[1]], template)


def parse_choice(text: str) -> int | None:
    """The choice in a judge's answer: 0 for the first answer, 1 for the second, 2 for equal; None if there is none.

    Text and code fences around the JSON object do no harm. An answer that names two different choices names none:
    a guess would be counted as a judgement.

    >>> parse_choice('{"reason": "more exact", "choice": 1}')
    1
    >>> parse_choice('Here you are:\\n```json\\n{"reason": "both fine", "choice": "2"}\\n```')
    2
    >>> parse_choice('{"reason": "as {x} says", "choice": 0} Hope this helps!')
    0
    >>> [parse_choice(text) for text in ("The first.", '{"choice": 3}', '{"choice": true}', '{"reason": "cut o')]
    [None, None, None, None]
    >>> parse_choice('{"choice": 0} No, wait: {"choice": 1}') is None
    True
    """
    choices = {_choice_of(found) for found in _json_objects(text)} - {None}
    return choices.pop() if len(choices) == 1 else None


def _choice_of(found: dict[str, object]) -> int | None:
    value = found.get("choice")
    # A bool is an int in Python, but true is no choice.
    return {"0": 0, "1": 1, "2": 2}.get(str(value).strip()) if isinstance(value, int | str) else None


def _json_objects(text: str) -> list[dict[str, object]]:
    """The outermost JSON objects in a text, in order."""
    # Not strict: judges write line breaks inside strings, which JSON forbids.
    decoder, found, at = json.JSONDecoder(strict=False), [], text.find("{")
    while at >= 0:
        try:
            value, end = decoder.raw_decode(text, at)
            found.append(value)
        except (ValueError, RecursionError):
            end = at + 1
        at = text.find("{", end)
    return found
