"""Each line of the README's table "To add something" does what its row says, in the file that the row names."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from synopsis.config.experiment import Experiment, load_experiment

ROOT = Path(__file__).parents[1]
SECTION = (ROOT / "README.md").read_text(encoding="utf-8").split("## To add something")[1].split("\n## ")[0]
ROWS = re.findall(r"^\| ([^|`]+) \| `(.+?)` \| (?:`(.+?)` )?\| `(.+)` \|$", SECTION, re.M)

HELD: dict[str, Callable[[Experiment], set[object]]] = {
    "an evaluation seed": lambda found: set(found.evaluation_seeds),
    "a training seed, of all compressors": lambda found: set(found.run_names),
    "a training seed, of one": lambda found: set(found.seeds_of("rmt")),
    "a setting": lambda found: set(found.icl.settings),
    "a length of the text that hides a key": lambda found: set(found.needle.lengths),
    "a depth of the key": lambda found: set(found.needle.depths),
    "a data set of real text (below)": lambda found: set(found.icl.datasets) & set(found.tasks),
    "a model of real text": lambda found: set(found.run_names),
    "a compressor": lambda found: set(found.run_names),
}
"""What a line is to add to."""


def edited(text: str, section: str, line: str) -> str:
    """The YAML text with the line in its section: in the place of one with the same key, else at the section's end."""
    lines, start, indent = text.splitlines(), 0, ""
    end = len(lines)
    for key in section.split(".") if section else []:
        start = next(number for number in range(start, end) if lines[number].startswith(f"{indent}{key}:")) + 1
        indent += "  "
        inside = range(start, end)
        end = next((n for n in inside if lines[n].strip() and not lines[n].startswith(indent)), end)
    key = f"{indent}{line.partition(':')[0]}:"
    same = next((number for number in range(start, end) if lines[number].startswith(key)), None)
    lines[slice(end, end) if same is None else slice(same, same + 1)] = [indent + line]
    return "\n".join(lines)


def test_the_table_is_read() -> None:
    assert [what for what, *_ in ROWS] == list(HELD)


@pytest.mark.parametrize(("what", "file", "section", "line"), ROWS, ids=[row[0] for row in ROWS])
def test_a_line_adds_what_its_row_says(what: str, file: str, section: str, line: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "config", tmp_path / "config")
    before, path = load_experiment(tmp_path / file), tmp_path / file
    overlay = tmp_path / "own.yaml"
    if "*" not in line:
        content = yaml.safe_load(line)
        for key in reversed(section.split(".") if section else []):
            content = {key: content}
        overlay.write_text(yaml.safe_dump(content))
        merged = load_experiment(path, overlay)
    path.write_text(edited(path.read_text(), section, line))
    after = load_experiment(path)
    assert HELD[what](before) < HELD[what](after)
    if overlay.exists():
        assert merged == after
