"""In-context-learning tasks: rows of classification data sets, and the text of an example.

`prepare_task` writes the rows that the template needs; the pure functions turn a row into text:

    rows = load_task(layout.task("sst2"))["test"]
    render(task, rows[0])                                # 'Sentence: ...\\nSentiment:', the answer is to be scored
    [render(task, rows[0], option) for option in options_of(task, rows[0])]
"""

from __future__ import annotations

from pathlib import Path
from string import Formatter
from typing import Any

from synopsis.artifacts import Layout, Provenance, read_json, write_json
from synopsis.config import Experiment, Task
from synopsis.data.sources import Row, Source, find_source
from synopsis.errors import ArtifactError, DataError
from synopsis.progress import say

NOT_AVAILABLE = "N/A"
ANSWER = "{answer}"


# ------------------------------------------------------------------------------------------------- the text of a row


def render(task: Task, row: Row, option: str | None = None) -> str:
    """The text of an example; without an option it ends where the answer begins, without the space before it.

    The option's tokens are those that follow the rendering without it, so the space belongs to the option.
    """
    template = task.template.rstrip()
    if option is None:
        return template.removesuffix(ANSWER).format(**row).rstrip()
    return template.format(**{**row, "answer": option})


def options_of(task: Task, row: Row) -> list[str]:
    """The option texts of a row in label order: those of the task, or those that stand in the row."""
    if task.options is not None:
        return list(task.options)
    return [row[field] for field in task.option_fields]


def calibration_row(task: Task, row: Row) -> Row:
    """The row with its input fields made free of content, for contextual calibration (Zhao et al. 2021)."""
    return {**row, **dict.fromkeys(task.input_fields, NOT_AVAILABLE)}


def fields_of(task: Task) -> list[str]:
    """The columns that a task reads, in the order of its template; the label comes last."""
    shown = [field for _, field, _, _ in Formatter().parse(task.template) if field and field != "answer"]
    return list(dict.fromkeys([*shown, *task.option_fields, task.label_field]))


# --------------------------------------------------------------------------------------------------------- artifacts


def prepare_task(experiment: Experiment, dataset: str) -> Path:
    """Write the demonstration pool (`train`) and the test rows of a task from its mirror folder or its hub data set.

    Rows keep the columns that the task reads and get an "id", their index in the source. Tasks of the generated
    language are not made here. DataError names task, file, row and field of what is missing or outside the options.
    """
    task, path = experiment.tasks[dataset], Layout(experiment).task(dataset)
    provenance = Provenance(config=experiment.facts(task))
    sources = {"train": _source(experiment, task, task.train_split), "test": _source(experiment, task, task.test_split)}
    splits = {split: _rows(dataset, task, source) for split, source in sources.items()}
    provenance.inputs = [source.file for source in sources.values() if source.file]
    record = provenance.record(sources={split: source.record() for split, source in sources.items()})
    write_json(path, "task", {"dataset": dataset, **splits}, record)
    say(f"task {dataset}: {len(splits['train'])} rows for demonstrations, {len(splits['test'])} test rows -> {path}")
    return path


def load_task(path: str | Path) -> dict[str, Any]:
    """The artifact of a task: "dataset", and the rows of "train" (demonstrations) and "test"."""
    document = read_json(path, "task")
    for split in ("train", "test"):
        if not document.get(split):
            raise ArtifactError(f"{path}: has no rows in '{split}'. Delete it and run again.")
    return document


def _source(experiment: Experiment, task: Task, split: str) -> Source:
    folder = task.source.mirror
    files = [f"{folder}/{split}.jsonl", f"{folder}/{split}.jsonl.gz"] if folder else []
    return find_source(experiment, files, split, task.source.hub, task.source.hub_config)


def _rows(dataset: str, task: Task, source: Source) -> list[Row]:
    columns = fields_of(task)
    rows = []
    for index, row in enumerate(source.rows()):
        place = f"task '{dataset}': {source}: row {index}"
        missing = [column for column in columns if row.get(column) is None]
        if missing:
            raise DataError(f"{place}: no value for {', '.join(missing)}; found the columns {', '.join(row)}")
        kept = {column: row[column] for column in columns}
        for option in task.option_fields:
            if not isinstance(kept[option], str) or not kept[option].strip():
                raise DataError(f"{place}: {option} is {kept[option]!r}; expected the text of an option")
        _check_label(place, task, kept)
        rows.append({"id": index, **kept})
    if not rows:
        raise DataError(f"task '{dataset}': {source}: has no rows; expected those of split '{source.split}'")
    return rows


def _check_label(place: str, task: Task, row: Row) -> None:
    label, options = row[task.label_field], options_of(task, row)
    if type(label) is not int or not 0 <= label < len(options):
        raise DataError(
            f"{place}: {task.label_field} is {label!r}; expected a number from 0 to {len(options) - 1}, "
            f"the place of the option ({', '.join(map(repr, options))})"
        )
