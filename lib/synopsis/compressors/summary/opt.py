"""AutoCompressors on OPT, whose learned positions count the tokens of a segment and nothing else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import OPTConfig, OPTForCausalLM

from synopsis.compressors.auto_classes import configuration_class
from synopsis.compressors.published.summary import AutoCompressorMixin

NO_POSITION = -1
"""Position of soft prompts, summary tokens and padding: row 1 of the table, which training leaves as it is."""
OPTAutoCompressorModelConfig = configuration_class("summary", OPTConfig, "OPTAutoCompressorModel", __name__)


class OPTAutoCompressorModel(AutoCompressorMixin, OPTForCausalLM):  # type: ignore[misc]
    """AutoCompressor, RMT or full attention on OPT; published as AutoCompressorModel."""

    config_class = OPTAutoCompressorModelConfig

    def __init__(self, config: Any):
        super().__init__(config)
        table = self.model.decoder.embed_positions
        table.padding_idx = NO_POSITION + table.offset  # no gradient for that row

    def _positions(
        self, soft: int, soft_mask: Tensor | None, tokens: int, mask: Tensor | None, ends: int
    ) -> tuple[Tensor | None, int]:
        if mask is None:
            positions = torch.arange(tokens, device=self.device)[None]
        else:
            positions = torch.where(mask.bool(), mask.cumsum(-1) - 1, NO_POSITION)
        none = positions.new_full((len(positions), 1), NO_POSITION)
        whole = torch.cat([none.expand(-1, soft), positions, none.expand(-1, ends)], dim=1)
        return whole, tokens if mask is None else int(mask.sum(-1).max())

    def _vector_positions(self, vectors: Tensor, mask: Tensor | None) -> Tensor:
        return vectors.new_full(vectors.shape[:2], NO_POSITION, dtype=torch.long)

    def _next_position(self, soft_mask: Tensor) -> Tensor:
        return torch.zeros_like(soft_mask.sum(-1))

    def _token_positions(self, mask: Tensor, start: Tensor | int = 0) -> Tensor:
        return torch.where(mask.bool(), super()._token_positions(mask, start), NO_POSITION)
