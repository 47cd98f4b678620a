"""CompressedContext: what a later call needs instead of the original tokens, for every method."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from synopsis.artifacts import atomic_file
from synopsis.errors import ArtifactError

FORMAT = "synopsis-context-1"
CONFIGURATION = (
    "model_type",
    "rope_parameters",
    "relative_attention_max_distance",
    "accumulate_summary",
    "gist_condition",
    "gist_token_id",
)
"""Settings that change what the same weights make of a context."""
OPTIONAL = ("summary_vectors", "hidden_states", "mask")


@dataclass(frozen=True)
class CompressedContext:
    """Compressed context of a batch.

    Exactly one of the two forms is set:
    summary_vectors: (batch, k, hidden), put before the next tokens as a soft prompt;
    keys, values: per layer (batch, kv_heads, k, head_dim), the cached gist activations.

    next_position: (batch,) position at which each row goes on; source_tokens: (batch,) tokens each row stands for;
    fingerprint: of the model that made it; mask: (batch, k), 0 where a row holds fewer than k vectors, None where none
    does; hidden_states: (batch, k, hidden), what the encoder of an encoder-decoder gives for the kept tokens.
    """

    next_position: Tensor
    source_tokens: Tensor
    fingerprint: str
    summary_vectors: Tensor | None = None
    keys: tuple[Tensor, ...] = ()
    values: tuple[Tensor, ...] = ()
    hidden_states: Tensor | None = None
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        if (self.summary_vectors is None) == (not self.keys):
            raise ValueError("a context holds either summary vectors or keys and values")
        if self.mask is not None and self.mask.shape != (self.batch_size, self.length):
            raise ValueError(f"mask has shape {tuple(self.mask.shape)}; expected ({self.batch_size}, {self.length})")

    @property
    def batch_size(self) -> int:
        return self.next_position.shape[0]

    @property
    def length(self) -> int:
        """Vectors in each row, those that `mask` hides counted."""
        return self.summary_vectors.shape[1] if self.summary_vectors is not None else self.keys[0].shape[2]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._tensors().values())

    @property
    def compression_ratio(self) -> Tensor:
        """(batch,) source tokens per vector."""
        return self.source_tokens / self.attention_mask.sum(-1).clamp(min=1)

    @property
    def attention_mask(self) -> Tensor:
        """(batch, k): `mask`, or ones."""
        return self.next_position.new_ones(self.batch_size, self.length) if self.mask is None else self.mask

    def check_finite(self) -> None:
        """ValueError for activations that are infinite or not numbers."""
        tensors = [tensor for tensor in self._tensors().values() if tensor.is_floating_point()]
        finite = torch.stack([tensor.isfinite().flatten(1).all(-1) for tensor in tensors]).all(0)  # (B,)
        if not bool(finite.all()):
            raise ValueError(f"row {int((~finite).nonzero()[0])} of the context holds activations that are not finite")

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> CompressedContext:
        """Move to a device; `dtype` applies to the activations and not to positions."""

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)

        return self._map(moved)

    def select(self, rows: Sequence[int] | Tensor) -> CompressedContext:
        """The given rows, repeated where an index is."""
        index = torch.as_tensor(rows, device=self.next_position.device)
        return self._map(lambda tensor: tensor[index])

    def expand(self, batch_size: int) -> CompressedContext:
        """One context for many rows, without a copy."""
        if self.batch_size == batch_size:
            return self
        if self.batch_size != 1:
            raise ValueError(f"a context of {self.batch_size} rows cannot serve a batch of {batch_size}")
        return self._map(lambda tensor: tensor.expand(batch_size, *tensor.shape[1:]))

    @staticmethod
    def concat(contexts: Sequence[CompressedContext]) -> CompressedContext:
        """Several contexts of one model as one batch; shorter ones are padded on the left, and `mask` says where."""
        if not contexts:
            raise ValueError("there are no contexts to form a batch of")
        first = contexts[0]
        for other in contexts:
            if other.fingerprint != first.fingerprint:
                raise ValueError("contexts of different models cannot form one batch")
        length = max(context.length for context in contexts)
        if any(context.length != length or context.mask is not None for context in contexts):
            contexts = [context._padded(length) for context in contexts]
        merged = {key: torch.cat([c._tensors()[key] for c in contexts]) for key in contexts[0]._tensors()}
        return _from_tensors(merged, first.fingerprint)

    def _padded(self, length: int) -> CompressedContext:
        """With `length` vectors in each row: zeros before its own, hidden by the mask."""
        missing = length - self.length

        def padded(tensor: Tensor) -> Tensor:  # (..., k, width)
            return nn.functional.pad(tensor, (0, 0, missing, 0))

        return replace(
            self,
            summary_vectors=None if self.summary_vectors is None else padded(self.summary_vectors),
            keys=tuple(padded(key) for key in self.keys),
            values=tuple(padded(value) for value in self.values),
            hidden_states=None if self.hidden_states is None else padded(self.hidden_states),
            mask=nn.functional.pad(self.attention_mask, (missing, 0)),
        )

    def save(self, path: str | Path) -> None:
        """One safetensors file; the fingerprint and a hash of the tensors stand in its header."""
        tensors = {key: tensor.contiguous().clone() for key, tensor in self._tensors().items()}
        metadata = {"format": FORMAT, "fingerprint": self.fingerprint, "sha256": _hash(tensors)}
        content = save(tensors, metadata=metadata)
        with atomic_file(path) as temporary:
            temporary.write_bytes(content)  # the errors of safetensors' own writing hide that the disk is full

    @staticmethod
    def load(path: str | Path) -> CompressedContext:
        """Raises ArtifactError when the file is missing, truncated, no context, or has changed since it was written."""
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
        except FileNotFoundError:
            raise ArtifactError(f"{path}: no such file") from None
        except (SafetensorError, OSError) as error:
            raise ArtifactError(f"{path}: not a readable safetensors file: {error}") from None
        if metadata.get("format") != FORMAT:
            raise ArtifactError(f"{path}: format {metadata.get('format')!r}; expected {FORMAT!r}")
        if metadata.get("sha256", found := _hash(tensors)) != found:
            raise ArtifactError(f"{path}: has changed since it was written. Compress the text again.")
        try:
            return _from_tensors(tensors, metadata["fingerprint"])
        except (KeyError, ValueError) as error:
            raise ArtifactError(f"{path}: not a whole context: {error}") from None

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {"next_position": self.next_position, "source_tokens": self.source_tokens}
        for name in OPTIONAL:
            if getattr(self, name) is not None:
                tensors[name] = getattr(self, name)
        for layer, (key, value) in enumerate(zip(self.keys, self.values, strict=True)):
            tensors[f"keys.{layer}"], tensors[f"values.{layer}"] = key, value
        return tensors

    def _map(self, function: Any) -> CompressedContext:
        return _from_tensors({key: function(tensor) for key, tensor in self._tensors().items()}, self.fingerprint)


def _hash(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _from_tensors(tensors: dict[str, Tensor], fingerprint: str) -> CompressedContext:
    layers = sum(key.startswith("keys.") for key in tensors)
    return CompressedContext(
        next_position=tensors["next_position"],
        source_tokens=tensors["source_tokens"],
        fingerprint=fingerprint,
        keys=tuple(tensors[f"keys.{layer}"] for layer in range(layers)),
        values=tuple(tensors[f"values.{layer}"] for layer in range(layers)),
        **{name: tensors.get(name) for name in OPTIONAL},
    )


def fingerprint(model: nn.Module) -> str:
    """Short hash of what a context depends on: settings of the configuration, and samples of all the weights.

    It is the same on every device and in every dtype.
    """
    settings = json.dumps(settings_of(model.config), sort_keys=True, default=str)
    digest = hashlib.sha256(settings.encode())
    for name, parameter in model.named_parameters():
        flat = parameter.detach().reshape(-1)
        step = max(1, flat.numel() // 16)
        # bfloat16 keeps 8 bits of mantissa: a model loaded in another dtype has the same fingerprint.
        sample = flat[::step][:16].to("cpu", torch.bfloat16).float().tolist()
        digest.update(json.dumps([name, list(parameter.shape), sample]).encode())
    return digest.hexdigest()[:16]


def settings_of(config: Any) -> dict[str, Any]:
    return {key: getattr(config, key, None) for key in CONFIGURATION}
