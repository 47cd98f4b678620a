"""Full attention: its section of the YAML."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from synopsis.compressors.section import TrainedCompressor
from synopsis.config.checks import whole_sequences
from synopsis.config.training import LanguageModelTraining
from synopsis.config.types import Key, Problem

if TYPE_CHECKING:
    from synopsis.config.experiment import Experiment


class FullAttentionCompressor(TrainedCompressor):
    """The control that reads the whole context: the same data, nothing compressed."""

    method: Literal["full_attention"]
    trained_on = "corpus"
    compresses = False
    measured_by = frozenset({"perplexity", "icl", "needle", "generate"})
    training: LanguageModelTraining

    def check(self, key: Key, name: str, experiment: Experiment) -> Iterator[Problem]:
        yield from whole_sequences(experiment, (*key, "training"), self.training, name)
