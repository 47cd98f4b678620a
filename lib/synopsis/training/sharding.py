"""How a run is spread over its processes beyond a copy in each: DeepSpeed's ZeRO, or PyTorch's FSDP2.

    training:
      deepspeed: config/deepspeed/zero3.json

A DeepSpeed file says how to spread; what the run is stands in the training section. Where both speak of one thing, the
file says "auto" or the same value. Every process loads the whole model before DeepSpeed or FSDP divides it, so a
machine needs memory (not of its GPUs) for as many copies as it has processes.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from synopsis.config.deepspeed import read_deepspeed
from synopsis.config.training import Optimisation, SegmentTraining
from synopsis.errors import InputError
from synopsis.progress import say
from synopsis.training import distributed

FILLED_IN = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
"""Keys that a file may leave out: DeepSpeed would otherwise fail without a batch size and do without clipping."""
GATHERS = "stage3_gather_16bit_weights_on_model_save"
"""Whether ZeRO-3 may put its parts of the weights together, in any dtype: how else could a run write its model?"""


def sharding(training: Optimisation, beside: Sequence[Path] = ()) -> dict[str, Any]:
    """Arguments of transformers' TrainingArguments for `training.deepspeed` or `training.fsdp`.

    beside: experiment files, whose folders may hold the DeepSpeed file. InputError when it is missing, or when the
    processes do not fit sequences_per_step.
    """
    training.accumulation(distributed.world_size())
    if training.deepspeed is not None:
        path, settings = read_deepspeed(training.deepspeed, beside)
        if importlib.util.find_spec("deepspeed") is None:
            raise InputError(f"{path}: the package deepspeed is not installed; pip install 'synopsis[scale]'")
        zero = settings.get("zero_optimization", {})
        if zero.get("stage") == 3:
            zero[GATHERS] = True
        return {"deepspeed": {**dict.fromkeys(FILLED_IN, "auto"), **settings}}
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


def check_deepspeed(arguments: TrainingArguments, model: Any, file: str | None) -> None:
    """InputError with every key of a DeepSpeed file that contradicts the run."""
    if file is None:
        return
    try:
        arguments.hf_deepspeed_config.trainer_config_finalize(arguments, model, arguments.max_steps)
    except ValueError as error:
        raise InputError(f"{file}: {error}") from None


def whole_weights(trainer: Any) -> dict[str, torch.Tensor] | None:
    """The weights of a trained model that are spread over the processes; None where each process has them all.

    Every process calls this; the result is whole in the first one alone.
    """
    if not (trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled):
        return None
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped) or {}  # None but in the first process
    # FSDP gives an output layer that is the embeddings a second time; loading ties them again.
    tied = trainer.accelerator.unwrap_model(trainer.model_wrapped).all_tied_weights_keys
    return {name: weight for name, weight in weights.items() if name not in tied}
