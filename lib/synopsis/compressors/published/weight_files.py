"""The tensors of a model folder, from safetensors or from `.bin` files that hold tensors and nothing else.

    weights = read_weights("models/run")        # {"model.embed_tokens.weight": Tensor, ...}

Tensors are mapped from the files: nothing is read before it is used. Every error names its file.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from synopsis.errors import ArtifactError

SINGLE = ("model.safetensors", "pytorch_model.bin")
ADAPTER = ("adapter_model.safetensors", "adapter_model.bin")
OTHER_FORMATS = (".msgpack", ".h5", ".ckpt", ".pkl", ".pickle", ".pt", ".pth", ".onnx", ".gguf", ".npz", ".index")
"""What other programs keep weights in; named in the message that refuses them."""
NOT_WEIGHTS = ("training_args.bin", "optimizer.bin", "scheduler.bin", "tokenizer.model")


def has_weights(folder: Path) -> bool:
    return any((folder / name).is_file() or (folder / f"{name}.index.json").is_file() for name in SINGLE)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All the tensors of a folder written by `save_pretrained`, in shards or not; safetensors come first.

    ArtifactError when there are none, a shard is missing, a file is damaged, or it holds more than tensors.
    """
    weights: dict[str, Tensor] = {}
    for file in _files(folder):
        weights.update(read_tensors(file))
    if not weights:
        raise refused(folder, "its weight files hold no tensors")
    return weights


def read_adapter(folder: Path) -> dict[str, Tensor]:
    """The tensors of a peft adapter."""
    for name in ADAPTER:
        if (folder / name).is_file():
            return read_tensors(folder / name)
    raise refused(folder, f"it has adapter_config.json but no {' or '.join(ADAPTER)}")


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of one file."""
    return _safetensors(file) if file.suffix == ".safetensors" else _plain_pickle(file)


def refused(folder: Path | str, reason: str) -> ArtifactError:
    """The error of a folder that cannot be loaded."""
    return ArtifactError(f"{folder}: cannot be loaded as a model: {reason}")


def _files(folder: Path) -> list[Path]:
    for name in SINGLE:
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _shards(index)
        if (folder / name).is_file():
            return [folder / name]
    found = sorted(file.name for file in folder.iterdir() if file.suffix in OTHER_FORMATS)
    found += sorted(file.name for file in folder.glob("*.bin") if file.name not in NOT_WEIGHTS)
    stands = f"; found {', '.join(found[:4])}" if found else ""
    raise refused(folder, f"no weights that are read: expected {' or '.join(SINGLE)}, or their shards{stands}")


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise refused(index.parent, f"{index.name} is no index of shards ({reason})") from None
    files = [index.parent / Path(name).name for name in names]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        more = f" and {len(missing) - 3} others" if len(missing) > 3 else ""
        raise refused(index.parent, f"{index.name} names {', '.join(missing[:3])}{more}, which are not there")
    return files


def _safetensors(file: Path) -> dict[str, Tensor]:
    try:
        with safe_open(file, framework="pt") as tensors:
            return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise _damaged(file, error) from error


def _plain_pickle(file: Path) -> dict[str, Tensor]:
    """Only the zip format can be mapped; the one before it (torch 1.5) is read as a whole."""
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        if file.stat().st_size == 0 or "Weights only" not in str(error):
            raise _damaged(file, error) from error
        raise refused(
            file.parent,
            f"{file.name} holds Python objects, which could run code. Only plain tensors are read: "
            "save them as safetensors, with a program that you trust",
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise _damaged(file, error) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise refused(file.parent, f"{file.name} holds {type(state).__name__}; expected tensors by name")
    return state


def _damaged(file: Path, error: Exception) -> ArtifactError:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return refused(file.parent, f"{file.name} is truncated or damaged ({reason})")
