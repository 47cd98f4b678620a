"""In-context-learning tasks: rows of classification data sets, and the text of an example.

`prepare_task` writes the rows that the template needs; the pure functions turn a row into text:

    rows = load_task(layout.task("sst2"))["test"]
    render(task, rows[0])                                # 'Sentence: ...\\nSentiment:', the answer is to be scored
    [render(task, rows[0], option) for option in options_of(task, rows[0])]
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from synopsis.artifacts import Layout, Provenance, read_json, write_json
from synopsis.config.experiment import Experiment
from synopsis.config.files import Task, fields_of
from synopsis.data.prepare import prepare_fingerprint
from synopsis.data.sources import Row, Source, find_source
from synopsis.errors import ArtifactError, DataError
from synopsis.progress import say

SUBSET = "_subset"
"""In the name of a copy that is only a part of its split: train_subset.jsonl."""
NOT_AVAILABLE = "N/A"


# ------------------------------------------------------------------------------------------------- the text of a row


def render(task: Task, row: Row, option: str | None = None) -> str:
    """The text of an example; without an option it ends where the answer begins, without the space before it.

    The option's tokens are those that follow the rendering without it, so the space belongs to the option. A template
    that shows {answer} more than once shows the option at each place, and nothing at any of them without an option.
    """
    text = task.template.rstrip().format(**{**row, "answer": "" if option is None else option})
    return text.rstrip() if option is None else text


def options_of(task: Task, row: Row) -> list[str]:
    """The option texts of a row in label order: those of the task, or those that stand in the row."""
    if task.options is not None:
        return list(task.options)
    return [row[field] for field in task.option_fields]


def calibration_row(task: Task, row: Row) -> Row:
    """The row with its input fields made free of content, for contextual calibration (Zhao et al. 2021)."""
    return {**row, **dict.fromkeys(task.input_fields, NOT_AVAILABLE)}


# --------------------------------------------------------------------------------------------------------- artifacts


def prepare_task(experiment: Experiment, dataset: str) -> Path:
    """Write the demonstration pool (`train`) and the test rows of a task from its mirror folder or its hub data set.

    Rows keep what the task reads, by the names of its template, and get an "id", their index in the source. Tasks of
    the generated language are not made here. DataError names task, file, row and field of what does not fit.
    """
    task, path = experiment.tasks[dataset], Layout(experiment).task(dataset)
    provenance = Provenance(config=prepare_fingerprint(experiment, "task", dataset))
    with _about(f"task '{dataset}'"):
        names = {"train": task.train_split, "test": task.test_split}
        sources = {split: _source(experiment, task, name) for split, name in names.items()}
        splits = {split: _rows(task, source) for split, source in sources.items()}
    provenance.inputs = [source.file for source in sources.values() if source.file]
    record = provenance.record(sources={split: source.record() for split, source in sources.items()})
    # The name of a copy says when it holds a part of its split only.
    files = {split: source.file.name for split, source in sources.items() if source.file}
    subsets = {split: file for split, file in files.items() if file.startswith(f"{names[split]}{SUBSET}")}
    write_json(path, "task", {"dataset": dataset, "subsets": subsets, **splits}, record)
    for split, file in subsets.items():
        say(f"task {dataset}: the rows of '{split}' are those of {file}, a part of the split")
    say(f"task {dataset}: {len(splits['train'])} rows for demonstrations, {len(splits['test'])} test rows -> {path}")
    return path


def load_task(path: str | Path, task: Task | None = None) -> dict[str, Any]:
    """The artifact of a task: "dataset", and the rows of "train" (demonstrations) and "test".

    ArtifactError when it has none, and when its rows lack what `task` reads, whose template has changed since.
    """
    document = read_json(path, "task")
    for split in ("train", "test"):
        if not document.get(split):
            raise ArtifactError(f"{path}: has no rows in '{split}'. Delete it and run again.")
        missing = [field for field in fields_of(task) if field not in document[split][0]] if task else []
        if missing:
            raise ArtifactError(f"{path}: rows of '{split}' have no {', '.join(missing)}. Delete it and run again.")
    return document


def _source(experiment: Experiment, task: Task, split: str) -> Source:
    folder = task.source.mirror
    files = [f"{folder}/{split}{end}" for end in (".jsonl", ".jsonl.gz", f"{SUBSET}*.jsonl")] if folder else []
    return find_source(experiment, files, split, task.source.hub, task.source.hub_config)


@contextmanager
def _about(subject: str) -> Iterator[None]:
    """Every DataError begins with what it is about."""
    try:
        yield
    except DataError as error:
        raise type(error)(f"{subject}: {error}") from error


def _rows(task: Task, source: Source) -> list[Row]:
    rows = []
    for index, found in enumerate(source.rows()):
        with _about(f"{source}: row {index}"):
            row = {field: _value(task, found, field) for field in fields_of(task)}
            _check(task, row)
        rows.append({"id": index, **row})
    if not rows:
        raise DataError(f"{source}: has no rows; expected those of split '{source.split}'")
    return rows


def _value(task: Task, row: Row, field: str) -> Any:
    """What stands in the column of a field: text or a number, since lists and objects would read as Python's code."""
    column = task.columns.get(field, field)
    if column not in row:
        wanted = f"'{column}' among them, or the name of another in the task (columns: {{{field}: <name>}})"
        raise DataError(f"{field}: found the columns {', '.join(row) or '(none)'}; expected {wanted}")
    value = row[column]
    if not isinstance(value, str | int | float) or value != value:  # nan stands where a table has no value
        found = "null" if value is None else f"{value!r:.60}"
        raise DataError(f"{_named(task, field)} is {found}; expected text or a number")
    return value


def _named(task: Task, field: str) -> str:
    """A field as a message names it, with the column of the data where that is called otherwise."""
    column = task.columns.get(field, field)
    return field if column == field else f"{field} (the column '{column}')"


def _check(task: Task, row: Row) -> None:
    """Options that stand in the row must be texts, each another one; the label must be the place of one."""
    first: dict[str, str] = {}
    for field in task.option_fields:
        option = row[field]
        if not isinstance(option, str) or not option.strip():
            raise DataError(f"{_named(task, field)} is {option!r}; expected the text of an option")
        same = first.setdefault(option.strip(), field)
        if same != field:
            raise DataError(f"{_named(task, field)} is {option!r}, the same as {same}; expected another option")
    label, options = row[task.label_field], options_of(task, row)
    if type(label) is not int or not 0 <= label < len(options):
        hint = " (-1 marks rows without a label: choose a split that has them)" if label == -1 else ""
        raise DataError(
            f"{_named(task, task.label_field)} is {label!r}{hint}; expected a number from 0 to {len(options) - 1}, "
            f"the place of the option ({', '.join(map(repr, options))})"
        )
