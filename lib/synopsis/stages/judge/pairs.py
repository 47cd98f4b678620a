"""What is judged: the outputs of two runs for the same example, shown in one order or the other."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from synopsis.artifacts import Layout, check_outputs, read_csv, read_json
from synopsis.config.experiment import Experiment
from synopsis.errors import ArtifactError, DataError

Order = Literal["ab", "ba"]
ORDERS: tuple[Order, ...] = get_args(Order)
"""`ab`: the output of run a is shown first; `ba`: that of run b."""

COLUMNS = ("id", "y_pred", "y_true")
GIST = "<GIST>"


@dataclass(frozen=True)
class Pair:
    """The outputs of two runs for one example; `instruction` and `input` are "" where the judge does not read them."""

    id: str
    instruction: str
    input: str
    answer_a: str
    answer_b: str
    reference: str


@dataclass(frozen=True)
class Question:
    """One pair in one order: what a judge is asked."""

    pair: Pair
    order: Order

    @property
    def first(self) -> str:
        return self.pair.answer_a if self.order == "ab" else self.pair.answer_b

    @property
    def second(self) -> str:
        return self.pair.answer_b if self.order == "ab" else self.pair.answer_a


def read_pairs(
    experiment: Experiment, a: str, b: str, split: str, with_instructions: bool
) -> tuple[list[Pair], list[Path], int]:
    """The pairs of two runs in the order of run a's file, the files that were read, and how many examples only one has.

    `with_instructions` adds the text of instruction and input, which the generations do not keep apart.
    Raises DataError when there is nothing to judge, ArtifactError when an example has other true outputs in the two.
    """
    layout = Layout(experiment)
    paths = [layout.generations(run, split) for run in (a, b)]
    for path in paths:
        check_outputs(path.with_suffix(".json"))
    rows_a, rows_b = (_by_id(path, read_csv(path, COLUMNS)) for path in paths)
    found, alone = _matched(paths, rows_a, rows_b)
    texts: dict[str, tuple[str, str]] = {}
    if with_instructions:
        texts, path = _instructions(experiment, split)
        paths.append(path)
        missing = next((id for id in found if id not in texts), None)
        if missing is not None:
            raise ArtifactError(f"{paths[0]}: id {missing!r} is not in {path} (split '{split}'); run `generate` again")
    pairs = [
        Pair(id, *texts.get(id, ("", "")), row_a["y_pred"], row_b["y_pred"], row_a["y_true"])
        for id, (row_a, row_b) in found.items()
    ]
    return pairs, paths, alone


def read_two_files(path_a: Path, path_b: Path) -> tuple[list[Pair], int]:
    """The pairs of two files of outputs with the published columns, and how many examples only one of them has.

    Rows meet by `id` where both files have it, else by position; ids are then row numbers from 1. Prompt (`x`) and true
    output of a row must agree in the two as far as the shorter text goes, since models truncate them differently;
    white space and gist tokens do not count. Raises DataError.
    """
    paths = [path_a, path_b]
    try:
        rows_a, rows_b = (read_csv(path, ("x", "y_pred", "y_true")) for path in paths)
    except ArtifactError as error:
        raise DataError(str(error)) from None
    if not (rows_a and rows_b and "id" in rows_a[0] and "id" in rows_b[0]):
        if len(rows_a) != len(rows_b):
            raise DataError(
                f"{path_a} has {len(rows_a)} rows and {path_b} has {len(rows_b)}; expected the same examples in the "
                "same order, or a column id in both"
            )
        for rows in (rows_a, rows_b):
            rows[:] = [{**row, "id": str(number)} for number, row in enumerate(rows, start=1)]
    found, alone = _matched(paths, _by_id(path_a, rows_a), _by_id(path_b, rows_b))
    return [
        Pair(id, task_in(row_a["x"], row_a["y_true"]), "", row_a["y_pred"], row_b["y_pred"], row_a["y_true"])
        for id, (row_a, row_b) in found.items()
    ], alone


def task_in(x: str, y_true: str) -> str:
    """The task in a published `x`, which holds gist tokens and, of decoders, the true output at its end.

    >>> task_in("Instruction: Add. <GIST><GIST> Input: 1 1\\nOutput: 2", "2")
    'Instruction: Add.\\nInput: 1 1'
    """
    text = re.sub(rf"\s*({GIST}\s*)+", "\n", x)
    starts = [found for found in re.finditer(r"\n\s*Output:", text) if not _difference(text[found.end() :], y_true)]
    return text[: starts[0 if y_true else -1].start() if starts else None].strip()


def _difference(one: str, other: str) -> tuple[str, str] | None:
    """Where two texts differ, without white space; None where they are the same, or one is the other truncated."""
    first, second = ("".join(text.replace(GIST, "").split()) for text in (one, other))
    if first.startswith(second) or second.startswith(first):
        return None
    start = max(next(place for place, (a, b) in enumerate(zip(first, second, strict=False)) if a != b) - 20, 0)
    return first[start : start + 40], second[start : start + 40]


Row = dict[str, str]
Rows = dict[str, Row]


def _matched(paths: list[Path], rows_a: Rows, rows_b: Rows) -> tuple[dict[str, tuple[Row, Row]], int]:
    """Id -> the rows of both files, and how many rows have no partner."""
    both = f"{paths[0]} and {paths[1]}"
    found = {id: (row, rows_b[id]) for id, row in rows_a.items() if id in rows_b}
    if not found:
        raise DataError(f"{both}: no example is in both; expected outputs for the same examples")
    for id, (row_a, row_b) in found.items():
        for column in ("x", "y_true"):
            if excerpts := _difference(row_a.get(column, ""), row_b.get(column, "")):
                shown = "{!r} and {!r}".format(*excerpts)
                raise DataError(
                    f"{both}: example {id!r}: {column} differs ({shown}); expected outputs for the same examples"
                )
    return found, len(rows_a) + len(rows_b) - 2 * len(found)


def _by_id(path: Path, rows: list[dict[str, str]]) -> Rows:
    if not rows:
        raise DataError(f"{path}: holds no rows; expected at least one output to judge")
    by_id: Rows = {}
    for number, row in enumerate(rows, start=1):
        if row["id"] in by_id:
            raise DataError(f"{path}: row {number}: id {row['id']!r} occurs a second time; expected each id once")
        by_id[row["id"]] = row
    return by_id


def _instructions(experiment: Experiment, split: str) -> tuple[dict[str, tuple[str, str]], Path]:
    """Id -> (instruction, input) of a split, and the file they come from."""
    assert experiment.generate is not None
    path = Layout(experiment).instructions(experiment.generate.instructions)
    splits = read_json(path, "instructions").get("splits", {})
    if split not in splits:
        raise ArtifactError(f"{path}: no split '{split}'; found {', '.join(splits) or 'none'}")
    return {str(row["id"]): (row["instruction"], row["input"]) for row in splits[split]}, path
