"""Training sequences, their collators, and how a sequence is cut."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from synopsis.data.prompts import input_part, instruction_part
from synopsis.data.sequences import (
    IGNORED,
    DocumentSequences,
    GistExamples,
    PackedSequences,
    collate_equal,
    collate_padded,
    document_lengths,
)
from synopsis.errors import DataError
from synopsis.training.segments import fixed_segment_lengths, random_segment_lengths, substep_slices
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

FEW = settings(max_examples=60, deadline=None, derandomize=True)
DOCUMENTS = [[1, 2, 3, 4, 5], [6], [7, 8, 9, 10, 11, 12, 13], [14, 15]]


def corpus(documents: list[list[int]]) -> Dataset:
    return Dataset.from_dict({"input_ids": documents})


def test_sequences_within_documents() -> None:
    sequences = DocumentSequences(corpus(DOCUMENTS), 3)
    assert [sequences[i]["input_ids"].tolist() for i in range(len(sequences))] == [[1, 2, 3], [7, 8, 9], [10, 11, 12]]
    assert sequences.unused_tokens == 2 + 1 + 1 + 2
    assert torch.equal(sequences[1]["labels"], sequences[1]["input_ids"])
    with pytest.raises(DataError, match=r"sequence of 8 tokens \(the longest of 4 has 7\)"):
        DocumentSequences(corpus(DOCUMENTS), 8)


@FEW
@given(sizes=st.lists(st.integers(0, 7), min_size=1, max_size=6), length=st.integers(1, 6))
def test_packed_sequences_are_the_documents_end_to_end(sizes: list[int], length: int) -> None:
    text = list(range(sum(sizes)))
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    documents = corpus([text[start : start + size] for start, size in zip(starts, sizes, strict=True)])
    if len(text) < length:
        with pytest.raises(DataError, match=f"hold {len(text)} tokens; one sequence needs {length}"):
            PackedSequences(documents, length)
        return
    sequences = PackedSequences(documents, length)
    read = [token for index in range(len(sequences)) for token in sequences[index]["input_ids"].tolist()]
    assert read == text[: len(text) - sequences.unused_tokens]
    assert 0 <= sequences.unused_tokens < length


def test_document_lengths_follow_a_selection() -> None:
    assert document_lengths(corpus(DOCUMENTS).select([2, 0])).tolist() == [7, 5]


# ------------------------------------------------------------------------------------------------------- instructions

ROW = {"instruction": "name a city", "input": "france", "output": "paris is one"}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    texts = [instruction_part(ROW["instruction"]), input_part(ROW["input"]), input_part(""), ROW["output"]]
    split = pre_tokenizers.WhitespaceSplit()
    words = sorted({word for text in texts for word, _ in split.pre_tokenize_str(text)})
    vocabulary = {word: index for index, word in enumerate(["<unk>", "<s>", "</s>", *words])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = split  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def test_gist_examples_predict_the_output_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    examples = GistExamples([ROW], tokenizer, 99, 2, 200)
    (example,) = [examples[index] for index in range(len(examples))]
    answer = [*tokenizer(ROW["output"])["input_ids"], tokenizer.eos_token_id]
    assert example["input_ids"][-len(answer) :] == answer
    assert example["labels"] == [IGNORED] * (len(example["input_ids"]) - len(answer)) + answer
    instruction = len(tokenizer(instruction_part(ROW["instruction"]))["input_ids"])
    assert [index for index, token in enumerate(example["input_ids"]) if token == 99] == [instruction, instruction + 1]
    without = GistExamples([ROW], tokenizer, 99, 0, 200)[0]["input_ids"]
    assert [token for token in example["input_ids"] if token != 99] == without


def test_long_examples_lose_the_end_of_their_output(tokenizer: PreTrainedTokenizerFast) -> None:
    whole = GistExamples([ROW], tokenizer, 99, 1, 200)[0]
    prompt = whole["labels"].count(IGNORED)
    cut = GistExamples([ROW, {**ROW, "output": "  "}], tokenizer, 99, 1, prompt + 2)
    assert (len(cut), cut.dropped) == (1, 1)
    assert cut[0]["input_ids"] == whole["input_ids"][: prompt + 2]
    with pytest.raises(DataError, match=f"none of 1 instruction rows has an output within {prompt} tokens"):
        GistExamples([ROW], tokenizer, 99, 1, prompt)


def test_collators() -> None:
    batch = collate_padded([{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, {"input_ids": [8], "labels": [8]}], pad=3)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [3, 3, 8]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [-100, -100, 8]]
    sequences = PackedSequences(corpus(DOCUMENTS), 5)
    assert collate_equal([sequences[0], sequences[2]])["labels"].tolist() == [[1, 2, 3, 4, 5], [11, 12, 13, 14, 15]]


# ----------------------------------------------------------------------------------------------------------- segments


@FEW
@given(length=st.integers(1, 400), segments=st.integers(1, 6), longest=st.integers(2, 200), seed=st.integers(0, 5))
def test_random_segments_fit(length: int, segments: int, longest: int, seed: int) -> None:
    torch.manual_seed(seed)
    if segments > 1 and not 2 * segments <= length <= longest * segments:
        with pytest.raises(ValueError, match=f"{length} tokens cannot be cut into {segments} segments"):
            random_segment_lengths(length, segments, longest)
        return
    lengths = random_segment_lengths(length, segments, longest)
    assert len(lengths) == segments and sum(lengths) == length
    assert segments == 1 or (min(lengths) >= 2 and max(lengths) <= longest)


def test_random_segments_differ_and_follow_the_seed() -> None:
    torch.manual_seed(0)
    drawn = [random_segment_lengths(64, 3, 64) for _ in range(5)]
    torch.manual_seed(0)
    assert [random_segment_lengths(64, 3, 64) for _ in range(5)] == drawn
    assert len(set(map(tuple, drawn))) > 1


@FEW
@given(length=st.integers(1, 100), segments=st.integers(1, 10))
def test_fixed_segments_are_equal(length: int, segments: int) -> None:
    if segments > length:
        with pytest.raises(ValueError, match=f"{length} tokens cannot be cut into {segments} segments"):
            fixed_segment_lengths(length, segments)
        return
    lengths = fixed_segment_lengths(length, segments)
    assert sum(lengths) == length and max(lengths) - min(lengths) <= 1


def test_substeps_cover_the_sequence() -> None:
    assert substep_slices(12, 3) == [slice(0, 4), slice(4, 8), slice(8, 12)]
