"""Which class compresses how on which architecture: named in the method's record, or made from transformers' own class.

    cls = compressor_class("summary", "qwen3")      # Qwen3AutoCompressorModel, from Qwen3ForCausalLM
    cls = compressor_class("gist", "t5")            # GistT5ForConditionalGeneration

An architecture is named as in `config.model_type`. Those of `architectures.DECODERS` are tested; any other decoder of
transformers with rotary positions is tried, and refused with the reason where it does not fit.
"""

from __future__ import annotations

import importlib
import inspect
from functools import cache
from typing import Any

from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from synopsis.compressors.architectures import DECODERS
from synopsis.compressors.auto_classes import configuration_class
from synopsis.compressors.section import kinds
from synopsis.errors import InputError

LOGIT_CHANGES = ("logits_scaling", "logit_scale", "lm_head_multiplier", "output_multiplier_scale")
"""Fields of configurations by which a class changes its logits after its head."""


@cache
def compressor_class(kind: str, architecture: str) -> Any:
    """The class of a kind (`summary`, `gist`, ...) on an architecture; InputError says why there is none.

    From then on transformers' Auto classes give it for configurations of its own class.
    """
    explicit = kinds()[kind].explicit
    cls: Any = _named(explicit[architecture]) if architecture in explicit else _made(kind, architecture)
    auto: Any = AutoModelForSeq2SeqLM if cls.config_class.is_encoder_decoder else AutoModelForCausalLM
    auto.register(cls.config_class, cls)
    return cls


def _made(kind: str, architecture: str) -> Any:
    """A class that the general mixin is enough for."""
    base = _causal_class(kind, architecture)
    mixin, name = _named(kinds()[kind].mixin), _class_name(kind, architecture)
    config_class = configuration_class(kind, base.config_class, name, __name__)
    body = {"__doc__": f"{mixin.__name__} on {base.__name__}.", "__module__": __name__, "config_class": config_class}
    return type(name, (mixin, base), body)


def class_by_name(name: str) -> Any:
    """The class called e.g. `MistralAutoCompressorModel` or `GistQwen3ForCausalLM`; AttributeError without one."""
    for kind, section in kinds().items():
        for architecture in (*section.explicit, *DECODERS, *MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
            if _class_name(kind, architecture) == name:
                try:
                    return compressor_class(kind, architecture)
                except InputError as error:
                    raise AttributeError(f"synopsis has no class {name!r}: {error}") from None
    raise AttributeError(f"synopsis has no class {name!r}")


def _class_name(kind: str, architecture: str) -> str:
    """Without importing the architecture."""
    section = kinds()[kind]
    if architecture in section.explicit:
        return section.explicit[architecture].split(":")[1]
    return section.class_name.format(stem=MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[architecture].removesuffix("ForCausalLM"))


def _named(path: str) -> Any:
    module, name = path.split(":")
    return getattr(importlib.import_module(module), name)


def _causal_class(kind: str, architecture: str) -> Any:
    """transformers' causal language model of the architecture; InputError where the mixins cannot work on it."""

    def refuse(reason: str) -> InputError:
        others = sorted(set(kinds()[kind].explicit) - set(DECODERS))
        return InputError(
            f"no {kind} compressor for the architecture {architecture!r}: {reason}. "
            f"Tested are {', '.join([*DECODERS, *others])}"
        )

    if architecture not in CONFIG_MAPPING:
        raise refuse("this version of transformers does not know it")
    config_class = CONFIG_MAPPING[architecture]
    if config_class not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise refuse("transformers has no causal language model of it")
    base: Any = MODEL_FOR_CAUSAL_LM_MAPPING[config_class]
    if architecture in DECODERS:
        return base
    config = config_class()
    if config.is_encoder_decoder:
        raise refuse("it is an encoder-decoder")
    if hasattr(config, "text_config"):
        raise refuse("it reads more than text; name the architecture of its text model")
    if getattr(base, "_is_stateful", False):
        raise refuse("it carries a recurrent state, which cannot be cut into keys and values of single tokens")
    if getattr(config, "rope_parameters", None) is None:
        raise refuse("its positions are not rotary")
    changed = [field for field in LOGIT_CHANGES if hasattr(config, field)]
    if changed:
        raise refuse(f"it changes its logits after the head ({', '.join(changed)})")
    missing = {"inputs_embeds", "position_ids", "past_key_values", "logits_to_keep"} - set(
        inspect.signature(base.forward).parameters
    )
    if missing:
        raise refuse(f"its forward pass takes no {', '.join(sorted(missing))}")
    return base


def __getattr__(name: str) -> Any:
    """A class or its configuration's by its name, so that models can be pickled."""
    return class_by_name(name.removesuffix("Config")).config_class if name.endswith("Config") else class_by_name(name)
