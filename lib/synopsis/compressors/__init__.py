"""The models that compress their context. Import from here, or load any of them with `synopsis.load`.

Names are imported when they are used, since torch takes a second. So are the classes of single architectures, which are
made when they are asked for: `from synopsis.compressors import MistralAutoCompressorModel, GistQwen3ForCausalLM` (see
`synopsis.compressors.registry`).
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "AutoCompressorMixin": "synopsis.compressors.published.summary",
    "SummaryOutput": "synopsis.compressors.summary.model",
    "CompressedContext": "synopsis.compressors.context",
    "GistMixin": "synopsis.compressors.published.gist",
    "load": "synopsis.compressors.loading",
    "load_tokenizer": "synopsis.compressors.loading",
    "compressor_class": "synopsis.compressors.registry",
}
_CLASSES = ("AutoCompressorModel", "ForCausalLM", "ForConditionalGeneration")
"""How the names of the models' classes end."""


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name.endswith(_CLASSES):
        # The published name of the OPT model, and the classes of all architectures.
        wanted = "OPTAutoCompressorModel" if name == "AutoCompressorModel" else name
        return import_module("synopsis.compressors.registry").class_by_name(wanted)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
