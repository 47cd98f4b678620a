"""Progress in a log file: lines that say how far the work is, on standard error alone."""

from __future__ import annotations

import sys

import pytest
from synopsis import progress


def test_items_pass_and_a_last_line_is_told(capsys):
    assert list(progress.track([1, 2, 3], "work", unit="steps")) == [1, 2, 3]
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith("work: 3/3 steps, ") and err.endswith(" 0 s left\n")


def test_a_line_comes_when_enough_time_has_passed(capsys, monkeypatch):
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    list(progress.track(range(6), "work", unit="steps"))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["work: 3/6 steps", "work: 6/6 steps", "work: 6/6 steps"]
    assert lines[0].endswith("12 s left")


def test_work_of_unknown_length(capsys):
    assert list(progress.track(iter("ab"), "work")) == ["a", "b"]
    assert capsys.readouterr().err.startswith("work: 2 it, ")


def test_no_work(capsys):
    assert list(progress.track([], "work")) == []
    assert capsys.readouterr().err.startswith("work: 0/0 it")


def test_work_that_fails_is_not_told_as_done(capsys):
    def items():
        yield 1
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        list(progress.track(items(), "work", total=2))
    assert capsys.readouterr().err == ""


def test_messages_go_to_standard_error(capsys):
    progress.say("half")
    assert capsys.readouterr() == ("", "half\n")


def test_a_log_file_gets_what_standard_error_gets(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stderr", sys.stderr)  # put back afterwards
    path = tmp_path / "logs" / "job.log"
    progress.also_log_to(path)
    progress.say("höher")
    list(progress.track([1], "work"))
    print("plain", file=sys.stderr)
    assert not sys.stderr.isatty()
    assert path.read_text(encoding="utf-8") == capsys.readouterr().err
    assert path.read_text(encoding="utf-8").startswith("höher\nwork: 1/1 it")
