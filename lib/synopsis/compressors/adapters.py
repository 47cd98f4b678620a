"""LoRA adapters written by peft: merged into the weights of their base, without peft.

The published Llama AutoCompressor was trained with LoRA on q, k, v and o, and its summary embeddings fully
(`modules_to_save`). Tokens that were added to the vocabulary come as rows of the embeddings alone
(`trainable_token_indices`). An adapter folder holds adapter_config.json and adapter_model.safetensors or .bin.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synopsis.compressors.published.weight_files import read_adapter, refused

CONFIGURATION = "adapter_config.json"
FACTOR = re.compile(r"^(?P<module>.*)\.lora_(?P<side>[AB])(\.[^.]+)?\.weight$")
TOKEN_ROWS = ".token_adapter.trainable_tokens_delta"
"""End of the name of a matrix's trained rows; peft calls them a delta, but they are the rows themselves."""
NOT_MERGED = ("use_dora", "alpha_pattern", "layer_replication", "megatron_config")
"""Options of peft that change what the two factors mean."""


def is_adapter(folder: Path) -> bool:
    return (folder / CONFIGURATION).is_file()


def base_of(folder: Path) -> str | None:
    """The base that the adapter was trained on, as it was named then."""
    return _configuration(folder).get("base_model_name_or_path")


def merged(folder: Path, base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the base with the adapter in them; ArtifactError where it does not fit the base.

    Each adapted matrix becomes W + alpha / r * B A, computed in float32 and rounded once to the precision of W.
    Modules that were trained fully take the place of those of the base, or are added to them; so do single rows, of
    which those beyond the end of a matrix make it longer.
    """
    settings, weights = _configuration(folder), dict(base)
    factors: dict[str, dict[str, Tensor]] = {}
    for name, tensor in _plain_names(read_adapter(folder)):
        match = FACTOR.match(name)
        if match:
            factors.setdefault(match["module"], {})[match["side"]] = tensor
        elif name.endswith(TOKEN_ROWS):
            module = name.removesuffix(TOKEN_ROWS)
            weights[f"{module}.weight"] = _with_rows(folder, module, base, tensor, settings)
        elif "lora_" in name:
            raise refused(folder, f"the adapter holds {name}, which is no factor of a plain LoRA")
        else:
            weights[name] = tensor
    for module, pair in factors.items():
        name = f"{module}.weight"
        if name not in base:
            raise refused(folder, f"the adapter changes {name}, which its base does not have")
        weights[name] = _merge(folder, name, base[name], pair, settings)
    return weights


def _merge(folder: Path, name: str, weight: Tensor, pair: dict[str, Tensor], settings: dict[str, Any]) -> Tensor:
    if set(pair) != {"A", "B"}:
        raise refused(folder, f"the adapter holds one factor of {name} and not the other")
    down, up = pair["A"], pair["B"]  # (r, in), (out, r)
    rank = down.shape[0]
    scale = settings.get("lora_alpha", rank) / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    change = change_of(down, up, scale)
    change = change.T if settings.get("fan_in_fan_out") else change
    if change.shape != weight.shape:
        shapes = f"{tuple(change.shape)}, that of its base {tuple(weight.shape)}"
        raise refused(folder, f"the adapter's change of {name} has shape {shapes}")
    return (weight.float() + change).to(weight.dtype)


def change_of(down: Tensor, up: Tensor, scale: float) -> Tensor:
    """(out, in) float32: what the factors (rank, in) and (out, rank) of an adapter add to a matrix."""
    return up.float() @ down.float() * scale


def _with_rows(folder: Path, module: str, base: Mapping[str, Tensor], rows: Tensor, settings: dict[str, Any]) -> Tensor:
    """The module's matrix (n, width) with these rows (k, width) in their places; n grows where they are beyond it.

    Rows between the old end and the new ones start as the mean of the old, as those of added tokens do.
    """
    named, name = settings.get("trainable_token_indices") or {}, f"{module}.weight"
    places = named if isinstance(named, list) else [named[key] for key in named if f".{module}".endswith(f".{key}")]
    places = places[0] if places and isinstance(places[0], list) else places
    if name not in base or len(places) != len(rows) or base[name].shape[1:] != rows.shape[1:]:
        found = f"{len(rows)} rows of {name} for {len(places)} tokens"
        raise refused(folder, f"the adapter has {found}, which do not fit its base")
    weight = base[name]
    missing = max(places, default=0) + 1 - len(weight)
    if missing > 0:
        weight = torch.cat([weight, weight.float().mean(0).to(weight.dtype).expand(missing, -1)])
    weight = weight.clone()
    weight[places] = rows.to(weight.dtype)
    return weight


def _plain_names(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Names as the base model has them; copies of what the adapter replaces are left out."""
    for name, tensor in tensors.items():
        if ".original_module." not in name:
            name = re.sub(r"\.modules_to_save(\.[^.]+)?(?=\.)", "", name.removeprefix("base_model.model."))
            yield name.replace(".base_layer.", "."), tensor


def _configuration(folder: Path) -> dict[str, Any]:
    try:
        settings = json.loads((folder / CONFIGURATION).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise refused(folder, f"{CONFIGURATION} is not valid JSON ({error})") from None
    if settings.get("peft_type", "LORA") != "LORA":
        raise refused(folder, f"its adapter is of the type {settings['peft_type']}; only LORA is merged")
    unknown = [key for key in NOT_MERGED if settings.get(key)]
    if unknown:
        raise refused(folder, f"{CONFIGURATION} sets {', '.join(unknown)}; merge it with peft, and load the result")
    return settings
