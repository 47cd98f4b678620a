"""The classification data sets that ship: what an example looks like, and that the rows of the mirror fit."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from synopsis.artifacts import Layout
from synopsis.config import Experiment, Task
from synopsis.config_yaml import read_yaml
from synopsis.data.sources import MIRROR_VARIABLE, read_rows
from synopsis.data.tasks import calibration_row, fields_of, load_task, options_of, prepare_task, render

ROOT = Path(__file__).parents[2]
MIRROR = Path(os.environ.get(MIRROR_VARIABLE) or ROOT.parent / "shared" / "data") / "icl"
needs_mirror = pytest.mark.skipif(not MIRROR.is_dir(), reason=f"no data mirror with icl/ (set {MIRROR_VARIABLE})")

# (demonstrations calibrated, balanced, tokens of one): Chevalier et al. 2023, table 8 of the first version; for MR and
# Subj, which only the second version has, nothing is known but that sampling is balanced.
PUBLISHED = {
    "ag_news": (True, False, 65),
    "sst2": (True, True, 22),
    "boolq": (True, False, 665),
    "wic": (True, False, 45),
    "wsc": (False, False, 61),
    "rte": (False, False, 75),
    "cb": (False, True, 98),
    "copa": (False, True, 21),
    "multirc": (False, True, 350),
    "mr": (True, True, None),
    "subj": (True, True, None),
}
TABLE_4 = ["ag_news", "sst2", "boolq", "wic", "wsc", "rte", "cb", "copa", "multirc", "mr", "subj"]

# A row of each, its label, and the text of the example with the option of the label.
EXAMPLES: dict[str, tuple[dict[str, Any], str]] = {
    "ag_news": ({"text": "Oil rises.", "label": 2}, "Article: Oil rises.\nTopic: Business"),
    "boolq": (
        {"passage": "Ice -- It floats.", "question": "does ice float", "label": 1},
        "Ice -- It floats.\nquestion: does ice float?\nanswer: correct",
    ),
    "wic": (
        {"sentence1": "My place.", "sentence2": "No place for it.", "word": "place", "label": 0},
        "My place.\nNo place for it.\n"
        "question: Is the word 'place' used the same way in the two sentences above?\nanswer: no",
    ),
    "wsc": (
        {"text": "Mark told Pete that he was late.", "span1_text": "Mark", "span2_text": "he", "label": 1},
        "Question: In the sentence \"Mark told Pete that he was late.\", does the pronoun 'he' refer to Mark?\n"
        "Answer: yes",
    ),
    "rte": (
        {"premise": "It rained all day.", "hypothesis": "It was dry.", "label": 1},
        "It rained all day.\nquestion: It was dry. True or False?\nanswer: False",
    ),
    "multirc": (
        {"paragraph": "It rained.", "question": "Was it dry?", "answer": "Yes", "label": 0},
        "Context: It rained.\nWas it dry?\nanswer: incorrect",
    ),
    "mr": ({"text": "a fine film .", "label": 1}, "Review: a fine film .\nSentiment: positive"),
    "subj": ({"text": "he leaves home .", "label": 0}, "input: he leaves home .\ntype: objective"),
}
COUNTS = {
    "ag_news": (4_999, 7_600),  # the mirror has a part of the training rows
    "sst2": (67_349, 872),
    "boolq": (64, 3_270),  # as for ag_news
    "wic": (5_428, 638),
    "wsc": (554, 104),
    "rte": (2_490, 277),
    "cb": (250, 56),
    "copa": (100, 400),  # swapped, as published
    "multirc": (27_243, 4_848),
    "mr": (8_530, 1_066),
    "subj": (8_000, 2_000),
}
PARTS = {"ag_news": "train_subset.jsonl", "boolq": "train_subset64.jsonl"}


def shipped(name: str) -> Task:
    document = read_yaml(ROOT / "config" / "tasks" / f"{name}.yaml", faults := [])
    assert document is not None and faults == []
    return Task.model_validate(document.content)


def test_every_data_set_of_the_paper_ships() -> None:
    assert set(PUBLISHED) == set(TABLE_4) == set(COUNTS)
    for name in TABLE_4:
        task = shipped(name)
        assert (task.calibrate, task.balanced, task.tokens_per_demonstration) == PUBLISHED[name], name
        assert task.source.hub and task.source.mirror == f"icl/{name}"


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_read_as_published(name: str) -> None:
    task, (row, text) = shipped(name), EXAMPLES[name]
    assert render(task, row, options_of(task, row)[row["label"]]) == text
    prompt = render(task, row)
    assert text.startswith(prompt) and text[len(prompt) :].startswith(" ")  # the space belongs to the option


@pytest.mark.parametrize("name", EXAMPLES)
def test_calibration_leaves_nothing_of_the_input(name: str) -> None:
    task, (row, _) = shipped(name), EXAMPLES[name]
    text = render(task, calibration_row(task, row))
    assert "N/A" in text and not any(row[field] in text for field in task.input_fields)


@needs_mirror
@pytest.mark.parametrize("name", TABLE_4)
def test_rows_of_the_mirror_fit(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not (MIRROR / name).is_dir():
        pytest.skip(f"the data mirror has no icl/{name}")
    monkeypatch.delenv(MIRROR_VARIABLE, raising=False)
    folder = tmp_path / "mirror" / "icl" / name
    shutil.copytree(MIRROR / name, folder)
    if name in PARTS and not (folder / "train.jsonl").exists():
        (folder / PARTS[name]).rename(folder / "train.jsonl")
    models: Any = {"base": {"path": "nowhere"}}
    experiment = Experiment(
        name="test",
        results=str(tmp_path / "results"),
        models=models,
        data_mirror=str(tmp_path / "mirror"),
        tasks={name: shipped(name)},
    )
    document = load_task(prepare_task(experiment, name))
    assert Layout(experiment).task(name).is_file()
    assert (len(document["train"]), len(document["test"])) == COUNTS[name]
    assert {row["label"] for row in document["test"]} == set(range(len(options_of(shipped(name), document["test"][0]))))
    assert set(document["test"][0]) == {"id", *fields_of(shipped(name))}


@needs_mirror
def test_what_the_note_on_wsc_says() -> None:
    labels = [row["label"] for row in read_rows(MIRROR / "wsc" / "validation.jsonl")]
    assert (labels.count(0), len(labels)) == (66, 104)
