"""Alpaca+ (Mu et al. 2023): instruction, input and output triples, and their validation splits.

prepare_alpaca_plus(experiment, "alpaca_plus")
load_instructions(layout.instructions("alpaca_plus"))["human"][0]["instruction"]
"""

from __future__ import annotations

from pathlib import Path

from synopsis.artifacts import Layout, Provenance, read_json, write_json
from synopsis.config.data import AlpacaPlus
from synopsis.config.experiment import Experiment
from synopsis.data.prepare import prepare_fingerprint
from synopsis.data.prompts import texts_of
from synopsis.data.sources import Row, Source, find_source
from synopsis.errors import ArtifactError, DataError
from synopsis.progress import say


def prepare_alpaca_plus(experiment: Experiment, name: str) -> Path:
    """Write the training rows and the validation splits of an instruction set, the first ones of each source.

    Each row has "id" (`<split>-<index in the source>`), "instruction", "input" ("" where there is none) and "output".
    Rows without instruction or output (45 of Alpaca's) teach nothing; they are left out and counted in the provenance.
    DataError names the file and the row of what is missing.
    """
    definition, path = experiment.instructions[name], Layout(experiment).instructions(name)
    assert isinstance(definition, AlpacaPlus), f"'{name}' is not read from files"
    provenance = Provenance(config=prepare_fingerprint(experiment, "instructions", name))
    files = {"train": definition.train, **definition.splits}
    sources = {split: find_source(experiment, [file], split) for split, file in files.items()}
    splits, records = {}, {}
    for split, source in sources.items():
        limit = definition.max_train if split == "train" else definition.max_held_out
        splits[split], left_out = _rows(split, source, limit)
        records[split] = {**source.record(), "rows": len(splits[split]), "left_out": left_out}
    provenance.inputs = [source.file for source in sources.values() if source.file]
    write_json(path, "instructions", {"splits": splits}, provenance.record(sources=records))
    counts = ", ".join(f"{len(rows)} {split}" for split, rows in splits.items())
    say(f"instructions {name}: {counts} -> {path}")
    return path


def load_instructions(path: str | Path) -> dict[str, list[Row]]:
    """Split -> rows of "id", "instruction", "input" and "output"."""
    splits = read_json(path, "instructions").get("splits")
    if not isinstance(splits, dict) or not splits.get("train"):
        raise ArtifactError(f"{path}: has no training rows. Delete it and run again.")
    return splits


def _rows(split: str, source: Source, limit: int | None) -> tuple[list[Row], int]:
    """The first `limit` usable rows, and how many without instruction or output were passed over on the way."""
    rows: list[Row] = []
    left_out = 0
    for index, row in enumerate(source.rows()):
        if len(rows) == limit:
            break
        texts = texts_of(row, f"{source}: row {index}")
        if texts["instruction"].strip() and texts["output"].strip():
            rows.append({"id": f"{split}-{index}", **texts})
        else:
            left_out += 1
    if not rows:
        raise DataError(f"{source}: has no usable rows; expected instruction, input and output for the split '{split}'")
    return rows, left_out
