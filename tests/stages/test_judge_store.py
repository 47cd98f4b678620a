"""The store of judgements: nothing paid for is lost, and nothing stale is used."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys

import pytest
from synopsis.errors import ArtifactError, InputError, SynopsisError
from synopsis.stages.judge.pairs import Pair, Question
from synopsis.stages.judge.records import Judgement, Reply
from synopsis.stages.judge.store import JudgementStore, read_judgements

QUESTION = Question(Pair("e1", "", "", "", "", ""), "ab")
RECORD = Judgement.of(QUESTION, Reply(0, "text ü\u2028", model="m"), "prompt", "judge")
SECOND = RECORD.model_copy(update={"order": "ba", "state": "parse_error"})


def fill_store(path, *judgements):
    with JudgementStore(path) as store:
        for judgement in judgements:
            store.append([judgement])


def test_what_was_appended_is_found_again(tmp_path):
    path = tmp_path / "deep" / "store.jsonl"
    fill_store(path, RECORD)
    fill_store(path, SECOND)
    with JudgementStore(path) as store:
        assert store.latest.get(("e1", "ab", "judge", "prompt")) == RECORD
        assert store.latest.get(("e1", "ba", "judge", "prompt")) == SECOND
        assert store.latest.get(("e1", "ab", "other judge", "prompt")) is None
        assert store.latest.get(("e1", "ab", "judge", "other prompt")) is None


def test_a_later_line_supersedes_an_earlier_one(tmp_path):
    path = tmp_path / "store.jsonl"
    fill_store(path, RECORD.model_copy(update={"state": "api_error", "error": "503"}), RECORD)
    with JudgementStore(path) as store:
        assert store.latest.get(("e1", "ab", "judge", "prompt")) == RECORD
    assert len(path.read_text().splitlines()) == 2, "append-only"


@pytest.mark.parametrize("keep", [1, 40, -1])
def test_a_truncated_last_line_is_cut_off_with_a_warning(tmp_path, capsys, keep):
    path = tmp_path / "store.jsonl"
    fill_store(path, RECORD, SECOND)
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    path.write_bytes(whole[:first] + whole[first:][:keep])
    with JudgementStore(path) as store:
        assert store.latest.get(("e1", "ab", "judge", "prompt")) == RECORD
        assert store.latest.get(("e1", "ba", "judge", "prompt")) is None
        assert path.read_bytes() == whole[:first]
        store.append([SECOND])
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


def test_what_was_appended_is_in_the_file_at_once_and_flushed_before_the_store_closes(tmp_path, monkeypatch):
    path, flushed = tmp_path / "store.jsonl", []
    monkeypatch.setattr(os, "fsync", lambda number: flushed.append(path.stat().st_size))
    with JudgementStore(path) as store:
        store.append([RECORD])
        assert read_judgements(path) == [RECORD]
        store.append([SECOND])
        store.append([])
        assert read_judgements(path) == [RECORD, SECOND]
    assert 1 <= len(flushed) <= 2 and flushed[-1] == path.stat().st_size


def test_a_second_process_waits_and_finds_what_the_first_stored(tmp_path):
    path = tmp_path / "store.jsonl"
    program = (
        "import sys; from pathlib import Path; from synopsis.stages.judge.store import JudgementStore\n"
        "with JudgementStore(Path(sys.argv[1])) as store:\n"
        "    print(*(judgement.order for judgement in store.latest.values()))"
    )
    with JudgementStore(path) as store:
        command = [sys.executable, "-c", program, str(path)]
        second = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert second.stderr is not None
        assert "another process judges these outputs; waiting" in second.stderr.readline()
        store.append([RECORD, SECOND])
        assert second.poll() is None
    found, _ = second.communicate(timeout=60)
    assert found == "ab ba\n"


def test_a_file_system_without_locks_is_reported(tmp_path, monkeypatch, capsys):
    def refuse(stream, kind):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    fill_store(tmp_path / "store.jsonl", RECORD)
    assert "cannot be locked (No locks available)" in capsys.readouterr().err


def test_stores_of_an_earlier_version_are_read(tmp_path):
    names = ("id", "order", "state", "answer", "error", "attempts", "model", "prompt_hash", "judge_hash", "time")
    path = tmp_path / "store.jsonl"
    path.write_text(json.dumps({name: RECORD.model_dump()[name] for name in names}) + "\n")
    assert read_judgements(path) == [RECORD]


def test_what_was_spent_is_the_sum_of_all_calls_of_this_judge(tmp_path):
    failed = RECORD.model_copy(update={"state": "api_error", "price": 0.5, "time": "2026-01-01T00:00:00Z"})
    paid = RECORD.model_copy(update={"price": 0.25, "state": "parse_error"})
    read_again = paid.model_copy(update={"state": "A"})
    other = paid.model_copy(update={"judge_hash": "other"})
    path = tmp_path / "store.jsonl"
    fill_store(path, failed, paid, read_again, other, SECOND)
    with JudgementStore(path) as store:
        assert store.spent(RECORD.judge_hash) == 0.75


def test_a_store_that_cannot_be_opened_is_named(tmp_path):
    (tmp_path / "store.jsonl").mkdir()
    with pytest.raises(ArtifactError, match=r"store\.jsonl: cannot be opened: Is a directory"):
        fill_store(tmp_path / "store.jsonl", RECORD)


def test_a_folder_that_allows_no_files_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(InputError, match="allows no new files"):
        fill_store(tmp_path / "store.jsonl", RECORD)


def test_a_full_disk_is_told_with_the_file(tmp_path, monkeypatch):
    path = tmp_path / "store.jsonl"

    def full(number):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SynopsisError, match=r"store\.jsonl: the disk is full"):
        fill_store(path, RECORD)
