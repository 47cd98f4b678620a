"""Checkpoints with the key names and configurations of the published ones, at reduced size, with random weights.

The names are those of transformers' own classes, which the golden files of tests/parity hold too.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

WORDS, WIDTH, INNER, LAYERS, HEADS, POSITIONS, SUMMARY = 61, 32, 48, 2, 4, 40, 3
HEAD = WIDTH // HEADS
BUCKETS = 8

OPT_CONFIG: dict[str, Any] = {
    "model_type": "opt",
    "vocab_size": WORDS,
    "hidden_size": WIDTH,
    "word_embed_proj_dim": WIDTH,
    "ffn_dim": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": POSITIONS,
    "bos_token_id": 2,
    "eos_token_id": 2,
    "pad_token_id": 1,
    "dropout": 0.1,
    "torch_dtype": "float32",
    "transformers_version": "4.34.0",
}
LLAMA_CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": WORDS,
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": POSITIONS,
    "rms_norm_eps": 1e-06,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "transformers_version": "4.28.1",
}
T5_CONFIG: dict[str, Any] = {
    "model_type": "t5",
    "vocab_size": WORDS,
    "d_model": WIDTH,
    "d_kv": HEAD,
    "d_ff": INNER,
    "num_layers": LAYERS,
    "num_decoder_layers": LAYERS,
    "num_heads": HEADS,
    "relative_attention_num_buckets": BUCKETS,
    "feed_forward_proj": "gated-gelu",
    "is_encoder_decoder": True,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
    "torch_dtype": "float32",
    "transformers_version": "4.28.1",
}


def _shapes(config: dict[str, Any], *left_out: str) -> dict[str, tuple[int, ...]]:
    auto: Any = AutoModelForSeq2SeqLM if config["model_type"] == "t5" else AutoModelForCausalLM
    with torch.device("meta"):
        state = auto.from_config(AutoConfig.for_model(**config)).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items() if name not in left_out}


TIED_T5 = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
OPT = _shapes(OPT_CONFIG, "lm_head.weight")
LLAMA = _shapes(LLAMA_CONFIG)
T5 = _shapes(T5_CONFIG, *TIED_T5)
FREQUENCIES = {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": (HEAD // 2,) for n in range(LAYERS)}
SUMMARY_KEYS = {"embed_summary.weight": (SUMMARY, WIDTH)}


@dataclass(frozen=True)
class Published:
    """A published checkpoint: its configuration, its keys, and what it must load as."""

    config: dict[str, Any]
    keys: dict[str, tuple[int, ...]]
    cls: str
    fields: dict[str, Any]
    files: dict[str, Any] = field(default_factory=dict)
    not_loaded: tuple[str, ...] = ()

    def weights(self, seed: int = 0) -> dict[str, Tensor]:
        """Random, of a size that makes logits of the order of 1; frequencies as transformers 4.28 saved them."""
        generator = torch.Generator().manual_seed(seed)
        tensors = {key: torch.randn(shape, generator=generator) * 0.2 for key, shape in self.keys.items()}
        for key, tensor in tensors.items():
            if key.endswith("norm.weight"):
                tensor += 1
            if key.endswith("inv_freq"):
                tensors[key] = 1.0 / (10000.0 ** (torch.arange(0, HEAD, 2).float() / HEAD))
        if self.config["model_type"] == "opt" and "lm_head.weight" in tensors:
            tensors["lm_head.weight"] = tensors["model.decoder.embed_tokens.weight"]
        if "shared.weight" in tensors:
            tensors |= {key: tensors["shared.weight"] for key in TIED_T5}
        return tensors

    def write(self, folder: Path, form: str = "safetensors", seed: int = 0, **config: Any) -> dict[str, Tensor]:
        """Write the folder in one of `FORMS`; returns its weights."""
        weights = self.weights(seed)
        write_folder(folder, {**self.config, **config}, weights, form)
        for name, document in self.files.items():
            (folder / name).write_text(json.dumps(document))
        return weights


def write_folder(folder: Path, config: dict[str, Any], weights: dict[str, Tensor], form: str = "safetensors") -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    FORMS[form](folder, weights)


def _safetensors(folder: Path, weights: dict[str, Tensor], name: str = "model.safetensors") -> None:
    save_file({key: tensor.clone() for key, tensor in weights.items()}, folder / name, metadata={"format": "pt"})


def _bin(folder: Path, weights: dict[str, Tensor], name: str = "pytorch_model.bin") -> None:
    torch.save(weights, folder / name)


def _old_bin(folder: Path, weights: dict[str, Tensor]) -> None:
    torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)


def _shards(stem: str, ending: str, write: Callable[..., None]) -> Callable[[Path, dict[str, Tensor]], None]:
    def written(folder: Path, weights: dict[str, Tensor]) -> None:
        names = sorted(weights)
        parts = {f"{stem}-0000{n + 1}-of-00002.{ending}": names[n::2] for n in range(2)}
        for file, keys in parts.items():
            write(folder, {key: weights[key] for key in keys}, file)
        index = {"metadata": {}, "weight_map": {key: file for file, keys in parts.items() for key in keys}}
        (folder / f"{stem}.{ending}.index.json").write_text(json.dumps(index))

    return written


FORMS: dict[str, Callable[[Path, dict[str, Tensor]], None]] = {
    "safetensors": _safetensors,
    "bin": _bin,
    "bin-of-torch-1.5": _old_bin,
    "bin-shards": _shards("pytorch_model", "bin", _bin),
    "safetensors-shards": _shards("model", "safetensors", _safetensors),
}
ROTARY = {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 50000.0}
SUMMARY_FIELDS = {"summary_length": SUMMARY, "accumulate_summary": True}
RMT_FIELDS = {"summary_length": SUMMARY, "accumulate_summary": False}
GIST_FIELDS = {"gist_token_id": WORDS - 1, "gist_condition": "gist", "gist_tokens": 1, "vocab_size": WORDS}
TOKENS = [{"id": 3, "content": "<pad>"}, {"id": WORDS - 1, "content": "<GIST>"}]
ADDED = {"added_tokens.json": {"<GIST>": WORDS - 1}, "tokenizer_config.json": {"tokenizer_class": "LlamaTokenizer"}}


def _published(
    config: dict[str, Any], keys: Any, cls: str, fields: Any, written: str = "", said: bool = True, **others: Any
) -> Published:
    """Its class is called `written`, if not `cls`; its configuration says the fields, or not."""
    config = {**config, "architectures": [written or cls], **(fields if said else {})}
    return Published(config, keys, cls, fields, **others)


OURS, OLD, LLAMA_OURS = "OPTAutoCompressorModel", "AutoCompressorModel", "LlamaAutoCompressorModel"
OPT_SUMMARY, LLAMA_SUMMARY, LLAMA_OLD = {**OPT, **SUMMARY_KEYS}, {**LLAMA, **SUMMARY_KEYS}, {**LLAMA, **FREQUENCIES}
NO_SUMMARY = {"summary_length": 0, "accumulate_summary": False}
NOT_LOADED = tuple(FREQUENCIES)
CHECKPOINTS = {
    "AutoCompressor-OPT": _published(OPT_CONFIG, OPT_SUMMARY, OURS, SUMMARY_FIELDS),
    # neither class nor length: both follow from embed_summary
    "AutoCompressor-OPT-unsaid": _published(OPT_CONFIG, OPT_SUMMARY, OURS, SUMMARY_FIELDS, "OPTForCausalLM", False),
    "RMT-OPT": _published(OPT_CONFIG, OPT_SUMMARY, OURS, RMT_FIELDS, OLD),
    "FullAttention-OPT": _published(OPT_CONFIG, OPT, OURS, NO_SUMMARY, OLD),
    "FullAttention-OPT-unsaid": _published(OPT_CONFIG, {**OPT, "lm_head.weight": (WORDS, WIDTH)}, "OPTForCausalLM", {}),
    "AutoCompressor-Llama": _published({**LLAMA_CONFIG, **ROTARY}, LLAMA_SUMMARY, LLAMA_OURS, SUMMARY_FIELDS),
    "FullAttention-Llama": _published(LLAMA_CONFIG, LLAMA_OLD, "LlamaForCausalLM", {}, not_loaded=NOT_LOADED),
    "gist-Llama": _published(
        LLAMA_CONFIG, LLAMA_OLD, "GistLlamaForCausalLM", GIST_FIELDS, "", False, files=ADDED, not_loaded=NOT_LOADED
    ),
    "gist-T5": _published(
        T5_CONFIG,
        T5,
        "GistT5ForConditionalGeneration",
        {**GIST_FIELDS, "scale_decoder_outputs": False},
        said=False,
        files={"tokenizer.json": {"added_tokens": TOKENS}},
    ),
}
