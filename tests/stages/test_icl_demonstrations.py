"""Which demonstrations a prompt shows; the published draws are held to golden files in tests/parity."""

from __future__ import annotations

from typing import Any

import pytest
from synopsis.config.files import Task
from synopsis.errors import DataError
from synopsis.stages.icl.demonstrations import demonstrations, fill, text_of
from synopsis.stages.icl.section import Setting
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

POOL: list[dict[str, Any]] = [
    {"id": index, "text": "w " * (index % 4 + 1), "label": label}
    for index, label in enumerate([1, 0, 0, 2, 1, 0, 0, 2, 1, 0, 2, 0, 1, 0])
]


def task(**fields: Any) -> Task:
    source = {"source": {"mirror": "nowhere"}, "template": "Text: {text}\nTopic: {answer}", "input_fields": ["text"]}
    return Task.model_validate({**source, "options": ["red", "blue", "green"], **fields})


def encode(text: str) -> list[int]:
    """One token a character: lengths are easy to see."""
    return [ord(character) for character in text]


def test_more_demonstrations_than_rows_are_reported() -> None:
    setting = Setting(compressed_tokens=[100], plain_tokens=50)
    with pytest.raises(DataError, match=r"15 demonstrations are asked for; the split 'train' has 14 rows to draw from"):
        demonstrations(task(tokens_per_demonstration=10), POOL, setting, 0, encode, repeat=True)
    balanced = task(tokens_per_demonstration=10, balanced=True)
    with pytest.raises(DataError, match=r"15 .* has 9 rows with each label as often as the rarest \(of 14\)"):
        demonstrations(balanced, POOL, setting, 0, encode)
    repeated = demonstrations(balanced, POOL, setting, 0, encode, repeat=True).rows
    assert len(repeated) == 15 and repeated[9:] == repeated[:6]


def test_published_numbers_can_be_beyond_the_budget() -> None:
    counted = task(tokens_per_demonstration=10)
    setting = Setting(compressed_tokens=[30], plain_tokens=9)
    prompt = demonstrations(counted, POOL, setting, 0, encode)
    assert (prompt.asked, len(prompt.rows), prompt.unfilled, prompt.plain) == (3, 3, 1, [])
    assert prompt.over_budget == len(prompt.chunks[0]) - 30 > 0
    fitted = demonstrations(counted, POOL, setting, 0, encode, fitting=True)
    assert (fitted.asked, fitted.over_budget) == (None, 0) and len(fitted.chunks[0]) <= 30


def test_budgets_hold_as_many_as_really_fit() -> None:
    setting = Setting(compressed_tokens=[60, 60], plain_tokens=10)
    prompt = demonstrations(task(), POOL, setting, 2, encode)
    assert 0 < len(prompt.chunks[0]) <= 60 and 0 < len(prompt.chunks[1]) <= 60
    assert (prompt.plain, prompt.unfilled) == ([], 1)  # no demonstration is shorter than ten characters
    texts = [text_of(task(), POOL[index]) for index in prompt.rows]
    assert [*prompt.chunks[0], *prompt.chunks[1]] == encode("".join(texts))
    assert demonstrations(task(), POOL, setting, 2, encode) == prompt
    assert demonstrations(task(), POOL, setting, 3, encode).rows != prompt.rows


def test_no_budget_shows_nothing() -> None:
    for count in (None, 20):
        prompt = demonstrations(task(tokens_per_demonstration=count), POOL, Setting(), 0, encode)
        assert (prompt.chunks, prompt.plain, prompt.rows, prompt.unfilled) == ((), [], (), 0)


def test_a_text_that_does_not_fit_closes_its_budget() -> None:
    texts = ["a" * 4, "b" * 5, "c" * 1, "d" * 9]
    assert fill(texts, [8, 6], encode) == [[texts[0]], [texts[1], texts[2]]]
    assert fill(texts, [3, 100], encode) == [[], texts]


@pytest.fixture(scope="module")
def merging() -> Any:
    """A byte a token, but as with GPT-2 a pair of line ends is one where no text follows it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=len(alphabet) + 1, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["\n\n"], trainer)
    assert len(tokenizer.encode("a\n\n").ids) == 2 and len(tokenizer.encode("a\n\nb").ids) == 4
    return tokenizer


@pytest.mark.parametrize("counted", [None, 25])
def test_the_demonstrations_of_a_chunk_are_tokenised_as_one_string(counted: int | None, merging: Any) -> None:
    """Of each chunk that is compressed, and of the plain one."""

    def ids(text: str) -> list[int]:
        return merging.encode(text).ids

    setting = Setting(compressed_tokens=[75, 60], plain_tokens=75)
    prompt = demonstrations(task(tokens_per_demonstration=counted), POOL, setting, 0, ids)
    found = [*prompt.chunks, prompt.plain]
    texts = [merging.decode(chunk) for chunk in found]
    assert "".join(texts) == "".join(text_of(task(), POOL[index]) for index in prompt.rows)
    assert len(found) == 3 and all(text.count("Topic:") > 1 for text in texts)
    assert found == [ids(text) for text in texts]


def test_what_fits_a_budget_is_counted_of_the_joined_texts(merging: Any) -> None:
    """Two texts of 23 tokens each fit a budget of 47 together: the pair of line ends between them is two tokens."""
    pool = [{"id": index, "text": "w w w", "label": 0} for index in range(4)]
    assert len(merging.encode(text_of(task(), pool[0])).ids) == 23
    for budget, shown in ((46, 1), (47, 2)):
        setting = Setting(plain_tokens=budget)
        prompt = demonstrations(task(), pool, setting, 0, lambda text: merging.encode(text).ids)
        assert (len(prompt.rows), prompt.over_budget) == (shown, 0)
