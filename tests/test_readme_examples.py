"""The README's section on the library runs, word for word, on small models in the place of the demo's."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from compressor_models import architecture_model, summary_model
from model_folders import FIELDS, GIST_FIELDS, write_folder

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
SECTION = README.split("## Use it as a library\n")[1].split("\n## ")[0]
COMMANDS = re.findall(r"```bash\n(.*?)```", SECTION, re.S)[0].strip().splitlines()
SUMMARY, GIST, LIKELIHOOD = re.findall(r"```python\n(.*?)```", SECTION, re.S)


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random models where the demo has its trained ones."""
    folder = tmp_path / "results" / "demo" / "models"
    write_folder(summary_model(**FIELDS), folder / "autocompressor-s0")
    write_folder(architecture_model("gist", "llama", **GIST_FIELDS), folder / "gist-1-s0")
    monkeypatch.chdir(tmp_path)


def printed(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """What was printed, by what stands before the colon or the arrow of each line."""
    lines = capsys.readouterr().out.splitlines()
    return {key: value for key, _, value in (re.split(r"(: | -> |$)", line, maxsplit=1) for line in lines)}


def test_summary_vectors(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(SUMMARY, "README.md", "exec"), {})
    lines = printed(capsys)
    assert f"15 tokens became 3 summary vectors, {3 * 32 * 4 + 16} bytes" in lines
    assert lines["with the story"].startswith("calm bear eats ")
    assert lines["with the soft prompt"] == lines["with the story"] != lines["without it"]
    assert "two segments give 6 summary vectors" in lines


def test_gist_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(GIST, "README.md", "exec"), {})
    lines = printed(capsys)
    assert lines["7 tokens"] == "1 vector, 7.0 tokens each"
    assert lines["by hand"] and lines["fox owl"].startswith(lines["by hand"])
    assert lines["wolf bear hare"] != lines["fox owl"]
    assert Path("results/noric.safetensors").is_file()


def test_likelihoods(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(LIKELIHOOD, "README.md", "exec"), {})
    scores, cost = capsys.readouterr().out.splitlines()
    assert set(eval(scores)) == {"honey", "figs", "fish"} and all(loss > 0 for loss in eval(scores).values())
    # Three summary vectors and three words, for each of three options of one token.
    assert cost.startswith(f"Cost(tokens=3, naive_tokens={3 * (3 + 3 + 1)}, ")


def test_commands(capsys: pytest.CaptureFixture[str], call: Callable[..., tuple[int, str, str]]) -> None:
    """They give what the Python gives."""
    exec(compile(SUMMARY, "README.md", "exec"), {})
    exec(compile(GIST, "README.md", "exec"), {})
    from_python = printed(capsys)
    answers = []
    for command in COMMANDS:
        if command.startswith("synopsis "):
            code, out, _ = call(*shlex.split(command)[1:])
            assert code == 0
            answers.append(out)
        else:
            subprocess.run(command, shell=True, check=True)
    compressed, story, instruction, noric, one_step = answers
    assert compressed.startswith("15 tokens -> 3 vectors, 5.0 tokens each\n")
    assert from_python["with the story"] == f"calm bear eats {story.strip()}"
    assert instruction.startswith("7 tokens -> 1 vector, 7.0 tokens each\n")
    questions = ("fox owl", "wolf bear hare")
    first_lines = dict(re.findall(r"^> (.*)\n(.*)$", noric, re.M))
    assert first_lines == {question: from_python[question] for question in questions}
    assert f"with compression: {from_python['fox owl']}\nwithout compression: " in one_step
