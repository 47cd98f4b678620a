"""The texts of the needle stage: filler sentences around one that states a key, of an exact number of tokens.

Pure: the same section, tokenizer, length, depth and number give the same text, whatever else is measured.

    texts = NeedleTexts(experiment.needle, tokenizer)
    example = texts.example(length=512, depth=0.25, number=0)
    len(example.context)            # 512
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from synopsis.errors import DataError
from synopsis.stages.icl.classification import beginning_of_text
from synopsis.stages.needle.section import KEY, Needle

SMALLEST, NUMBERS = 10_000, 90_000
"""Drawn keys have five digits: from the smallest, so many."""
DEPTHS = 10**6
"""Depths differ by so many parts of the context at least."""


@dataclass(frozen=True)
class NeedleExample:
    """One text and what is asked after it.

    context: token ids; place: index of the needle's first token in it; question: token ids; options: keys to choose
    among, the true one first; answers: their token ids after the question, in the same order.
    """

    context: list[int]
    place: int
    question: list[int]
    options: list[str]
    answers: list[list[int]]


class NeedleTexts:
    """Builds the texts of a section for one tokenizer; DataError for texts that this tokenizer cannot distinguish."""

    def __init__(self, section: Needle, tokenizer: Any):
        self.section, self.tokenizer = section, tokenizer
        self.beginning = beginning_of_text(tokenizer)
        before = [section.filler[-1], *section.filler[:-1]]
        self.sentences = [
            self._known(self._after(*pair), "filler", pair[1]) for pair in zip(before, section.filler, strict=True)
        ]
        self.question = self._known(self._after(section.filler[-1], section.question.rstrip()), "question")
        if section.keys is not None:
            self._distinct(section.keys, [self.answer(key) for key in section.keys])
        self.example(max(section.lengths), 0.0, 0)  # what is wrong with a text is reported before a model is loaded
        self._check_room(min(section.lengths), self.needle(section.keys[0] if section.keys else str(SMALLEST)))

    def example(self, length: int, depth: float, number: int) -> NeedleExample:
        """A context of `length` tokens with the needle at the end of a sentence that is nearest to `depth`.

        The filler begins with the end of a sentence where whole ones do not give the length. DataError when the length
        holds no needle, and when two drawn keys have the same tokens.
        """
        rng = np.random.default_rng([self.section.seed, length, round(depth * DEPTHS), number])
        options = self._draw(rng)
        answers = [self.answer(key) for key in options]
        self._distinct(options, answers)
        needle = self.needle(options[0])
        room = self._check_room(length, needle)
        filler, ends = self._filler(int(rng.integers(len(self.sentences))), room)
        place = min(ends, key=lambda end: (abs(end - depth * room), end))
        context = [*self.beginning, *filler[:place], *needle, *filler[place:]]
        return NeedleExample(context, len(self.beginning) + place, self.question, options, answers)

    def needle(self, key: str) -> list[int]:
        """Token ids of the sentence that states the key."""
        text = self.section.needle.replace(KEY, key)
        return self._known(self._after(self.section.filler[-1], text), "needle", text)

    def answer(self, key: str) -> list[int]:
        """Token ids of a key after the question; the space between them is the key's."""
        question = self.section.question.rstrip()
        space = self.section.question[len(question) :] or " "
        ids = self._encode(question + space + key)[len(self._encode(question)) :]
        if not ids:
            raise DataError(f"needle.keys: {key!r} adds no token to the question {question!r}")
        return self._known(ids, "keys", key)

    def _filler(self, start: int, room: int) -> tuple[list[int], list[int]]:
        """`room` tokens of sentences from `start` on, cut at the left, and the places where a sentence may end."""
        filler: list[int] = []
        ends = [0]
        while len(filler) < room:
            filler += self.sentences[(start + len(ends) - 1) % len(self.sentences)]
            ends.append(len(filler))
        cut = len(filler) - room
        return filler[cut:], [0, *(end - cut for end in ends[1:])]

    def _draw(self, rng: np.random.Generator) -> list[str]:
        """Different keys, the first of which is the true one."""
        keys, choices = self.section.keys, self.section.choices
        if keys is None:
            return [str(SMALLEST + number) for number in rng.choice(NUMBERS, size=choices, replace=False).tolist()]
        return [keys[place] for place in rng.choice(len(keys), size=choices, replace=False).tolist()]

    def _check_room(self, length: int, needle: Sequence[int]) -> int:
        """Tokens of filler in a context of `length` tokens."""
        room = length - len(self.beginning) - len(needle)
        if room < 1:
            wanted = len(self.beginning) + len(needle) + 1
            raise DataError(
                f"needle.lengths: {length} tokens hold no needle and filler: with this tokenizer the needle takes "
                f"{len(needle)} tokens; expected {wanted} or more"
            )
        return room

    def _distinct(self, keys: Sequence[str], answers: Sequence[list[int]]) -> None:
        seen: dict[tuple[int, ...], str] = {}
        for key, answer in zip(keys, answers, strict=True):
            other = seen.setdefault(tuple(answer), key)
            if other is not key:
                raise DataError(f"needle.keys: {other!r} and {key!r} have the same tokens after the question")

    def _known(self, ids: list[int], field: str, text: str | None = None) -> list[int]:
        """The ids; DataError where there is none, or where the tokenizer does not know a word."""
        text = getattr(self.section, field) if text is None else text
        if not ids:
            raise DataError(f"needle.{field}: {text!r} has no tokens")
        unknown = self.tokenizer.unk_token_id
        if unknown is not None and unknown in ids:
            raise DataError(
                f"needle.{field}: this tokenizer does not know all words of {text!r}; expected words of its language"
            )
        return ids

    def _after(self, before: str, text: str) -> list[int]:
        """Token ids of `text` where it follows `before`, after a space where that does not end with one."""
        space = "" if before[-1:].isspace() else " "
        return self._encode(before + space + text)[len(self._encode(before)) :]

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids
