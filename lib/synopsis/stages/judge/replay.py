"""Judgements that were recorded before: a judge that asks nobody, and what the released ones of the gist paper say.

    synopsis judge --replay results/chatgpt
    read_released("results/chatgpt/chatgpt-LLaMA-gist-1-vs-LLaMA-pos_control-1-validation_human-3000.json").win_rate

In a released file each pair was judged once, in an order drawn at random. A `choice` names the run, not the position:
where `swapped`, the answer of run b was shown first, and the choice is already turned back.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from synopsis.artifacts import Provenance, write_json, write_json_lines
from synopsis.config.files import JudgeDefinition
from synopsis.errors import DataError, InputError
from synopsis.reporting.rendering import Column, Table
from synopsis.stages.judge.pairs import ORDERS, Pair
from synopsis.stages.judge.records import Judgement
from synopsis.stages.judge.statistics import summarise
from synopsis.stages.judge.store import read_judgements

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

    def pairs(self, prefix: str = "") -> list[Pair]:
        """The pairs of outputs; the id of an example is its place in the file, from 1."""
        rows = enumerate(zip(self.x, self.outputs_a, self.outputs_b, strict=True), start=1)
        return [Pair(f"{prefix}{number}", x, "", a, b, "") for number, (x, a, b) in rows]

    def judgements(self, prefix: str = "", judge_hash: str = "") -> list[Judgement]:
        """One judgement an example, in the order that was drawn for it; its answer is the recorded reason."""
        common: dict[str, Any] = {"error": None, "attempts": 0, "model": None, "prompt_hash": "", "time": ""}
        common["judge_hash"] = judge_hash
        rows = enumerate(zip(self.choices, self.swapped, self.reasons, strict=True), start=1)
        return [
            Judgement(id=f"{prefix}{number}", order="ba" if swap else "ab", state=choice, answer=reason, **common)
            for number, (choice, swap, reason) in rows
        ]


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


# ------------------------------------------------------------------------------------------------------ a judge


def replay(definition: JudgeDefinition, pairs: Sequence[Pair], path: Path, judge_hash: str) -> list[Judgement]:
    """The recorded judgements of these pairs, in their order; `path` becomes the store that holds them.

    A released file must hold the same outputs in the same order; of a store, examples meet by id, and the last
    judgement of an order that has an answer counts. In a folder the store lies where it lies in the results:
    `<run a>-vs-<run b>/<split>.jsonl`. Raises DataError where a pair has no recorded judgement.
    """
    source = Path(definition.judgements or "")
    if source.is_dir():
        source = source / path.parent.name / path.name
    if source.suffix == ".jsonl":
        judgements = _from_store(source, pairs)
    else:
        released = read_released(source)
        outputs = [(pair.answer_a, pair.answer_b) for pair in pairs]
        recorded = list(zip(released.outputs_a, released.outputs_b, strict=True))
        if outputs != recorded:
            rows = enumerate(zip(outputs, recorded, strict=False), start=1)
            row = next((number for number, (asked, known) in rows if asked != known), None)
            fault = f"row {row} has other outputs" if row else f"{len(recorded)} judgements of {len(outputs)} pairs"
            raise DataError(f"{source}: {fault}; expected judgements of the outputs that are to be judged")
        judgements = [
            one.model_copy(update={"id": pair.id})
            for pair, one in zip(pairs, released.judgements(judge_hash=judge_hash), strict=True)
        ]
    known = {one.key for one in judgements}
    if any(one.model and one.key not in known for one in read_judgements(path)):
        raise InputError(
            f"{path}: holds other judgements of a chat model, which would be lost; expected another folder"
        )
    write_json_lines(path, [one.model_dump() for one in judgements])
    return judgements


def _from_store(path: Path, pairs: Sequence[Pair]) -> list[Judgement]:
    recorded = sorted(read_judgements(path), key=lambda one: one.time)
    latest = {(one.id, one.order): one for one in recorded if one.state != "api_error"}
    orders = [(pair.id, order) for pair in pairs for order in ORDERS]
    missing = next((pair.id for pair in pairs if not {(pair.id, order) for order in ORDERS} & latest.keys()), None)
    if missing is not None:
        raise DataError(f"{path}: holds no judgement of example {missing!r}; expected one of each pair")
    return [latest[key] for key in orders if key in latest]


# ------------------------------------------------------------------------------------------- the released files


def recount(places: Sequence[Path], out: Path | None = None) -> tuple[dict[str, Any], Table]:
    """Released files, or folders of them: published win rates beside a recount, and the biases of the judge.

    `out` gets the numbers as JSON. Raises DataError when a file is none of these, or a folder has none.
    """
    provenance = Provenance(config="")
    paths = [path for place in places for path in (sorted(place.glob("*.json")) if place.is_dir() else [place])]
    if not paths:
        raise DataError(f"{', '.join(map(str, places)) or 'nothing'}: no released comparisons; expected .json files")
    released = [read_released(path) for path in paths]
    pairs = [one.pairs(f"{one.path}:") for one in released]
    judged = [one.judgements(f"{one.path}:") for one in released]
    files = [_record(*found) for found in zip(released, pairs, judged, strict=True)]
    total = _record(None, list(chain.from_iterable(pairs)), list(chain.from_iterable(judged)))
    result = {"files": files, "total": total, "differing": [one["file"] for one in files if one["corrected"]]}
    if out is not None:
        provenance.inputs = paths
        write_json(out, "judge_replay", result, provenance.record())
    return result, _table([*files, total])


def _record(released: Released | None, pairs: list[Pair], judgements: list[Judgement]) -> dict[str, Any]:
    """What is published and what is recounted of one file, or of all."""
    summary = summarise(pairs, judgements)
    del summary["scores"]
    if released is None:
        return {"file": "all", "a": "", "b": "", "split": "", "published": None, "corrected": None, **summary}
    a, b, stem = released.a, released.b, released.path.stem
    points = round(released.n * (released.win_rate - released.recounted), 6)
    names = {"file": released.path.name, "a": a, "b": b, "split": stem.split(f"{a}-vs-{b}-")[-1]}
    return {**names, "published": released.win_rate, "corrected": points, **summary}


def _table(records: list[dict[str, Any]]) -> Table:
    def percent(key: str) -> Any:
        return lambda one: None if one[key] is None else 100 * one[key]

    columns = [
        Column("A", lambda one: one["a"] or "all", key=True),
        Column("B", lambda one: one["b"], key=True),
        Column("Split", lambda one: one["split"], key=True),
        Column("Pairs", lambda one: one["n"]),
        Column("Published (%)", percent("published")),
        Column("Recount (%)", percent("win_rate")),
        Column("Corrected", lambda one: one["corrected"], digits=1),
        Column("First wins (%)", percent("first_wins"), digits=1),
        Column("Longer wins (%)", percent("longer_wins"), digits=1),
        Column("Identical (%)", lambda one: 100 * one["identical"] / one["n"], digits=1),
        Column("With a winner", lambda one: one["identical_decided"]),
    ]
    note = (
        "Win rates of A; ties count half. Published: the field `scores`. Corrected: points (a win is 1, a tie 0.5) by "
        "which it differs from the recount of the choices; where it is not 0, answers were corrected by hand. First "
        "wins, longer wins: of decided pairs whose outputs differ (in length). With a winner: pairs of identical "
        "outputs that are no tie."
    )
    return Table("Released judgements", columns, records, note)
