"""The models that compress their context. Import from here, or load any of them with `synopsis.load`.

Classes of single architectures are made when they are asked for: `from synopsis.compressors import
MistralAutoCompressorModel, GistQwen3ForCausalLM` (see `synopsis.compressors.registry`).
"""

from typing import Any

from synopsis.compressors.autocompressor import AutoCompressorMixin, SummaryOutput
from synopsis.compressors.context import CompressedContext
from synopsis.compressors.gist import GistMixin
from synopsis.compressors.loading import load, load_tokenizer
from synopsis.compressors.registry import class_by_name, compressor_class

__all__ = [
    "AutoCompressorMixin",
    "CompressedContext",
    "GistMixin",
    "SummaryOutput",
    "compressor_class",
    "load",
    "load_tokenizer",
]


def __getattr__(name: str) -> Any:
    # The published name of the OPT model, and the classes of all architectures.
    return class_by_name("OPTAutoCompressorModel" if name == "AutoCompressorModel" else name)
