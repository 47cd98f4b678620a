"""What a judge reads and what its answer says."""

from __future__ import annotations

import doctest
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synopsis.stages.judge import prompts, records
from synopsis.stages.judge.pairs import Pair, Question
from synopsis.stages.judge.prompts import fill, parse_choice

PAIR = Pair("1", "Name {answer_b}.", "", "first {input}", "second", "true")


@pytest.mark.parametrize("module", [prompts, records])
def test_doctests(module):
    result = doctest.testmod(module)
    assert result.attempted > 0 and result.failed == 0


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ('{"choice": 0}', 0),
        ('{"reason": "over\ntwo lines", "choice": 1}', 1),
        ('{"reason": "quotes {\\"choice\\": 0}", "choice": 1}', 1),
        ('{"choice": 1} {"choice": 1}', 1),
        ('The form {"reason": "...", "choice": <0, 1 or 2>} is clear. {"reason": "x", "choice": 2}', 2),
        ('{"choice": 1.0}', None),
        ('{"choice": null}', None),
        ('{"choice": [0]}', None),
        ('{"choice": -1}', None),
        ("[0]", None),
        ("2", None),
        ("", None),
        ('{"a":' * 5000, None),
        ('{"choice": ' + "9" * 5000 + "}", None),
    ],
)
def test_parser(text, choice):
    assert parse_choice(text) == choice


@given(st.text(alphabet='{}[]":,choice012 \n\\`é'))
def test_parser_takes_any_text(text):
    assert parse_choice(text) in (None, 0, 1, 2)


@given(st.integers(0, 2), st.text(), st.text(alphabet="abc `\n."), st.text(alphabet="abc `\n."))
def test_parser_finds_the_choice_in_any_surroundings(choice, reason, before, after):
    assert parse_choice(before + json.dumps({"reason": reason, "choice": choice}) + after) == choice


def test_the_order_decides_which_answer_is_shown_first():
    template = "{answer_a}|{answer_b}"
    assert fill(template, Question(PAIR, "ab")) == "first {input}|second"
    assert fill(template, Question(PAIR, "ba")) == "second|first {input}"


def test_braces_in_texts_and_in_the_asked_form_stay_as_they_are():
    template = '{instruction} [{input}] {"choice": 0} {other}'
    assert fill(template, Question(PAIR, "ab")) == 'Name {answer_b}. [(none)] {"choice": 0} {other}'
