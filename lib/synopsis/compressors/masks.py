"""Gist masks (Mu et al. 2023, section 3.1): which position may see which, for each condition.

Let g be the gist tokens of a row. Positions up to the last gist token see what stands before them, as ever. Positions
after it see, by condition:

- gist: the gist tokens and what follows them, nothing before the first one;
- neg_control: only what follows the last one;
- pos_control: everything before them.

Rows without a gist token are not restricted. `places` and `gather` cut out of a row what is kept of it.
"""

from __future__ import annotations

import torch
from torch import Tensor

CONDITIONS = ("gist", "pos_control", "neg_control")


def gist_span(input_ids: Tensor, gist_token: int, together: bool = True) -> tuple[Tensor, Tensor]:
    """First and last gist position of each row, both (batch,); (0, -1) for a row without one.

    ValueError when a row's gist tokens do not stand together, unless `together` is False.
    """
    is_gist = input_ids == gist_token  # (B, T)
    length = input_ids.shape[1]
    if length == 0:
        return is_gist.sum(-1), is_gist.sum(-1) - 1
    count = is_gist.sum(-1)
    first = is_gist.int().argmax(-1)
    last = length - 1 - is_gist.int().flip(-1).argmax(-1)
    first, last = torch.where(count > 0, first, 0), torch.where(count > 0, last, -1)
    apart = (last - first + 1 != count).nonzero().flatten().tolist()
    if apart and together:
        found = is_gist[apart[0]].nonzero().flatten().tolist()
        raise ValueError(f"the gist tokens of row {apart[0]} do not stand together: they are at positions {found}")
    return first, last


def seen(input_ids: Tensor, gist_token: int, condition: str, together: bool = True) -> Tensor:
    """(batch, 1, length, length) boolean: False where the condition hides the column from the row.

    Causality and padding are not in it; `causal(attention_mask) & seen(...)` is the whole mask.
    """
    if condition not in CONDITIONS:
        raise ValueError(f"condition {condition!r}; expected one of {', '.join(CONDITIONS)}")
    index = torch.arange(input_ids.shape[1], device=input_ids.device)
    if condition == "pos_control":
        return torch.ones_like(index, dtype=torch.bool).expand(len(input_ids), 1, len(index), -1)
    first, last = gist_span(input_ids, gist_token, together)
    start = first if condition == "gist" else last + 1
    after, before = index > last[:, None], index < start[:, None]  # (B, T)
    return ~(after[:, None, :, None] & before[:, None, None, :])


def visible_both_ways(input_ids: Tensor, real: Tensor, gist_token: int, condition: str) -> tuple[Tensor, Tensor]:
    """(batch, 1, T, T) boolean, who sees whom in an encoder; and (batch, T), what the decoder sees.

    real: (batch, T), False at padding. Rows without a gist token are not restricted.
    """
    if condition == "pos_control":
        return real[:, None, None, :].expand(-1, -1, real.shape[1], -1), real
    first, last = gist_span(input_ids, gist_token)
    place = torch.arange(input_ids.shape[1], device=input_ids.device)
    later = place > last[:, None]  # (B, T)
    kept = real & (place >= (first if condition == "gist" else last + 1)[:, None])
    allowed = torch.where(later[:, :, None], kept[:, None, :], (real & ~later)[:, None, :])
    return allowed[:, None], kept


def places(kept: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """Where each row's kept tokens stand, from the first of them to `last` (batch,), rows padded on the left.

    kept: (batch, length) boolean. Gives the index (batch, k) and what of it is kept, (batch, k) boolean.
    """
    first = kept.int().argmax(-1)
    count = torch.where(kept.any(-1), last - first + 1, 0)
    length = int(count.max())
    index = last[:, None] - length + 1 + torch.arange(length, device=kept.device)
    inside = index > (last - count)[:, None]
    index = index.clamp(min=0)
    return index, inside & kept.gather(1, index)


def gather(states: Tensor, index: Tensor, mask: Tensor) -> Tensor:
    """(batch, heads, length, width) -> (batch, heads, k, width), 0 where the mask (batch, k) is."""
    wide = index[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[3])
    return states.gather(2, wide).masked_fill(~mask[:, None, :, None], 0)
