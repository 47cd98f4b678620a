"""Training sequences out of prepared artifacts, and their collators.

Nothing is copied into memory: a sequence is sliced out of the Arrow table when it is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from synopsis.data.prompts import input_part, instruction_part
from synopsis.errors import DataError

IGNORED = -100


class DocumentSequences(Dataset[dict[str, Tensor]]):
    """Sequences of `length` tokens, none across two documents; the remainder of each document is counted, not read.

    `documents`: a prepared corpus split (column input_ids). DataError when no document is as long as one sequence.
    """

    def __init__(self, documents: Any, length: int):
        self.documents, self.length = documents, length
        sizes = document_lengths(documents)
        self.starts = [(d, s * length) for d, size in enumerate(sizes) for s in range(size // length)]
        self.unused_tokens = int((sizes % length).sum())
        if not self.starts:
            longest = int(sizes.max()) if len(sizes) else 0
            raise DataError(
                f"no document holds a sequence of {length} tokens (the longest of {len(sizes)} has {longest})"
            )

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        document, start = self.starts[index]
        ids = torch.as_tensor(self.documents[document]["input_ids"][start : start + self.length], dtype=torch.long)
        return {"input_ids": ids, "labels": ids}


class PackedSequences(Dataset[dict[str, Tensor]]):
    """Sequences of `length` tokens out of all documents end to end: they cross document boundaries."""

    def __init__(self, documents: Any, length: int):
        self.documents, self.length = documents, length
        self.ends = np.cumsum(document_lengths(documents))
        total = int(self.ends[-1]) if len(self.ends) else 0
        self.count, self.unused_tokens = divmod(total, length)
        if not self.count:
            raise DataError(f"the documents hold {total} tokens; one sequence needs {length}")

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        begin, end = index * self.length, (index + 1) * self.length
        first, last = np.searchsorted(self.ends, [begin, end - 1], side="right")
        parts = []
        for document in range(int(first), int(last) + 1):
            offset = int(self.ends[document - 1]) if document else 0
            parts += list(self.documents[document]["input_ids"][max(begin - offset, 0) : end - offset])
        ids = torch.as_tensor(parts, dtype=torch.long)
        return {"input_ids": ids, "labels": ids}


def document_lengths(documents: Any) -> np.ndarray:
    """Tokens of each document, without reading the tokens."""
    import pyarrow.compute as pc

    column = documents.with_format("arrow")[:]["input_ids"]
    return pc.list_value_length(column).to_numpy().astype(np.int64)


class GistExamples(Dataset[dict[str, Any]]):
    """Instruction rows as token ids: instruction, gist tokens, input, output and end-of-text.

    The parts are tokenised apart, so that the same text gives the same ids with and without the gist tokens before it.
    Labels are the output's tokens; longer examples than `max_length` lose the end of their output, and examples
    whose whole output is lost are left out and counted in `dropped`.
    """

    def __init__(
        self,
        rows: Sequence[dict[str, Any]],
        tokenizer: PreTrainedTokenizerBase,
        gist_token: int,
        count: int,
        max_length: int,
    ):
        self.examples: list[dict[str, Any]] = []
        self.dropped = 0
        for row in rows:
            prompt = gist_prompt_ids(row, tokenizer, gist_token, count)
            answer = [*encode(tokenizer, " " + row["output"]), tokenizer.eos_token_id]
            ids = (prompt + answer)[:max_length]
            if len(ids) <= len(prompt) or not row["output"].strip():
                self.dropped += 1
                continue
            labels = [IGNORED] * len(prompt) + ids[len(prompt) :]
            self.examples.append({"input_ids": ids, "labels": labels})
        if not self.examples:
            raise DataError(f"none of {len(rows)} instruction rows has an output within {max_length} tokens")

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.examples[index]


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
    width = max(len(example["input_ids"]) for example in examples)

    def padded(values: Sequence[int], filler: int) -> list[int]:
        fill = [filler] * (width - len(values))
        return [*fill, *values] if side == "left" else [*values, *fill]

    return {
        "input_ids": torch.tensor([padded(example["input_ids"], pad) for example in examples]),
        "attention_mask": torch.tensor([padded([1] * len(example["input_ids"]), 0) for example in examples]),
        "labels": torch.tensor([padded(example["labels"], IGNORED) for example in examples]),
    }


def collate_equal(examples: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Examples of one length."""
    return {key: torch.stack([example[key] for example in examples]) for key in examples[0]}
