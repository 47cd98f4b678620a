"""In-context-learning tasks: the text of an example, and what is reported about rows that do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synopsis.artifacts import Layout
from synopsis.config.experiment import Experiment
from synopsis.config.files import Task, fields_of
from synopsis.data.tasks import calibration_row, load_task, prepare_task, render
from synopsis.data.world_data import prepare_world_task
from synopsis.errors import ArtifactError, DataError

REVIEWS = Task(
    source={"mirror": "icl/reviews"},  # type: ignore[arg-type]
    template="Review: {text}\nSentiment: {answer}\n",
    input_fields=["text"],
    options=["bad", "good"],
)
CAUSES = Task(
    source={"mirror": "icl/causes"},  # type: ignore[arg-type]
    template="{premise} so {answer}",
    input_fields=["premise"],
    option_fields=["first", "second"],
    label_field="right",
)
CANDIDATES = Task(
    source={"mirror": "icl/candidates"},  # type: ignore[arg-type]
    template="{question} {candidate}? {answer}",
    columns={"candidate": "answer", "right": "label"},
    input_fields=["question"],
    options=["no", "yes"],
    label_field="right",
)
TWICE = CANDIDATES.model_copy(update={"template": "{question}\n{answer}\nanswer: {answer}\n", "columns": {}})
GOOD = [{"text": "fine {film}", "label": 1, "idx": 7}, {"text": "dull", "label": 0, "idx": 8}]


def experiment(tmp_path: Path, **tasks: Task) -> Experiment:
    models: Any = {"base": {"path": "nowhere"}}
    return Experiment(
        name="test", results=str(tmp_path / "results"), models=models, data_mirror=str(tmp_path), tasks=tasks
    )


def write(tmp_path: Path, task: str, train: list[dict], test: list[dict]) -> None:
    folder = tmp_path / "icl" / task
    folder.mkdir(parents=True)
    for split, rows in (("train", train), ("validation", test)):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_prompt_ends_where_the_answer_begins() -> None:
    row = {"text": "fine {film} \n", "label": 1}
    assert render(REVIEWS, row) == "Review: fine {film} \n\nSentiment:"
    assert render(REVIEWS, row, "good") == render(REVIEWS, row) + " good"


def test_every_place_of_the_answer_shows_the_option() -> None:
    row = {"question": "Wet?", "answer": "the candidate", "right": 1}
    assert render(TWICE, row) == "Wet?\n\nanswer:"
    assert render(TWICE, row, "yes") == "Wet?\nyes\nanswer: yes"


LINES = st.text(st.characters(codec="utf-8"), max_size=20)


@given(text=LINES, option=LINES.filter(str.strip))
def test_the_text_goes_on_with_the_option_whatever_a_row_holds(text: str, option: str) -> None:
    row = {"text": text, "label": 0}
    prompt = render(REVIEWS, row)
    assert prompt == f"Review: {text}\nSentiment:" and render(REVIEWS, row, option) == f"{prompt} {option}"
    bare = {"premise": text, "first": "a", "second": "b", "right": 0}  # the text itself may end in white space
    assert render(CAUSES, bare, option) == f"{text} so {option}"


@given(one=LINES, other=LINES)
def test_calibration_does_not_depend_on_the_input(one: str, other: str) -> None:
    rows = [{"question": text, "candidate": "dry", "right": 1} for text in (one, other)]
    first, second = (render(CANDIDATES, calibration_row(CANDIDATES, row)) for row in rows)
    assert first == second == "N/A dry?"
    assert [row["question"] for row in rows] == [one, other]


def test_rows_keep_what_the_task_reads(tmp_path: Path) -> None:
    write(tmp_path, "reviews", GOOD, GOOD[:1])
    path = prepare_task(experiment(tmp_path, reviews=REVIEWS), "reviews")
    assert path == Layout(experiment(tmp_path, reviews=REVIEWS)).task("reviews")
    document = load_task(path)
    assert document["train"] == [{"id": 0, "text": "fine {film}", "label": 1}, {"id": 1, "text": "dull", "label": 0}]
    assert document["test"] == document["train"][:1]
    assert all(document["provenance"]["inputs"].values()) and len(document["provenance"]["inputs"]) == 2
    assert fields_of(CAUSES) == ["premise", "first", "second", "right"]


def test_rows_have_the_names_of_the_template(tmp_path: Path) -> None:
    row = {"question": "Is it dry", "answer": "bone dry", "label": 1}
    write(tmp_path, "candidates", [row], [row])
    document = load_task(prepare_task(experiment(tmp_path, candidates=CANDIDATES), "candidates"), CANDIDATES)
    assert document["test"] == [{"id": 0, "question": "Is it dry", "candidate": "bone dry", "right": 1}]
    assert render(CANDIDATES, document["test"][0], "yes") == "Is it dry bone dry? yes"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [GOOD[0], {"text": "x", "label": 2}],
            r"task 'reviews': .*validation\.jsonl: row 1: label is 2; expected .* 0 to 1",
        ),
        ([{"text": "x", "label": -1}], r"row 0: label is -1 \(-1 marks rows without a label: choose a split that"),
        ([{"text": "x", "label": "good"}], r"row 0: label is 'good'; expected a number from 0 to 1"),
        (
            [{"sentence": "x", "label": 1}],
            r"row 0: text: found the columns sentence, label; expected 'text' among them, or the name of another in "
            r"the task \(columns: \{text: <name>\}\)",
        ),
        ([GOOD[0], {"text": None, "label": 1}], r"row 1: text is null; expected text or a number"),
        ([{"text": float("nan"), "label": 1}], r"row 0: text is nan; expected text or a number"),
        ([{"text": ["x"], "label": 1}], r"row 0: text is \['x'\]; expected text or a number"),
        ([{"text": "x", "label": 1.0}], r"row 0: label is 1\.0; expected a number from 0 to 1"),
        ([], r"task 'reviews': .*validation\.jsonl: has no rows; expected those of split 'validation'"),
    ],
)
def test_rows_that_do_not_fit_are_reported(tmp_path: Path, rows: list[dict], message: str) -> None:
    write(tmp_path, "reviews", GOOD, rows)
    given = experiment(tmp_path, reviews=REVIEWS)
    with pytest.raises(DataError, match=message):
        prepare_task(given, "reviews")
    assert not Layout(given).task("reviews").exists()


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (" ", r"second is ' '; expected the text of an option"),
        (7, r"second is 7; expected the text of an option"),
        ("a ", r"second is 'a ', the same as first; expected another option"),
    ],
)
def test_options_of_a_row_that_cannot_be_told_apart(tmp_path: Path, second: object, message: str) -> None:
    good = {"premise": "p", "first": "a", "second": "b", "right": 1}
    write(tmp_path, "causes", [good], [good, {**good, "second": second}])
    with pytest.raises(DataError, match=r"task 'causes': .*validation\.jsonl: row 1: " + message):
        prepare_task(experiment(tmp_path, causes=CAUSES), "causes")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "q", "label": 1}, r"candidate: found the columns question, label; expected 'answer' among them"),
        ({"question": "q", "answer": None, "label": 1}, r"candidate \(the column 'answer'\) is null; expected text"),
        ({"question": "q", "answer": "a", "label": 2}, r"right \(the column 'label'\) is 2; expected a number from 0"),
    ],
)
def test_a_renamed_column_is_reported_by_both_names(tmp_path: Path, row: dict, message: str) -> None:
    write(tmp_path, "candidates", [row], [row])
    with pytest.raises(DataError, match=r"task 'candidates': .*train\.jsonl: row 0: " + message):
        prepare_task(experiment(tmp_path, candidates=CANDIDATES), "candidates")


def test_a_missing_split_is_reported_with_the_names_it_may_have(tmp_path: Path) -> None:
    named = r".*/train\.jsonl or .*/train\.jsonl\.gz or .*/train_subset\*\.jsonl"
    with pytest.raises(DataError, match=f"task 'reviews': {named}: no such file"):
        prepare_task(experiment(tmp_path, reviews=REVIEWS), "reviews")


def test_an_artifact_of_another_template_is_reported(tmp_path: Path) -> None:
    write(tmp_path, "reviews", GOOD, GOOD)
    path = prepare_task(experiment(tmp_path, reviews=REVIEWS), "reviews")
    with pytest.raises(ArtifactError, match=r"reviews\.json: rows of 'train' have no question, candidate, right\. Del"):
        load_task(path, CANDIDATES)


def test_options_of_the_generated_language_are_its_words(tmp_path: Path) -> None:
    animals = Task(
        source={"world": "eats"},  # type: ignore[arg-type]
        template="{text} {answer}",
        input_fields=["text"],
        options=["plums", "seeds"],
    )
    with pytest.raises(DataError, match="task 'animals': options: found plums, seeds; expected the words of 'eats'"):
        prepare_world_task(experiment(tmp_path, animals=animals), "animals")
