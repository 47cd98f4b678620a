"""Progress in a log file: lines that say how far the work is, on standard error alone."""

from __future__ import annotations

import sys

import pytest
from synopsis import progress


@pytest.mark.parametrize(
    ("items", "line"), [([1, 2, 3], "work: 3/3 steps, "), ([], "work: 0/0 steps"), (iter("ab"), "work: 2 steps, ")]
)
def test_items_pass_and_a_last_line_is_printed(capsys, items, line):
    count = len(list(progress.track(items, "work", unit="steps")))
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(line) and err.count("\n") == 1 and f" {count}" in err


def test_a_line_comes_when_enough_time_has_passed(capsys, monkeypatch):
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    list(progress.track(range(6), "work", unit="steps"))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["work: 3/6 steps", "work: 6/6 steps", "work: 6/6 steps"]
    assert lines[0].endswith("12 s left")


def test_work_that_fails_is_not_shown_as_done(capsys):
    def items():
        yield 1
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        list(progress.track(items(), "work", total=2))
    assert capsys.readouterr().err == ""


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
