"""Sizes, FLOPs and memory against published numbers, peft, torch's counter and autograd; and the table of devices."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from synopsis.compressors import compressor_class
from synopsis.config.training import InstructionTraining, LanguageModelTraining, LowRank, Optimisation, SegmentTraining
from synopsis.costs.devices import DEVICES, Rates, find_device, floor_seconds, measured_rates, mfu, rates_of
from synopsis.costs.flops import (
    Pass,
    adapter_parameters,
    layer_flops,
    output_flops,
    step_flops,
    training_flops,
    training_passes,
)
from synopsis.costs.memory import activation_bytes, training_memory
from synopsis.costs.model_size import ModelSize, known, model_size
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, T5ForConditionalGeneration

PUBLISHED = {
    "facebook/opt-1.3b": 1_315_758_080,
    "Facebook/OPT-2.7B": 2_651_596_800,
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "google/flan-t5-base": 247_577_856,
    "google/flan-t5-large": 783_150_080,
    "google/flan-t5-xxl": 11_135_332_352,
    "HuggingFaceTB/SmolLM2-135M": 134_515_008,
}
SMALL = {"vocab_size": 611, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3}
HEADS = {"num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 256, "head_dim": 8}


def configuration(kind: str, **fields: Any) -> Any:
    """A small configuration of an architecture."""
    if kind == "t5":
        sizes = {"d_model": 48, "d_ff": 80, "d_kv": 16, "num_heads": 5, "num_layers": 3, "num_decoder_layers": 2}
        return AutoConfig.for_model("t5", vocab_size=611, dropout_rate=0.0, decoder_start_token_id=0, **sizes, **fields)
    if kind == "opt":
        fields = {"ffn_dim": 80, "dropout": 0.0, "word_embed_proj_dim": SMALL["hidden_size"], **fields}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return AutoConfig.for_model(kind, **{**SMALL, **HEADS, **ids, **fields})


def size_of(config: Any) -> ModelSize:
    size = model_size(known(config) if isinstance(config, str) else config)
    assert size is not None
    return size


def training_of(cls: type[Optimisation], **fields: Any) -> Any:
    own: dict[str, Any] = {"steps": 10, "batch_size": 2, "learning_rate": 1e-3}
    own |= {"instructions": "i", "max_length": 40} if cls is InstructionTraining else {"corpus": "c"}
    own |= {"sequence_length": 96} if cls is SegmentTraining else {}
    own |= {"sequence_length": 64} if cls is LanguageModelTraining else {}
    return cls(**{**own, **fields})


def no_vectors(steps: int) -> int:
    return 0


# --------------------------------------------------------------------------------------------------------- parameters


@pytest.mark.parametrize("hub", PUBLISHED)
def test_known_models_have_the_published_number_of_weights(hub: str) -> None:
    assert size_of(hub).parameters == PUBLISHED[hub]


def test_another_model_has_no_size() -> None:
    assert model_size({"model_type": "mamba"}) is None and known("someone/unheard-of") is None


@pytest.mark.parametrize(
    ("kind", "targets"),
    [
        ("llama", ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj"]),
        ("opt", ["q_proj", "out_proj", "fc1", "fc2"]),
        ("phi3", ["qkv_proj", "o_proj", "gate_up_proj"]),
        ("t5", ["q", "k", "v", "o", "wi", "wo"]),
    ],
)
def test_adapters_are_counted_as_peft_makes_them(kind: str, targets: list[str]) -> None:
    from peft import LoraConfig, get_peft_model

    config = configuration(kind)
    with torch.device("meta"):
        base: Any = T5ForConditionalGeneration(config) if kind == "t5" else AutoModelForCausalLM.from_config(config)
        model = get_peft_model(base, LoraConfig(r=3, target_modules=targets))
    made = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    training = training_of(InstructionTraining, lora=LowRank(rank=3, targets=targets))
    assert adapter_parameters(size_of(config), training) == made


# -------------------------------------------------------------------------------------------------------------- FLOPs


class Whole(contextlib.AbstractContextManager):
    """Counts for the whole program: torch's tracker of modules refuses those that are called without gradients."""

    parents = ("Global",)

    def __exit__(self, *_: Any) -> None:
        return None


def counted(call: Callable[[], Any]) -> int:
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = Whole()  # type: ignore[assignment]
    with counter:
        call()
    return counter.get_total_flops()


def plain(kind: str, **fields: Any) -> Any:
    # Eager attention, whose products are counted one by one forward and backward.
    return AutoModelForCausalLM.from_config(configuration(kind, **fields), attn_implementation="eager").train()


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("accumulate", [True, False])
@pytest.mark.parametrize("kind", ["llama", "opt", "qwen3"])
def test_flops_of_a_step_over_segments(kind: str, accumulate: bool, checkpointed: bool) -> None:
    training = training_of(SegmentTraining, segment_gradient_checkpointing=checkpointed)
    fields = {"accumulate_summary": accumulate, "segment_gradient_checkpointing": checkpointed, "summary_length": 4}
    config = configuration(kind, attn_implementation="eager", **fields)
    model, ids = compressor_class("summary", kind)(config).train(), torch.randint(3, 600, (2, 96))

    def train() -> None:
        softprompt = None
        for start in (0, 48):
            tokens, ends = ids[:, start : start + 48], {"segment_lengths": [24, 24], "output_softprompt": not start}
            out = model(tokens, labels=tokens, softprompt=softprompt, **ends)
            softprompt = out.softprompt.detach()
            out.loss.backward()

    def vectors(steps: int) -> int:
        return 4 * (steps if accumulate else min(steps, 1))

    flops = training_flops(size_of(model.config), training, training_passes(training, vectors))
    assert 2 * flops.total == pytest.approx(counted(train), rel=0.03)
    assert (flops.recomputed > 0) == checkpointed
    assert step_flops(model.config, training, vectors, 3, 96) == 6 * flops.model


def test_flops_with_each_layer_computed_again() -> None:
    model, ids = plain("llama"), torch.randint(3, 600, (1, 64))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    training = training_of(LanguageModelTraining, gradient_checkpointing=True)
    measured = counted(lambda: model(ids, labels=ids).loss.backward())
    flops = training_flops(size_of(model.config), training, training_passes(training, no_vectors))
    # What is computed again stops at the last tensor that is needed, so the layer's last product is left out.
    assert flops.model + 0.75 * flops.recomputed < measured <= flops.total * 1.02


@pytest.mark.parametrize("kind", ["llama", "opt"])
def test_flops_with_adapters(kind: str) -> None:
    from peft import LoraConfig, get_peft_model

    lora, ids = LowRank(rank=4, dropout=0.0, targets=["q_proj", "k_proj", "v_proj"]), torch.randint(3, 600, (2, 64))
    base = plain(kind)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=lora.targets, lora_dropout=0.0)).train()
    model.get_input_embeddings().weight.requires_grad_()  # stands for new embeddings, whose gradient needs every layer
    measured = counted(lambda: model(input_ids=ids, labels=ids).loss.backward())
    tied = 2 * output_flops(size_of(base.config), Pass(64, 63)) if kind == "opt" else 0
    expected = step_flops(base.config, training_of(LanguageModelTraining, lora=lora), no_vectors, 1, 64)
    assert expected == pytest.approx(measured - tied, rel=0.03)


@pytest.mark.parametrize("projection", ["relu", "gated-gelu"])
def test_flops_of_an_encoder_decoder(projection: str) -> None:
    config = configuration("t5", feed_forward_proj=projection)
    model = T5ForConditionalGeneration._from_config(config, attn_implementation="eager").train()
    source, target = torch.randint(3, 600, (2, 40)), torch.randint(3, 600, (2, 24))
    measured = counted(lambda: model(input_ids=source, labels=target).loss.backward())
    training = training_of(InstructionTraining, max_target_length=24)
    assert step_flops(config, training, no_vectors, 1, 40) == pytest.approx(measured, rel=0.03)


def test_soft_prompts_and_summary_tokens_are_positions() -> None:
    training = training_of(SegmentTraining, sequence_length=6144)
    (first, second), (third, fourth) = training_passes(training, lambda steps: 50 * steps)
    assert [one.positions for one in (first, second, third, fourth)] == [1586, 1636, 1686, 1686]
    assert [one.predicted for one in (first, second, third, fourth)] == [1535, 1536, 1535, 1536]


# ------------------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("kind", ["llama", "opt"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_activations_are_what_autograd_keeps(kind: str, dtype: str) -> None:
    sizes = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 6, "num_key_value_heads": 6}
    sizes |= {"ffn_dim": 384, "word_embed_proj_dim": 96} if kind == "opt" else {"head_dim": 16}
    model = AutoModelForCausalLM.from_config(configuration(kind, **sizes), attn_implementation="sdpa").train()
    own = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor  # alive, so that its memory is not given to another
        return tensor

    autocast = torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16")
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast:
        model.get_decoder()(torch.randint(3, 600, (1, 192)), use_cache=False)
    size, training = size_of(model.config), training_of(LanguageModelTraining, sequence_length=192, dtype=dtype)
    measured = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    if dtype == "bfloat16":  # autocast keeps a copy of each weight as well, which counts among the weights
        measured -= 2 * size.decoder
    passes = training_passes(training, no_vectors)[0]
    assert activation_bytes(size, training, passes) == pytest.approx(measured, rel=0.15)


def test_checkpointing_saves_activations_and_nothing_else() -> None:
    size = size_of("facebook/opt-2.7b")

    def memory(**fields: Any) -> dict[str, int]:
        shapes = {"sequence_length": 30720, "segments_per_substep": 10, "dtype": "bfloat16"}
        training = training_of(SegmentTraining, **shapes, **fields)
        passes = training_passes(training, lambda steps: 50 * steps)
        return training_memory(size, training, passes, size.parameters)

    neither, by_segment = memory(), memory(segment_gradient_checkpointing=True)
    by_layer = memory(gradient_checkpointing=True)
    both = memory(gradient_checkpointing=True, segment_gradient_checkpointing=True)
    assert both["activations"] < min(by_layer["activations"], by_segment["activations"])
    assert max(by_layer["activations"], by_segment["activations"]) < neither["activations"] / 5
    assert {**both, "activations": 0} == {**neither, "activations": 0}


@pytest.mark.parametrize(("stage", "expected"), [(0, (2, 2, 12)), (1, (2, 2, 3)), (2, (2, 0.5, 3)), (3, (0.5, 0.5, 3))])
def test_processes_share_out_what_the_stage_says(stage: int, expected: tuple[float, ...]) -> None:
    size, training = size_of("facebook/opt-1.3b"), training_of(LanguageModelTraining, dtype="bfloat16", deepspeed="z")
    passes = training_passes(training, no_vectors)
    found = training_memory(size, training, passes, size.parameters, processes=4, zero_stage=stage)
    per_weight = [found[part] / size.parameters for part in ("weights", "gradients", "optimizer")]
    assert per_weight == pytest.approx(expected)


# ------------------------------------------------------------------------------------------------------------ devices


@pytest.mark.parametrize(
    ("driver", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA GH200 480GB", "GH200"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A100-SXM4-40GB", "A100-SXM4-40GB"),
        ("NVIDIA L40S", "L40S"),
        ("h100", "H100"),
    ],
)
def test_devices_are_found_by_what_the_driver_says(driver: str, name: str) -> None:
    assert find_device(driver) == DEVICES[name]


@pytest.mark.parametrize("driver", ["cpu", "NVIDIA RTX A4000", "NVIDIA H20", ""])
def test_other_devices_have_no_peak(driver: str) -> None:
    assert find_device(driver) is mfu(1e12, driver) is rates_of(driver, "bfloat16") is None


def test_utilisation_is_a_share_of_the_peak_of_all_devices() -> None:
    assert mfu(989e12, "NVIDIA H100 80GB HBM3", processes=2) == 0.5
    assert mfu(6.7e12, "H100", dtype="float32") == pytest.approx(0.1)
    assert mfu(1e12, "B200", dtype="float32") is None and mfu(1e12, "H100", dtype="int8") is None


@pytest.mark.parametrize(
    ("flops", "bytes_read", "dtype", "seconds"),
    [(989e12, 1, "bfloat16", 1.0), (67e12, 1, "float32", 1.0), (67e12, 6.7e12, "float32", 2.0)],
)
def test_the_floor_is_the_longer_of_computing_and_reading(
    flops: float, bytes_read: float, dtype: str, seconds: float
) -> None:
    assert floor_seconds(flops, bytes_read, rates_of("NVIDIA H100 80GB HBM3", dtype) or Rates(0, 0)) == pytest.approx(
        seconds
    )


def test_a_device_that_is_not_known_is_measured() -> None:
    rates = measured_rates(torch.device("cpu"), "float32")
    assert rates.measured and 1e9 < rates.flops < 1e15 and 1e8 < rates.bandwidth < 1e13


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("kind", ["llama", "opt", "t5"])
def test_flops_of_reading_are_those_that_torch_and_deepspeed_count(
    kind: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields: dict[str, Any] = {"num_hidden_layers": size + 1, "hidden_size": 48 * size}
    fields |= {"word_embed_proj_dim": 48 * size} if kind == "opt" else {}
    config = configuration(kind, **({} if kind == "t5" else fields))
    if kind == "t5":
        config.num_layers, config.d_model, config.d_ff = size + 1, 48 * size, 80 * size
    cls: Any = T5ForConditionalGeneration if kind == "t5" else AutoModelForCausalLM
    model = (cls._from_config if kind == "t5" else cls.from_config)(config, attn_implementation="eager").eval()
    ids, target = torch.randint(3, 600, (2, 40)), torch.randint(3, 600, (2, 24))
    read = Pass(24, 24, source=40) if kind == "t5" else Pass(40, 40)
    more = {"decoder_input_ids": target} if kind == "t5" else {}
    with torch.no_grad():
        measured = counted(lambda: model(input_ids=ids, **more))
    found = size_of(model.config)
    flops = 2 * (sum(layer_flops(found, read)) + output_flops(found, read))
    assert flops == pytest.approx(measured, rel=0.02)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    profiler = pytest.importorskip("deepspeed.profiling.flops_profiler").FlopsProfiler(model)
    profiler.start_profile()
    model(input_ids=ids, **more)
    assert flops == pytest.approx(profiler.get_total_flops(), rel=0.02), "activations counted too"
    profiler.end_profile()
