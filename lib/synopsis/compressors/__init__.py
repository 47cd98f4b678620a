"""The models that compress their context. Import from here, or load any of them with `synopsis.load`."""

from synopsis.compressors.autocompressor import AutoCompressorMixin, LlamaAutoCompressorModel, SummaryOutput
from synopsis.compressors.context import CompressedContext
from synopsis.compressors.gist import GistLlamaForCausalLM, GistMixin
from synopsis.compressors.loading import load, load_tokenizer

__all__ = [
    "AutoCompressorMixin",
    "CompressedContext",
    "GistLlamaForCausalLM",
    "GistMixin",
    "LlamaAutoCompressorModel",
    "SummaryOutput",
    "load",
    "load_tokenizer",
]
