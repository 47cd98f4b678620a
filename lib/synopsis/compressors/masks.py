"""Gist masks (Mu et al. 2023, section 3.1): which position may see which, for each condition.

Let g be the gist tokens of a row. Positions up to the last gist token see what stands before them, as ever. Positions
after it see, by condition:

- gist: the gist tokens and what follows them, nothing before the first one;
- neg_control: only what follows the last one;
- pos_control: everything before them.

Rows without a gist token are not restricted.
"""

from __future__ import annotations

import torch
from torch import Tensor

CONDITIONS = ("gist", "pos_control", "neg_control")


def gist_span(input_ids: Tensor, gist_token: int) -> tuple[Tensor, Tensor]:
    """First and last gist position of each row, both (batch,); (0, -1) for a row without one.

    ValueError when a row's gist tokens do not stand together.
    """
    is_gist = input_ids == gist_token  # (B, T)
    length = input_ids.shape[1]
    count = is_gist.sum(-1)
    first = is_gist.int().argmax(-1)
    last = length - 1 - is_gist.int().flip(-1).argmax(-1)
    first, last = torch.where(count > 0, first, 0), torch.where(count > 0, last, -1)
    apart = (last - first + 1 != count).nonzero().flatten().tolist()
    if apart:
        found = is_gist[apart[0]].nonzero().flatten().tolist()
        raise ValueError(f"the gist tokens of row {apart[0]} do not stand together: they are at positions {found}")
    return first, last


def visible(input_ids: Tensor, attention_mask: Tensor, gist_token: int, condition: str) -> Tensor:
    """(batch, 1, length, length) boolean: True where the row position may see the column position.

    attention_mask: (batch, length), 0 at padding. A padded position sees itself, so that no row is empty.
    """
    if condition not in CONDITIONS:
        raise ValueError(f"condition {condition!r}; expected one of {', '.join(CONDITIONS)}")
    length = input_ids.shape[1]
    index = torch.arange(length, device=input_ids.device)
    row, column = index[:, None], index[None, :]
    allowed = ((column <= row) & attention_mask[:, None, :].bool()) | (row == column)  # (B, T, T)
    if condition != "pos_control":
        first, last = gist_span(input_ids, gist_token)
        start = first if condition == "gist" else last + 1
        hidden = (row > last[:, None, None]) & (column < start[:, None, None])
        allowed = allowed & ~hidden
    return allowed[:, None]


def additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask as transformers' attention takes it: 0 where allowed, the lowest number elsewhere."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, torch.finfo(dtype).min)
