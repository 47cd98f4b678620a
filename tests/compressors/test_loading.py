"""Published checkpoints load as what they are, whatever they are called; what cannot be loaded is named."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from published_checkpoints import (
    CHECKPOINTS,
    FORMS,
    FREQUENCIES,
    GIST_FIELDS,
    LLAMA_CONFIG,
    OPT,
    OPT_CONFIG,
    POSITIONS,
    SUMMARY,
    WIDTH,
    WORDS,
    Published,
    write_folder,
)
from safetensors.torch import load_file, save_file
from synopsis.compressors import load, load_tokenizer, loading
from synopsis.compressors.published import weight_diff
from synopsis.compressors.published.weight_diff import weight_sum
from synopsis.errors import ArtifactError, InputError
from torch import Tensor
from transformers import AutoConfig

POSITIONS_KEY = "model.decoder.embed_positions.weight"
IDS = torch.tensor([[5, 9, 33, 7, 20, 41], [8, 8, 2, 50, 11, 3]])


def same(model: Any, weights: dict[str, Tensor], but: tuple[str, ...] = ()) -> None:
    """Each tensor of the checkpoint is in the model, to the bit."""
    state = model.state_dict()
    for name, tensor in weights.items():
        assert name in but or torch.equal(state[name], tensor), name


def refused(message: str, folder: Path, fault: type[Exception] = ArtifactError, **options: Any) -> None:
    with pytest.raises(fault, match=message):
        load(folder, "cpu", **options)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_published_checkpoints_load(name: str, form: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Whatever the folder is called."""
    published, folder = CHECKPOINTS[name], tmp_path / "flan-t5-xxl-pos_control-AutoCompressor-RMT"
    weights = published.write(folder, form)
    model = load(folder, "cpu")
    assert type(model).__name__ == published.cls
    assert {key: getattr(model.config, key) for key in published.fields} == published.fields
    assert not model.training and model.dtype == torch.float32 and model.config.name_or_path == str(folder)
    same(model, weights, published.not_loaded)
    assert capfd.readouterr() == ("", ""), "loading says nothing where all is well"


def test_positions_beyond_the_table_repeat_it(tmp_path: Path) -> None:
    weights = CHECKPOINTS["FullAttention-OPT"].write(tmp_path / "m", max_position_embeddings=2 * POSITIONS + 5)
    table, saved = load(tmp_path / "m", "cpu").model.decoder.embed_positions.weight, weights[POSITIONS_KEY]
    assert table.shape == (2 + 2 * POSITIONS + 5, WIDTH)
    for position in range(2 * POSITIONS + 5):
        assert torch.equal(table[2 + position], saved[2 + position % POSITIONS])
    assert torch.equal(table[:2], saved[:2])
    CHECKPOINTS["FullAttention-OPT"].write(tmp_path / "short")
    longer = load(tmp_path / "short", "cpu", max_position_embeddings=2 * POSITIONS)
    assert longer(torch.arange(2 * POSITIONS)[None] % WORDS).logits.shape[1] == 2 * POSITIONS


def test_old_names_of_positions_and_tokenizers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    old = {"architectures": ["LLaMAForCausalLM"], "rope_scaling": {"type": "linear", "factor": 2.0}}
    CHECKPOINTS["FullAttention-Llama"].write(tmp_path / "m", **old)
    model = load(tmp_path / "m", "cpu")
    assert model.config.rope_parameters["factor"] == 2.0
    assert torch.allclose(model.model.rotary_emb.inv_freq[0], torch.tensor(0.5))
    words = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "m" / "tokenizer.json"))
    (tmp_path / "m" / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LLaMATokenizer"}))
    assert "Llama" in type(load_tokenizer(tmp_path / "m")).__name__
    (tmp_path / "m" / "tokenizer.json").rename(tmp_path / "m" / "tokenizer.model")
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ArtifactError, match=r"tokenizer\.model is read by the package sentencepiece, which is no"):
        load_tokenizer(tmp_path / "m")


# ------------------------------------------------------------------------------------------------------ gist tokens

TOKEN = {"content": "<GIST>", "special": True}


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"added_tokens.json": {"<GIST>": 59}}, 59),
        ({"tokenizer_config.json": {"added_tokens_decoder": {"2": {"content": "</s>"}, "58": TOKEN}}}, 58),
        ({"tokenizer.json": {"added_tokens": [{"id": 57, **TOKEN}]}}, 57),
        ({}, WORDS - 1),
        ({"tokenizer_config.json": {}}, None),
    ],
    ids=["added_tokens", "tokenizer_config", "tokenizer", "last row", "a tokenizer without it"],
)
def test_the_gist_token_is_found(files: dict[str, Any], found: int | None, tmp_path: Path) -> None:
    published = CHECKPOINTS["gist-Llama"]
    Published(published.config, published.keys, "", {}, files).write(tmp_path / "m")
    assert load(tmp_path / "m", "cpu").config.gist_token_id == found


def test_what_a_gist_checkpoint_leaves_unsaid_may_be_given(tmp_path: Path) -> None:
    published = CHECKPOINTS["gist-Llama"]
    published.write(tmp_path / "m", vocab_size=WORDS - 1, architectures=None)  # the vocabulary of the base
    model = load(tmp_path / "m", "cpu", gist_condition="pos_control", gist_tokens=5)
    expected = {**GIST_FIELDS, "gist_condition": "pos_control", "gist_tokens": 5}
    assert {key: getattr(model.config, key) for key in expected} == expected
    (tmp_path / "m" / "added_tokens.json").write_text(json.dumps({"<GIST>": WORDS}))
    refused(f"the gist token has the id {WORDS}, but there are {WORDS} embeddings", tmp_path / "m")
    refused("gist_condition 'half'", tmp_path / "m", gist_condition="half", gist_token_id=3)


# --------------------------------------------------------------------------------------------------------- adapters


def lora(folder: Path, old: bool = False, **changes: Any) -> dict[str, Tensor]:
    """An adapter on FullAttention-Llama with trained summary embeddings, in today's form or peft's oldest."""
    torch.manual_seed(3)
    folder.mkdir(exist_ok=True, parents=True)
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "modules_to_save": ["embed_summary"], **changes}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    merged, saved = CHECKPOINTS["FullAttention-Llama"].weights(), {}
    for layer, part in ((0, "q"), (1, "q"), (1, "o")):
        module = f"model.layers.{layer}.self_attn.{part}_proj"
        down, up = torch.randn(4, WIDTH), torch.randn(WIDTH, 4)
        between = ".default" if old else ""
        saved[f"base_model.model.{module}.lora_A{between}.weight"] = down
        saved[f"base_model.model.{module}.lora_B{between}.weight"] = up
        merged[f"{module}.weight"] = merged[f"{module}.weight"] + up @ down * 1.5
    between = "modules_to_save.default." if old else ""
    summary = merged["embed_summary.weight"] = torch.randn(SUMMARY, WIDTH)
    saved[f"base_model.model.embed_summary.{between}weight"] = summary
    if old:
        saved["base_model.model.embed_summary.original_module.weight"] = torch.zeros(SUMMARY, WIDTH)
        torch.save(saved, folder / "adapter_model.bin")
    else:
        save_file(saved, folder / "adapter_model.safetensors")
    return merged


@pytest.mark.parametrize("old", [False, True])
def test_adapters_are_merged(old: bool, tmp_path: Path) -> None:
    CHECKPOINTS["FullAttention-Llama"].write(tmp_path / "base")
    expected = lora(tmp_path / "adapter", old, base_model_name_or_path=str(tmp_path / "base"))
    for given in (None, tmp_path / "base"):
        model = load(tmp_path / "adapter", "cpu", base=given)
        assert type(model).__name__ == "LlamaAutoCompressorModel" and model.config.summary_length == SUMMARY
        same(model, expected, tuple(FREQUENCIES))
    lora(tmp_path / "base", old)  # beside the base, in one folder
    same(load(tmp_path / "base", "cpu"), expected, tuple(FREQUENCIES))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "of the type IA3; only LORA"),
        ({"use_dora": True}, "sets use_dora"),
        ({"base_model_name_or_path": "/nowhere/llama"}, "give the folder of its base with base="),
        ({}, "does not name its base"),
    ],
)
def test_adapters_that_cannot_be_merged(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    CHECKPOINTS["FullAttention-Llama"].write(tmp_path / "base")
    if "use_dora" in changes:
        changes = {**changes, "base_model_name_or_path": str(tmp_path / "base")}
    lora(tmp_path / "adapter", **changes)
    refused(message, tmp_path / "adapter", InputError, base=tmp_path / "base" if "peft_type" in changes else None)
    CHECKPOINTS["AutoCompressor-OPT"].write(tmp_path / "other")
    lora(tmp_path / "adapter")
    message = r"changes model\.layers\.0\.self_attn\.q_proj\.weight, which its base does"
    refused(message, tmp_path / "adapter", base=tmp_path / "other")


# ----------------------------------------------------------------------------------------------------- weight diffs


def diff(tmp_path: Path) -> dict[str, Tensor]:
    """Write `base`, `other` (another base) and `diff`; returns the tuned weights."""
    published = CHECKPOINTS["gist-Llama"]
    base, tuned = published.weights(seed=1), published.weights(seed=2)
    for name in base:
        tuned[name] = base[name] + 0.01 * tuned[name] if name not in FREQUENCIES else base[name]
    changes = {name: tensor - base[name] for name, tensor in tuned.items()}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        changes[name][-1] = tuned[name][-1]
        base[name] = base[name][:-1]
    other = {name: tensor + 0.5 for name, tensor in base.items()}
    for name, weights in (("base", base), ("other", other)):
        write_folder(tmp_path / name, {**LLAMA_CONFIG, "vocab_size": WORDS - 1}, weights, "bin")
    write_folder(tmp_path / "diff", published.config, changes, "bin")
    (tmp_path / "diff" / "added_tokens.json").write_text(json.dumps({"<GIST>": WORDS - 1}))
    return tuned


def test_a_wrong_base_is_refused_with_the_numbers(tmp_path: Path) -> None:
    tuned = diff(tmp_path)
    expected = weight_sum(tuned, AutoConfig.for_model(**LLAMA_CONFIG))
    message, given = f"expected {expected.with_frequencies:.4f}.*The base is another one", tmp_path / "diff"
    refused(message, given, base=tmp_path / "other", checksum=expected.with_frequencies)
    CHECKPOINTS["RMT-OPT"].write(tmp_path / "opt")
    refused(r"the base has no model\.embed_tokens\.weight", given, base=tmp_path / "opt")
    CHECKPOINTS["gist-Llama"].write(tmp_path / "wide")
    weights = load_file(tmp_path / "wide" / "model.safetensors")
    weights["lm_head.weight"] = torch.zeros(WORDS + 2, WIDTH)
    save_file(weights, tmp_path / "wide" / "model.safetensors")
    refused(rf"lm_head\.weight has the shape \({WORDS + 2}, {WIDTH}\) in the base", given, base=tmp_path / "wide")


def test_a_released_sum_tells_the_condition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    total = weight_sum(diff(tmp_path), AutoConfig.for_model(**LLAMA_CONFIG)).with_frequencies
    monkeypatch.setattr(weight_diff, "RELEASED", {"gist": total + 9, "pos_control": total, "neg_control": total - 9})
    monkeypatch.setattr(weight_diff, "RELEASED_EMBEDDINGS", (WORDS, WIDTH))
    assert load(tmp_path / "diff", "cpu", base=tmp_path / "base").config.gist_condition == "pos_control"
    refused(r"\(gist\)", tmp_path / "diff", base=tmp_path / "base", gist_condition="gist")


def test_diffs_and_models_are_not_confused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    diff(tmp_path)
    refused("a weight diff, not a model; give the folder of its base with base=", tmp_path / "diff", InputError)
    message = "neither a weight diff nor an adapter; load it without base="
    refused(message, tmp_path / "base", InputError, base=tmp_path / "other")
    load(tmp_path / "diff", "cpu", base=tmp_path / "base")
    assert "not verified: no checksum of it is known" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------- what is refused


class Harmful:
    def __reduce__(self) -> Any:
        return (print, ("code ran",))


def test_weights_that_could_run_code_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    CHECKPOINTS["RMT-OPT"].write(tmp_path / "m", "bin")
    file = tmp_path / "m" / "pytorch_model.bin"
    torch.save({"model.decoder.embed_tokens.weight": Harmful()}, file)
    refused(r"pytorch_model\.bin holds Python objects, which could run code", tmp_path / "m")
    file.write_bytes(pickle.dumps(Harmful()))
    refused(r"pytorch_model\.bin", tmp_path / "m")
    assert "code ran" not in capfd.readouterr().out
    torch.save([torch.zeros(2)], file)
    refused(r"pytorch_model\.bin holds list; expected tensors by name", tmp_path / "m")


@pytest.mark.parametrize(
    "name", ["flax_model.msgpack", "tf_model.h5", "model.ckpt", "consolidated.00.pth", "model.pkl"]
)
def test_other_formats_are_refused(name: str, tmp_path: Path) -> None:
    CHECKPOINTS["RMT-OPT"].write(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").rename(tmp_path / "m" / name)
    refused(rf"expected model\.safetensors or pytorch_model\.bin.*; found {name}", tmp_path / "m")


@pytest.mark.parametrize(
    ("form", "file"),
    [
        ("safetensors", "model.safetensors"),
        ("safetensors-shards", "model-00002-of-00002.safetensors"),
        ("bin", "pytorch_model.bin"),
        ("bin-shards", "pytorch_model-00001-of-00002.bin"),
    ],
)
@pytest.mark.parametrize("left", [0, 5, 1500, -1])
def test_damaged_files_are_reported_by_their_name(form: str, file: str, left: int, tmp_path: Path) -> None:
    CHECKPOINTS["AutoCompressor-Llama"].write(tmp_path / "m", form)
    path = tmp_path / "m" / file
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(ArtifactError) as caught:
        load(tmp_path / "m", "cpu")
    assert str(caught.value).startswith(f"{tmp_path}/m: cannot be loaded as a model: {file} is truncated or damaged (")


def test_shards_that_are_missing_are_reported(tmp_path: Path) -> None:
    CHECKPOINTS["RMT-OPT"].write(tmp_path / "m", "bin-shards")
    (tmp_path / "m" / "pytorch_model-00002-of-00002.bin").unlink()
    refused(r"index\.json names pytorch_model-00002-of-00002\.bin, which are not there", tmp_path / "m")
    (tmp_path / "m" / "pytorch_model.bin.index.json").write_text('{"weight_map": ')
    refused(r"pytorch_model\.bin\.index\.json is no index of shards", tmp_path / "m")


def test_keys_that_do_not_fit_are_named_and_counted(tmp_path: Path) -> None:
    weights = CHECKPOINTS["RMT-OPT"].weights()
    whole = dict(weights)
    for name in [name for name in weights if ".fc" in name]:
        del weights[name]
    weights["model.decoder.final_layer_norm.bias"] = torch.zeros(7)
    weights["head.extra"] = torch.zeros(1)
    write_folder(tmp_path / "m", CHECKPOINTS["RMT-OPT"].config, weights)
    with pytest.raises(ArtifactError) as caught:
        load(tmp_path / "m", "cpu")
    message = str(caught.value)
    assert "the weights lack model.decoder.layers.0.fc1.bias, " in message and "and 5 more (8 in all)" in message
    assert (
        "no place for head.extra" in message and f"model.decoder.final_layer_norm.bias (7,) for ({WIDTH},)" in message
    )
    write_folder(tmp_path / "rows", {**CHECKPOINTS["RMT-OPT"].config, "summary_length": 9}, whole)
    refused(f"summary_length 9, but embed_summary.weight has {SUMMARY} rows", tmp_path / "rows")
    write_folder(tmp_path / "none", {**OPT_CONFIG, "summary_length": 2}, {name: whole[name] for name in OPT})
    refused(r"the weights lack embed_summary\.weight", tmp_path / "none")


# ------------------------------------------------------------------------------------------------ options, the hub


def test_options_pass_through(tmp_path: Path) -> None:
    weights = CHECKPOINTS["AutoCompressor-Llama"].write(tmp_path / "m")
    (tmp_path / "m" / "generation_config.json").write_text(
        json.dumps({"max_length": 33, "transformers_version": "4.34.0"})
    )
    options = {"attn_implementation": "eager", "accumulate_summary": False, "device_map": {"": torch.device("cpu")}}
    model = load(tmp_path / "m", "cpu", torch.bfloat16, **options)
    assert model.dtype == torch.bfloat16 and model.config._attn_implementation == "eager"
    assert model.generation_config.max_length == 33 and not model.config.accumulate_summary
    assert torch.equal(model.embed_summary.weight, weights["embed_summary.weight"].bfloat16())


def test_hub_ids_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    CHECKPOINTS["RMT-OPT"].write(tmp_path / "cache", "bin")
    asked: list[tuple[str, str | None, tuple[str, ...]]] = []

    def fetch(name: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
        asked.append((name, revision, patterns))
        if len(asked) == 1:  # as for a repository without safetensors
            (tmp_path / "first").mkdir()
            return tmp_path / "first"
        return tmp_path / "cache"

    monkeypatch.setattr(loading, "_download", fetch)
    monkeypatch.chdir(tmp_path)
    assert type(load("someone/RMT", "cpu", revision="v2")).__name__ == "OPTAutoCompressorModel"
    assert [question[:2] for question in asked] == [("someone/RMT", "v2")] * 2
    assert "*.bin" not in asked[0][2] and "*.bin" in asked[1][2]


def test_hub_ids_that_cannot_be_fetched_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused("no-one/nothing: is no folder here, and no model that can be fetched", "no-one/nothing")
