"""In-context-learning tasks: the text of an example, and what is told about rows that do not fit."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from synopsis.artifacts import Layout
from synopsis.config import Experiment, Task
from synopsis.data.sources import MIRROR_VARIABLE
from synopsis.data.tasks import calibration_row, fields_of, load_task, options_of, prepare_task, render
from synopsis.errors import ArtifactError, DataError

ROOT = Path(__file__).parents[2]
MIRROR = Path(os.environ.get(MIRROR_VARIABLE) or ROOT.parent / "shared" / "data")
SHIPPED = ("sst2", "cb", "copa")

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
GOOD = [{"text": "fine {film}", "label": 1, "idx": 7}, {"text": "dull", "label": 0, "idx": 8}]


def shipped(name: str) -> Task:
    return Task(**yaml.safe_load((ROOT / "config" / "tasks" / f"{name}.yaml").read_text()))


def experiment(tmp_path: Path, mirror: Path | None = None, **tasks: Task) -> Experiment:
    folder = mirror or tmp_path
    models: Any = {"base": {"path": "nowhere"}}
    return Experiment(
        name="test", results=str(tmp_path / "results"), models=models, data_mirror=str(folder), tasks=tasks
    )


@pytest.fixture(autouse=True)
def _no_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MIRROR_VARIABLE, raising=False)


def write(tmp_path: Path, task: str, train: list[dict], test: list[dict]) -> None:
    folder = tmp_path / "icl" / task
    folder.mkdir(parents=True)
    for split, rows in (("train", train), ("validation", test)):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_prompt_ends_where_the_answer_begins() -> None:
    row = {"text": "fine {film} \n", "label": 1}
    assert render(REVIEWS, row) == "Review: fine {film} \n\nSentiment:"
    assert render(REVIEWS, row, "good") == render(REVIEWS, row) + " good"


def test_options_come_from_the_task_or_the_row() -> None:
    assert options_of(REVIEWS, GOOD[0]) == ["bad", "good"]
    assert options_of(CAUSES, {"premise": "p", "first": "It rained.", "second": "It shone."}) == [
        "It rained.",
        "It shone.",
    ]


def test_calibration_leaves_the_row_as_it_was() -> None:
    row = {"text": "fine", "label": 1}
    assert render(REVIEWS, calibration_row(REVIEWS, row)) == "Review: N/A\nSentiment:"
    assert row["text"] == "fine"


def test_rows_keep_what_the_task_reads(tmp_path: Path) -> None:
    write(tmp_path, "reviews", GOOD, GOOD[:1])
    path = prepare_task(experiment(tmp_path, reviews=REVIEWS), "reviews")
    assert path == Layout(experiment(tmp_path, reviews=REVIEWS)).task("reviews")
    document = load_task(path)
    assert document["train"] == [{"id": 0, "text": "fine {film}", "label": 1}, {"id": 1, "text": "dull", "label": 0}]
    assert document["test"] == document["train"][:1]
    assert all(document["provenance"]["inputs"].values()) and len(document["provenance"]["inputs"]) == 2
    assert fields_of(CAUSES) == ["premise", "first", "second", "right"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [GOOD[0], {"text": "x", "label": 2}],
            r"task 'reviews': .*validation\.jsonl: row 1: label is 2; expected .* 0 to 1",
        ),
        ([{"text": "x", "label": -1}], r"row 0: label is -1"),
        ([{"text": "x", "label": "good"}], r"row 0: label is 'good'; expected a number from 0 to 1"),
        ([{"text": "x", "label": True}], r"row 0: label is True"),
        ([{"sentence": "x", "label": 1}], r"row 0: no value for text; found the columns sentence, label"),
        ([], r"validation\.jsonl: has no rows; expected those of split 'validation'"),
    ],
)
def test_rows_that_do_not_fit_are_told(tmp_path: Path, rows: list[dict], message: str) -> None:
    write(tmp_path, "reviews", GOOD, rows)
    given = experiment(tmp_path, reviews=REVIEWS)
    with pytest.raises(DataError, match=message):
        prepare_task(given, "reviews")
    assert not Layout(given).task("reviews").exists()


def test_an_empty_option_of_a_row_is_told(tmp_path: Path) -> None:
    good = {"premise": "p", "first": "a", "second": "b", "right": 1}
    write(tmp_path, "causes", [good], [good, {**good, "second": " "}])
    with pytest.raises(DataError, match=r"task 'causes': .*row 1: second is ' '; expected the text of an option"):
        prepare_task(experiment(tmp_path, causes=CAUSES), "causes")


def test_a_missing_split_is_told_with_both_names(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"reviews/train\.jsonl or .*reviews/train\.jsonl\.gz: no such file"):
        prepare_task(experiment(tmp_path, reviews=REVIEWS), "reviews")


def test_an_artifact_without_rows_is_told(tmp_path: Path) -> None:
    write(tmp_path, "reviews", GOOD, GOOD)
    path = prepare_task(experiment(tmp_path, reviews=REVIEWS), "reviews")
    path.write_text(path.read_text()[:-30])
    with pytest.raises(ArtifactError, match=r"reviews\.json: not valid JSON"):
        load_task(path)


def test_shipped_tasks_render_as_published() -> None:
    row = {"premise": "It rained.", "hypothesis": "it was dry", "label": 1}
    expected = "It rained.\nquestion: it was dry. true, false or neither?\nanswer: false"
    assert render(shipped("cb"), row, options_of(shipped("cb"), row)[1]) == expected
    row = {"premise": "It rained.", "choice1": "It was dry.", "choice2": "It got wet.", "label": 1}
    assert (
        render(shipped("copa"), row, options_of(shipped("copa"), row)[1]) == "Context: It rained.\nAnswer: It got wet."
    )
    row = {"sentence": "a fine film ", "label": 1}
    assert render(shipped("sst2"), row, "positive") == "Sentence: a fine film \nSentiment: positive"
    published = {"sst2": (True, 22), "cb": (False, 98), "copa": (False, 21)}
    assert {n: (shipped(n).calibrate, shipped(n).tokens_per_demonstration) for n in SHIPPED} == published
    assert all(shipped(name).balanced for name in SHIPPED)


@pytest.mark.skipif(not (MIRROR / "icl").is_dir(), reason=f"no data mirror with icl/ (set {MIRROR_VARIABLE})")
@pytest.mark.parametrize(("name", "counts"), [("cb", (250, 56)), ("copa", (100, 400))])
def test_shipped_tasks_read_the_mirror(tmp_path: Path, name: str, counts: tuple[int, int]) -> None:
    task = shipped(name)
    document = load_task(prepare_task(experiment(tmp_path, mirror=MIRROR, **{name: task}), name))
    assert (len(document["train"]), len(document["test"])) == counts
    assert set(document["test"][0]) == {"id", *fields_of(task)}
