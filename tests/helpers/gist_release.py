"""A made-up release of the gist paper: all of its files, with a few rows each and numbers to check by hand."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from synopsis.artifacts import file_hash
from synopsis.paper.published import checksums
from synopsis.stages.generate.rouge import ROUGE_TYPES, score_rouge

EXAMPLES = {"seen": 3, "unseen": 2, "human": 4}
RIGHT = {"neg_control": 0, "gist": 2, "pos_control": 3}
"""Outputs that equal the truth; the others share no word with it."""
STANDARD, GIST = (40, 50, 60, 70), (30, 45, 50, 65)


def write_release(folder: Path) -> dict[str, str]:
    """Write the release; the checksums of its files."""
    table = []
    for file in checksums():
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        if "model_outputs" in file:
            (model, condition, tokens), split = path.parent.name.rsplit("-", 2), path.stem.rpartition("_")[2]
            pairs = _pairs(condition, split)
            write_rows(path, ["x", "y_pred", "y_true"], [["Instruction: do", *pair] for pair in pairs])
            rouge = score_rouge(pairs, types=ROUGE_TYPES[:3]).published()["rougeL"].mid
            table.append([model, condition, tokens, 3000, f"{rouge:.4f}", split])
        elif "chatgpt" in file:
            _write_judgements(path)
        elif "benchmarking" in file:
            samples = {"standard": STANDARD, "gist": GIST}
            rows = [
                [number, kind, *(1000 * samples[kind][number] * factor for factor in (2, 1, 1e9))]
                for number in range(EXAMPLES["human"])
                for kind in samples
            ]
            write_rows(path, ["id", "model", "cpu_time", "cuda_time", "flops"], rows)
    columns = ["model", "condition", "num_gist_tokens", "steps", "value", "split"]
    write_rows(folder / "results/rouge.csv", columns, table)
    return {file: str(file_hash(folder / file)) for file in checksums()}


def write_rows(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, lineterminator="\n").writerows([columns, *rows])


def _pairs(condition: str, split: str) -> list[tuple[str, str]]:
    words = ["ash\nbee", "cat dog", "elm fox", "gnu hen"]
    return [
        (word if number < RIGHT[condition] else "none", word) for number, word in enumerate(words[: EXAMPLES[split]])
    ]


def _write_judgements(path: Path) -> None:
    """One win, one tie, and losses; the field says so, too."""
    a, b = path.name.removeprefix("chatgpt-").partition("-validation")[0].split("-vs-")
    split = path.stem.partition("validation_")[2].partition("-")[0]
    answers = [_pairs(name.rsplit("-", 2)[1], split) for name in (a, b)]
    rows = [
        {"choice": choice, "swapped": False, "reason": "", "x": "", a: answers[0][number][0], b: answers[1][number][0]}
        for number, choice in enumerate(["a", "Tie", "b", "b"][: EXAMPLES[split]])
    ]
    scores = {a: 1.5, b: len(rows) - 1.5}
    path.write_text(json.dumps({"names": {"a": a, "b": b}, "scores": scores, "results": rows}))
