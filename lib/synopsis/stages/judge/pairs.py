"""What is judged: the outputs of two runs for the same example, shown in one order or the other."""

from __future__ import annotations

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
) -> tuple[list[Pair], list[Path]]:
    """The pairs of two runs in the order of run a's file, and the files that were read.

    `with_instructions` adds the text of instruction and input, which the generations do not keep apart.
    Raises DataError when there is nothing to judge, ArtifactError when the two runs answer different examples.
    """
    layout = Layout(experiment)
    path_a, path_b = layout.generations(a, split), layout.generations(b, split)
    rows_a, rows_b = _rows_by_id(path_a), _rows_by_id(path_b)
    for id in {**rows_a, **rows_b}:
        if id not in rows_a or id not in rows_b or rows_a[id]["y_true"] != rows_b[id]["y_true"]:
            raise ArtifactError(
                f"{path_a} and {path_b}: the id {id!r} is not in both, or its y_true differs; expected the same "
                "examples. Run `generate` again for the older of the two."
            )
    paths = [path_a, path_b]
    texts: dict[str, tuple[str, str]] = {}
    if with_instructions:
        texts, path = _instructions(experiment, split)
        paths.append(path)
        missing = next((id for id in rows_a if id not in texts), None)
        if missing is not None:
            raise ArtifactError(f"{path_a}: id {missing!r} is not in {path} (split '{split}'); run `generate` again")
    pairs = [
        Pair(id, *texts.get(id, ("", "")), row["y_pred"], rows_b[id]["y_pred"], row["y_true"])
        for id, row in rows_a.items()
    ]
    return pairs, paths


def _rows_by_id(path: Path) -> dict[str, dict[str, str]]:
    check_outputs(path.with_suffix(".json"))
    rows = read_csv(path, COLUMNS)
    if not rows:
        raise DataError(f"{path}: holds no rows; expected at least one output to judge")
    by_id: dict[str, dict[str, str]] = {}
    for number, row in enumerate(rows, start=1):
        if row["id"] in by_id:
            raise ArtifactError(
                f"{path}: example {number}: id {row['id']!r} occurs a second time; expected each id once"
            )
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
