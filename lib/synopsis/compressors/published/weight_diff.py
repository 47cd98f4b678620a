"""Weight diffs, as the published gist LLaMA-7B models are released: tuned weights minus those of the base.

    weights = recover(read_weights(base), read_weights(diff))
    verify(weights, expected)

The base gets one zero row for the gist token, so that the last row of the diff is the tuned one. A released diff is
checked by the sum of all recovered values: in float32, tensor by tensor in the order of the published state, with or
without the rotary frequencies that transformers 4.28 kept there (the released sums count them). Whichever of the two
sums agrees, agrees; a wrong base does not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from synopsis.compressors.published.weight_files import read_tensors, refused
from synopsis.errors import ArtifactError
from synopsis.progress import track

FREQUENCIES = "rotary_emb.inv_freq"
TOLERANCE = 1e-2
"""By how much a sum may differ from the expected one, as in the published check."""
RELEASED = {"gist": 50547.9570, "pos_control": 50596.9141, "neg_control": 50503.8789}
"""Sums of the released LLaMA-7B models, frequencies counted."""
RELEASED_EMBEDDINGS = (32001, 4096)
RECORD, EXACT = "weight_diff.json", "weight_diff_exact.safetensors"
ORDER = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", f"self_attn.{FREQUENCIES}",
    "mlp.gate_proj", "mlp.down_proj", "mlp.up_proj", "input_layernorm", "post_attention_layernorm",
)  # fmt: skip
"""Of a layer's tensors in the published state; float32 sums depend on it."""


@dataclass(frozen=True)
class WeightSum:
    """The sum of a model's values, with and without the rotary frequencies of its layers."""

    with_frequencies: float
    without_frequencies: float

    def agrees(self, expected: float) -> bool:
        return min(abs(expected - found) for found in (self.with_frequencies, self.without_frequencies)) <= TOLERANCE

    def __str__(self) -> str:
        return f"{self.with_frequencies:.4f} with rotary frequencies and {self.without_frequencies:.4f} without"


def is_diff(folder: Path, weights: Mapping[str, Tensor]) -> bool:
    """Whether Llama weights are differences: their frequencies are all 0, or the final norm is next to 0."""
    if (folder / RECORD).is_file():
        return True
    frequencies = [tensor for name, tensor in weights.items() if name.endswith(FREQUENCIES)]
    if frequencies:
        return not any(bool(tensor.any()) for tensor in frequencies)
    norm = weights.get("model.norm.weight")
    return norm is not None and float(norm.float().abs().mean()) < 0.1


def recover(base: Mapping[str, Tensor], diff: Mapping[str, Tensor], theta: float = 10000.0) -> dict[str, Tensor]:
    """The tuned weights, in float32, under the names of `diff`; rows beyond those of the base start from 0.

    `theta`: of the rotary positions, for a base that was saved without its frequencies. ArtifactError when the two do
    not belong together.
    """
    recovered = {}
    for name, change in track(_ordered(diff).items(), "recovering weights", total=len(diff), unit="tensors"):
        start = base.get(name)
        if start is None and name.endswith(FREQUENCIES):
            start = frequencies(2 * len(change), theta)
        recovered[name] = change.float() + _grown(name, start, change)
    return recovered


def make_diff(base: Mapping[str, Tensor], tuned: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tuned minus base, in float32."""
    diff = {}
    for name, tensor in track(_ordered(tuned).items(), "subtracting the base", total=len(tuned), unit="tensors"):
        diff[name] = tensor.float() - _grown(name, base.get(name), tensor)
    return diff


def with_frequencies(weights: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
    """The weights and, for each layer, the frequencies that the published state held."""
    heads, theta = config.num_attention_heads, config.rope_parameters["rope_theta"]
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    layers = range(config.num_hidden_layers)
    names = [f"model.layers.{layer}.self_attn.{FREQUENCIES}" for layer in layers]
    return _ordered({**dict.fromkeys(names, frequencies(width, theta)), **weights})


def frequencies(width: int, theta: float) -> Tensor:
    """(width / 2,) rotary frequencies of a head, to the bit as transformers 4.28 computed them."""
    return 1.0 / (theta ** (torch.arange(0, width, 2).float() / width))


def weight_sum(weights: Mapping[str, Tensor], config: Any) -> WeightSum:
    """Sums of the published state that has these weights; frequencies are added where `weights` lack them."""
    whole = without = torch.zeros(())
    for name, tensor in with_frequencies(weights, config).items():
        part = tensor.float().sum()
        whole = whole + part
        without = without if name.endswith(FREQUENCIES) else without + part
    return WeightSum(whole.item(), without.item())


def verify(found: WeightSum, expected: Mapping[str, float], folder: Path | str) -> str:
    """The name of the expected sum that the found one agrees with; ArtifactError with the numbers when none does."""
    for name, value in expected.items():
        if found.agrees(value):
            return name
    wanted = ", ".join(f"{value:.4f} ({name})" for name, value in expected.items())
    raise ArtifactError(
        f"{folder}: the recovered weights are not those that the diff was made from: their sum is {found}; "
        f"expected {wanted}. The base is another one, or a file of the base or of the diff is damaged"
    )


def released_sums(diff: Mapping[str, Tensor], config: Any) -> dict[str, float]:
    """What the released models add up to (that of `gist_condition` alone, if it is given); nothing for other shapes."""
    words = diff.get("model.embed_tokens.weight")
    if words is None or tuple(words.shape) != RELEASED_EMBEDDINGS:
        return {}
    condition = getattr(config, "gist_condition", None)
    return {name: value for name, value in RELEASED.items() if condition in (None, name)}


# ------------------------------------------------------------------------------------------ beside a diff of our own


def write_record(
    folder: Path, base: Mapping[str, Tensor], diff: Mapping[str, Tensor], tuned: Mapping[str, Tensor], config: Any
) -> None:
    """Write what lets `read_record` and `correct` give the tuned weights back to the bit.

    A float32 difference is not always exact: where a weight is much smaller than that of the base, base + diff is off
    by a rounding. Those values stand in a file of their own, which the published code does not read.
    """
    record = {"dtypes": {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tuned.items()}}
    sums = asdict(weight_sum(tuned, config))
    (folder / RECORD).write_text(json.dumps({"sum": sums, **record}, indent=1) + "\n", encoding="utf-8")
    exact: dict[str, Tensor] = {}
    for name, change in track(diff.items(), "checking the diff", total=len(diff), unit="tensors"):
        found = (change + _grown(name, base.get(name), change)).flatten()
        wanted = tuned[name].float().flatten()
        places = (found.view(torch.int32) != wanted.view(torch.int32)).nonzero().flatten()
        if len(places):
            exact |= {f"{name}/places": places, f"{name}/values": wanted[places]}
    save_file(exact, folder / EXACT)


def read_record(folder: Path) -> dict[str, float]:
    """The expected sum that stands beside the diff, as {"weight_diff.json": sum}; nothing where there is none."""
    if not (folder / RECORD).is_file():
        return {}
    return {RECORD: float(_record(folder)["sum"]["with_frequencies"])}


def correct(folder: Path, recovered: dict[str, Tensor]) -> None:
    """Undo, in place, the roundings of a diff of our own, and give each tensor the precision that it had."""
    if not (folder / RECORD).is_file():
        return
    exact = read_tensors(folder / EXACT) if (folder / EXACT).is_file() else {}
    for name, places in exact.items():
        if name.endswith("/places"):
            tensor = name.removesuffix("/places")
            recovered[tensor].view(-1)[places] = exact[f"{tensor}/values"]
    for name, dtype in _record(folder)["dtypes"].items():
        recovered[name] = recovered[name].to(getattr(torch, dtype))


def _record(folder: Path) -> dict[str, Any]:
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return {"sum": record["sum"], "dtypes": record["dtypes"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise refused(folder, f"{RECORD} is damaged ({type(error).__name__}: {error})") from None


def _grown(name: str, start: Tensor | None, tuned: Tensor) -> Tensor:
    """The base's tensor in float32 with zero rows up to those of the tuned one."""
    if start is None:
        raise ArtifactError(f"the base has no {name}, which the diff changes: they do not belong together")
    more = tuned.shape[0] - start.shape[0]
    if more < 0 or start.shape[1:] != tuned.shape[1:] or (more and tuned.dim() != 2):
        shapes = f"{tuple(start.shape)} in the base and {tuple(tuned.shape)} in the diff"
        raise ArtifactError(f"{name} has the shape {shapes}: they do not belong together")
    start = start.float()
    return start if more == 0 else torch.cat([start, start.new_zeros(more, *start.shape[1:])])


def _ordered(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """In the order of the published state: embeddings, layers, final norm, head."""

    def place(name: str) -> tuple[int, int, int]:
        layer = re.match(r"model\.layers\.(\d+)\.(.*)$", name)
        if layer:
            return 1, int(layer[1]), next((i for i, part in enumerate(ORDER) if layer[2].startswith(part)), len(ORDER))
        ends = ("model.norm", "lm_head")
        return next(((2 + i, 0, 0) for i, part in enumerate(ends) if name.startswith(part)), (0, 0, 0))

    return dict(sorted(weights.items(), key=lambda item: place(item[0])))
