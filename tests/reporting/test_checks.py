"""What no result can say, and results that contradict each other, are named with their file and cell."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import reporting_artifacts as artifacts
from synopsis.artifacts import Layout, read_json, write_json, write_text
from synopsis.config.experiment import Experiment
from synopsis.errors import ArtifactError
from synopsis.reporting.scores import read_scores, score

NAN, INFINITE = float("nan"), float("inf")


@pytest.fixture
def subject(tmp_path: Path) -> Experiment:
    subject = artifacts.experiment(tmp_path, needle=artifacts.NEEDLE)
    artifacts.write_artifacts(subject)
    return subject


def change(path: Path, edit: Callable[[dict[str, Any]], Any], **provenance: Any) -> None:
    """Write a result again, as if its stage had written other numbers."""
    document = json_of(path)
    edit(document)
    write_json(path, document.pop("kind"), document, {**document.pop("provenance"), **provenance})


def json_of(path: Path) -> dict[str, Any]:
    kinds = {"icl": "icl", "generations": "rouge", "judgements": "judgement_summary"}
    folder = next(part for part in path.parts if part in (*kinds, "perplexity", "needle"))
    return read_json(path, kinds.get(folder, folder))


ROUGE, JUDGE = "generations/gist-1-s0/seen.json", "judgements/reference/gist-1-s0-vs-pos_control-s0/seen.json"
NEEDLE, LOSS, ICL = "needle/base.json", "perplexity/base.json", "icl/base/world_eats/seed0.json"


@pytest.mark.parametrize(
    ("file", "edit", "fault"),
    [
        (ROUGE, {"rougeL": NAN}, "gist-1-s0, dataset words, split seen, rougeL: found nan; expected a finite number"),
        (ROUGE, {"rougeL": None}, "rougeL: found None; expected a number"),
        (ROUGE, {"rouge1": 213.3}, "rouge1: found 213.3; expected a finite number from 0.0 to 100"),
        (ROUGE, {"rouge1": "high"}, "rouge1: found 'high'"),
        (ROUGE, {"n": -5}, "found n = -5; expected a whole number of examples from 0 on"),
        (ROUGE, {"n": 12}, "rougeL: n = 12, and 64 in pos_control-s0; expected the same examples"),
        (JUDGE, {"win": 2.5}, "win: found 2.5; expected a whole number from 0"),
        (JUDGE, {"consistent": 64}, "consistent: found 64; expected a whole number from 0.0 to 50"),
        (JUDGE, {"win_rate": -0.1}, "judge reference, against pos_control-s0, win_rate: found -0.1"),
        (NEEDLE, {("rows", 0, "exact"): 1.5}, "base, length 60, depth 0.0, exact: found 1.5; expected a finite number"),
        (NEEDLE, {("rows", 0, "n"): 7}, "length 60, depth 0.0, choice: n = 7, and 10 in"),
        (
            NEEDLE,
            {("rows", 1, "depth"): 0.0},
            "depth 0.0, choice: stands 2 times, with the values 0.8 and 0.9",
        ),
        (LOSS, {("rows", 0, "loss"): INFINITE}, "tokens all, loss: found inf; expected a finite number from 0"),
        (LOSS, {("rows", 0, "context_length"): 2.5}, "found context_length = 2.5; expected a whole number"),
        (ICL, {("settings", "zero_shot", "accuracy"): None}, "base, .* setting zero_shot, .*accuracy: found None"),
        (ICL, {("settings", "zero_shot", "unfilled"): -1}, "unfilled: found -1; expected a whole number from 0"),
    ],
)
def test_impossible_and_unequal_numbers_are_named(subject, file, edit, fault) -> None:
    path = Layout(subject).root / file

    def set_values(document: dict[str, Any]) -> None:
        for key, value in edit.items():
            *within, last = key if isinstance(key, tuple) else (key,)
            for name in within:
                document = document[name]
            document[last] = value

    change(path, set_values)
    with pytest.raises(ArtifactError, match=rf"(?s)faults:.*  {path}: .*{fault}"):
        score(subject)
    assert not Layout(subject).scores.exists()


def test_a_cell_that_one_training_seed_lacks_is_named(subject: Experiment) -> None:
    path = Layout(subject).perplexity("autocompressor-s1")
    change(path, lambda document: document["rows"].pop())
    wanted = rf"{path}: autocompressor-s1, .*context_length 100, tokens recall, .*is missing; autocompressor-s0 has it"
    with pytest.raises(ArtifactError, match=wanted):
        score(subject)


def test_rows_that_are_the_same_are_still_twice(subject: Experiment) -> None:
    change(Layout(subject).perplexity("base"), lambda document: document["rows"].append(document["rows"][0]))
    with pytest.raises(ArtifactError, match="loss: stands 2 times, with the same value"):
        score(subject)


def test_two_commits_are_a_warning_and_two_versions_of_the_data_a_fault(subject: Experiment, capsys) -> None:
    old, new = (Layout(subject).perplexity(run) for run in ("base", "rmt-s0"))
    change(old, lambda document: None, commit="a" * 40, inputs={"data/world": "1"})
    change(new, lambda document: None, commit="b" * 40, inputs={"data/world": "1"})
    score(subject)
    assert f"2 versions of the code: aaaaaaaaaa made {old}; bbbbbbbbbb made {new}." in capsys.readouterr().err
    change(new, lambda document: None, inputs={"data/world": "2"})
    with pytest.raises(ArtifactError, match=f"different versions of one input:\n  data/world: {old} and {new}\n"):
        score(subject)


def test_a_step_that_was_trained_twice_counts_once(subject: Experiment) -> None:
    path = Layout(subject).model("base") / "metrics.jsonl"
    write_text(path, path.read_text() + '{"step": 40, "loss": 9.5}\n')
    score(subject)
    scores = read_scores(Layout(subject).scores)
    found = scores.query("stage == 'train' and run == 'base' and step == 40 and metric == 'loss'")
    assert list(found["value"]) == [9.5]
