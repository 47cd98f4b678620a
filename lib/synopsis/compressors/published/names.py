"""What checkpoints of the published code look like, and what they leave unsaid.

Their key names are those of transformers' classes, with these differences:

AutoCompressor-*, RMT-*   `embed_summary.weight`, (summary_length, width of the words). config.json has summary_length
                          and accumulate_summary; its class is AutoCompressorModel or OPTAutoCompressorModel on OPT,
                          LlamaAutoCompressorModel on Llama.
FullAttention-*           nothing more, and a longer table of positions on OPT. summary_length is 0 or missing; the
                          class is one of the above, or that of the base.
llama-7b-*-1              differences to LLaMA-7B (`weight_diff`), and `layers.*.self_attn.rotary_emb.inv_freq`.
                          GistLlamaForCausalLM; config.json only shows that the vocabulary grew by `<GIST>`.
flan-t5-xxl-*-1           GistT5ForConditionalGeneration; the vocabulary is that of the tokenizer and `<GIST>`.

Nothing is ever taken from a checkpoint's name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synopsis.compressors.published.weight_files import refused

GIST_TOKEN = "<GIST>"
SUMMARY_KEY = "embed_summary.weight"
POSITIONS_KEY = "decoder.embed_positions.weight"
POSITIONS_OFFSET = 2
"""Rows of OPT's table of positions before that of position 0."""
COMPUTED = re.compile(r"(rotary_emb\.inv_freq|decoder\.version)$")
"""Buffers that old versions saved and that today's classes compute."""
SETTINGS = (
    "accumulate_summary",
    "gist_condition",
    "gist_token_id",
    "gist_tokens",
    "max_position_embeddings",
    "segment_gradient_checkpointing",
)
"""Fields of the configuration that a caller may set where the checkpoint says nothing, or something else."""


@dataclass(frozen=True)
class PublishedClass:
    """A class of the published code: its names (the first is written), and the transformers that it was written for."""

    kind: str
    architecture: str
    names: tuple[str, ...]
    transformers: str


CLASSES = (
    PublishedClass("summary", "opt", ("OPTAutoCompressorModel", "AutoCompressorModel"), "4.34.0"),
    PublishedClass("summary", "llama", ("LlamaAutoCompressorModel",), "4.34.0"),
    PublishedClass("gist", "llama", ("GistLlamaForCausalLM",), "4.28.1"),
    PublishedClass("gist", "t5", ("GistT5ForConditionalGeneration",), "4.28.1"),
)


def kind_of(config: Any, weights: Mapping[str, Tensor] | None = None, folder: Path | None = None) -> str | None:
    """`summary`, `gist`, or None for a plain language model; from the configuration, then weights and tokenizer.

    A configuration with a `summary_length` of 0 (full attention) is of the summary kind.
    """
    if hasattr(config, "compressor_kind"):  # a folder of ours
        return str(config.compressor_kind)
    classes = getattr(config, "architectures", None) or ()
    if getattr(config, "gist_token_id", None) is not None:
        return "gist"
    if getattr(config, "summary_length", None) is not None or (weights is not None and SUMMARY_KEY in weights):
        return "summary"
    if any(name.endswith("AutoCompressorModel") for name in classes):
        return "summary"
    if any(name.startswith("Gist") for name in classes) or (folder and gist_token_of(folder) is not None):
        return "gist"
    return None


def complete(config: Any, kind: str | None, weights: dict[str, Tensor], folder: Path) -> None:
    """Give `config` the fields that the kind needs and that only the weights or the tokenizer show; in place.

    Also takes out of `weights` what is computed, and extends OPT's table of positions to the length in `config`.
    """
    for name in [name for name in weights if COMPUTED.search(name)]:
        del weights[name]
    if kind == "summary":
        _complete_summary(config, weights, folder)
    if kind == "gist":
        _complete_gist(config, weights, folder)
    if config.model_type == "opt":
        _extend_positions(config, weights)


def gist_token_of(folder: Path) -> int | None:
    """Id of `<GIST>` among the added tokens of the folder's tokenizer; None where none of its files has it."""
    ids = _document(folder / "added_tokens.json")
    if GIST_TOKEN in ids:
        return int(ids[GIST_TOKEN])
    decoder = _document(folder / "tokenizer_config.json").get("added_tokens_decoder", {})
    listed = [{"id": key, **token} for key, token in decoder.items() if isinstance(token, dict)]
    listed += _document(folder / "tokenizer.json").get("added_tokens", [])
    return next((int(token["id"]) for token in listed if token.get("content") == GIST_TOKEN), None)


def has_tokenizer(folder: Path) -> bool:
    return any(folder.glob("tokenizer*")) or any(folder.glob("spiece.model"))


def input_embeddings(weights: Mapping[str, Tensor]) -> Tensor | None:
    """The (vocabulary, width) matrix of words, by its usual names."""
    ends = ("embed_tokens.weight", "shared.weight")
    return next((tensor for name, tensor in weights.items() if name.endswith(ends)), None)


def _complete_summary(config: Any, weights: Mapping[str, Tensor], folder: Path) -> None:
    rows = len(weights[SUMMARY_KEY]) if SUMMARY_KEY in weights else 0
    stated = getattr(config, "summary_length", None)
    if stated is None:
        config.summary_length = rows
    elif rows and stated != rows:
        raise refused(folder, f"config.json says summary_length {stated}, but {SUMMARY_KEY} has {rows} rows")


def _complete_gist(config: Any, weights: Mapping[str, Tensor], folder: Path) -> None:
    words = input_embeddings(weights)
    if words is None:
        return  # reported as a missing weight when the model is built
    rows = len(words)
    config.vocab_size = rows
    if getattr(config, "gist_token_id", None) is None:
        token = gist_token_of(folder)
        # The published code adds the token last; a tokenizer without it belongs to a model that has none yet.
        config.gist_token_id = rows - 1 if token is None and not has_tokenizer(folder) else token
    if config.gist_token_id is not None and not 0 <= config.gist_token_id < rows:
        raise refused(folder, f"the gist token has the id {config.gist_token_id}, but there are {rows} embeddings")


def _extend_positions(config: Any, weights: dict[str, Tensor]) -> None:
    """Rows beyond the saved table repeat it from position 0, as the paper's full attention on OPT starts them."""
    name = next((name for name in weights if name.endswith(POSITIONS_KEY)), None)
    if name is None:
        return
    table = weights[name]  # (2 + positions, width)
    saved, wanted = len(table) - POSITIONS_OFFSET, config.max_position_embeddings
    if 0 < saved < wanted:
        rows = torch.arange(wanted, device=table.device) % saved + POSITIONS_OFFSET
        weights[name] = torch.cat([table[:POSITIONS_OFFSET], table[rows]])


def _document(path: Path) -> dict[str, Any]:
    """A JSON object, or nothing where there is none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
