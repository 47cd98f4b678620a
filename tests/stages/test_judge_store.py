"""The store of judgements: nothing paid for is lost, and nothing stale is used."""

from __future__ import annotations

import errno
import json
import os

import pytest
from synopsis.errors import ArtifactError, SynopsisError
from synopsis.stages.judge.pairs import Pair, Question
from synopsis.stages.judge.records import Judgement, Reply
from synopsis.stages.judge.store import JudgementStore

QUESTION = Question(Pair("e1", "", "", "", "", ""), "ab")
RECORD = Judgement.of(QUESTION, Reply(0, "text ü\u2028", model="m"), "prompt", "judge")
SECOND = RECORD.model_copy(update={"order": "ba", "state": "parse_error"})


def fill_store(path, *judgements):
    with JudgementStore(path) as store:
        for judgement in judgements:
            store.append(judgement)


def test_what_was_appended_is_found_again(tmp_path):
    path = tmp_path / "deep" / "store.jsonl"
    fill_store(path, RECORD)
    fill_store(path, SECOND)
    with JudgementStore(path) as store:
        assert store.find("e1", "ab", "judge", "prompt") == RECORD
        assert store.find("e1", "ba", "judge", "prompt") == SECOND
        assert store.find("e1", "ab", "other judge", "prompt") is None
        assert store.find("e1", "ab", "judge", "other prompt") is None


def test_a_later_line_supersedes_an_earlier_one(tmp_path):
    path = tmp_path / "store.jsonl"
    fill_store(path, RECORD.model_copy(update={"state": "api_error", "error": "503"}), RECORD)
    with JudgementStore(path) as store:
        assert store.find("e1", "ab", "judge", "prompt") == RECORD
    assert len(path.read_text().splitlines()) == 2, "append-only"


@pytest.mark.parametrize("keep", [1, 40, -1])
def test_a_truncated_last_line_is_cut_off_with_a_warning(tmp_path, capsys, keep):
    path = tmp_path / "store.jsonl"
    fill_store(path, RECORD, SECOND)
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    path.write_bytes(whole[:first] + whole[first:][:keep])
    with JudgementStore(path) as store:
        assert store.find("e1", "ab", "judge", "prompt") == RECORD
        assert store.find("e1", "ba", "judge", "prompt") is None
        assert path.read_bytes() == whole[:first]
        store.append(SECOND)
    assert path.read_bytes() == whole
    assert "truncated" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["store.jsonl"]


def test_a_last_line_of_nothing_after_a_power_cut_is_cut_off(tmp_path):
    path = tmp_path / "store.jsonl"
    fill_store(path, RECORD)
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0" * 20 + b"\n")
    with JudgementStore(path):
        assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        json.dumps({**RECORD.model_dump(), "state": "C"}),
        json.dumps({**RECORD.model_dump(), "id": [1]}),
        "{}",
    ],
)
def test_damage_in_the_middle_is_told_with_its_line(tmp_path, line):
    path = tmp_path / "store.jsonl"
    fill_store(path, RECORD, SECOND)
    first, second = path.read_text().splitlines()
    path.write_text("\n".join([first, line, second, ""]))
    with pytest.raises(ArtifactError, match=r"store\.jsonl: line 2 is no judgement"), JudgementStore(path):
        pass
    assert path.read_text().splitlines()[2] == second, "nothing was thrown away"


def test_each_line_is_on_disk_before_append_returns(tmp_path, monkeypatch):
    path = tmp_path / "store.jsonl"
    sizes = []
    synchronise = os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: (synchronise(number), sizes.append(path.stat().st_size)))
    fill_store(path, RECORD, SECOND)
    line = len(json.dumps(RECORD.model_dump())) + 1
    assert len(sizes) == 2 and sizes[0] == line and sizes[1] == path.stat().st_size


def test_a_full_disk_is_told_with_the_file(tmp_path, monkeypatch):
    path = tmp_path / "store.jsonl"

    def full(number):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SynopsisError, match=r"store\.jsonl: the disk is full"):
        fill_store(path, RECORD)
