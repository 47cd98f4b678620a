"""Outputs of the published code: their folders, cases, and weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig

COMMITTED = Path(__file__).parent / "golden"
NOT_CONFIGURATION = ("transformers_version", "torch_dtype", "_name_or_path", "architectures")

_tensors = lru_cache(maxsize=8)(load_file)


@dataclass(frozen=True)
class Golden:
    """A set of outputs: a folder of folders; each file is read when a test asks for it."""

    name: str
    folder: Path

    def paths(self, *patterns: str) -> list[Path]:
        """The folders and files that fit one of the patterns."""
        return sorted({path for pattern in patterns for path in self.folder.glob(pattern)})

    def folders(self, *patterns: str) -> list[str]:
        """Names of the folders that fit one of the patterns."""
        return [path.name for path in self.paths(*patterns) if path.is_dir()]

    def document(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text())

    def documents(self, pattern: str) -> list[Any]:
        """The JSON files that fit a pattern."""
        return [json.loads(path.read_text()) for path in self.paths(pattern)]

    def cases(self, fixture: str) -> dict[str, Case]:
        path = self.folder / fixture / "cases.json"
        records = json.loads(path.read_text())["cases"] if path.is_file() else {}
        return {name: Case(self, fixture, name, record) for name, record in records.items()}


def golden_sets(config: pytest.Config) -> list[Golden]:
    """The committed selection, and the set of `--golden`."""
    given = config.getoption("--golden", default=None)
    return [Golden("committed", COMMITTED), *([Golden("given", Path(given).resolve())] if given else [])]


def parameters(found: dict[str, Any], *patterns: str) -> list[Any]:
    """Parameters of a test by their names; a skipped one where nothing was found."""
    reason = f"no {', '.join(patterns)} in tests/parity/golden; give the folder of a set that has it with --golden"
    missing = pytest.param(None, id="none", marks=pytest.mark.skip(reason))
    return [pytest.param(value, id=name) for name, value in found.items()] or [missing]


@dataclass(frozen=True)
class Case:
    """One call of the published code: its description (`record`), its inputs and outputs, and the model it ran on."""

    golden: Golden
    fixture: str
    name: str
    record: dict[str, Any]

    @cached_property
    def meta(self) -> dict[str, Any]:
        """Facts of the whole folder, such as `gist_token` and `pad_token`."""
        return self.document("cases")["meta"]

    def document(self, name: str) -> dict[str, Any]:
        """A JSON file of the folder."""
        return json.loads((self.golden.folder / self.fixture / f"{name}.json").read_text())

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors of this case, as `in/<argument>` and `out/<name>`."""
        path, own = self.golden.folder / self.fixture / "tensors.safetensors", f"{self.name}/"
        found = _tensors(path) if path.is_file() else {}
        return {key.removeprefix(own): tensor.clone() for key, tensor in found.items() if key.startswith(own)}

    def shared(self, name: str) -> Tensor:
        """A tensor of the folder that all its cases have."""
        return _tensors(self.golden.folder / self.fixture / "tensors.safetensors")[name].clone()

    def model(self, cls: Any, config: str = "config", weights: str = "model", **fields: Any) -> Any:
        """The folder's model as `cls`, with its published weights and configuration, changed by `fields`."""
        folder = self.golden.folder / self.fixture
        written = {**self.document(config), **fields}
        kept = {key: value for key, value in written.items() if key not in NOT_CONFIGURATION}
        model = cls(AutoConfig.for_model(**kept))
        model.load_state_dict(published_weights(model, load_file(folder / f"{weights}.safetensors")))
        return model.eval()

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of the call."""
        return {
            key: self.tensors[f"in/{key}"] if isinstance(value, dict) else value
            for key, value in self.record.get("kwargs", {}).items()
        }

    def __getitem__(self, output: str) -> Tensor:
        return self.tensors[f"out/{output}"]

    def __contains__(self, output: str) -> bool:
        return f"out/{output}" in self.tensors

    def gradients(self) -> dict[str, Tensor]:
        prefix = "out/grad."
        return {key.removeprefix(prefix): tensor for key, tensor in self.tensors.items() if key.startswith(prefix)}


def published_weights(model: torch.nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state without buffers that today's classes compute, and with the tied weights that were left out."""
    own = model.state_dict()
    state = {name: tensor for name, tensor in state.items() if not name.endswith("rotary_emb.inv_freq")}
    for tied, source in (
        getattr(model, "_tied_weights_keys", None).items() if hasattr(model, "_tied_weights_keys") else ()
    ):
        if tied in own and tied not in state and source in state:
            state[tied] = state[source]
    return state


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """The largest difference is within `tolerance` of the largest value."""
    largest = float(expected.detach().abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(found, expected, atol=tolerance * largest, rtol=0.0)


def shifts_scores(name: str) -> bool:
    """Whether a weight adds the same to all scores of a query: its gradient is 0, and what is computed is rounding."""
    return name.endswith("k_proj.bias")


def close_gradient(name: str, found: Tensor, expected: Tensor, largest: float) -> None:
    """Within 1e-4 of the tensor's largest value; `largest`: of all gradients."""
    if shifts_scores(name):
        assert max(float(found.abs().max()), float(expected.abs().max())) < 1e-6 * largest
    else:
        close(found, expected, 1e-4)
