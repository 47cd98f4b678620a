"""Judging of any two files of outputs: which rows meet, what is written, and what is refused."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest
from synopsis.artifacts import read_csv, read_json
from synopsis.cli import run_command
from synopsis.errors import ConfigError, DataError, InputError
from synopsis.stages.judge.pairs import read_two_files
from synopsis.stages.judge.two_files import judge_files

PUBLISHED = ["x", "y_pred", "y_true"]
RELEASED = "gist_release/results"


def outputs(path: Path, rows: list[tuple[str, ...]], columns: list[str] = PUBLISHED) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([columns, *rows])
    return path


def two(folder: Path, rows_a: list[tuple[str, ...]], rows_b: list[tuple[str, ...]], **more: list[str]) -> list[Path]:
    return [outputs(folder / f"{name}.csv", rows, **more) for name, rows in (("a", rows_a), ("b", rows_b))]


ROWS_A = [("Name it.", "red", "red"), ("Say so.", "no", "blue"), ("Go.", "ok", "ok"), ("Do.", "left", "none")]
ROWS_B = [("Name it.", "no", "red"), ("Say so.", "blue", "blue"), ("Go.", "ok", "ok"), ("Do.", "right", "none")]
RULE = "kind: reference\n"


@pytest.fixture
def rule(tmp_path: Path) -> str:
    (tmp_path / "rule.yaml").write_text(RULE)
    return str(tmp_path / "rule.yaml")


def test_rows_without_ids_meet_by_position(tmp_path, rule):
    a, b = two(tmp_path, ROWS_A, ROWS_B)
    summary = judge_files(a, b, rule, tmp_path / "out")
    assert summary["scores"] == {"1": 1.0, "2": 0.0, "3": 0.5, "4": 0.5} and summary["win_rate"] == 0.5
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"judgements.jsonl", "summary.json", "verdicts.csv", "judgements.html"}
    record = read_json(tmp_path / "out" / "summary.json", "judgement_summary")
    assert record["scores"] == summary["scores"] and str(a) in record["provenance"]["inputs"]
    lines = (tmp_path / "out" / "judgements.jsonl").read_text()
    assert judge_files(a, b, rule, tmp_path / "out") == summary, "a second run asks nothing"
    assert (tmp_path / "out" / "judgements.jsonl").read_text() == lines


def test_rows_with_ids_meet_by_id_and_the_others_are_counted(tmp_path):
    a, b = two(
        tmp_path,
        [("7", "x", "a7", "t"), ("8", "x", "a8", "t")],
        [("9", "x", "b9", "t"), ("8", "x", "b8", "t")],
        columns=["id", *PUBLISHED],
    )
    pairs, unmatched = read_two_files(a, b)
    assert [(pair.id, pair.answer_a, pair.answer_b) for pair in pairs] == [("8", "a8", "b8")] and unmatched == 2


def test_gist_tokens_true_outputs_and_truncation_make_no_other_example(tmp_path):
    a, b = two(
        tmp_path,
        [("Instruction: Add. <GIST>  Input: 1 1\nOutput: It is two. Two", "2", "It is two.\nTwo.")],
        [("Instruction: Add. <GIST><GIST> Input: 1 1", "3", "It is two.")],
    )
    (pair,), _ = read_two_files(a, b)
    assert pair.instruction == "Instruction: Add.\nInput: 1 1"


@pytest.mark.parametrize(
    ("rows_b", "columns", "message"),
    [
        (ROWS_B[:3], PUBLISHED, r"a\.csv has 4 rows and .*b\.csv has 3; expected the same examples"),
        ([*ROWS_B[:3], ("Do.", "right", "nine")], PUBLISHED, r"example '4': y_true differs \('none' and 'nine'\)"),
        (
            [("Call it.", "no", "red"), *ROWS_B[1:]],
            PUBLISHED,
            r"example '1': x differs \('Nameit\.' and 'Callit\.'\)",
        ),
        (ROWS_B, ["x", "prediction", "y_true"], r"b\.csv: the column y_pred is missing; found x, prediction, y_true"),
        ([], PUBLISHED, r"b\.csv has 0"),
    ],
)
def test_files_that_do_not_fit_are_named(tmp_path, rows_b, columns, message):
    a, b = outputs(tmp_path / "a.csv", ROWS_A), outputs(tmp_path / "b.csv", rows_b, columns)
    with pytest.raises(DataError, match=message):
        read_two_files(a, b)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"x,y_pred,y_true\nq,\xff\xfe,t\n", "not UTF-8 text"),
        (b'x,y_pred,y_true\nq,"an open quote,t\n', "unexpected end of data"),
        (b"x,y_pred,y_true\nq,cut", "row 1 does not have 3 values"),
        (b"", "the column x, y_pred, y_true is missing; found nothing"),
        (None, "no such file"),
    ],
)
def test_damaged_files_are_named_and_nothing_is_written(tmp_path, rule, content, message):
    a, b = two(tmp_path, ROWS_A, ROWS_B)
    b.unlink() if content is None else b.write_bytes(content)
    with pytest.raises(DataError, match=rf"b\.csv: .*{message}"):
        judge_files(a, b, rule, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_odd_answers_are_judged_and_shown_as_they_are(tmp_path, rule):
    odd = [
        "",
        'quote " and, comma',
        "nul \x00 bell \x07",
        "</pre><script>alert(1)</script>",
        "long " * 20_000,
    ]
    a, b = two(tmp_path, [("Do.", text, "t") for text in odd], [("Do.", "t", "t") for _ in odd])
    assert judge_files(a, b, rule, tmp_path / "out")["scored"] == len(odd)
    page = (tmp_path / "out" / "judgements.html").read_text()
    assert "&lt;/pre&gt;&lt;script&gt;" in page and page.count("<script>") == 1
    assert "nul ␀ bell ␇" in page and "\x00" not in page


def test_labels_are_compared_with_the_verdicts(tmp_path, rule):
    a, b = two(tmp_path, ROWS_A, ROWS_B)
    labels = outputs(tmp_path / "people.csv", [("1", "a"), ("2", "TIE"), ("3", "Tie"), ("4", "B")], ["id", "choice"])
    summary = judge_files(a, b, rule, tmp_path / "out", labels)
    # Verdicts A B tie tie against A tie tie B: half agree; by chance (1 * 1 + 1 * 1 + 2 * 2) / 16.
    assert summary["labels"] == {"examples": 4, "agreement": 0.5, "kappa": pytest.approx((0.5 - 6 / 16) / (10 / 16))}
    again = judge_files(a, b, rule, tmp_path / "other", tmp_path / "out" / "verdicts.csv")
    assert again["labels"]["kappa"] == 1
    assert [row["choice"] for row in read_csv(tmp_path / "out" / "verdicts.csv", ["id"])] == ["A", "B", "tie", "tie"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("1", "left")], "row 1: choice 'left'; expected A, B or tie"),
        ([("9", "A")], "row 1: id '9' is no example of the two files"),
        ([("1", "A"), ("1", "A")], "row 2: id '1' occurs a second time"),
    ],
)
def test_labels_that_do_not_fit_are_named_before_anything_is_judged(tmp_path, rule, rows, message):
    a, b = two(tmp_path, ROWS_A, ROWS_B)
    with pytest.raises(DataError, match=rf"people\.csv: {message}"):
        judge_files(a, b, rule, tmp_path / "out", outputs(tmp_path / "people.csv", rows, ["id", "choice"]))
    assert not (tmp_path / "out").exists()


def test_a_judge_is_a_name_or_a_file(tmp_path, monkeypatch):
    a, b = two(tmp_path, ROWS_A, ROWS_B)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"--judge: .*found 'rule'; expected a file, or the name of one in config"):
        judge_files(a, b, "rule", tmp_path / "out")
    (tmp_path / "config" / "judges").mkdir(parents=True)
    (tmp_path / "config" / "judges" / "rule.yaml").write_text(RULE)
    assert judge_files(a, b, "rule", tmp_path / "out")["judge"] == "rule"
    (tmp_path / "bad.yaml").write_text("kind: reference\nmodel: m\n")
    with pytest.raises(ConfigError, match=r"bad\.yaml:2: model: found a key that is not read"):
        judge_files(a, b, "bad.yaml", tmp_path / "out")


def test_a_folder_that_cannot_be_written_is_named(tmp_path, rule):
    a, b = two(tmp_path, ROWS_A, ROWS_B)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/out/judgements\.jsonl: its folder cannot be made"):
        judge_files(a, b, rule, tmp_path / "file" / "out")


def test_the_three_forms_of_the_command(tmp_path, rule, monkeypatch, capsys):
    a, b = two(tmp_path, ROWS_A, ROWS_B)

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["synopsis", "judge", *words])
        return run_command(), *capsys.readouterr()

    code, out, _ = call("--a", str(a), "--b", str(b), "--judge", rule, "--out", str(tmp_path / "out"), "--json")
    assert code == 0 and json.loads(out.splitlines()[-1])["win_rate"] == 0.5
    for words in (["--a", str(a)], ["--replay"], ["--replay", "x", "--judge", "y"], ["one", "two"], []):
        code, _, error = call(*words)
        assert code == 2 and error.startswith("synopsis: judge") and "Traceback" not in error
    code, _, error = call("--config", "x.yaml", "a", "b")
    assert (code, error) == (2, "synopsis: judge --config: expected JUDGE A B SPLIT alone; found a b\n")


def test_released_outputs_are_such_files(tmp_path, rule):
    data = Path(os.environ.get("SYNOPSIS_DATA", Path(__file__).parents[2] / "../shared/data")) / RELEASED
    if not data.is_dir():
        pytest.skip(f"the released outputs are not here: no {RELEASED} under SYNOPSIS_DATA or ../shared/data")
    for model, step in (("LLaMA", 3000), ("FLAN-T5", 16000)):
        paths = [
            data / "model_outputs" / f"{model}-{run}-{tokens}" / f"outputs-{step}-validation_human.csv"
            for run, tokens in (("gist", 10), ("pos_control", 1))
        ]
        pairs, _ = read_two_files(*paths)
        (judged,) = (data / "chatgpt").glob(f"*-{model}-gist-10-*human*.json")
        asked = [row["x"] for row in json.loads(judged.read_text())["results"]]
        # What the judge was shown, up to white space; with ten gist tokens two long inputs of T5 are truncated.
        same = ["".join(pair.instruction.split()) == "".join(x.split()) for pair, x in zip(pairs, asked, strict=True)]
        assert sum(same) >= 250 and len(same) == 252
