"""The texts of the needle stage: exact lengths, the needle where it belongs, and keys that can be distinguished."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from model_folders import ids_of, world_tokenizer
from synopsis.errors import DataError
from synopsis.stages.needle.section import Needle
from synopsis.stages.needle.texts import NeedleTexts
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

FILLER = ["old fox eats plums\n\n", "shy owl visits caves\n\n", "calm bear wears blue\n\n"]
KEYS = ["lantern", "compass", "violin", "ladder"]


def section(**fields: Any) -> Needle:
    world = {
        "filler": FILLER,
        "needle": "guest Mira holds {key}\n\n",
        "question": "guest Mira holds",
        "keys": KEYS,
        "choices": 3,
    }
    return Needle.model_validate({"lengths": [40], "tokens_per_step": 10, **world, **fields})


def texts(**fields: Any) -> NeedleTexts:
    return NeedleTexts(section(**fields), world_tokenizer(gist=False))


@pytest.fixture(scope="module")
def characters() -> PreTrainedTokenizerFast:
    """A token for each character, and one that begins every text; spaces count."""
    alphabet = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,:?'"
    vocabulary = {"<s>": 0, **{character: place + 1 for place, character in enumerate(alphabet)}}
    inner = Tokenizer(WordLevel(vocabulary))
    inner.pre_tokenizer = Split("", "isolated")  # type: ignore[assignment]
    inner.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>")


# -------------------------------------------------------------------------------------------------------- contexts


@pytest.mark.parametrize("length", [6, 7, 10, 15, 31, 40])
@pytest.mark.parametrize("depth", [0.0, 0.3, 0.5, 1.0])
def test_a_context_has_its_length_and_holds_the_needle_once(length: int, depth: float) -> None:
    for number in range(5):
        example = texts(lengths=[length]).example(length, depth, number)
        assert len(example.context) == length
        needle = ids_of(f"guest Mira holds {example.options[0]} ||")
        found = [at for at in range(length) if example.context[at : at + 5] == needle]
        assert found == [example.place]
        rest = example.context[: example.place] + example.context[example.place + 5 :]
        sentences = ids_of("old fox eats plums || shy owl visits caves || calm bear wears blue ||")
        whole = sentences * (length // len(sentences) + 2)
        assert any(whole[at : at + len(rest)] == rest for at in range(len(sentences))), "the filler is not in its order"


@pytest.mark.parametrize(
    ("length", "depth", "place"),
    [
        (25, 0.0, 0),
        (25, 0.25, 5),
        (25, 0.3, 5),
        (25, 0.5, 10),
        (25, 1.0, 20),
        (15, 0.2, 0),  # 2 tokens from the beginning, 3 from the end of the first sentence
        (15, 0.25, 0),  # as far from both: the earlier one
        (15, 0.3, 5),
        (17, 0.5, 7),  # 12 tokens of filler: the first 2 are the end of a sentence
        (17, 0.0, 0),
        (17, 0.1, 2),
    ],
)
def test_the_needle_stands_at_the_end_of_a_sentence_nearest_to_its_depth(length: int, depth: float, place: int) -> None:
    built = texts(lengths=[length])
    assert {built.example(length, depth, number).place for number in range(6)} == {place}


def test_the_token_that_begins_a_text_is_counted(characters: PreTrainedTokenizerFast) -> None:
    built = NeedleTexts(Needle.model_validate({"lengths": [300], "tokens_per_step": 64}), characters)
    for depth in (0.0, 0.5, 1.0):
        example = built.example(300, depth, 0)
        assert len(example.context) == 300 and example.context.count(0) == 1 and example.context[0] == 0
        text = "".join(characters.convert_ids_to_tokens(example.context[1:]))
        assert f" Remember this: the secret number is {example.options[0]}." in text
        assert (example.place == 1) == (depth == 0.0)
    question = "".join(characters.convert_ids_to_tokens(example.question))
    assert question == " What was the secret number? The secret number is"
    answers = ["".join(characters.convert_ids_to_tokens(answer)) for answer in example.answers]
    assert answers == [f" {option}" for option in example.options], "the space belongs to the key"
    question = "What was the secret number? The secret number is "
    spaced = Needle(lengths=[300], tokens_per_step=64, question=question)
    assert NeedleTexts(spaced, characters).example(300, 1.0, 0) == example, "a space after the question is left out"


# ------------------------------------------------------------------------------------------------------------ keys


def test_numbers_of_five_digits_are_drawn(characters: PreTrainedTokenizerFast) -> None:
    built = NeedleTexts(Needle.model_validate({"lengths": [200], "tokens_per_step": 64, "choices": 7}), characters)
    drawn = [built.example(200, 0.5, number).options for number in range(20)]
    assert all(len(set(options)) == 7 for options in drawn)
    assert all(option.isdecimal() and 10_000 <= int(option) <= 99_999 for options in drawn for option in options)
    assert len({options[0] for options in drawn}) == 20


def test_keys_are_drawn_from_the_list_each_as_often_as_another() -> None:
    drawn = [texts().example(40, 0.5, number).options for number in range(200)]
    assert all(len(set(options)) == 3 and set(options) <= set(KEYS) for options in drawn)
    counts = [sum(options[0] == key for options in drawn) for key in KEYS]
    assert min(counts) > 25, counts  # 50 each in the mean, with a deviation of 6


def test_a_text_follows_from_its_cell_and_number_alone() -> None:
    alone, among = texts(lengths=[40]), texts(lengths=[15, 40], depths=[0.1, 0.5], examples=3)
    assert alone.example(40, 0.5, 2) == among.example(40, 0.5, 2)
    others = [alone.example(40, 0.5, 3), alone.example(40, 0.6, 2), texts(seed=1).example(40, 0.5, 2)]
    assert all(one != other for one, other in pairwise([alone.example(40, 0.5, 2), *others]))


# ---------------------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lengths": [40, 5]}, "lengths: 5 tokens hold no needle and filler.* takes 5 tokens; expected 6 or more"),
        ({"filler": ["old fox eats cake\n\n"]}, "needle.filler: this tokenizer does not know all words of 'old fox"),
        ({"needle": "the key is {key}\n\n"}, "needle.needle: this tokenizer does not know all words of 'the key is"),
        ({"question": "what is it"}, "needle.question: this tokenizer does not know all words of 'what is it'"),
        ({"keys": ["map", "drum", "cake"]}, "needle.keys: this tokenizer does not know all words of 'cake'"),
        ({"keys": ["map", "drum", " map"]}, "needle.keys: 'map' and ' map' have the same tokens after the question"),
    ],
)
def test_texts_that_the_tokenizer_cannot_distinguish(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        texts(**fields)
