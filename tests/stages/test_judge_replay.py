"""Recorded judgements: the released files, their recount, and the judge that replays them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from synopsis.artifacts import read_json, write_json_lines
from synopsis.config.files import JudgeDefinition
from synopsis.errors import ArtifactError, DataError, InputError
from synopsis.stages.judge.pairs import Pair
from synopsis.stages.judge.prompts import parse_choice
from synopsis.stages.judge.replay import read_released, recount
from synopsis.stages.judge.run import hash_of, judge_pairs

RELEASED = "gist_release/results/chatgpt"


@pytest.fixture(scope="module")
def release() -> Path:
    folder = Path(os.environ.get("SYNOPSIS_DATA", Path(__file__).parents[2] / "../shared/data")) / RELEASED
    if not folder.is_dir():
        pytest.skip(f"the released judgements are not here: no {RELEASED} under SYNOPSIS_DATA or ../shared/data")
    return folder


def content(**changes: Any) -> dict[str, Any]:
    rows = [
        ("b", True, "one", "two"),
        ("A", False, "three", "four"),
        ("Tie", False, "same", "same"),
        ("a", True, "x", "y"),
    ]
    results = [
        {"reason": f"r{n}", "choice": choice, "swapped": swapped, "x": f"Instruction: {n}", "new": new, "old": old}
        for n, (choice, swapped, new, old) in enumerate(rows)
    ]
    return {"names": {"a": "new", "b": "old"}, "scores": {"old": 1.0, "new": 3.0}, "results": results} | changes


def written(folder: Path, document: object, name: str = "new-vs-old-human.json") -> Path:
    (folder / name).write_text(json.dumps(document))
    return folder / name


def replayed(source: Path, pairs: list[Pair], path: Path) -> list[Any]:
    definition = JudgeDefinition(kind="replay", judgements=str(source))
    return judge_pairs("recorded", definition, pairs, path, hash_of(definition))


def test_a_choice_names_the_run_and_nothing_is_turned_back(tmp_path):
    found = read_released(written(tmp_path, content()))
    assert (found.a, found.b, found.scores, found.n) == ("new", "old", (3.0, 1.0), 4)
    assert found.choices == ["B", "A", "tie", "A"] and found.swapped == [True, False, False, True]
    assert (found.win_rate, found.recounted) == (3 / 4, 2.5 / 4)
    assert [one.first_won for one in found.judgements()] == [True, True, False, False]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "not valid JSON"),
        (content(names={"a": "new"}), r"names\.b: found None; expected a text"),
        (content(scores={"old": 1.0}), r"scores\.new: found None; expected a number"),
        (content(scores={"old": 1.0, "new": float("nan")}), r"scores\.new: found nan; expected a number"),
        (content(results=[]), "results: is empty"),
        (
            content(results=[*content()["results"], {"choice": "a"}]),
            r"results\[4\]\.swapped: found None; expected true",
        ),
        ([], "names: found None; expected an object"),
    ],
)
def test_what_is_no_released_comparison_is_named(tmp_path, document, message):
    path = written(tmp_path, document)
    if document == "{":
        path.write_text("{")
    with pytest.raises(DataError, match=rf"new-vs-old-human\.json: {message}"):
        read_released(path)


def test_a_recount_names_the_files_where_answers_were_corrected(tmp_path):
    written(tmp_path, content(scores={"new": 2.5, "old": 1.5}), "new-vs-old-seen.json")
    written(tmp_path, content())
    result, _ = recount([tmp_path], tmp_path / "out" / "replay.json")
    assert result["differing"] == ["new-vs-old-human.json"]
    assert [(one["split"], one["corrected"]) for one in result["files"]] == [("human", 0.5), ("seen", 0.0)]
    assert read_json(tmp_path / "out" / "replay.json", "judge_replay")["total"]["n"] == 8
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: no released comparisons"):
        recount([tmp_path / "empty"])


def test_recorded_judgements_are_a_judge(tmp_path):
    source, path = written(tmp_path, content()), tmp_path / "out" / "judgements.jsonl"
    pairs = [pair for pair in read_released(source).pairs()]
    first = replayed(source, pairs, path)
    assert [(one.id, one.order, one.state) for one in first[:2]] == [("1", "ba", "B"), ("2", "ab", "A")]
    assert [one.state for one in replayed(path, pairs, tmp_path / "again.jsonl")] == [one.state for one in first]
    with pytest.raises(DataError, match=r"row 4 has other outputs"):
        replayed(source, [*pairs[:3], Pair("4", "", "", "x", "z", "")], path)
    with pytest.raises(DataError, match="holds no judgement of example '5'"):
        replayed(path, [*pairs, Pair("5", "", "", "x", "z", "")], tmp_path / "again.jsonl")


def test_recorded_judgements_take_no_place_of_those_that_were_paid_for(tmp_path):
    source, path = written(tmp_path, content()), tmp_path / "out" / "judgements.jsonl"
    pairs = read_released(source).pairs()
    paid = replayed(source, pairs, path)[0].model_copy(update={"model": "chat", "judge_hash": "of a chat judge"})
    path.write_text(paid.model_dump_json() + "\n")
    with pytest.raises(InputError, match=r"judgements\.jsonl: holds other judgements of a chat model"):
        replayed(source, pairs, path)
    assert path.read_text() == paid.model_dump_json() + "\n"


def test_the_last_judgement_with_an_answer_counts(tmp_path):
    pairs = read_released(written(tmp_path, content())).pairs()[:1]
    one = read_released(tmp_path / "new-vs-old-human.json").judgements()[0].model_dump()
    lines = [one, one | {"state": "A", "judge_hash": "new"}, one | {"state": "api_error", "judge_hash": "newer"}]
    write_json_lines(tmp_path / "a-vs-b" / "seen.jsonl", lines)
    assert [it.state for it in replayed(tmp_path, pairs, tmp_path / "j" / "a-vs-b" / "seen.jsonl")] == ["A"]
    write_json_lines(tmp_path / "bad.jsonl", [one | {"state": "C"}])
    with pytest.raises(ArtifactError, match=r"bad\.jsonl: line 1 is no judgement"):
        replayed(tmp_path / "bad.jsonl", pairs, tmp_path / "again.jsonl")


# ------------------------------------------------------------------------------------------------ the real release


def test_the_release_counted_again(release):
    """30 files; the published win rates are those of the scores, and the biases those that are known of this judge."""
    result, table = recount([release])
    files, total = result["files"], result["total"]
    assert (len(files), total["n"], total["parse_error"]) == (30, 22520, 0)
    points = [one["corrected"] for one in files if one["corrected"]]
    assert len(points) == len(result["differing"]) == 18 and max(map(abs, points)) == 2
    published = [100 * one["published"] for one in files if one["a"] in ("FLAN-T5-gist-1", "LLaMA-gist-1")]
    assert published == pytest.approx([42.46, 50.80, 46.20, 45.83, 48.55, 49.65], abs=0.005)
    assert round(100 * total["first_wins"], 1) == 54.3 and round(100 * total["longer_wins"], 1) == 62.0
    assert round(100 * total["identical"] / total["n"], 1) == 26.8 and total["identical_decided"] == 241
    (human,) = [one for one in files if (one["a"], one["split"]) == ("LLaMA-gist-1", "validation_human-3000")]
    assert (human["win"], human["tie"], human["lose"]) == (100, 29, 123)
    assert [round(100 * bound, 1) for bound in human["clopper_pearson"]] == [39.2, 51.8] and len(table.rows) == 31


def test_every_released_choice_parses_in_the_published_format(release):
    numbers = {"A": 0, "B": 1, "tie": 2}
    for path in sorted(release.glob("*.json")):
        rows = json.loads(path.read_text())["results"]
        texts = [json.dumps({"reason": row["reason"], "choice": row["choice"]}) for row in rows]
        assert [parse_choice(text, "choice_ab") for text in texts] == [
            numbers[it] for it in read_released(path).choices
        ]
