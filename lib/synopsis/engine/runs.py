"""A run, ready to be measured: every stage opens its model here.

opened = open_run(experiment, "autocompressor-s0", "bfloat16")
opened.model, opened.tokenizer, opened.compresses
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from synopsis.artifacts import Layout
from synopsis.compressors.loading import load, load_tokenizer
from synopsis.compressors.section import Compressor
from synopsis.config.experiment import Experiment


@dataclass(frozen=True)
class OpenRun:
    """folder: of the weights; tokenizer: of the base; compresses: False for a model that reads the whole context."""

    folder: Path
    model: Any
    tokenizer: PreTrainedTokenizerBase
    compresses: bool


def open_run(experiment: Experiment, run: str, dtype: str = "float32", device: str | None = None) -> OpenRun:
    """Load a trained run from its folder, and a compressor that is not trained from its base's."""
    layout, subject, base = Layout(experiment), experiment.subject(run), experiment.base_of(run)
    folder, tokenizer = layout.weights(run), load_tokenizer(layout.tokenizer(base))
    if isinstance(subject, Compressor) and subject.trained_on is None:
        model: Any = subject.new_model(folder, tokenizer, device, dtype)
    else:
        model = load(folder, device, dtype)
    return OpenRun(folder, model, tokenizer, getattr(model, "compresses", False))
