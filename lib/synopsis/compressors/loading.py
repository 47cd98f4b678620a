"""From a folder to a model: the family and class follow from its configuration, never from its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from synopsis.compressors.registry import compressor_class
from synopsis.errors import ArtifactError

def kind_of(config: Any) -> str | None:
    """`summary`, `gist`, or None for a plain causal language model."""
    if getattr(config, "gist_token_id", None) is not None:
        return "gist"
    return "summary" if getattr(config, "summary_length", 0) else None


def load(
    path: str | Path, device: str | torch.device | None = None, dtype: torch.dtype = torch.float32, **options: Any
) -> PreTrainedModel:
    """Load a model for evaluation from a folder or hub id; `device` None takes a GPU where there is one.

    Raises ArtifactError when the folder is missing, incomplete or damaged.
    """
    _must_be_whole(path)
    try:
        config = AutoConfig.from_pretrained(path)
        kind = kind_of(config)
        cls: Any = AutoModelForCausalLM if kind is None else compressor_class(kind, config.model_type)
        model, report = cls.from_pretrained(
            path, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
        )
    except (OSError, ValueError, SafetensorError, RuntimeError) as error:
        raise ArtifactError(f"{path}: cannot be loaded as a model: {str(error).splitlines()[0]}") from error
    if report["missing_keys"]:
        raise ArtifactError(f"{path}: the weights lack {', '.join(sorted(report['missing_keys'])[:3])}")
    return model.to(device or default_device()).eval()


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: no tokenizer can be loaded: {str(error).splitlines()[0]}") from error


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _must_be_whole(path: str | Path) -> None:
    folder = Path(path)
    if not folder.exists() and len(folder.parts) > 2:
        raise ArtifactError(f"{path}: no such folder; the stage that writes it has not run")
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ArtifactError(f"{path}: has no config.json; it is no model folder, or an incomplete one")
