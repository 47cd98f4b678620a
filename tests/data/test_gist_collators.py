"""Batches for gist models, apart from parity: what is kept, cut, counted and refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from synopsis.data.gist_collators import GistCollator, GistSeq2SeqCollator
from synopsis.data.sequences import IGNORED
from synopsis.errors import DataError, InputError
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaTokenizer, PreTrainedTokenizerFast, T5Tokenizer

FEW = settings(max_examples=60, deadline=None, derandomize=True)
CITY = {"instruction": "name a city", "input": "france", "output": "paris is one"}
SUM = {"instruction": "add", "input": "", "output": "4"}
LETTERS = "abcdefghijklmnopqrstuvwxyzIO0123456789:.,<>/?"


def with_gist(tokenizer: Any) -> Any:
    tokenizer.add_special_tokens({"additional_special_tokens": ["<GIST>"]})
    return tokenizer


@pytest.fixture(scope="module")
def llama() -> LlamaTokenizer:
    """Letters, and the merges of a few words."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *LETTERS]
    merges = [("▁", "a"), ("▁", "i"), ("▁", "O"), ("▁", "I"), ("I", "n"), ("<", "/"), ("</", "s"), ("</s", ">")]
    for left, right in merges:
        pieces += [left + right] if left + right not in pieces else []
    return with_gist(LlamaTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges))


@pytest.fixture(scope="module")
def t5() -> T5Tokenizer:
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("▁Output", -3.0), ("▁Input", -3.0)]
    extra = [(f"<extra_id_{index}>", 0.0) for index in range(99, -1, -1)]
    return with_gist(T5Tokenizer(vocab=[*vocabulary, *((letter, -4.0) for letter in LETTERS), *extra]))


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    """One id a word, no SentencePiece."""
    known = ["Instruction:", "Input:", "Output:", "name", "a", "city", "add", "france", "paris", "is", "one", "4"]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["<unk>", "</s>", *known])}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    return with_gist(PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", unk_token="<unk>"))


# ------------------------------------------------------------------------------------------------------ decoders, clean


def test_a_clean_batch_predicts_the_output_alone(llama: LlamaTokenizer) -> None:
    collator = GistCollator(llama, num_gist_tokens=2, max_length=200)
    batch = collator([CITY, SUM])
    for row, ids, labels in zip((CITY, SUM), batch["input_ids"], batch["labels"], strict=True):
        answer = [*llama(" " + row["output"], add_special_tokens=False)["input_ids"], llama.eos_token_id]
        assert labels[labels != IGNORED].tolist() == answer == ids[-len(answer) :].tolist()
        assert (ids == collator.gist_token).sum() == 2


@FEW
@given(count=st.integers(1, 5), text=st.text(alphabet="ab \n.", max_size=12))
def test_the_parts_have_the_same_ids_with_any_number_of_gist_tokens(
    llama: LlamaTokenizer, count: int, text: str
) -> None:
    row = {"instruction": text, "input": text, "output": f"a{text}"}
    one, more = (GistCollator(llama, num_gist_tokens=n, max_length=10_000)([row])["input_ids"][0] for n in (1, count))
    gist = llama.convert_tokens_to_ids("<GIST>")
    assert int((more == gist).sum()) == count and torch.equal(one[one != gist], more[more != gist])


def test_rows_that_do_not_fit_are_counted(llama: LlamaTokenizer) -> None:
    whole = GistCollator(llama)([CITY])
    prompt = int((whole["labels"] == IGNORED).sum())
    collator = GistCollator(llama, max_length=prompt + 3)
    long = {**CITY, "instruction": CITY["instruction"] * 9}
    batch = collator([CITY, long, {**CITY, "output": " \n"}, SUM])
    assert len(batch["input_ids"]) == 2 and (collator.dropped, collator.truncated) == (2, 1)
    assert torch.equal(batch["input_ids"][0], whole["input_ids"][0, : prompt + 3])
    assert int(batch["labels"][0, -1]) != collator.end, "a text that was cut has not ended"
    assert int(batch["labels"][1, -1]) == collator.end
    collator([long, SUM])
    assert (collator.dropped, collator.truncated) == (3, 1)


def test_only_human_rows_have_the_human_length(llama: LlamaTokenizer) -> None:
    whole = GistCollator(llama)([CITY])["input_ids"]
    size = whole.shape[1]
    lengths: dict[str, Any] = {"max_length": size - 2, "max_length_human": size}
    rows = [{**CITY, "split": "validation_human"}, {**CITY, "split": "validation_seen"}]
    clean, published = (GistCollator(llama, tokenization=kind, **lengths) for kind in ("clean", "published"))
    assert clean(rows)["attention_mask"].sum(-1).tolist() == [size, size - 2]
    assert len(set(published(rows)["attention_mask"].sum(-1).tolist())) == 1, "one human row decides for all"
    assert clean.truncated == 1


# --------------------------------------------------------------------------------------------------------------- T5


def parts(collator: GistSeq2SeqCollator, ids: torch.Tensor) -> tuple[list[int], int, list[int]]:
    """What stands before the gist tokens, how many they are, what follows."""
    found = [token for token in ids.tolist() if token != collator.pad]
    places = [place for place, token in enumerate(found) if token == collator.gist_token]
    assert places == list(range(places[0], places[-1] + 1))
    return found[: places[0]], len(places), found[places[-1] + 1 :]


@FEW
@given(limit=st.integers(5, 40), count=st.integers(1, 3))
def test_a_clean_source_is_cut_after_its_gist_tokens_first(t5: T5Tokenizer, limit: int, count: int) -> None:
    whole = GistSeq2SeqCollator(t5, num_gist_tokens=count)
    before, _, after = parts(whole, whole([CITY])["input_ids"][0])
    cut = GistSeq2SeqCollator(t5, num_gist_tokens=count, max_source_length=limit)
    ids = cut([CITY])["input_ids"][0]
    kept, gists, rest = parts(cut, ids)
    assert gists == count and rest[-1] == cut.end and len(ids) <= limit
    assert kept == before[: len(kept)] and rest[:-1] == after[: len(rest) - 1]
    assert len(rest) == 1 or kept == before, "the instruction is cut when nothing of the input is left"
    fits = len(before) + count + len(after) <= limit
    assert len(ids) == limit or fits
    assert cut.truncated == (not fits)


def test_targets_and_what_the_decoder_reads(t5: T5Tokenizer) -> None:
    collator = GistSeq2SeqCollator(t5, max_target_length=4, decoder_start_token_id=0, pad_to_multiple_of=8)
    batch = collator([CITY, SUM, {**SUM, "output": ""}])
    assert (collator.dropped, collator.truncated) == (1, 1)
    labels, read = batch["labels"], batch["decoder_input_ids"]
    assert batch["input_ids"].shape[1] % 8 == 0 and labels.shape == (2, 8)
    assert collator.end not in labels[0] and int((labels[0] != IGNORED).sum()) == 4
    end = labels[1].tolist().index(collator.end)
    assert labels[1, end + 1 :].tolist() == [IGNORED] * (7 - end)
    assert read[:, 0].tolist() == [0, 0] and not bool((read == IGNORED).any())
    assert torch.equal(read[:, 1:], labels[:, :-1].masked_fill(labels[:, :-1] == IGNORED, collator.pad))


# --------------------------------------------------------------------------------------------------- published rules


def test_correctness_check_leaves_out_what_tokenises_otherwise_in_one_piece(
    llama: LlamaTokenizer, words: PreTrainedTokenizerFast
) -> None:
    collator = GistCollator(llama, tokenization="published")
    empty = {**SUM, "output": ""}
    assert len(collator([CITY, empty])["input_ids"]) == 1 and collator.dropped == 1
    unchecked = GistCollator(llama, tokenization="published", check_correctness=False)
    assert len(unchecked([CITY, empty])["input_ids"]) == 2 and unchecked.dropped == 0
    with pytest.raises(DataError, match=r"no row can be used \(row 0 of the batch\).*check_correctness"):
        collator([empty])
    # Any tokenizer has the published format; one without SentencePiece is asked for each text by itself.
    batch = GistCollator(words, tokenization="published", num_gist_tokens=2)([CITY])
    assert words.decode(batch["prompt_input_ids"][0]) == (
        "Instruction: name a city <GIST> <GIST> Input: france Output:"
    )


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**CITY, "output": None}, "row 1 of the batch: column 'output' is None; expected text"),
        ({**CITY, "input": 3, "id": "seen-7"}, "row seen-7: column 'input' is 3; expected text"),
        ({"input": "", "output": "a"}, r"row 1 of the batch: column 'instruction' is missing \(found input, output\)"),
        ({**CITY, "input": "a <GIST>"}, "row 1 of the batch: column 'input' holds the gist token <GIST> as text"),
        ({**CITY, "output": "<GIST>", "id": "x"}, "row x: column 'output' holds the gist token <GIST> as text"),
    ],
)
def test_rows_are_refused_by_name(llama: LlamaTokenizer, t5: T5Tokenizer, row: dict[str, Any], message: str) -> None:
    for collator in (GistCollator(llama), GistSeq2SeqCollator(t5)):
        with pytest.raises(DataError, match=message):
            collator([CITY, row])


def test_batches_without_rows_are_refused(llama: LlamaTokenizer, t5: T5Tokenizer) -> None:
    with pytest.raises(DataError, match="the batch has no rows"):
        GistCollator(llama)([])
    with pytest.raises(
        DataError, match=r"no row can be used \(row 0 of the batch\): outputs are empty, beyond 5 tokens"
    ):
        GistCollator(llama, max_length=5)([CITY])
    with pytest.raises(DataError, match=r"no row can be used \(row a\): outputs are empty"):
        GistSeq2SeqCollator(t5)([{**SUM, "output": " ", "id": "a"}])


def test_arguments_are_refused(llama: LlamaTokenizer, t5: T5Tokenizer) -> None:
    for wrong, message in (
        ({"tokenization": "old"}, "tokenization 'old'; expected one of clean, published"),
        ({"gist_condition": "none"}, "gist_condition 'none'; expected one of gist, pos_control, neg_control"),
        ({"num_gist_tokens": 0}, "num_gist_tokens 0; expected 1 or more"),
        ({"masks": True}, "masks belong to tokenization='published'"),
    ):
        with pytest.raises(ValueError, match=message):
            GistCollator(llama, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="8 tokens of source hold no text beside 7 gist tokens and the end"):
        GistSeq2SeqCollator(t5, num_gist_tokens=7, max_source_length=8)
    with pytest.raises(InputError, match="has no token <GIST>: add it first"):
        GistCollator(LlamaTokenizer())


# --------------------------------------------------------------------------------------------------------------- masks
