"""Recorded judgements of the gist paper, as its authors released them: one JSON file a comparison.

    read_released("results/chatgpt/chatgpt-LLaMA-gist-1-vs-LLaMA-pos_control-1-validation_human-3000.json").win_rate

Each pair was judged once, in an order drawn at random. A `choice` names the run, not the position: where `swapped`, the
answer of run b was shown first, and the choice is already turned back.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from synopsis.errors import DataError

Choice = Literal["A", "B", "tie", "parse_error"]
TEXTS = {str: "a text", bool: "true or false", dict: "an object", list: "a list"}


@dataclass(frozen=True)
class Released:
    """One released comparison; the lists have one entry an example, in the order of the file.

    scores: of run a and of run b, as published (a tie gives each a half). choices: the run that won. swapped: whether
    the output of run b was shown first. x: the prompts, instruction and input in one text.
    """

    path: Path
    a: str
    b: str
    scores: tuple[float, float]
    choices: list[Choice]
    swapped: list[bool]
    x: list[str]
    outputs_a: list[str]
    outputs_b: list[str]
    reasons: list[str]

    @property
    def n(self) -> int:
        return len(self.choices)

    @property
    def win_rate(self) -> float:
        """Published win rate of run a, 0 to 1: its score divided by the number of examples."""
        return self.scores[0] / self.n

    @property
    def recounted(self) -> float:
        """Win rate of run a counted from the choices, ties half; it differs where answers were corrected by hand."""
        decided = [choice for choice in self.choices if choice != "parse_error"]
        return (decided.count("A") + decided.count("tie") / 2) / len(decided) if decided else float("nan")


def choice_named(text: str) -> Choice:
    """The run that a released `choice` names.

    >>> [choice_named(text) for text in ("a", "B", " Tie", "neither")]
    ['A', 'B', 'tie', 'parse_error']
    """
    named: dict[str, Choice] = {"a": "A", "b": "B", "tie": "tie"}
    return named.get(text.strip().lower(), "parse_error")


def read_released(path: str | Path) -> Released:
    """Read one released comparison; DataError names the file and the key that is missing or of another kind."""
    path = Path(path)
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({error}); expected a released comparison") from None
    names, scores = _get(path, document, "names", dict), _get(path, document, "scores", dict)
    a, b = (_get(path, names, key, str, "names.") for key in ("a", "b"))
    score_a, score_b = (_number(path, scores, name) for name in (a, b))
    rows = _get(path, document, "results", list)
    if not rows:
        raise DataError(f"{path}: results: is empty; expected at least one judgement")
    columns: dict[str, list[Any]] = {}
    kinds = {"choice": str, "swapped": bool, "x": str, a: str, b: str, "reason": str}
    for key, kind in kinds.items():
        columns[key] = [_get(path, row, key, kind, f"results[{number}].") for number, row in enumerate(rows)]
    choices = [choice_named(choice) for choice in columns["choice"]]
    return Released(
        path, a, b, (score_a, score_b), choices, columns["swapped"], columns["x"], columns[a], columns[b],
        columns["reason"],
    )  # fmt: skip


def _get(path: Path, found: Any, key: str, kind: type, where: str = "") -> Any:
    value = found.get(key) if isinstance(found, dict) else None
    if not isinstance(value, kind):
        raise DataError(f"{path}: {where}{key}: found {value!r:.80}; expected {TEXTS[kind]}")
    return value


def _number(path: Path, scores: dict[str, Any], name: str) -> float:
    value = scores.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < float("inf"):
        raise DataError(f"{path}: scores.{name}: found {value!r:.80}; expected a number of at least 0")
    return float(value)
