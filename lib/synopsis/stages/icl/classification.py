"""Examples of a task as queries and options, and which option a model prefers.

texts = Texts(task, tokenizer)
examples = [texts.example(row) for row in rows]
preferences = classify(model, prefix, texts, examples, calibration_row)
preferences[0].prediction           # the place of the option with the lowest score
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from synopsis.config.files import Task
from synopsis.data.tasks import calibration_row, options_of, render
from synopsis.engine.likelihood import Cost, OptionScores, Pair, Prefix, score_options
from synopsis.errors import DataError


@dataclass(frozen=True)
class Example:
    """One row of a task: its option texts, and for each the tokens of the query and of the option."""

    row: dict[str, Any]
    options: list[str]
    pairs: list[Pair]

    @property
    def lengths(self) -> list[int]:
        """Tokens of the query with each option."""
        return [len(query) + len(option) for query, option in self.pairs]


@dataclass(frozen=True)
class Preference:
    """Scores of an example's options: the lower, the likelier; `prediction` is the place of the lowest."""

    scores: list[float]

    @property
    def prediction(self) -> int:
        return min(range(len(self.scores)), key=self.scores.__getitem__)


def beginning_of_text(tokenizer: Any) -> list[int]:
    """The token that begins a text where the tokenizer puts one, which stands once before everything."""
    ids, beginning = tokenizer("a")["input_ids"], tokenizer.bos_token_id
    return [beginning] if beginning is not None and len(ids) > 1 and ids[0] == beginning else []


class Texts:
    """A task's texts as the tokens of one tokenizer."""

    def __init__(self, task: Task, tokenizer: Any):
        self.task, self.tokenizer = task, tokenizer
        self.beginning = beginning_of_text(tokenizer)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def example(self, row: dict[str, Any]) -> Example:
        """The option's tokens are those that the text with it has beyond the number of those without it, as published.

        DataError for an option that adds no token, and for two with the same tokens. An option may begin another.
        """
        options = options_of(self.task, row)
        texts = [render(self.task, row), *(render(self.task, row, option) for option in options)]
        query, *answered = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        pairs: list[Pair] = [(whole[: len(query)], whole[len(query) :]) for whole in answered]
        for option, (_, ids) in zip(options, pairs, strict=True):
            if not ids:
                raise DataError(f"row {row.get('id')}: the option {option!r} adds no token to its example")
        for place, whole in enumerate(answered):
            same = answered.index(whole)
            if same != place:
                raise DataError(
                    f"row {row.get('id')}: the options {options[same]!r} and {options[place]!r} have the same tokens; "
                    "expected options that differ"
                )
        return Example(row, options, pairs)


def classify(
    model: Any,
    prefix: Prefix,
    texts: Texts,
    examples: Sequence[Example],
    content_free: dict[str, Any],
    batch_tokens: int | None = None,
    label: str = "options",
) -> tuple[list[Preference], Cost]:
    """The score of each example's options: their loss in the task's normalisation, less that of calibration.

    content_free: the row whose content-free form calibrates a data set. What calibrates is scored in the same passes as
    the examples, and equal texts once. DataError names the row of a score that is not finite.
    """
    task = texts.task
    free = {"none": [], "dataset": [content_free], "example": [example.row for example in examples]}[task.calibration]
    baselines = [texts.example(calibration_row(task, row)) for row in free]
    scored = [*baselines, *examples]
    found = score_options(model, prefix, [pair for one in scored for pair in one.pairs], batch_tokens, label)
    losses = _normalised(task, scored, found)
    for one, values in zip(scored, losses, strict=True):
        if not all(map(math.isfinite, values)):
            shown = ", ".join(f"{option!r}: {value}" for option, value in zip(one.options, values, strict=True))
            raise DataError(f"row {one.row.get('id')}: the model's losses are not finite ({shown})")
    offsets, losses = losses[: len(baselines)], losses[len(baselines) :]
    if task.calibration == "dataset":
        offsets = offsets * len(examples)
    if offsets:
        losses = [
            [loss - offset for loss, offset in zip(*both, strict=True)] for both in zip(losses, offsets, strict=True)
        ]
    return [Preference(values) for values in losses], found.cost


def _normalised(task: Task, examples: Sequence[Example], found: OptionScores) -> list[list[float]]:
    """The losses of each example's options: nats a token, nats, or nats a byte of the option's text."""
    sums, counts = iter(found.sums), iter(found.counts)
    values = []
    for example in examples:
        row = []
        for option in example.options:
            count, divisors = next(counts), {"sum": 1, "bytes": len(option.encode())}
            row.append(next(sums) / divisors.get(task.normalization, count))
        values.append(row)
    return values
