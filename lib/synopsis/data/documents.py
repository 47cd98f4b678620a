"""The documents of a source: texts, or the token ids of a pre-tokenised set, checked row by row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from synopsis.config.data import TextDomain
from synopsis.data.row_files import Row
from synopsis.data.sources import Source
from synopsis.errors import DataError

MASK = "attention_mask"


class Documents:
    """The documents of `source`, at most `limit`, cut after `max_characters`; ids must be below `vocabulary`.

    A document is a dict of `domain`, `id`, `bytes`, `cut_characters`, `padding_tokens` (at which a column
    `attention_mask` is 0, left out), and of `text`, or of `input_ids` where the domain has a `tokens_column`.
    Documents of nothing but whitespace and rows without tokens are left out. `rows` counts the rows that were read.
    """

    def __init__(
        self, source: Source, name: str, domain: TextDomain, limit: int | None, max_characters: int | None,
        vocabulary: int,
    ):  # fmt: skip
        self.source, self.name, self.of_text = source, name, domain.tokens_column is None
        if source.is_text and not self.of_text:
            raise DataError(f"{source}: a text file has no column of token ids; expected none of 'tokens_column'")
        self.column = domain.tokens_column or ("text" if source.is_text else domain.text_column)
        self.limit, self.max_characters, self.vocabulary = limit, max_characters, vocabulary
        self.rows = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        made = 0
        for row in self.source.rows([self.column, MASK, "id"]):
            self.rows += 1
            document = self._text(row) if self.of_text else self._ids(row)
            if document is not None:
                name = str(row.get("id") or f"{self.name}-{self.source.split}-{self.rows - 1}")
                yield {"domain": self.name, "id": name, "cut_characters": 0, "padding_tokens": 0, **document}
                made += 1
                if made == self.limit:
                    return

    def _text(self, row: Row) -> dict[str, Any] | None:
        whole = row.get(self.column)
        if not isinstance(whole, str):
            hint = " (a column of token ids is named by 'tokens_column')"
            expected = f"text in the column '{self.column}'{hint if isinstance(whole, list | np.ndarray) else ''}"
            raise self._fault(row, whole, expected)
        text = whole[: self.max_characters]
        size = len(text.encode("utf-8"))
        return {"text": text, "bytes": size, "cut_characters": len(whole) - len(text)} if text.strip() else None

    def _ids(self, row: Row) -> dict[str, Any] | None:
        ids = _whole_numbers(row.get(self.column))
        if ids is None:
            raise self._fault(row, row.get(self.column), f"a list of token ids in the column '{self.column}'")
        wrong = np.flatnonzero((ids < 0) | (ids >= self.vocabulary))
        if len(wrong):
            found = f"found id {ids[wrong[0]]} at token {wrong[0]} of the column '{self.column}'"
            expected = f"ids from 0 to {self.vocabulary - 1}, those of the tokenizer"
            raise DataError(f"{self.source}: row {self.rows - 1}: {found}; expected {expected}")
        kept = ids.astype(np.int32)
        if row.get(MASK) is not None:
            mask = _whole_numbers(row[MASK])
            if mask is None or mask.shape != ids.shape or ((mask != 0) & (mask != 1)).any():
                raise self._fault(row, row[MASK], f"a 0 or 1 for each of the {len(ids)} tokens", f" as {MASK}")
            kept = kept[mask == 1]
        return {"input_ids": kept, "bytes": None, "padding_tokens": len(ids) - len(kept)} if len(kept) else None

    def _fault(self, row: Row, value: Any, expected: str, role: str = "") -> DataError:
        found = f"only {', '.join(row)}"
        if self.column in row:
            found = repr(value.tolist() if isinstance(value, np.ndarray) else value)
            found = (found if len(found) <= 60 else f"{found[:57]}...") + role
        return DataError(f"{self.source}: row {self.rows - 1}: found {found}; expected {expected}")


def _whole_numbers(value: Any) -> np.ndarray | None:
    """The array of a list of whole numbers; None for anything else."""
    if not isinstance(value, list | np.ndarray):
        return None
    try:
        array = np.asarray(value, dtype=None if len(value) else np.int64)
    except ValueError:  # lists of unequal length
        return None
    return array if array.ndim == 1 and array.dtype.kind in "iu" else None
