"""Instruction rows as training examples: what the gist collators make of each row, once, before training.

examples = InstructionExamples(rows, GistSeq2SeqCollator(tokenizer, num_gist_tokens=2))
batch = collate_seq2seq([examples[0], examples[1]], pad=tokenizer.pad_token_id)
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from synopsis.compressors.section import Compressor
from synopsis.data.gist_collators import GistCollator, GistSeq2SeqCollator
from synopsis.data.sequences import collate_padded
from synopsis.errors import DataError

KEYS = ("input_ids", "labels")
HUMAN_LENGTH, HUMAN_LENGTH_SEQ2SEQ = 768, 384
"""Published lengths of rows of the human split: of a decoder's row; of an encoder-decoder's source, and target."""


class InstructionExamples(Dataset[dict[str, Any]]):
    """The rows that a collator can use, as lists of ids: "input_ids" and "labels", of one length for decoders.

    Rows that the collator leaves out are counted in `dropped`, rows that it cuts in `truncated`. DataError for a row
    that is no text, and when no row is left.
    """

    def __init__(self, rows: Sequence[dict[str, Any]], collator: GistCollator | GistSeq2SeqCollator):
        self.examples: list[dict[str, np.ndarray]] = []
        self.names: list[str] = []
        for index, row in enumerate(rows):
            before = collator.dropped
            try:
                batch = collator([row])
            except DataError:
                if collator.dropped == before:
                    raise
                continue  # left out: the collator has counted it, and has nothing to make a batch of
            self.examples.append({key: batch[key][0].numpy().astype(np.int32) for key in KEYS})
            self.names.append(str(row.get("id", index)))
        self.dropped, self.truncated = collator.dropped, collator.truncated
        if not self.examples:
            raise DataError(f"none of {len(rows)} instruction rows has an output that fits beside its prompt")

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return {key: values.tolist() for key, values in self.examples[index].items()}

    def name_of(self, index: int) -> str:
        """The row that an example was made of."""
        return self.names[index]

    def record(self) -> dict[str, int]:
        """What provenance says of the examples."""
        return {"sequences": len(self), "dropped": self.dropped, "truncated": self.truncated}

    @property
    def mean_tokens(self) -> int:
        """Ids that the model reads in one example, on average: labels of their own length count too."""
        first = [example["input_ids"].size for example in self.examples]
        second = [e["labels"].size * (e["labels"].size != e["input_ids"].size) for e in self.examples]
        return (sum(first) + sum(second)) // len(self.examples)


def gist_collator(
    tokenizer: PreTrainedTokenizerBase, subject: Compressor, seq2seq: bool, keep_all: bool = False
) -> GistCollator | GistSeq2SeqCollator:
    """How rows become ids for a compressor; `seq2seq`: whether its base is an encoder-decoder.

    The published lengths of the human split hold for rows that name it as their `split`, unless the training's own are
    longer. keep_all: for prompts of decoders, of which none is left out for its length or because of the output.
    """
    training = subject.training
    longest, target = training.max_length, training.max_target_length
    common: dict[str, Any] = {
        "num_gist_tokens": subject.gist_tokens,
        "gist_condition": subject.condition,
        "tokenization": training.tokenization,
    }
    if seq2seq:
        lengths = {
            "max_source_length": longest,
            "max_target_length": target,
            "max_source_length_human": max(longest, HUMAN_LENGTH_SEQ2SEQ),
            "max_target_length_human": max(target, HUMAN_LENGTH_SEQ2SEQ),
        }
        return GistSeq2SeqCollator(tokenizer, **common, **lengths)
    longest = sys.maxsize if keep_all else longest
    human = max(longest, HUMAN_LENGTH)
    return GistCollator(tokenizer, **common, max_length=longest, max_length_human=human, check_correctness=not keep_all)


collate_seq2seq = partial(collate_padded, side="right")
"""Sources and targets for an encoder-decoder."""
