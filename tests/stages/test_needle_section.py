"""Faults of the section `needle` are told with their key, once, and before anything runs."""

from __future__ import annotations

import pytest
from experiment_text import faults, spoilt, write
from pydantic import ValidationError
from synopsis.config.experiment import load_experiment
from synopsis.stages.needle.section import FILLER, Needle

FILLER_LINE = '  filler: ["old fox eats plums"]\n'


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            'needle: "guest Mira holds {key}"',
            'needle: "guest Mira holds"',
            "needle.needle: found no {key}; expected a sentence that shows {key} where the key stands",
        ),
        (
            "question: guest Mira holds",
            'question: "Mira holds {key}"',
            "needle.question: found {key}; expected a text without {key}: the key follows at its end",
        ),
        ("question: guest Mira holds", "question: ' '", "needle.question: found ' '; expected a text that is not"),
        ('["old fox eats plums"]', "[]", "needle.filler: found a list of 0 entries; expected a list of at least 1"),
        ('["old fox eats plums"]', "['a', '']", "needle.filler.1: found ''; expected a text that is not white space"),
        ("[lantern, compass]", "[lantern]", "needle.keys: found a list of 1 entry; expected a list of at least 2"),
        ("[lantern, compass]", "[map, map]", "needle.keys.1: found 'map' again; expected each entry once"),
        ("choices: 2", "choices: 3", "needle.keys: found 2 keys; expected 3 or more, as many as 'choices' says"),
        ("choices: 2", "choices: 1", "needle.choices: found 1; expected a whole number from 2 to 1000"),
        ("lengths: [30, 90]", "lengths: [30, 30]", "needle.lengths.1: found 30 again; expected each entry once"),
        ("lengths: [30, 90]", "lengths: [0]", "needle.lengths.0: found 0; expected a whole number from 1 to"),
        ("choices: 2", "choices: 2\n  depths: [0, 1.5]", "needle.depths.1: found 1.5; expected a number from 0 to 1"),
        ("choices: 2", "choices: 2\n  depths: [-1]", "needle.depths.0: found -1; expected a number from 0 to 1"),
        ("choices: 2", "choices: 2\n  depths: [0.5, 0.5]", "needle.depths.1: found 0.5 again; expected each"),
        ("choices: 2", "choices: 2\n  dtype: float16", "needle.dtype: found 'float16'; expected one of float32, bfl"),
        ("runs: [base, auto]", "runs: [gist-1]", "needle.runs.0: found 'gist-1', of the method gist; expected a run"),
        (
            FILLER_LINE,
            "",
            "needle.filler: found the default text, English, for 'base', trained from scratch; expected words of the",
        ),
        ("  keys: [lantern, compass]\n", "", "needle.keys: found the default text, English, for 'base', trained from"),
        (
            "lengths: [30, 90]",
            "lengths: [255, 300]",
            "needle.lengths: found 257 positions in one pass (255 tokens of context + 2 tokens of the question and the "
            "key); expected at most 256, the positions of 'base'",
        ),
    ],
)
def test_one_fault(tmp_path, old, new, told):
    found = faults(write(tmp_path, spoilt((old, new))))
    assert len(found) == 1 and told in found[0], found


def test_a_step_that_is_too_long_for_a_compressor(tmp_path):
    edits = [("lengths: [30, 90]\n  tokens_per_step: 30", "lengths: [600]\n  tokens_per_step: 250")]
    (found,) = faults(write(tmp_path, spoilt(*edits, ("runs: [base, auto]\n", "runs: [auto]\n"))))
    assert "lengths: found 262 positions in one pass (8 summary vectors + 250 tokens + 4 summary tokens)" in found


def test_lengths_beyond_the_positions_are_no_fault_while_one_is_left(tmp_path):
    experiment = load_experiment(write(tmp_path), overrides={"needle.lengths": [30, 5000]})
    assert experiment.runs_of("needle") == ["base", "auto-s0", "auto-s1"]


def test_two_keys_are_enough_to_say():
    section = Needle.model_validate({"lengths": [512, 1024], "tokens_per_step": 512})
    assert (section.depths, section.keys, section.choices) == ([0.0, 0.25, 0.5, 0.75, 1.0], None, 10)
    assert section.filler == list(FILLER) and section.runs is None
    with pytest.raises(ValidationError):
        Needle.model_validate({"lengths": [512]})
