"""Training sequences out of prepared artifacts, and their collators.

A long document becomes sequences of a given length, laid end to end from its beginning. What is too short for another
one is counted (`unused_tokens`), or, where documents are packed, joined to the next document; `record()` says which.
Nothing is copied into memory: a sequence is sliced out of the Arrow table when it is read.

    sequences = training_sequences(load_corpus(folder, "train"), 6144, weights=domain_weights(corpus))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset
from transformers import PreTrainedTokenizerBase

from synopsis.compressors.loss import IGNORED
from synopsis.config.data import Corpus, WorldCorpus
from synopsis.data.prompts import input_part, instruction_part
from synopsis.errors import DataError


class DocumentSequences(Dataset[dict[str, Tensor]]):
    """Sequences of `length` tokens, laid over documents in their order: a data set whose length and order are fixed.

    `documents`: a prepared corpus split (column input_ids). No sequence goes across two documents, and the remainder of
    each is left out; with `pack` the documents are read end to end. DataError when there is not one sequence.
    """

    def __init__(self, documents: Any, length: int, pack: bool = False):
        sizes = document_lengths(documents)
        self.length, self.crosses_documents = length, pack
        # Slices of Arrow columns: a row as a list would be all of a long document, one Python number a token.
        self.documents = documents.with_format("arrow", columns=["input_ids"])
        self.ends = np.cumsum(sizes if pack else sizes - sizes % length)
        """After how many of the tokens that are read each document ends."""
        total = int(sizes.sum())
        self.count = int(self.ends[-1]) // length if len(sizes) else 0
        self.unused_tokens = total - self.count * length
        if not self.count and pack:
            raise DataError(f"the documents hold {total} tokens; one sequence needs {length}")
        if not self.count:
            longest = int(sizes.max(initial=0))
            raise DataError(
                f"no document holds a sequence of {length} tokens (the longest of {len(sizes)} has {longest})"
            )

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        begin = range(self.count)[index] * self.length
        end = begin + self.length
        parts = []
        for document in range(self.document_at(begin), self.document_at(end - 1) + 1):
            before = int(self.ends[document - 1]) if document else 0
            ids = self.documents[document : document + 1]["input_ids"][0].values
            parts.append(ids[max(begin - before, 0) : end - before].to_numpy())
        tokens = torch.from_numpy(np.concatenate(parts).astype(np.int64))
        return {"input_ids": tokens, "labels": tokens}

    def document_at(self, token: int) -> int:
        """The number of the document that holds one of the tokens that are read."""
        return int(np.searchsorted(self.ends, token, side="right"))

    def record(self) -> dict[str, Any]:
        """What provenance says of the sequences, above all whether they cross document boundaries."""
        return {
            "sequences": self.count,
            "sequence_length": self.length,
            "unused_tokens": self.unused_tokens,
            "crosses_documents": self.crosses_documents,
        }


class WeightedSequences(ConcatDataset[dict[str, Tensor]]):
    """Sequences of several domains, drawn as often as the weights of their domains say.

    An epoch holds each sequence of the domain with the lowest weight once, and each sequence of a domain with k times
    that weight k times; where k is no whole number, some of them, evenly spread, once more. No sequence is left out.
    Length and order are fixed, so that what a seed draws depends on nothing else.
    """

    def __init__(self, domains: Mapping[str, DocumentSequences], weights: Mapping[str, float]):
        self.domains, self.weights = dict(domains), dict(weights)
        lowest = min(weights[name] for name in domains)
        self.draws, drawn = [], []
        for name, sequences in domains.items():
            count = len(sequences)
            self.draws.append(round(count * weights[name] / lowest))
            rounds, more = divmod(self.draws[-1], count)
            spread = np.arange(more) * count // max(more, 1)
            drawn.append(Subset(sequences, np.concatenate([np.tile(np.arange(count), rounds), spread])))  # type: ignore[arg-type]
        super().__init__(drawn)
        self.unused_tokens = sum(sequences.unused_tokens for sequences in domains.values())

    def record(self) -> dict[str, Any]:
        """What provenance says of the sequences, of all and by domain."""
        of_domain = {
            name: {**sequences.record(), "weight": self.weights[name], "draws_an_epoch": draws}
            for (name, sequences), draws in zip(self.domains.items(), self.draws, strict=True)
        }
        any_domain = next(iter(of_domain.values()))
        return {
            "sequences": sum(len(sequences) for sequences in self.domains.values()),
            "draws_an_epoch": len(self),
            "sequence_length": any_domain["sequence_length"],
            "unused_tokens": self.unused_tokens,
            "crosses_documents": any_domain["crosses_documents"],
            "domains": of_domain,
        }


TrainingSequences = DocumentSequences | WeightedSequences


def training_sequences(
    documents: Any, length: int, pack: bool = False, weights: Mapping[str, float] | None = None
) -> TrainingSequences:
    """The sequences that training draws from a corpus split.

    `pack`: lay documents end to end; otherwise none crosses a document's end. `weights`: of the domains, 1 for those
    not named (see `domain_weights`); with unequal ones packing ends at the end of a domain. DataError when a domain,
    or without weights the whole split, is too short for one sequence.
    """
    weights = weights or {}
    domains = _documents_by_domain(documents) if set(weights.values()) - {1.0} else {}
    found = {name: weights.get(name, 1.0) for name in domains}
    if len(set(found.values())) < 2:
        return DocumentSequences(documents, length, pack)
    sequences = {}
    for name, indices in domains.items():
        try:
            sequences[name] = DocumentSequences(documents.select(indices), length, pack)
        except DataError as error:
            raise DataError(f"domain '{name}': {error}; give it longer documents or leave it out") from None
    return WeightedSequences(sequences, found)


def domain_weights(corpus: Corpus) -> dict[str, float] | None:
    """The weights of a corpus' domains; None for a generated one, whose shares are fixed when it is made."""
    return None if isinstance(corpus, WorldCorpus) else {name: d.weight for name, d in corpus.domains.items()}


def _documents_by_domain(documents: Any) -> dict[str, np.ndarray]:
    """Domain -> numbers of its documents, domains in the order of their first documents."""
    column = documents.with_format("arrow")[:]["domain"].combine_chunks().dictionary_encode()
    codes = column.indices.to_numpy()
    return {name: np.flatnonzero(codes == code) for code, name in enumerate(column.dictionary.to_pylist())}


def document_lengths(documents: Any) -> np.ndarray:
    """Tokens of each document, without reading the tokens."""
    import pyarrow.compute as pc

    column = documents.with_format("arrow")[:]["input_ids"]
    return pc.list_value_length(column).to_numpy().astype(np.int64)


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def gist_prompt_ids(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, gist_token: int, count: int) -> list[int]:
    """Ids of the prompt, from the instruction to the cue for the output."""
    start = [tokenizer.bos_token_id] if begins_with_bos(tokenizer) else []
    return [
        *start,
        *encode(tokenizer, instruction_part(row["instruction"])),
        *[gist_token] * count,
        *encode(tokenizer, input_part(row["input"])),
    ]


def begins_with_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer puts a beginning-of-text token before a text by itself."""
    ids = tokenizer("a")["input_ids"]
    return tokenizer.bos_token_id is not None and len(ids) > 0 and ids[0] == tokenizer.bos_token_id


def collate_padded(examples: Sequence[dict[str, Any]], pad: int, side: str = "left") -> dict[str, Tensor]:
    """Examples of unequal length, padded on one side; padded labels are ignored.

    Published AutoCompressors pad documents on the right, with the beginning-of-text token.
    """
    masks = [[1] * len(example["input_ids"]) for example in examples]
    return {
        "input_ids": padded([example["input_ids"] for example in examples], pad, side),
        "attention_mask": padded(masks, 0, side),
        "labels": padded([example["labels"] for example in examples], IGNORED, side),
    }


def padded(rows: Sequence[Sequence[int]], filler: int, side: str = "right", multiple: int = 1) -> Tensor:
    """(rows, length): rows of unequal length, filled up on one side to the longest, rounded up to a multiple."""
    width = -(-max(map(len, rows)) // multiple) * multiple
    fill = [[filler] * (width - len(row)) for row in rows]
    left = side == "left"
    return torch.tensor([[*more, *row] if left else [*row, *more] for row, more in zip(rows, fill, strict=True)])


def collate_equal(examples: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Examples of one length."""
    return {key: torch.stack([example[key] for example in examples]) for key in examples[0]}
