"""Estimates against what transformers' models have and what torch counts."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from synopsis.compressors import GistT5ForConditionalGeneration, compressor_class
from synopsis.config.training import InstructionTraining, LanguageModelTraining, LowRank, Optimisation, SegmentTraining
from synopsis.costs.dimensions import KNOWN, ROTARY, Dimensions, known
from synopsis.costs.estimates import (
    DEVICES,
    TrainingFlops,
    activation_bytes,
    adapter_parameters,
    attention_flops,
    find_device,
    linear_flops,
    mfu,
    output_flops,
    peak_flops,
    prefill_flops,
    segment_passes,
    trained_parameters,
    training_flops,
    training_flops_per_step,
    training_memory,
    training_passes,
)
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, T5ForConditionalGeneration

# transformers' own numbers of weights of the published models.
PUBLISHED = {
    "facebook/opt-1.3b": 1_315_758_080,
    "facebook/opt-2.7b": 2_651_596_800,
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "google/flan-t5-base": 247_577_856,
    "google/flan-t5-large": 783_150_080,
    "google/flan-t5-xxl": 11_135_332_352,
    "HuggingFaceTB/SmolLM2-135M": 134_515_008,
}
SMALL = {"vocab_size": 611, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3}
HEADS = {"num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 256}
OWN = {"qwen3": {"head_dim": 16}, "gemma2": {"head_dim": 16}, "gemma3_text": {"head_dim": 16}, "phi3": {}}


def configuration(kind: str, **fields: Any) -> Any:
    """A small configuration of an architecture."""
    if kind == "opt":
        fields = {"ffn_dim": 80, "dropout": 0.0, "word_embed_proj_dim": SMALL["hidden_size"], **fields}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return AutoConfig.for_model(kind, **{**SMALL, **HEADS, **OWN.get(kind, {}), **ids, **fields})


def t5_configuration(**fields: Any) -> Any:
    sizes = {"d_model": 48, "d_ff": 80, "d_kv": 16, "num_heads": 5, "num_layers": 3, "num_decoder_layers": 2}
    return AutoConfig.for_model("t5", vocab_size=611, dropout_rate=0.0, decoder_start_token_id=0, **{**sizes, **fields})


def on_meta(config: Any) -> Any:
    with torch.device("meta"):
        if config.model_type == "t5":  # of transformers' own, one always ties what Flan has twice
            return GistT5ForConditionalGeneration(config)
        return AutoModelForCausalLM.from_config(config)


def weights(model: Any) -> int:
    return sum(weight.numel() for weight in model.parameters())


def size_of(config: Any) -> Dimensions:
    size = Dimensions.of(config)
    assert size is not None
    return size


# --------------------------------------------------------------------------------------------------------- parameters


@pytest.mark.parametrize("hub", KNOWN)
def test_known_models_have_as_many_weights_as_transformers_gives_them(hub: str) -> None:
    values = dict(KNOWN[hub])
    model = on_meta(AutoConfig.for_model(values.pop("model_type"), **values))
    assert size_of(KNOWN[hub]).parameters == weights(model) == PUBLISHED.get(hub, weights(model))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", [*sorted(ROTARY), "opt"])
def test_every_decoder_that_compresses_is_counted_exactly(kind: str, tied: bool) -> None:
    config = configuration(kind, tie_word_embeddings=tied)
    assert size_of(config).parameters == weights(on_meta(config))


@pytest.mark.parametrize(
    "config",
    [
        configuration("llama", attention_bias=True, mlp_bias=True),
        configuration("opt", word_embed_proj_dim=16, do_layer_norm_before=False),
        configuration("opt", enable_bias=False),
        t5_configuration(),
        t5_configuration(feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    ],
    ids=["biases", "projected", "without biases", "t5", "t5 gated"],
)
def test_variants_are_counted_exactly(config: Any) -> None:
    assert size_of(config).parameters == weights(on_meta(config))


def test_the_architectures_are_those_of_the_compressors() -> None:
    from synopsis.compressors.architectures import DECODERS as ARCHITECTURES

    assert ROTARY | {"opt"} == set(ARCHITECTURES)


def test_an_unknown_model_has_no_size() -> None:
    assert Dimensions.of({"model_type": "mamba"}) is None
    assert known("someone/unheard-of") is None
    assert known("Facebook/OPT-2.7B") == known("facebook/opt-2.7b") is not None


@pytest.mark.parametrize("kind", ["llama", "opt", "phi3", "t5"])
def test_adapters_are_counted_as_peft_makes_them(kind: str) -> None:
    from peft import LoraConfig, get_peft_model

    targets = {
        "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj"],
        "opt": ["q_proj", "out_proj", "fc1", "fc2"],
        "phi3": ["qkv_proj", "o_proj", "gate_up_proj"],
        "t5": ["q", "k", "v", "o", "wi", "wo"],
    }[kind]
    config = t5_configuration() if kind == "t5" else configuration(kind)
    model = get_peft_model(on_meta(config), LoraConfig(r=3, target_modules=targets))
    made = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    training = instructions(lora=LowRank(rank=3, targets=targets))
    assert adapter_parameters(size_of(config), training) == made
    assert trained_parameters(size_of(config), training, new_embeddings=2) == made + 2 * 48


def test_what_learns() -> None:
    size = size_of(configuration("llama"))
    assert trained_parameters(size, instructions(), 1) == size.parameters + 48
    assert trained_parameters(size, instructions(train_only="new_embeddings"), 5) == 5 * 48


# -------------------------------------------------------------------------------------------------------------- FLOPs


def segments(**fields: Any) -> SegmentTraining:
    values: dict[str, Any] = {"corpus": "c", "sequence_length": 96, "substeps": 2, "segments_per_substep": 2}
    return SegmentTraining(**{**values, **schedule(), **fields})


def instructions(**fields: Any) -> InstructionTraining:
    return InstructionTraining(**{"instructions": "i", "max_length": 40, **schedule(), **fields})


def whole(**fields: Any) -> LanguageModelTraining:
    return LanguageModelTraining(**{"corpus": "c", "sequence_length": 64, **schedule(), **fields})


def schedule() -> dict[str, Any]:
    return {"steps": 10, "batch_size": 2, "learning_rate": 1e-3}


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


def compressor(kind: str, **fields: Any) -> Any:
    # Eager attention, whose products are counted one by one forward and backward.
    config = configuration(kind, summary_length=4, attn_implementation="eager", **fields)
    return compressor_class("summary", kind)(config).train()


def train_segments(model: Any, training: SegmentTraining, ids: Tensor) -> None:
    """One training step over substeps and segments, as the trainer makes it."""
    softprompt, part = None, training.sequence_length // training.substeps
    lengths = [part // training.segments_per_substep] * training.segments_per_substep
    for start in range(0, training.sequence_length, part):
        last = start + part == training.sequence_length
        tokens = ids[:, start : start + part]
        out = model(tokens, labels=tokens, softprompt=softprompt, segment_lengths=lengths, output_softprompt=not last)
        softprompt = out.softprompt.detach()
        out.loss.backward()


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("accumulate", [True, False])
@pytest.mark.parametrize("kind", ["llama", "opt", "qwen3"])
def test_flops_of_a_step_over_segments(kind: str, accumulate: bool, checkpointed: bool) -> None:
    training = segments(segment_gradient_checkpointing=checkpointed)
    fields = {"accumulate_summary": accumulate, "segment_gradient_checkpointing": checkpointed}
    model = compressor(kind, **fields)
    ids = torch.randint(3, 600, (2, 96))
    measured = counted(lambda: train_segments(model, training, ids))
    substeps = training_passes(training, 4, accumulate)
    flops = training_flops(size_of(model.config), training, substeps)
    assert 2 * flops.total == pytest.approx(measured, rel=0.03)
    assert (flops.recomputed > 0) == checkpointed
    assert training_flops_per_step(model.config, training) == 2 * flops.model


def test_flops_of_a_step_on_whole_sequences() -> None:
    model = AutoModelForCausalLM.from_config(configuration("llama"), attn_implementation="eager").train()
    training, ids = whole(), torch.randint(3, 600, (2, 64))
    measured = counted(lambda: model(ids, labels=ids).loss.backward())
    assert training_flops_per_step(model.config, training) == pytest.approx(measured, rel=0.03)
    assert training_flops_per_step(model.config.to_dict(), training, processes=4) == pytest.approx(
        4 * measured, rel=0.03
    )


def test_flops_with_each_layer_computed_again() -> None:
    model = AutoModelForCausalLM.from_config(configuration("llama"), attn_implementation="eager").train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    training, ids = whole(gradient_checkpointing=True), torch.randint(3, 600, (1, 64))
    measured = counted(lambda: model(ids, labels=ids).loss.backward())
    flops = training_flops(size_of(model.config), training, training_passes(training))
    # What is computed again stops at the last tensor that is needed, so the layer's last product is left out.
    assert flops.model + 0.75 * flops.recomputed < measured <= flops.total * 1.02


@pytest.mark.parametrize("kind", ["llama", "opt"])
def test_flops_with_adapters(kind: str) -> None:
    from peft import LoraConfig, get_peft_model

    lora = LowRank(rank=4, dropout=0.0, targets=["q_proj", "k_proj", "v_proj"])
    training, ids = whole(lora=lora), torch.randint(3, 600, (2, 64))
    base = AutoModelForCausalLM.from_config(configuration(kind), attn_implementation="eager")
    model = get_peft_model(base, LoraConfig(r=4, target_modules=lora.targets, lora_dropout=0.0)).train()
    model.get_input_embeddings().weight.requires_grad_()  # stands for new embeddings, whose gradient needs every layer
    measured = counted(lambda: model(input_ids=ids, labels=ids).loss.backward())
    expected = training_flops_per_step(base.config, training)
    tied = 2 * output_flops(size_of(base.config), training_passes(training)[0][0]) if kind == "opt" else 0
    assert expected == pytest.approx(measured - tied, rel=0.03)


@pytest.mark.parametrize("projection", ["relu", "gated-gelu"])
def test_flops_of_an_encoder_decoder(projection: str) -> None:
    config = t5_configuration(feed_forward_proj=projection)
    model = T5ForConditionalGeneration._from_config(config, attn_implementation="eager").train()
    source, target = torch.randint(3, 600, (2, 40)), torch.randint(3, 600, (2, 24))
    measured = counted(lambda: model(input_ids=source, labels=target).loss.backward())
    training = instructions(max_target_length=24)
    assert training_flops_per_step(config, training) == pytest.approx(measured, rel=0.03)
    assert training_flops_per_step(config, training, tokens=20, target_tokens=12) < 0.55 * measured


def test_flops_of_reading_a_prompt() -> None:
    model = AutoModelForCausalLM.from_config(configuration("llama"), attn_implementation="eager").eval()
    ids = torch.randint(3, 600, (1, 64))
    measured = counted(lambda: model(ids, logits_to_keep=1))
    size = size_of(model.config)
    assert prefill_flops(size, 64) == pytest.approx(measured, rel=0.01)
    one = training_passes(whole())[0][0]
    assert prefill_flops(size, 64) - prefill_flops(size, 64, causal=True) == attention_flops(size, one) // 2


def test_flops_of_a_published_model_are_about_six_for_each_weight_and_token() -> None:
    size = known("meta-llama/Llama-2-7b-hf")
    assert size is not None
    training = whole(sequence_length=2048)
    flops = training_flops(size, training, training_passes(training))
    of_weights = 6 * (size.parameters - size.embeddings // 2) * 2048
    squares = 12 * size.layers * size.attention * 2048**2  # Chowdhery et al. 2022, appendix B
    assert flops.model == pytest.approx(of_weights + squares, rel=1e-3)


def test_soft_prompts_and_summary_tokens_are_positions() -> None:
    (first, second), (third, fourth) = segment_passes(6144, 2, 2, 50)
    assert [one.positions for one in (first, second, third, fourth)] == [1586, 1636, 1686, 1686]
    assert [one.predicted for one in (first, second, third, fourth)] == [1535, 1536, 1535, 1536]
    assert [one.positions for one in segment_passes(6144, 1, 4, 50, accumulate=False)[0]] == [1586, 1636, 1636, 1586]


def test_nothing_is_estimated_for_an_unknown_architecture() -> None:
    assert training_flops_per_step({"model_type": "mamba"}, whole()) is None


# ------------------------------------------------------------------------------------------------------------- memory


def kept_bytes(model: Any, call: Callable[[], Any]) -> int:
    """Bytes that autograd keeps for the backward pass, without the weights."""
    own = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # so that its memory is not given to another
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return sum(kept.values())


@pytest.mark.parametrize("kind", ["llama", "opt"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_activations_are_what_autograd_keeps(kind: str, dtype: str) -> None:
    sizes = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 6, "num_key_value_heads": 6}
    fields = {**sizes, **({"ffn_dim": 384, "word_embed_proj_dim": 96} if kind == "opt" else {})}
    model = AutoModelForCausalLM.from_config(configuration(kind, **fields), attn_implementation="sdpa").train()
    ids = torch.randint(3, 600, (1, 192))

    def read() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            model.get_decoder()(ids, use_cache=False)

    training = whole(sequence_length=192, dtype=dtype)
    expected = activation_bytes(size_of(model.config), training, training_passes(training)[0])
    measured = kept_bytes(model, read)
    if dtype == "bfloat16":  # autocast keeps a copy of each weight as well, which counts among the weights
        measured -= 2 * model.config.num_hidden_layers * size_of(model.config).layer
    assert expected == pytest.approx(measured, rel=0.15)


def test_checkpointing_saves_activations_and_nothing_else() -> None:
    size = known("facebook/opt-2.7b")
    assert size is not None
    shapes = {"sequence_length": 30720, "substeps": 2, "segments_per_substep": 10, "dtype": "bfloat16"}

    def memory(**fields: Any) -> Any:
        training = segments(**shapes, **fields)
        return training_memory(size, training, training_passes(training, 50), size.parameters)

    plain, by_segment = memory(), memory(segment_gradient_checkpointing=True)
    by_layer = memory(gradient_checkpointing=True)
    both = memory(gradient_checkpointing=True, segment_gradient_checkpointing=True)
    assert both.activations < min(by_layer.activations, by_segment.activations)
    assert max(by_layer.activations, by_segment.activations) < plain.activations / 5
    assert plain.total - plain.activations == both.total - both.activations


@pytest.mark.parametrize(("stage", "expected"), [(0, (2, 2, 12)), (1, (2, 2, 3)), (2, (2, 0.5, 3)), (3, (0.5, 0.5, 3))])
def test_processes_share_out_what_the_stage_says(stage: int, expected: tuple[float, ...]) -> None:
    size = known("facebook/opt-1.3b")
    assert size is not None
    training = whole(dtype="bfloat16", deepspeed="zero.json")
    found = training_memory(size, training, training_passes(training), size.parameters, processes=4, zero_stage=stage)
    per_weight = [part / size.parameters for part in (found.weights, found.gradients, found.optimizer)]
    assert per_weight == pytest.approx(expected)
    assert found.total == sum(vars(found).values())


def test_adapters_need_gradients_of_their_own_only() -> None:
    size = known("meta-llama/Llama-2-7b-hf")
    assert size is not None
    training = segments(lora=LowRank(), dtype="bfloat16")
    trained = trained_parameters(size, training, 50)
    found = training_memory(size, training, training_passes(training, 50), trained)
    assert trained == 16_777_216 + 50 * 4096  # rank 16 on four matrices of 4096 x 4096 in 32 layers
    assert found.gradients + found.optimizer == 12 * trained < found.weights / 100


# ------------------------------------------------------------------------------------------------------------ devices


@pytest.mark.parametrize(
    ("driver", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H100 NVL", "H100 NVL"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA GH200 480GB", "GH200"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A100-SXM4-40GB", "A100-SXM4-40GB"),
        ("NVIDIA A10", "A10"),
        ("NVIDIA L40S", "L40S"),
        ("h100", "H100"),
    ],
)
def test_devices_are_found_by_what_the_driver_says(driver: str, name: str) -> None:
    assert find_device(driver) == DEVICES[name]


@pytest.mark.parametrize("driver", ["cpu", "NVIDIA RTX A4000", "NVIDIA H20", "Quadro RTX 8000", ""])
def test_other_devices_have_no_peak(driver: str) -> None:
    assert find_device(driver) is None and peak_flops(driver) is None and mfu(1e12, driver) is None


def test_utilisation_is_a_share_of_the_peak_of_all_devices() -> None:
    assert mfu(989e12, "NVIDIA H100 80GB HBM3", processes=2) == 0.5
    assert mfu(6.7e12, "H100", dtype="float32") == pytest.approx(0.1)
    assert mfu(1e12, "B200", dtype="float32") is None and mfu(1e12, "H100", dtype="int8") is None


def test_totals() -> None:
    flops = TrainingFlops(forward=1, backward=2, recomputed=1)
    assert (flops.model, flops.total) == (3, 4)


def test_torch_is_not_needed() -> None:
    code = "import sys, synopsis.costs.estimates; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert linear_flops(size_of(configuration("llama")), training_passes(whole())[0][0]) > 0


def test_a_kind_of_training_that_is_not_known() -> None:
    with pytest.raises(TypeError, match="Optimisation"):
        training_passes(Optimisation(**schedule()))
