"""The classification data sets that ship: what an example looks like, and that the rows of the mirror fit."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from synopsis.config.experiment import Experiment
from synopsis.config.files import Task, fields_of
from synopsis.config.yaml_files import read_yaml
from synopsis.data.sources import MIRROR_VARIABLE, read_rows
from synopsis.data.tasks import calibration_row, load_task, options_of, prepare_task, render

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "config" / "tasks"
MIRROR = Path(os.environ.get(MIRROR_VARIABLE) or ROOT.parent / "shared" / "data") / "icl"
needs_mirror = pytest.mark.skipif(not MIRROR.is_dir(), reason=f"no data mirror with icl/ (set {MIRROR_VARIABLE})")

# (calibration, balanced, tokens of a demonstration): Chevalier et al. 2023, table 8 of the first version, with what the
# published code calibrates by; for MR and Subj, which only the second version has, nothing is known but that sampling
# is balanced.
PUBLISHED = {
    "ag_news": ("dataset", False, 65),
    "sst2": ("dataset", True, 22),
    "boolq": ("example", False, 665),
    "wic": ("example", False, 45),
    "wsc": ("none", False, 61),
    "rte": ("none", False, 75),
    "cb": ("none", True, 98),
    "copa": ("none", True, 21),
    "multirc": ("none", True, 350),
    "mr": ("dataset", True, None),
    "subj": ("dataset", True, None),
}

# Of each data set a row with all its columns, and the text of the example with the option of the label.
CANDIDATE = {"paragraph": "It rained.", "question": "Was it dry?", "answer": "Yes, dry.", "label": 0}
EXAMPLES: dict[str, tuple[dict[str, Any], str]] = {
    "ag_news": ({"text": "Oil rises.", "label": 2}, "Article: Oil rises.\nTopic: Business"),
    "sst2": ({"sentence": "a fine film ", "label": 1, "idx": 4}, "Sentence: a fine film \nSentiment: positive"),
    "boolq": (
        {"question": "does ice float", "passage": "Ice -- It floats.", "idx": 0, "label": 1},
        "Ice -- It floats.\nquestion: does ice float?\nanswer: correct",
    ),
    "wic": (
        {
            **{"word": "place", "sentence1": "My place.", "sentence2": "No place for it.", "idx": 3, "label": 0},
            **{"start1": 3, "start2": 3, "end1": 8, "end2": 8},
        },
        "My place.\nNo place for it.\n"
        "question: Is the word 'place' used the same way in the two sentences above?\nanswer: no",
    ),
    "wsc": (
        {
            **{"text": "Mark told Pete that he was late.", "span1_text": "Mark", "span2_text": "he", "label": 1},
            **{"span1_index": 0, "span2_index": 4, "idx": 8},
        },
        "Question: In the sentence \"Mark told Pete that he was late.\", does the pronoun 'he' refer to Mark?\n"
        "Answer: yes",
    ),
    "rte": (
        {"premise": "It rained all day.", "hypothesis": "It was dry.", "idx": 5, "label": 1},
        "It rained all day.\nquestion: It was dry. True or False?\nanswer: False",
    ),
    "cb": (
        {"premise": "It rained.", "hypothesis": "it was dry", "idx": 2, "label": 1},
        "It rained.\nquestion: it was dry. true, false or neither?\nanswer: false",
    ),
    "copa": (
        {
            **{"premise": "It rained.", "choice1": "It was dry.", "choice2": "It got wet."},
            **{"question": "effect", "idx": 1, "label": 1},
        },
        "Context: It rained.\nAnswer: It got wet.",
    ),
    "multirc": (
        {**CANDIDATE, "idx": {"paragraph": 0, "question": 0, "answer": 0}},
        "Context: It rained.\nWas it dry?\nincorrect\nanswer: incorrect",
    ),
    "multirc_fixed": (
        {**CANDIDATE, "idx": {"paragraph": 0, "question": 0, "answer": 0}},
        "Context: It rained.\nWas it dry?\nYes, dry.\nanswer: incorrect",
    ),
    "mr": ({"text": "a fine film .", "label": 1}, "Review: a fine film .\nSentiment: positive"),
    "subj": (
        {"text": "he leaves home .", "label": 0, "label_text": "objective"},
        "input: he leaves home .\ntype: objective",
    ),
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
    "multirc_fixed": (27_243, 4_848),
    "mr": (8_530, 1_066),
    "subj": (8_000, 2_000),
}
PARTS = {"ag_news": "train_subset.jsonl", "boolq": "train_subset64.jsonl"}
"""What the mirror has of splits that it has not whole."""


@pytest.fixture(autouse=True)
def _no_other_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MIRROR_VARIABLE, raising=False)


def shipped(name: str) -> Task:
    document = read_yaml(FOLDER / f"{name}.yaml", faults := [])
    assert document is not None and faults == []
    return Task.model_validate(document)


def source_of(name: str) -> str:
    return name.removesuffix("_fixed")


def prepared(name: str, tmp_path: Path) -> dict[str, Any]:
    """The artifact of a shipped task from the mirror at tmp_path / "mirror"."""
    models: Any = {"base": {"path": "nowhere"}}
    experiment = Experiment(
        name="test",
        results=str(tmp_path / "results"),
        models=models,
        data_mirror=str(tmp_path / "mirror"),
        tasks={name: shipped(name)},
    )
    return load_task(prepare_task(experiment, name), shipped(name))


def test_every_data_set_of_the_paper_ships_and_nothing_is_left_unchecked() -> None:
    names = {path.stem for path in FOLDER.glob("*.yaml")}
    assert {name for name in names if shipped(name).source.world is None} == set(EXAMPLES) == set(COUNTS)
    assert set(EXAMPLES) == set(PUBLISHED) | {"multirc_fixed"}
    for name, published in PUBLISHED.items():
        task = shipped(name)
        assert (task.calibration, task.balanced, task.tokens_per_demonstration) == published, name
        assert task.source.hub and task.source.mirror == f"icl/{name}"
        assert task.normalization == "mean"


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_read_as_published(name: str, tmp_path: Path) -> None:
    """From a row of the source to the text that a model reads."""
    task, (row, text) = shipped(name), EXAMPLES[name]
    folder = tmp_path / "mirror" / "icl" / source_of(name)
    folder.mkdir(parents=True)
    for split in (task.train_split, task.test_split):
        (folder / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
    (example,) = prepared(name, tmp_path)["test"]
    assert set(example) == {"id", *fields_of(task)}
    assert render(task, example, options_of(task, example)[row["label"]]) == text
    prompt = render(task, example)
    if name == "multirc":  # nothing stands at either place of the option
        assert prompt == "Context: It rained.\nWas it dry?\n\nanswer:"
    else:
        assert text.startswith(prompt) and text[len(prompt) :].startswith(" ")  # the space belongs to the option


@pytest.mark.parametrize("name", EXAMPLES)
def test_calibration_leaves_nothing_of_the_input(name: str) -> None:
    task = shipped(name)
    row = {field: EXAMPLES[name][0][task.columns.get(field, field)] for field in fields_of(task)}
    text = render(task, calibration_row(task, row))
    assert "N/A" in text and not any(row[field] in text for field in task.input_fields)
    # Once for a data set is the same as for each example where nothing of the example is left.
    left = [field for field in fields_of(task)[:-1] if field not in task.input_fields and str(row[field]) in text]
    assert (task.calibration == "dataset") == (not left and task.options is not None), left


def test_multirc_fixed_is_multirc_but_for_the_candidate() -> None:
    published, fixed = shipped("multirc").model_dump(), shipped("multirc_fixed").model_dump()
    assert {key for key in published if published[key] != fixed[key]} == {"template", "columns"}


def test_the_task_of_the_readme(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(source: .*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    (tmp_path / "answers.yaml").write_text(text)
    document = read_yaml(tmp_path / "answers.yaml", faults := [])
    assert document is not None and faults == []
    task = Task.model_validate(document)
    row = {"question": "Was it dry?", "candidate": "Yes.", "label": 0}
    assert render(task, row, "incorrect") == "Was it dry?\nYes.\nanswer: incorrect"
    assert task.columns == {"candidate": "answer"} and fields_of(task) == list(row)


@needs_mirror
@pytest.mark.parametrize("name", EXAMPLES)
def test_rows_of_the_mirror_fit(name: str, tmp_path: Path) -> None:
    source, task = MIRROR / source_of(name), shipped(name)
    if not source.is_dir():
        pytest.skip(f"the data mirror has no icl/{source.name}")
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / "icl").symlink_to(MIRROR)
    document = prepared(name, tmp_path)
    assert document["subsets"] == ({"train": PARTS[name]} if name in PARTS else {})
    assert (len(document["train"]), len(document["test"])) == COUNTS[name]
    assert {row["label"] for row in document["test"]} == set(range(len(options_of(task, document["test"][0]))))
    for file in source.glob(f"{task.test_split}.jsonl*"):
        assert set(next(read_rows(file))) == set(EXAMPLES[name][0]), "the row of this test has the real columns"
