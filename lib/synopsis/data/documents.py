"""The documents of a source: texts, or the token ids of a pre-tokenised set, checked row by row.

Both readers count the rows that they have read in `rows`, start at any row and end after `limit` documents. Documents
of nothing but whitespace, and rows without tokens, are left out: they are the rows that gave no document.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from synopsis.data.shards import Tokenised
from synopsis.data.sources import Row, Source
from synopsis.data.tokenization import Document, Tokenization
from synopsis.errors import DataError

MASK = "attention_mask"


class _Reader:
    """Rows of `source` from row `start` on, for at most `limit` documents."""

    def __init__(self, source: Source, domain: str, column: str, start: int, limit: int | None):
        self.source, self.domain, self.column = source, domain, column
        self.rows, self.limit = start, limit

    def _chosen(self, columns: list[str]) -> Iterator[Row]:
        for row in self.source.rows(columns, start=self.rows) if self.limit != 0 else ():
            self.rows += 1
            yield row

    def _name(self, row: Row) -> str:
        return str(row.get("id") or f"{self.domain}-{self.source.split}-{self.rows - 1}")

    def _fault(self, found: str, expected: str) -> DataError:
        return DataError(f"{self.source}: row {self.rows - 1}: found {found}; expected {expected}")

    def _more(self) -> bool:
        """Count a document; whether another one is wanted."""
        if self.limit is not None:
            self.limit -= 1
        return self.limit != 0


class TextReader(_Reader):
    """Texts of a column, cut after `max_characters`."""

    def __init__(
        self,
        source: Source,
        domain: str,
        column: str,
        start: int = 0,
        limit: int | None = None,
        max_characters: int | None = None,
    ):
        super().__init__(source, domain, column, start, limit)
        self.max_characters = max_characters

    def __iter__(self) -> Iterator[Document]:
        for row in self._chosen([self.column, "id"]):
            text = row.get(self.column)
            if not isinstance(text, str):
                found = _described(text) if self.column in row else f"only {', '.join(row)}"
                raise self._fault(found, f"text in the column '{self.column}'{_hint(text)}")
            whole = len(text)
            text = text[: self.max_characters]
            if text.strip():
                yield Document(self.rows, self._name(row), text, cut_characters=whole - len(text))
                if not self._more():
                    return

    def tokenised(self, tokenization: Tokenization) -> Iterator[Tokenised]:
        for document, ids in tokenization(self):
            size = len(document.text.encode("utf-8"))
            yield Tokenised(ids, self.domain, size, document.id, document.rows, document.cut_characters)


class IdReader(_Reader):
    """Token ids of a column of a pre-tokenised set, all below `vocabulary`.

    Tokens at which a column `attention_mask` is 0 are padding: they are left out and counted.
    """

    def __init__(
        self,
        source: Source,
        domain: str,
        column: str,
        start: int = 0,
        limit: int | None = None,
        vocabulary: int = 2**31,
    ):
        super().__init__(source, domain, column, start, limit)
        self.vocabulary = vocabulary
        if source.is_text:
            raise DataError(f"{source}: a text file has no column of token ids; expected none of 'tokens_column'")

    def __iter__(self) -> Iterator[Tokenised]:
        for row in self._chosen([self.column, MASK, "id"]):
            ids = self._checked(row)
            kept = self._without_padding(ids, row.get(MASK))
            if len(kept):
                padding = len(ids) - len(kept)
                yield Tokenised(kept, self.domain, None, self._name(row), self.rows, padding_tokens=padding)
                if not self._more():
                    return

    def _checked(self, row: Row) -> np.ndarray:
        value = row.get(self.column)
        if self.column not in row:
            raise self._fault(f"only {', '.join(row)}", f"token ids in the column '{self.column}'")
        ids = _whole_numbers(value)
        if ids is None:
            raise self._fault(_described(value), f"a list of token ids in the column '{self.column}'")
        wrong = np.flatnonzero((ids < 0) | (ids >= self.vocabulary))
        if len(wrong):
            found = f"id {ids[wrong[0]]} at token {wrong[0]} of the column '{self.column}'"
            raise self._fault(found, f"ids from 0 to {self.vocabulary - 1}, those of the tokenizer")
        return ids.astype(np.int32)

    def _without_padding(self, ids: np.ndarray, mask: Any) -> np.ndarray:
        if mask is None:
            return ids
        kept = _whole_numbers(mask)
        if kept is None or kept.shape != ids.shape or ((kept != 0) & (kept != 1)).any():
            raise self._fault(f"{_described(mask)} as {MASK}", f"a 0 or 1 for each of the {len(ids)} tokens")
        return ids[kept == 1]


def _whole_numbers(value: Any) -> np.ndarray | None:
    """The array of a list of whole numbers; None for anything else."""
    if not isinstance(value, (list, np.ndarray)):
        return None
    if not len(value):
        return np.empty(0, dtype=np.int64)
    try:
        array = np.asarray(value)
    except ValueError:  # lists of unequal length
        return None
    return array if array.ndim == 1 and array.dtype.kind in "iu" else None


def _described(value: Any) -> str:
    text = repr(value.tolist() if isinstance(value, np.ndarray) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _hint(value: Any) -> str:
    return " (a column of token ids is named by 'tokens_column')" if isinstance(value, (list, np.ndarray)) else ""
