"""Files of contexts and models that are damaged, incomplete or of another kind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from compressor_models import gist_model, summary_model
from damage import flips
from safetensors.torch import load_file, save_file
from synopsis.compressors import CompressedContext, load
from synopsis.errors import ArtifactError


@pytest.fixture
def context() -> CompressedContext:
    return summary_model().compress(torch.tensor([[5, 6, 7], [8, 9, 10]]))


def test_damaged_contexts_are_reported(context: CompressedContext, tmp_path: Path) -> None:
    path = tmp_path / "context.safetensors"
    with pytest.raises(ArtifactError, match="no such file"):
        CompressedContext.load(path)
    context.save(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ArtifactError, match="not a readable safetensors file"):
        CompressedContext.load(path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(ArtifactError, match="format None; expected"):
        CompressedContext.load(path)
    save_file({"x": torch.zeros(1)}, path, metadata={"format": "synopsis-context-1", "fingerprint": "0"})
    with pytest.raises(ArtifactError, match="not a whole context"):
        CompressedContext.load(path)


def test_every_change_of_a_context_is_reported(context: CompressedContext, tmp_path: Path) -> None:
    path = tmp_path / "context.safetensors"
    context.save(path)
    whole = path.read_bytes()
    data = 8 + int.from_bytes(whole[:8], "little")
    for place in flips(path, 300):
        if place >= data:
            with pytest.raises(ArtifactError, match=r"context\.safetensors: has changed since it was written"):
                CompressedContext.load(path)
    metadata = {"format": "synopsis-context-1", "fingerprint": context.fingerprint}
    save_file(load_file(path), path, metadata=metadata)  # as an earlier version wrote it
    assert CompressedContext.load(path).fingerprint == context.fingerprint


def test_contexts_that_do_not_belong_together_are_refused(context: CompressedContext) -> None:
    other = summary_model(seed=1).compress(torch.tensor([[5]]))
    for contexts, message in (([], "no contexts"), ([context, other], "different models")):
        with pytest.raises(ValueError, match=message):
            CompressedContext.concat(contexts)
    with pytest.raises(ValueError, match="either summary vectors or keys"):
        CompressedContext(context.next_position, context.source_tokens, "0")


def test_a_dtype_applies_to_activations_alone(context: CompressedContext) -> None:
    moved = context.to(dtype=torch.bfloat16)
    assert moved.summary_vectors is not None and moved.summary_vectors.dtype == torch.bfloat16
    assert moved.next_position.dtype == torch.long and moved.nbytes == context.nbytes - 2 * 2 * 3 * 32


def test_incomplete_models_are_reported(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such folder"):
        load(tmp_path / "models" / "run", "cpu")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match=r"no config\.json"):
        load(tmp_path / "empty", "cpu")
    gist_model().save_pretrained(tmp_path / "run")
    weights = tmp_path / "run" / "model.safetensors"
    tensors = load_file(weights)
    save_file({name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}, weights, {"format": "pt"})
    with pytest.raises(ArtifactError, match=r"the weights lack lm_head\.weight"):
        load(tmp_path / "run", "cpu")
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(ArtifactError, match="cannot be loaded as a model"):
        load(tmp_path / "run", "cpu")
