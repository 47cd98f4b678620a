"""What is reported about files that are no YAML, or YAML that is no experiment."""

from __future__ import annotations

import pytest
from experiment_text import TEXT, faults, spoilt, write
from synopsis.config.experiment import load_experiment
from synopsis.config.yaml_files import parse_value, read_yaml
from synopsis.errors import ConfigError, InputError

BOMB = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "e.yaml: (top level): found an empty file; expected keys and values"),
        ("# only a comment\n", "e.yaml: (top level): found an empty file; expected keys and values"),
        ("- a\n- b\n", "e.yaml:1: (top level): found a list; expected keys and values"),
        ("\nhello", "e.yaml:2: (top level): found a single value; expected keys and values"),
        ("name: x\n\tmodels: y\n", "e.yaml:2: (top level): found what is not YAML (a tab); expected keys and values,"),
        ("name: a: b", "e.yaml:1: (top level): found what is not YAML (mapping values are not allowed here)"),
        ('a: 1\nname: "x\nmodels: {}\n', "e.yaml:2: (top level): found what is not YAML (while scanning a quoted"),
        ("name: x\n---\nname: y\n", "e.yaml:2: (top level): found what is not YAML (expected a single document"),
        ("name: *x\n", "found undefined alias 'x'"),
        ("name: &a [*a]\n", "found sections nested hundreds deep, or in themselves"),
        ("models: &a {b: {<<: *a}}\n", "found sections nested hundreds deep, or in themselves"),
        ("models: {<<: 5}\n", "e.yaml:1: (top level): found what is not YAML (while constructing a mapping, expected"),
        ("a: " + "[" * 3000, "e.yaml: (top level): found sections nested hundreds deep"),
        (BOMB, "(more than 100,000 values, aliases counted each time)"),
        ("name: !!python/object/apply:os.getcwd []\n", "e.yaml:1: (top level): found what is not YAML (could not"),
        ("name: !mine x\n", "found what is not YAML (could not determine a constructor for the tag '!mine')"),
        ("name: !!int abc\n", "e.yaml:1: (top level): found what is not YAML ('abc' as !!int)"),
        ("name: " + "9" * 5000, "99' as !!int)"),
        ("? [a, b]\n: 1\n", "(a list or a section in the place of a key)"),
        (b"name: caf\xe9\n", "e.yaml:1: (top level): found the byte 0xe9; expected text in UTF-8"),
        (b"a: 1\nname: a\x00b", "e.yaml:2: (top level): found the character '\\x00'; expected printable text"),
    ],
)
def test_text_that_cannot_be_read(tmp_path, text, message):
    [fault] = faults(write(tmp_path, text))
    assert message in fault


def test_missing_files_and_folders_are_reported_together(tmp_path):
    (tmp_path / "folder.yaml").mkdir()
    found = faults(tmp_path / "none.yaml", tmp_path / "folder.yaml")
    assert found == [
        "none.yaml: (top level): found no such file or directory; expected a file of keys and values",
        "folder.yaml: (top level): found is a directory; expected a file of keys and values",
    ]


def test_a_byte_order_mark_does_no_harm(tmp_path):
    assert faults(write(tmp_path, b"\xef\xbb\xbf" + TEXT.encode())) == []


def test_a_key_given_twice(tmp_path):
    (found,) = faults(write(tmp_path, spoilt(("    base: base\n", "    base: base\n    base: opt\n"))))
    assert found.startswith("e.yaml:16: (top level): found what is not YAML (the key 'base' a second time)")


def test_scalars_are_read_as_yaml_1_2_reads_them(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("a: [no, on, 2024-13-45, 1e-4, 010, .5, -3, ~, true, 'true', 0x1F, 1_000, 12:30]\n1: x\nno: y\n")
    document = read_yaml(path, [])
    assert document is not None
    values = ["no", "on", "2024-13-45", 1e-4, 10, 0.5, -3, None, True, "true", "0x1F", "1_000", "12:30"]
    assert document == {"a": values, "1": "x", "no": "y"}
    assert [type(value) for value in document["a"]] == [type(value) for value in values]


def test_merge_keys_yield_to_the_keys_beside_them_and_keep_their_lines(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("a: &a {x: 1, y: {z: 2}}\nb: &b\n  x: 5\n  w: 6\nc:\n  <<: [*a, *b]\n  y: 3\n")
    faults = []
    document = read_yaml(path, faults)
    assert document is not None and faults == []
    assert document["c"] == {"y": 3, "x": 1, "w": 6}
    assert {key: document["c"].places[key].line for key in "xyw"} == {"x": 1, "y": 7, "w": 4}


def test_what_an_alias_stands_for_is_a_copy(tmp_path):
    changed = load_experiment(write(tmp_path), overrides={"compressors.gist-1.training.steps": 5})
    assert changed.compressors["gist-1"].training.steps == 5
    assert changed.compressors["pos-1"].training.steps == 10


def test_a_fault_in_what_an_alias_repeats_is_reported_once(tmp_path):
    (found,) = faults(write(tmp_path, spoilt(("max_length: 64\n      steps: 10", "max_length: 64\n      steps: x"))))
    assert "e.yaml:41: compressors.gist-1.training.steps: found 'x'" in found


@pytest.mark.parametrize("text", ["[", "a: b: c", "1\nb: 2", "!x y", "*a", '"'])
def test_values_of_the_command_line_that_are_no_yaml(text):
    with pytest.raises(InputError, match=r"--set k: .* is no YAML value"):
        parse_value(text, "--set k")


def test_values_of_the_command_line():
    texts = ["5", "1e-05", "[a, 1]", "{a: {b: true}}", "", "null", "gist-1"]
    assert [parse_value(text, "") for text in texts] == [5, 1e-5, ["a", 1], {"a": {"b": True}}, None, None, "gist-1"]


def test_a_config_error_counts_its_faults(tmp_path):
    with pytest.raises(ConfigError, match=r"has 1 fault:\n  .*e\.yaml: "):
        load_experiment(write(tmp_path, ""))
