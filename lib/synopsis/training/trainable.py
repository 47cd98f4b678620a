"""What of a model learns: everything, the new embeddings alone, or LoRA adapters beside them; and how it is saved.

*New embeddings* are what the base does not have: the summary tokens' table, or the gist token's row of the embeddings.
LoRA (Hu et al. 2022) is put into the model in place by peft, so that the model keeps its class and its methods.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from synopsis.compressors.adapters import FACTOR, TOKEN_ROWS, change_of
from synopsis.config.training import LowRank, Optimisation, SegmentTraining
from synopsis.errors import InputError

PEFT_PREFIX = "base_model.model."
BASE_LAYER = ".base_layer"


def choose_trainable(model: Any, training: Optimisation) -> None:
    """Freeze what the training section does not train, and put LoRA where it wants it; in place.

    InputError when that leaves nothing to learn, or names layers that the model does not have.
    """
    if training.lora is None and training.train_only == "everything":
        return
    if training.lora is None:
        _check_learns(model, training)
        model.requires_grad_(False)
    else:
        _add_low_rank(model, training.lora)
    for name, row in _added_weights(model).items():
        if row is None:
            model.get_parameter(name).requires_grad_(True)
            continue
        if training.fsdp:
            raise InputError("fsdp shards the embeddings, of which lora and train_only new_embeddings train one row")
        if training.deepspeed and training.weight_decay:
            raise InputError("weight_decay with deepspeed would change the embeddings, of which one row is trained")
        if model.get_parameter(name) is model.get_input_embeddings().weight:
            train_row(model.get_input_embeddings().weight, row)


def _added_weights(model: Any) -> dict[str, int | None]:
    """Parameters that the base does not have -> their new row, None for all of them."""
    return model.added_weights() if hasattr(model, "added_weights") else {}


def train_row(weight: nn.Parameter, row: int) -> None:
    """From now on only one row of a matrix gets a gradient; weight decay must leave it alone (see `not_decayed`)."""

    def keep_row(gradient: Tensor) -> Tensor:
        kept = torch.zeros_like(gradient)
        kept[row] = gradient[row]
        return kept

    weight.requires_grad_(True)
    weight.register_hook(keep_row)
    weight.trained_row = row  # type: ignore[attr-defined]


def not_decayed(model: nn.Module) -> set[str]:
    """Names of the parameters that weight decay must leave alone: of those, only a row is trained."""
    return {name for name, weight in model.named_parameters() if hasattr(weight, "trained_row")}


def is_partial(model: nn.Module) -> bool:
    """Whether some parameters are frozen, so that checkpoints need not hold them."""
    return any(not parameter.requires_grad for parameter in model.parameters())


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that are trained: what a checkpoint of a partly frozen model holds."""
    return {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}


def _check_learns(model: Any, training: Optimisation) -> None:
    if not _added_weights(model):
        raise InputError("train_only new_embeddings: this model has no summary tokens and no gist token to train")
    if isinstance(training, SegmentTraining) and training.segments_per_substep == 1:
        raise InputError(
            "train_only new_embeddings with segments_per_substep 1: gradients stop between substeps, so the summary "
            "tokens would learn nothing; use 2 segments or more"
        )


def _add_low_rank(model: Any, lora: LowRank) -> None:
    from peft import inject_adapter_in_model

    linear = {name.split(".")[-1] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    missing = [target for target in lora.targets if target not in linear]
    if missing:
        raise InputError(
            f"lora.targets: the model has no linear layer {', '.join(missing)}; it has {', '.join(sorted(linear))}"
        )
    inject_adapter_in_model(_settings(lora), model)


# -------------------------------------------------------------------------------------------------------------- saving


def save_trained(
    model: Any, folder: Path, lora: LowRank | None, base: Path | None, state: dict[str, Tensor] | None = None
) -> None:
    """Write a trained model: whole weights, or with `merge: false` an adapter that `synopsis.load` puts on its base.

    state: the whole state dict, where another process or a sharded optimizer held it; None: the model's own.
    """
    state = model.state_dict() if state is None else state
    if lora is None or lora.merge:
        model.save_pretrained(folder, state_dict=merged_state(state, lora))
        return
    from safetensors.torch import save_file

    tensors = {PEFT_PREFIX + name: tensor.contiguous().cpu() for name, tensor in _adapter(model, state).items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    rows = {name.removesuffix(".weight"): [row] for name, row in _added_weights(model).items() if row is not None}
    place = None if base is None else str(base)
    settings = _settings(lora, base_model_name_or_path=place, inference_mode=True, trainable_token_indices=rows or None)
    settings.target_modules = sorted(lora.targets)  # a set has no order that a file could keep
    settings.save_pretrained(folder)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)


def merged_state(state: dict[str, Tensor], lora: LowRank | None) -> dict[str, Tensor]:
    """Weights as the model without adapters names them, the adapters added: W + alpha / rank * B A, in float32."""
    if lora is None:
        return state
    factors: dict[str, dict[str, Tensor]] = {}
    plain = {}
    for name, tensor in state.items():
        match = FACTOR.match(name)
        if match:
            factors.setdefault(match["module"], {})[match["side"]] = tensor
        else:
            plain[name.replace(f"{BASE_LAYER}.", ".")] = tensor
    for module, pair in factors.items():
        weight = plain[f"{module}.weight"]
        change = change_of(pair["A"], pair["B"], lora.alpha / lora.rank)
        plain[f"{module}.weight"] = (weight.float() + change.to(weight.device)).to(weight.dtype)
    return plain


def _adapter(model: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the base does not have, by peft's names: factors, summary embeddings, the gist token's rows."""
    found = {}
    for name, tensor in state.items():
        match = FACTOR.match(name)
        if match:
            found[f"{match['module']}.lora_{match['side']}.weight"] = tensor
    for name, row in _added_weights(model).items():
        if row is None:
            found[name] = state[name]
        else:
            found[f"{name.removesuffix('.weight')}{TOKEN_ROWS}"] = state[name][row][None]
    return found


def _settings(lora: LowRank, **more: Any) -> Any:
    from peft import LoraConfig

    given: dict[str, Any] = {"r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout}
    return LoraConfig(target_modules=lora.targets, **given, **more)
