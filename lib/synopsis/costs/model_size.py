"""The size of a model from its configuration alone, without weights or a network.

The class of transformers is built on the meta device, where a weight has a shape and takes no memory:

    model_size(model.config).parameters                   # of a transformers configuration
    model_size(json.loads(Path("config.json").read_text()))
    model_size(known("meta-llama/Llama-2-7b-hf")).parameters          # 6738415616
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synopsis.compressors.architectures import DECODERS, ENCODER_DECODERS
from synopsis.compressors.auto_classes import of_architecture


@dataclass(frozen=True)
class ModelSize:
    """Widths and counts of a transformer; T5 has encoder layers beside the decoder's `layers`."""

    parameters: int
    """Every weight, tied ones once."""
    vocabulary: int
    embedding: int
    """Width of the embeddings."""
    hidden: int
    layers: int
    encoder_layers: int
    heads: int
    attention: int
    """Numbers in the queries of a position, over all heads."""
    keys: int
    """Numbers in the keys of a position, over all heads; the values have as many."""
    intermediate: int
    gated: bool
    """Whether a product of two halves is what a feed-forward block goes through."""
    layer_norm: bool
    """LayerNorm, and not a root mean square."""
    decoder: int
    """Weights of the matrices that a position of the decoder goes through, without the output layer."""
    encoder: int
    """Weights of the matrices that a position of the source goes through."""
    adapter_widths: Mapping[str, int]
    """Last name of linear layers -> their inputs and outputs, added up; an adapter has `rank` times as many weights."""


def model_size(config: Any, positions: int | None = None) -> ModelSize | None:
    """Of a transformers configuration or the values of its config.json; None for an architecture that is not ours.

    positions: as many at least as a learned table of positions is to have.
    """
    from transformers import AutoConfig

    values = of_architecture(dict(config) if isinstance(config, Mapping) else config.to_dict())
    kind = values.pop("model_type", None)
    if kind not in (*DECODERS, *ENCODER_DECODERS):
        return None
    own = AutoConfig.for_model(kind, **values)
    if positions is not None:
        own.max_position_embeddings = max(positions, own.max_position_embeddings)
    return _measured(_on_meta(own), own)


def _on_meta(config: Any) -> Any:
    """The model without memory. Its class is called, as `from_config` would divide the weights under DeepSpeed."""
    import torch
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    from synopsis.compressors.registry import compressor_class

    # transformers' own T5 ties the output layer of every model; Flan's has weights of its own.
    own = config.model_type in ENCODER_DECODERS
    cls: Any = compressor_class("gist", config.model_type) if own else MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    with torch.device("meta"):
        return cls(config)


def _measured(model: Any, config: Any) -> ModelSize:
    from torch import nn

    output = model.get_output_embeddings()
    modules = [(name.split("."), module) for name, module in model.named_modules() if module is not output]
    linear = [(path, module) for path, module in modules if isinstance(module, nn.Linear)]
    named = {path[-1]: module for path, module in linear}
    of_source, widths = 0, dict.fromkeys(named, 0)
    for path, module in linear:
        widths[path[-1]] += module.in_features + module.out_features
        if path[0] == "encoder" or ("EncDecAttention" in path and path[-1] in ("k", "v")):
            of_source += module.weight.numel()
    attention = next(named[name].in_features for name in ("o_proj", "out_proj", "o") if name in named)
    heads, layers = config.num_attention_heads, config.num_hidden_layers
    return ModelSize(
        parameters=sum(weight.numel() for weight in model.parameters()),
        vocabulary=config.vocab_size,
        embedding=model.get_input_embeddings().embedding_dim,
        hidden=config.hidden_size,
        layers=getattr(config, "num_decoder_layers", None) or layers,
        encoder_layers=layers if config.is_encoder_decoder else 0,
        heads=heads,
        attention=attention,
        keys=attention * (getattr(config, "num_key_value_heads", None) or heads) // heads,
        intermediate=next(named[name].in_features for name in ("down_proj", "fc2", "wo") if name in named),
        gated=not named.keys().isdisjoint({"gate_proj", "gate_up_proj", "wi_1"}),
        layer_norm=any(isinstance(module, nn.LayerNorm) for _, module in modules),
        decoder=sum(module.weight.numel() for _, module in linear) - of_source,
        encoder=of_source,
        adapter_widths=widths,
    )


def known(hub: str) -> dict[str, Any] | None:
    """Of a model of hub_models.json, the values of its config.json that its size follows from; None for another."""
    models: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("hub_models.json").read_text())
    return {name.lower(): values for name, values in models.items()}.get(hub.lower())
