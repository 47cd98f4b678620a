"""The command line: what it imports, what it prints, and how it ends."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import subprocess
import sys

import pytest
import typer
from experiment_text import spoilt, write
from synopsis.cli import app
from synopsis.stages import subcommands
from synopsis.stages.record import stages
from typer.main import get_command

SUBCOMMANDS = get_command(app).commands
PYTHON_TYPE = re.compile(r"<(?!compressor>|seed>)[^>]*>?|PosixPath|\bNone\b|\blist\[|INTEGER|FLOAT|\bPATH\b")


def test_the_command_line_imports_nothing_heavy():
    heavy = ["torch", "transformers", "pandas", "matplotlib", "datasets", "numpy"]
    code = (
        f"import sys, synopsis, synopsis.cli, synopsis.config.reading; print([m for m in {heavy} if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_the_program_reports_problems_and_ends_with_2(tmp_path):
    path = write(tmp_path, spoilt(("scored_tokens: 30", "scored_tokens: x")))
    command = [sys.executable, "-c", "from synopsis.cli import main; main()", "check", "--config", str(path)]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr == (
        "synopsis: the configuration has 1 fault:\n"
        f"  {path}:52: perplexity.scored_tokens: found 'x'; expected a valid integer\n"
    )


def test_help_names_every_subcommand(call):
    code, out, _ = call("--help")
    assert code == 0 and all(f"\n  {name} " in out for name in SUBCOMMANDS) and not PYTHON_TYPE.findall(out)


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_every_subcommand_has_help_with_examples_that_it_reads(call, name):
    code, out, _ = call(name, "--help")
    assert code == 0 and f"synopsis {name} [OPTIONS]" in out and not PYTHON_TYPE.findall(out)
    examples = re.findall(rf"^ +synopsis {name}\b(.*)$", out, re.M)
    assert examples
    for words in examples:
        with contextlib.suppress(typer.Exit):  # of a flag that does its work by itself
            SUBCOMMANDS[name].make_context(name, shlex.split(words.partition(" > ")[0]))


def test_the_device_is_measured_without_an_experiment(call):
    code, out, _ = call("benchmark", "--calibrate")
    assert code == 0 and {"TFLOP/s", "GB/s"} == {line.split(":")[0].split()[-1] for line in out.splitlines()}


def test_the_words_of_a_stage_name_its_jobs():
    commands = subcommands()
    assert [tuple(package.WORDS) for package in commands.values()] == [stages()[name].wildcards for name in commands]


def test_check_lists_the_runs_of_an_experiment_and_its_overrides(tmp_path, call):
    code, out, err = call("check", "-c", write(tmp_path))
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == "small: no faults" and "  gist-1-s1  (gist)" in out.splitlines()
    code, out, _ = call("check", "-c", write(tmp_path), "--set", "training_seeds=[7]", "--set", "name=other")
    assert code == 0 and out.startswith("other: no faults\n") and "  auto-s7  (autocompressor)\n" in out
    code, out, _ = call("schema")
    assert code == 0 and json.loads(out)["title"] == "Experiment"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["check"], "--config"),
        (["nothing"], "nothing"),
        (["check", "--set", "name"], "--set name: expected KEY=VALUE, for instance --set icl.max_examples=50"),
        (["check", "--set", "=5"], "--set =5: expected KEY=VALUE"),
        (["check", "--set", "icl.max_examples=["], "--set icl.max_examples: '[' is no YAML value"),
        (
            ["check", "--set", "icl.max_examples=0"],
            "--set: icl.max_examples: found 0; expected greater than or equal to 1",
        ),
        (["check", "--set", "a.b=1", "--set", "icl.c=2"], "has 2 faults"),
        (["train", "auto"], "run 'auto': the experiment has base, opt, auto-s0, auto-s1"),
        (["perplexity", "gist-1-s0"], "run 'gist-1-s0': the stage 'perplexity' of the experiment has base, auto-s0"),
        (["needle", "full-s0"], "run 'full-s0': the stage 'needle' of the experiment has base, auto-s0, auto-s1"),
        (["icl", "base", "birds"], "dataset 'birds': the experiment has animals"),
        (["icl", "base", "animals", "--seed", "-1"], "--seed"),
        (["icl", "base", "animals", "--seed", "one"], "--seed"),
        (["generate", "gist-1-s0", "human"], "split 'human': the experiment has seen, unseen"),
        (["judge", "human", "gist-1-s0", "pos-1-s0", "seen"], "judge 'human': the experiment has rule"),
        (["judge", "rule", "gist-1-s0", "auto-s0", "seen"], "run 'auto-s0': the stage 'generate'"),
        (["prepare", "cake", "base"], "'cake' cannot be prepared; expected one of model, tokenizer"),
        (["prepare", "corpus", "stories"], "name the model whose tokenizer to use, one of base, opt"),
        (["prepare", "task", "birds"], "'birds' is not in the configuration; it has animals"),
    ],
)
def test_what_cannot_be_done_ends_with_2(tmp_path, call, words, message):
    if words[0] in SUBCOMMANDS and words != ["check"]:
        words = [words[0], "--config", str(write(tmp_path)), *words[1:]]
    code, out, err = call(*words)
    assert (code, out) == (2, "") and message in err


@pytest.mark.parametrize("stage", ["perplexity", "icl", "needle", "generate", "benchmark", "judge"])
def test_a_stage_that_is_not_configured(tmp_path, call, stage):
    path = write(tmp_path, "name: bare\nmodels: {a: {hub: x}}\n")
    rest = {"icl": ["animals"], "generate": ["seen"], "judge": ["b", "c", "seen"]}.get(stage, [])
    code, _, err = call(stage, "--config", path, "a", *rest)
    assert code == 2 and err.startswith("synopsis: ")


@pytest.mark.parametrize("stage", ["score", "report"])
def test_a_stage_whose_inputs_are_missing(tmp_path, call, stage):
    path = write(tmp_path, spoilt(("name: small", f"name: small\nresults: {tmp_path}/results")))
    code, out, err = call(stage, "--config", path)
    assert (code, out) == (2, "") and "results/small" in err


def test_the_last_line_of_json_output_is_one_object(tmp_path, call, monkeypatch):
    from synopsis.stages.judge import run as stage

    result = {"win": 1, "lose": 0, "tie": 2, "parse_error": 0, "api_error": 0, "win_rate": float("nan"), "n": 3}
    monkeypatch.setattr(stage, "judge", lambda *_, **job: result)
    words = ["judge", "--config", write(tmp_path), "rule", "gist-1-s0", "pos-1-s0", "seen"]
    code, out, _ = call(*words, "--json")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    assert code == 0
    printed = json.loads(out.splitlines()[-1], parse_constant=refuse)
    assert printed == {"win": 1, "lose": 0, "tie": 2, "parse_error": 0, "api_error": 0, "win_rate": None}
    code, out, _ = call(*words)
    assert code == 0 and out.splitlines()[0] == "win: 1"


def test_a_log_gets_the_messages(tmp_path, call, monkeypatch):
    monkeypatch.setattr(sys, "stderr", sys.stderr)  # put back afterwards
    log = tmp_path / "logs" / "check.log"
    code, _, err = call("--log", log, "check", "--config", tmp_path / "none.yaml")
    assert code == 2 and "no such file" in err
    assert log.read_text() == err
