"""The released data of the gist paper: every file there, every row there, every number a number.

    release = Release(Path("gisting/data"), load()["release"], checksums())
    release.outputs("LLaMA", "gist", 1, "human")      # (y_pred, y_true) of each row

DataError names the file and the row that is missing or not as it should be: nothing is averaged over.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synopsis.artifacts import file_hash, read_csv
from synopsis.errors import ArtifactError, DataError, InputError
from synopsis.reporting.rendering import at_most

if TYPE_CHECKING:
    from synopsis.stages.judge.replay import Released

BENCHMARKS = {
    "LLaMA": {
        "gist cache": "pytorch-llama-7b-benchmarking-human.csv",
        "instruction cache": "pytorch-llama-7b-benchmarking-prompt-human.csv",
    },
    "FLAN-T5": {"gist cache": "pytorch-flan-t5-xxl-benchmarking-human.csv"},
}
"""By what is cached, in the rows that are called `gist`; those called `standard` have no cache."""
UNITS = {"CUDA ms": ("cuda_time", 1e3), "GFLOPs": ("flops", 1e9), "CPU ms": ("cpu_time", 1e3)}
"""Column of these files, and what its numbers are divided by."""


class Release:
    """A folder of released data. about: `release` of published.yaml; checksums: of every file."""

    def __init__(self, folder: Path, about: dict[str, Any], checksums: dict[str, str]):
        self.folder, self.about, self.checksums = folder, about, checksums
        self.examples: dict[str, int] = about["examples"]
        self.kinds = [("neg_control", 1), *(("gist", k) for k in about["gist_tokens"]), ("pos_control", 1)]
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; expected the release of the gist paper ({about['fetch']})")
        missing = [file for file in checksums if not (folder / file).is_file()]
        if missing:
            names = ", ".join(at_most(missing, 5, "more"))
            raise DataError(f"{folder}: {len(missing)} of {len(checksums)} files of the release are missing: {names}")

    def same(self) -> dict[str, bool]:
        """File -> whether it is as it was released."""
        return {file: file_hash(self.folder / file) == digest for file, digest in self.checksums.items()}

    def outputs(self, model: str, condition: str, tokens: int, split: str) -> list[tuple[str, str]]:
        """Prediction and truth of each row."""
        path = self._outputs(model, condition, tokens, split)
        rows = _read(path, ["x", "y_pred", "y_true"])
        if len(rows) != self.examples[split]:
            others = [_read(self._outputs(model, *kind, split), ["y_true"]) for kind in self.kinds]
            whole = next((other for other in others if len(other) == self.examples[split]), [])
            self._miscounted(path, [row["y_true"] for row in rows], [row["y_true"] for row in whole], split)
        return [(row["y_pred"], row["y_true"]) for row in rows]

    def _outputs(self, model: str, condition: str, tokens: int, split: str) -> Path:
        steps = self.about["models"][model][1]
        name = f"{model}-{condition}-{tokens}/outputs-{steps}-validation_{split}.csv"
        return self.folder / "results" / "model_outputs" / name

    def judgements(self, model: str, condition: str, tokens: int, split: str) -> Released:
        """A comparison with the positive control, which is its run b."""
        from synopsis.stages.judge.replay import read_released

        a, b, steps = f"{model}-{condition}-{tokens}", f"{model}-pos_control-1", self.about["models"][model][1]
        path = self.folder / "results" / "chatgpt" / f"chatgpt-{a}-vs-{b}-validation_{split}-{steps}.json"
        found = read_released(path)
        if (found.a, found.b) != (a, b):
            raise DataError(f"{path}: names: found {found.a!r} and {found.b!r}; expected {a!r} and {b!r}")
        if found.n != self.examples[split]:
            outputs = [prediction for prediction, _ in self.outputs(model, "pos_control", 1, split)]
            self._miscounted(path, found.outputs_b, outputs, split)
        if "parse_error" in found.choices:
            row = found.choices.index("parse_error")
            raise DataError(f"{path}: results[{row}].choice: names no run; expected a, b or tie")
        return found

    def _miscounted(self, path: Path, found: Sequence[str], whole: Sequence[str], split: str) -> None:
        """DataError for a number of rows that is not the release's, with the first row that differs."""
        differs = [number for number, (a, b) in enumerate(zip(found, whole, strict=False), start=1) if a != b]
        row = differs[0] if differs else min(len(found), len(whole)) + 1
        first = f". The first that is missing, added or changed is row {row}" if whole else ""
        raise DataError(f"{path}: has {len(found)} rows; expected {self.examples[split]}{first}")

    def rouge(self) -> dict[tuple[str, ...], float]:
        """The released ROUGE-L by model, condition, number of gist tokens and split."""
        kinds = [(model, kind, str(tokens)) for model in self.about["models"] for kind, tokens in self.kinds]
        expected = [(*kind, split) for kind in kinds for split in self.examples]
        path, keys = self.folder / "results" / "rouge.csv", ["model", "condition", "num_gist_tokens", "split"]
        return {key: row["value"] for key, row in _numbers(path, keys, ["value"], expected).items()}

    def benchmark(self, model: str, cache: str, kind: str) -> dict[str, list[float]]:
        """Unit -> one sample a prompt; kind: `standard` or `gist`."""
        path = self.folder / "benchmarking" / BENCHMARKS[model][cache]
        prompts = [str(number) for number in range(self.examples["human"])]
        expected = [(prompt, kind) for prompt in prompts for kind in ("standard", "gist")]
        rows = _numbers(path, ["id", "model"], [column for column, _ in UNITS.values()], expected)
        return {
            unit: [rows[prompt, kind][column] / divisor for prompt in prompts]
            for unit, (column, divisor) in UNITS.items()
        }


def _read(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    try:
        return read_csv(path, columns)
    except ArtifactError as error:
        raise DataError(str(error).replace("Delete it and run again", "Fetch it again")) from None


def _numbers(
    path: Path, keys: Sequence[str], columns: Sequence[str], expected: Sequence[tuple[str, ...]]
) -> dict[tuple[str, ...], dict[str, float]]:
    """Numbers by the keys of their row; DataError where a row is missing, there twice or not one of the `expected`."""
    found: dict[tuple[str, ...], dict[str, float]] = {}
    rest = dict.fromkeys(expected)
    for number, row in enumerate(_read(path, [*keys, *columns]), start=1):
        key = tuple(row[name] for name in keys)
        if key not in rest:
            raise DataError(f"{path}: row {number} ({', '.join(key)}) is there twice, or not one of the release")
        del rest[key]
        found[key] = {column: _number(f"{path}: row {number}: {column}", row[column]) for column in columns}
    if rest:
        first = ", ".join(map(" ".join, zip(keys, next(iter(rest)), strict=True)))
        raise DataError(f"{path}: rows are missing, {len(rest)} of {len(expected)}; the first is that of {first}")
    return found


def _number(where: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise DataError(f"{where}: found {text!r}; expected a number of at least 0")
    return value
