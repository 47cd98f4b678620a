"""How a run is spread over its processes beyond a copy in each: DeepSpeed's ZeRO, or PyTorch's FSDP2.

    training:
      deepspeed: config/deepspeed/zero3.json

A DeepSpeed file says how to spread; what the run is stands in the training section. Where both speak of one thing, the
file says "auto" or the same value. Every process loads the whole model before DeepSpeed or FSDP divides it, so a
machine needs memory (not of its GPUs) for as many copies as it has processes.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from synopsis.config.training import Optimisation, SegmentTraining
from synopsis.errors import ConfigError, Fault, InputError
from synopsis.progress import say
from synopsis.training import distributed

AUTO = "auto"
FILLED_IN = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
"""Keys that a file may leave out: DeepSpeed would otherwise fail without a batch size and do without clipping."""
GATHERS = "stage3_gather_16bit_weights_on_model_save"
"""DeepSpeed's leave to put ZeRO-3's parts of the weights together (in whatever dtype they have)."""


def sharding(training: Optimisation, beside: Sequence[Path] = ()) -> dict[str, Any]:
    """Arguments of transformers' TrainingArguments for `training.deepspeed` or `training.fsdp`.

    beside: experiment files; a DeepSpeed file is looked for in the working directory, then beside these. InputError
    when it is missing or contradicts the run, with file and key; or when the processes do not fit sequences_per_step.
    """
    training.accumulation(distributed.world_size())
    if training.deepspeed is not None:
        path = _find(training.deepspeed, beside)
        if importlib.util.find_spec("deepspeed") is None:
            raise InputError(f"{path}: the package deepspeed is not installed; pip install 'synopsis[scale]'")
        return {"deepspeed": read_deepspeed(path, training, distributed.world_size())}
    if training.fsdp and not gpus():
        say("warning: training.fsdp is for GPUs; here each process keeps the whole model")
    elif training.fsdp:
        settings = {"version": 2, "state_dict_type": "FULL_STATE_DICT", "reshard_after_forward": True}
        return {"fsdp": True, "fsdp_config": settings}
    # Every loss depends on every weight, but summary tokens at the end of a substep change nothing within it.
    alone = isinstance(training, SegmentTraining) and training.segments_per_substep == 1
    return {"ddp_find_unused_parameters": alone}


def gpus() -> bool:
    return torch.cuda.is_available()


def _find(name: str, beside: Sequence[Path]) -> Path:
    places = [Path(name), *(Path(file).parent / name for file in beside)]
    for place in places:
        if place.is_file():
            return place
    looked = ", ".join(dict.fromkeys(str(place) for place in places))
    raise InputError(f"training.deepspeed: there is no file {looked}")


def read_deepspeed(path: Path, training: Optimisation, processes: int) -> dict[str, Any]:
    """The settings of a DeepSpeed file; ConfigError names every key that contradicts the run."""
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(settings, dict):
        raise InputError(f"{path}: expected a JSON object of DeepSpeed's settings")
    faults = [
        Fault(str(path), key, json.dumps(found), f"{AUTO!r} or {json.dumps(wanted)}, {why}")
        for key, wanted, why in _said_by_run(training, processes)
        for found in _found(settings, key)
        if found != AUTO and not _equal(found, wanted)
    ]
    zero = settings.get("zero_optimization")
    gathers = zero.get(GATHERS, False) if isinstance(zero, dict) and zero.get("stage") == 3 else True
    if gathers is not True:
        wanted = "true, so that the run can write its model"
        faults.append(Fault(str(path), f"zero_optimization.{GATHERS}", json.dumps(gathers), wanted))
    if faults:
        raise ConfigError(faults)
    return {**dict.fromkeys(FILLED_IN, AUTO), **settings}


def _said_by_run(training: Optimisation, processes: int) -> Iterator[tuple[str, Any, str]]:
    """DeepSpeed's key, its value in this run, and where that comes from."""
    micro, parts, rate = training.batch_size, training.accumulation(processes), training.learning_rate
    yield "train_micro_batch_size_per_gpu", micro, "training.batch_size"
    steps = "gradient_accumulation" if training.sequences_per_step is None else "sequences_per_step"
    yield "gradient_accumulation_steps", parts, f"training.{steps} with {processes} processes"
    whole = f"batch_size x gradient_accumulation x {processes} processes"
    yield "train_batch_size", micro * parts * processes, whole
    yield "gradient_clipping", training.max_grad_norm, "training.max_grad_norm"
    yield "bf16.enabled", training.dtype == "bfloat16", f"training.dtype is {training.dtype}"
    yield "fp16.enabled", False, f"training.dtype is {training.dtype}"
    yield "optimizer.params.lr", rate, "training.learning_rate"
    yield "optimizer.params.betas", [0.9, training.adam_beta2], "training.adam_beta2"
    yield "optimizer.params.weight_decay", training.weight_decay, "training.weight_decay"
    yield "scheduler.params.warmup_max_lr", rate, "training.learning_rate"
    yield "scheduler.params.warmup_num_steps", training.warmup_steps, "training.warmup_steps"
    yield "scheduler.params.total_num_steps", training.steps, "training.steps"


def _found(settings: dict[str, Any], key: str) -> list[Any]:
    """What stands at a dotted key: a list of one, or of none."""
    value: Any = settings
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            return []
        value = value[part]
    return [value]


def _equal(found: Any, wanted: Any) -> bool:
    return type(found) is type(wanted) and found == wanted if isinstance(wanted, bool) else found == wanted


def whole_weights(trainer: Any) -> dict[str, torch.Tensor] | None:
    """The weights of a trained model that are spread over the processes; None where each process has them all.

    Every process calls this; what it gives to others than the first is of no use.
    """
    if not (trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled):
        return None
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped) or {}  # None but in the first process
    # FSDP gives an output layer that is the embeddings a second time; loading ties them again.
    tied = trainer.accelerator.unwrap_model(trainer.model_wrapped).all_tied_weights_keys
    return {name: weight for name, weight in weights.items() if name not in tied}
