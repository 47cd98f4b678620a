"""Prompts are data and parsers are pure functions: what a judge reads, and what its answer says."""

from __future__ import annotations

import json
import re
from functools import cache

from synopsis.config.files import JudgeDefinition
from synopsis.stages.judge.pairs import Question

FIELDS = ("instruction", "input", "answer_a", "answer_b")
PLACES = re.compile("{(" + "|".join(FIELDS) + ")}")
NO_INPUT = "(none)"


def text_for(definition: JudgeDefinition, question: Question) -> str:
    """All that the judge gets to see of a question; its hash says whether an old judgement still holds."""
    if definition.kind == "reference":
        return json.dumps([question.first, question.second, question.pair.reference], ensure_ascii=False)
    return fill(definition.prompt or "", question)


def fill(template: str, question: Question) -> str:
    """The prompt of a question: `{answer_a}` is the answer shown first, `{answer_b}` the one shown second.

    Only the four fields are replaced, in one pass: other braces (the JSON that a prompt asks for) stay as they are,
    and so do braces inside the texts that are filled in. Tags of the template are made harmless inside these texts, so
    that no answer ends the place between the tags where it stands.
    """
    pair = question.pair
    values = dict(zip(FIELDS, (pair.instruction, pair.input or NO_INPUT, question.first, question.second), strict=True))
    tags = _tags_of(template)
    values = {name: tags.sub(r"&lt;\1", text) if "<" in text else text for name, text in values.items()}
    return PLACES.sub(lambda found: values[found[1]], template)


@cache
def _tags_of(template: str) -> re.Pattern[str]:
    """What would open or close one of the template's tags."""
    tags = "|".join(sorted(set(re.findall(r"</?(\w+)>", template)))) or "(?!)"
    return re.compile(rf"<(\s*/?\s*(?:{tags})\b)", re.I)


PARSERS: dict[str, dict[str, int]] = {
    "choice_json": {"0": 0, "1": 1, "2": 2},
    "choice_ab": {"a": 0, "b": 1, "tie": 2},
}
"""Name of a parser -> what a `choice` may be, in small letters: 0 the first answer, 1 the second, 2 equal.

`choice_ab` reads the format of the published judge, which calls the answer shown first A.
"""
LONGEST_ANSWER = 10_000
"""Characters that are read, from the end: the time of reading grows with the square of nonsense."""
QUOTE = r"[\"'`\u2018\u2019\u201c\u201d]*"
WRITTEN_CHOICE = re.compile(rf"\bchoice{QUOTE}\s*[:=]\s*{QUOTE}([\w.]+){QUOTE}[ \t]*(?=[,}}\n]|$)", re.I)


def parse_choice(text: str, parser: str = "choice_json") -> int | None:
    """The choice in a judge's answer: 0 for the first answer, 1 for the second, 2 for equal; None if there is none.

    Text and code fences around the JSON object do no harm. Of several objects the last one with a choice counts: a
    judge that corrects itself does so at the end. Where no object can be read (single or typographic quotes, quotes
    inside the reason), the last `choice: ...` in the text is taken.

    >>> parse_choice('{"reason": "more exact", "choice": 1}')
    1
    >>> parse_choice('Here you are:\\n```json\\n{"reason": "both fine", "choice": "2"}\\n```')
    2
    >>> parse_choice('{"reason": "as {x} says", "choice": 0} Hope this helps!')
    0
    >>> parse_choice('{"choice": 0} No, wait: {"choice": 1}')
    1
    >>> [parse_choice(text) for text in ("{'choice': 1}", '{"reason": "it says "no"", "choice": 2}')]
    [1, 2]
    >>> [parse_choice(text) for text in ("The first.", '{"choice": 3}', '{"choice": true}', '{"reason": "cut o')]
    [None, None, None, None]
    >>> [parse_choice(f'{{"choice": "{word}"}}', "choice_ab") for word in ("a", "B", "Tie", "both")]
    [0, 1, 2, None]
    """
    values, text = PARSERS[parser], text[-LONGEST_ANSWER:]
    found = [_value(one["choice"], values) for one in _json_objects(text) if isinstance(one.get("choice"), int | str)]
    found = found or [_value(match[1], values) for match in WRITTEN_CHOICE.finditer(text)]
    return next((value for value in reversed(found) if value is not None), None)


def _value(choice: object, values: dict[str, int]) -> int | None:
    return values.get(str(choice).strip().lower())  # True is an int in Python, and no choice: "true"


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
