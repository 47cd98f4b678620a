"""Language models that compress their context: trained, evaluated and benchmarked.

    import synopsis
    model = synopsis.load("results/demo/models/autocompressor-s0")
    context = model.compress(input_ids)
    model.generate(prompt_ids, context=context, max_new_tokens=20)

Names are imported when they are used: `import synopsis` alone does not import torch. So are the classes of all
architectures: `from synopsis import LlamaAutoCompressorModel, GistT5ForConditionalGeneration`. After `import synopsis`
transformers' Auto classes and pipelines know model folders of ours.
"""

from importlib import import_module
from typing import Any

from synopsis.compressors.auto_classes import register

__version__ = "0.1.0"
_HOMES = {
    "CompressedContext": "synopsis.compressors.context",
    "load": "synopsis.compressors.loading",
    "load_tokenizer": "synopsis.compressors.loading",
    "load_experiment": "synopsis.config",
}
_CLASSES = ("AutoCompressorModel", "ForCausalLM", "ForConditionalGeneration")
"""How the names of the models' classes end."""
__all__ = ["CompressedContext", "load", "load_experiment", "load_tokenizer"]


def __getattr__(name: str) -> Any:
    if name == "compressing":
        return import_module("synopsis.engine.texts")
    home = "synopsis.compressors" if name.endswith(_CLASSES) else _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'synopsis' has no attribute {name!r}")
    return getattr(import_module(home), name)


register()
