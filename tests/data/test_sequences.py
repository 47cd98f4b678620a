"""Training sequences, their collators, and how a sequence is cut."""

from __future__ import annotations

import time
from collections import Counter
from itertools import chain

import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from synopsis.config.data import TextCorpus, TextDomain, WorldCorpus
from synopsis.data.sequences import (
    DocumentSequences,
    TrainingSequences,
    WeightedSequences,
    collate_equal,
    collate_padded,
    domain_weights,
    training_sequences,
)
from synopsis.errors import DataError
from synopsis.training.segments import fixed_segment_lengths, random_segment_lengths, substep_slices
from torch.utils.data import DataLoader

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
            DocumentSequences(documents, length, pack=True)
        return
    sequences = DocumentSequences(documents, length, pack=True)
    read = [token for index in range(len(sequences)) for token in sequences[index]["input_ids"].tolist()]
    assert read == text[: len(text) - sequences.unused_tokens]
    assert 0 <= sequences.unused_tokens < length


def test_sequences_end_where_they_end() -> None:
    for pack in (False, True):
        sequences = DocumentSequences(corpus(DOCUMENTS), 3, pack)
        assert sequences[-1]["input_ids"].tolist() == sequences[len(sequences) - 1]["input_ids"].tolist()
        with pytest.raises(IndexError):
            sequences[len(sequences)]


def test_the_record_says_whether_sequences_cross_documents() -> None:
    record = training_sequences(corpus(DOCUMENTS), 3).record()
    assert record == {"sequences": 3, "sequence_length": 3, "unused_tokens": 6, "crosses_documents": False}
    record = training_sequences(corpus(DOCUMENTS), 4, pack=True).record()
    assert record == {"sequences": 3, "sequence_length": 4, "unused_tokens": 3, "crosses_documents": True}


# ------------------------------------------------------------------------------------------------------------ weights

BY_DOMAIN = {"a": [[1, 2, 3], [4, 5, 6, 7, 8]], "b": [[11, 12, 13, 14], [15, 16], [17, 18, 19]]}
"""In sequences of two tokens: 3 of a with 2 tokens left over, 4 of b with 1."""


def domains() -> Dataset:
    rows = [(ids, name) for name, documents in BY_DOMAIN.items() for ids in documents]
    return Dataset.from_dict({"input_ids": [ids for ids, _ in rows], "domain": [name for _, name in rows]})


def first_tokens(sequences: TrainingSequences) -> list[int]:
    return [sequences[index]["input_ids"][0].item() for index in range(len(sequences))]


@pytest.mark.parametrize("weights", [None, {}, {"a": 1.0, "b": 1.0}, {"a": 3.0, "b": 3.0}, {"a": 1.0, "gone": 2.0}])
def test_equal_weights_change_nothing(weights: dict[str, float] | None) -> None:
    sequences = training_sequences(domains(), 2, weights=weights)
    assert type(sequences) is DocumentSequences
    assert first_tokens(sequences) == [1, 4, 6, 11, 13, 15, 17]


def test_weights_are_how_often_a_sequence_is_drawn() -> None:
    sequences = training_sequences(domains(), 2, weights={"a": 0.5, "b": 1.25})
    drawn = first_tokens(sequences)
    assert drawn == [1, 4, 6, *[11, 13, 15, 17] * 2, 11, 15]  # 2.5 times: twice, and half of them once more
    assert first_tokens(training_sequences(domains(), 2, weights={"a": 0.5, "b": 1.25})) == drawn
    with pytest.raises(IndexError):
        sequences[len(drawn)]
    assert sequences.unused_tokens == 3
    record = sequences.record()
    assert (record["sequences"], record["draws_an_epoch"], record["crosses_documents"]) == (7, 13, False)
    assert record["domains"]["b"] == {
        "sequences": 4,
        "sequence_length": 2,
        "unused_tokens": 1,
        "crosses_documents": False,
        "weight": 1.25,
        "draws_an_epoch": 10,
    }


def test_weighted_domains_are_packed_apart() -> None:
    sequences = training_sequences(domains(), 4, pack=True, weights={"b": 2.0})
    ids = [sequences[index]["input_ids"].tolist() for index in range(len(sequences))]
    of_b = [[11, 12, 13, 14], [15, 16, 17, 18]]
    assert ids == [[1, 2, 3, 4], [5, 6, 7, 8], *of_b, *of_b]
    assert sequences.record()["crosses_documents"] is True


@FEW
@given(
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=4),
    weights=st.lists(st.floats(0.1, 9.0), min_size=4, max_size=4),
)
def test_no_sequence_is_left_out_and_shares_follow_the_weights(sizes: list[int], weights: list[float]) -> None:
    rows = [([number], f"d{domain}") for domain, size in enumerate(sizes) for number in range(size)]
    documents = Dataset.from_dict({"input_ids": [ids for ids, _ in rows], "domain": [name for _, name in rows]})
    by_name = {f"d{number}": weight for number, weight in enumerate(weights[: len(sizes)])}
    sequences = training_sequences(documents, 1, weights=by_name)
    drawn = first_tokens(sequences)
    if not isinstance(sequences, WeightedSequences):
        return
    lowest = min(by_name.values())
    for size, weight, end, draws in zip(sizes, weights, sequences.cumulative_sizes, sequences.draws, strict=False):
        times = Counter(drawn[end - draws : end])
        assert set(times) == set(range(size))
        assert max(times.values()) - min(times.values()) <= 1
        assert abs(draws - size * weight / lowest) <= 0.5 + 1e-6


def test_a_domain_too_short_for_a_sequence_is_reported() -> None:
    with pytest.raises(DataError, match=r"domain 'b': no document holds a sequence of 5 .*or leave it out"):
        training_sequences(domains(), 5, weights={"b": 2.0})
    assert len(training_sequences(domains(), 5)) == 1


def test_only_corpora_of_files_have_weights() -> None:
    assert domain_weights(WorldCorpus(source="world")) is None
    made = TextCorpus(source="text", domains={"a": TextDomain(hub="x/y", weight=2), "b": TextDomain(hub="x/z")})
    assert domain_weights(made) == {"a": 2.0, "b": 1.0}


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_the_order_of_one(processes: int) -> None:
    """As the Trainer hands it out: each step's sequences are those that one process would see, for a seed."""
    sequences = training_sequences(domains(), 2, weights={"a": 0.5, "b": 1.25})

    def steps(count: int, process: int, batch_size: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(7)
        loader = DataLoader(sequences, batch_size, shuffle=True, generator=generator, collate_fn=collate_equal)
        mine = prepare_data_loader(
            loader, num_processes=count, process_index=process, use_seedable_sampler=True, data_seed=7
        )
        return [batch["input_ids"][:, 0].tolist() for batch in mine]

    alone = steps(1, 0, processes)
    apart = [steps(processes, process, 1) for process in range(processes)]
    whole = len(sequences) // processes
    assert [list(chain(*parts)) for parts in zip(*apart, strict=True)][:whole] == alone[:whole]
    assert sorted(chain(*alone)) == sorted(first_tokens(sequences))


def test_a_sequence_of_a_long_document_is_a_slice_of_it() -> None:
    long = Dataset.from_dict({"input_ids": [list(range(300_000)), [1, 2]]})
    sequences = DocumentSequences(long, 1000)
    started = time.perf_counter()
    for index in range(0, 300, 3):
        assert sequences[index]["input_ids"][0] == 1000 * index
    assert time.perf_counter() - started < 1.0


# ------------------------------------------------------------------------------------------------------- instructions

ROW = {"instruction": "name a city", "input": "france", "output": "paris is one"}


def test_collators() -> None:
    batch = collate_padded([{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, {"input_ids": [8], "labels": [8]}], pad=3)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [3, 3, 8]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [-100, -100, 8]]
    sequences = DocumentSequences(corpus(DOCUMENTS), 5, pack=True)
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
