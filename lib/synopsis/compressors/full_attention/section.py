"""Full attention: its section of the YAML."""

from __future__ import annotations

from typing import Literal

from synopsis.compressors.section import TrainedCompressor
from synopsis.config.training import LanguageModelTraining


class FullAttentionCompressor(TrainedCompressor):
    """The control that reads the whole context: the same data, nothing compressed."""

    method: Literal["full_attention"]
    trained_on = "corpus"
    compresses = False
    measured_by = frozenset({"perplexity", "icl", "needle"})
    training: LanguageModelTraining
