"""The one attention interface: who may see whom, in the form that each attention implementation of transformers takes.

A compressor says it as a boolean tensor and real positions; the same answer comes out of every implementation:

    allowed = causal(attention_mask, queries)                      # (B, 1, Q, K), True where a query may see a key
    model(..., attention_mask=attention_masks(config, allowed, query_positions, key_positions, dtype))

Sliding windows are cut here, by position: transformers cuts them by place in the row, where padding, a soft prompt and
a cache of gist tokens would count as text that was read.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from synopsis.errors import InputError

IMPLEMENTATIONS = ("eager", "sdpa", "flex_attention", "flash_attention_2")
"""Names for `load(..., attn_implementation=)`; without one transformers takes sdpa where the architecture allows it.

On CPU, flex_attention is compiled wrongly by PyTorch 2.13 when it reads a cache (a C++ error, in plain transformers
too); within `torch.compiler.set_stance("force_eager")` it is right, and slow.
"""


def check_attention(implementation: str | None) -> None:
    """InputError when an attention implementation is not known, or cannot run here."""
    if implementation is None or implementation in ("eager", "sdpa", "flex_attention"):
        return
    if implementation not in IMPLEMENTATIONS:
        raise InputError(f"attention implementation {implementation!r}; expected one of {', '.join(IMPLEMENTATIONS)}")
    from transformers.utils import is_flash_attn_2_available

    if not torch.cuda.is_available():
        raise InputError("flash_attention_2 needs a GPU, and there is none here; use sdpa or flex_attention")
    if not is_flash_attn_2_available():
        raise InputError(
            "flash_attention_2 needs the package flash-attn (2.3.3 or later), which is not installed here; "
            "use sdpa or flex_attention"
        )


def sliding_window(config: Any) -> int | None:
    """How many positions, its own included, a query sees in the layers that slide; None where no layer does."""
    layers = getattr(config, "layer_types", None)
    if layers is not None and "sliding_attention" not in layers:
        return None
    return getattr(config, "sliding_window", None)


def causal(attention_mask: Tensor, queries: int | None = None) -> Tensor:
    """(batch, 1, queries, keys) boolean: each of the last `queries` keys sees the real keys up to itself, and itself.

    attention_mask: (batch, keys), 0 at padding, what a cache holds included; `queries` None takes all keys.
    """
    keys = attention_mask.shape[1]
    itself, key = _places(keys if queries is None else queries, keys, attention_mask.device)
    return (((key <= itself) & attention_mask[:, None, :].bool()) | (key == itself))[:, None]


def attention_masks(
    config: Any, allowed: Tensor, query_positions: Tensor, key_positions: Tensor, dtype: torch.dtype
) -> Tensor | BlockMask | dict[str, Tensor | BlockMask]:
    """What a model of transformers takes as `attention_mask`, for its `config._attn_implementation`.

    allowed: (batch, 1, Q, K) boolean, causality and padding included; the queries are the last Q of the keys.
    query_positions: (batch, Q); key_positions: (batch, K); dtype: the model's.

    Gives an additive mask for eager, a boolean one for sdpa, a BlockMask for flex_attention; and a dict of them by type
    of layer for architectures whose layers differ. A query that would see nothing (padding) sees itself. ValueError for
    flash_attention_2, which takes no such mask, and for types of layers that are not known.
    """
    window, layers = sliding_window(config), getattr(config, "layer_types", None)
    if window is None:
        return _native(config, allowed, dtype)
    near = query_positions[:, None, :, None] - key_positions[:, None, None, :] < window
    sliding = allowed & near
    if layers is None:
        return _native(config, sliding, dtype)
    masks = {"full_attention": allowed, "sliding_attention": sliding}
    unknown = sorted(set(layers) - set(masks))
    if unknown:
        raise ValueError(f"layers of the types {', '.join(unknown)} take no mask of this kind")
    return {kind: _native(config, masks[kind], dtype) for kind in sorted(set(layers))}


def additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where allowed, the lowest number of `dtype` elsewhere: what is added to the scores of eager attention."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, torch.finfo(dtype).min)


def _places(queries: int, keys: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(Q, 1) place among the keys of each query, and (1, K) of each key."""
    place = torch.arange(keys, device=device)
    return place[keys - queries :, None], place[None, :]


def _native(config: Any, allowed: Tensor, dtype: torch.dtype) -> Tensor | BlockMask:
    """One mask (batch, 1, Q, K) in the form of the implementation."""
    implementation = config._attn_implementation
    if implementation.startswith("flash_attention"):
        raise ValueError(f"{implementation} cannot apply a gist mask; use sdpa or flex_attention")
    itself, key = _places(allowed.shape[2], allowed.shape[3], allowed.device)
    # The softmax of an empty row is not a number, and spreads from padding to the gradients of all weights.
    allowed = allowed | (~allowed.any(-1, keepdim=True) & (key == itself))
    if implementation == "sdpa":
        return allowed
    if implementation == "eager":
        return additive(allowed, dtype)
    if implementation == "flex_attention":
        return _block_mask(allowed)
    raise ValueError(f"attention implementation {implementation!r}; expected one of {', '.join(IMPLEMENTATIONS)}")


def _block_mask(allowed: Tensor) -> BlockMask:
    """The mask as flex attention takes it: it skips blocks in which nothing is allowed."""
    rows, _, queries, keys = allowed.shape

    def may_see(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return allowed[row, 0, query, key]

    return create_block_mask(may_see, B=rows, H=None, Q_LEN=queries, KV_LEN=keys, device=allowed.device)
