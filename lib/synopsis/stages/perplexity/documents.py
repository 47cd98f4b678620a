"""The documents of a corpus that are long enough for a measurement, read from disk when they are asked for.

    documents = Documents.of(load_corpus(folder, "test"), needed=8192, limit=610)
    ids, kinds = documents.read(slice(0, 4))        # (4, 8192)

Which ones is found out from their lengths alone; memory does not grow with the tokens of the corpus.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute

LOOKED_AT_ONCE = 1000


@dataclass(frozen=True)
class Documents:
    """Which documents of `dataset` are taken: its `rows`, and of each the number of its domain in `names`.

    needed: tokens of each, the first ones; too_short: how many have fewer; beyond_limit: how many were left out
    because their domain has enough.
    """

    dataset: Any
    needed: int
    rows: list[int]
    numbers: np.ndarray
    names: list[str]
    too_short: int
    beyond_limit: int

    @classmethod
    def of(cls, dataset: Any, needed: int, limit: int | None = None) -> Documents:
        """Those of at least `needed` tokens, at most the first `limit` of each domain; no tokens are read for it."""
        rows: list[int] = []
        of_rows: list[int] = []
        numbers: dict[str, int] = {}
        taken: Counter[str] = Counter()
        short = beyond = row = 0
        for part in dataset.select_columns(["domain", "input_ids"]).with_format("arrow").iter(LOOKED_AT_ONCE):
            lengths = pyarrow.compute.list_value_length(part["input_ids"]).to_pylist()
            for domain, length in zip(part["domain"].to_pylist(), lengths, strict=True):
                if length < needed:
                    short += 1
                elif limit is not None and taken[domain] >= limit:
                    beyond += 1
                else:
                    taken[domain] += 1
                    rows.append(row)
                    of_rows.append(numbers.setdefault(domain, len(numbers)))
                row += 1
        return cls(dataset.with_format("arrow"), needed, rows, np.array(of_rows), list(numbers), short, beyond)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def domains(self) -> list[str]:
        return sorted(self.names)

    @property
    def has_kinds(self) -> bool:
        """Whether it is known which tokens only the context predicts."""
        return "kind" in self.dataset.column_names

    def domain_of(self, document: int) -> str:
        return self.names[self.numbers[document]]

    def of_domain(self, domain: str) -> np.ndarray:
        """(documents,) boolean: those of a domain, or of `all`."""
        if domain == "all":
            return np.ones(len(self), dtype=bool)
        return self.numbers == self.names.index(domain)

    def read(self, chosen: slice) -> tuple[np.ndarray, np.ndarray | None]:
        """(documents, needed) int64 ids and, where they are known, kinds of their tokens."""
        parts = [self.dataset[row] for row in self.rows[chosen]]
        ids = np.stack([self._first(part["input_ids"]) for part in parts])
        return ids, np.stack([self._first(part["kind"]) for part in parts]) if self.has_kinds else None

    def _first(self, column: Any) -> np.ndarray:
        return column[0].values.slice(0, self.needed).to_numpy().astype(np.int64)


def text_bytes(tokenizer: Any, ids: np.ndarray) -> int:
    """UTF-8 bytes of the text of all tokens but the first, special tokens having none.

    The tokens are decoded together and the first one's text is taken off, as a token by itself may decode to another
    text: SentencePiece drops the space before it, and byte-level tokens may hold a part of a character. A character
    that is cut in two at either end counts as the three bytes of the replacement character: two bytes more or less.
    """
    whole, first = (
        tokenizer.decode(part, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        for part in (ids.tolist(), ids[:1].tolist())
    )
    return max(len(whole.encode()) - len(first.encode()), 0)
