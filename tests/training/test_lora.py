"""LoRA and training of the new embeddings alone: what changes, what does not, and how it is saved and loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from synopsis.artifacts import Layout
from synopsis.compressors import load
from synopsis.config.training import LowRank
from synopsis.errors import ArtifactError, InputError
from synopsis.training import stage
from synopsis.training.preparation import prepare
from synopsis.training.trainable import merged_state, save_trained, trained_state
from training_runs import LLAMA, OPT, T5, autocompressor, experiment, gist

LORA: dict[str, Any] = {"rank": 2, "alpha": 8.0, "dropout": 0.0}
T5_TARGETS = ["q", "v"]
KINDS = {
    "summary": (autocompressor, LLAMA, LORA),
    "summary on OPT": (autocompressor, OPT, {**LORA, "targets": ["q_proj", "out_proj"]}),
    "gist": (gist, LLAMA, LORA),
    "gist on T5": (gist, T5, {**LORA, "targets": T5_TARGETS}),
}


def trained(folder: Path, compressor: dict[str, Any], config: Any, run: str = "it-s0") -> Path:
    found = experiment(folder, compressor, config)
    stage.train(found, run)
    return Layout(found).model(run)


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_is_small_and_loads_as_the_merged_model(kind: str, tmp_path: Path) -> None:
    make, config, lora = KINDS[kind]
    merged = load(trained(tmp_path, make(lora=lora), config))
    shutil.rmtree(tmp_path / "results" / "runs" / "models" / "it-s0")
    folder = trained(tmp_path, make(lora={**lora, "merge": False}), config)
    assert not (folder / "model.safetensors").exists()
    base = folder.parent / "base" / "model.safetensors"
    assert (folder / "adapter_model.safetensors").stat().st_size < base.stat().st_size / 2
    adapted = load(folder)
    assert type(adapted) is type(merged)
    state = merged.state_dict()
    assert state.keys() == adapted.state_dict().keys()
    for name, weight in adapted.state_dict().items():
        torch.testing.assert_close(weight, state[name], rtol=0, atol=1e-6)
    changed = {
        name for name, weight in load(folder.parent / "base").state_dict().items() if differs(weight, state[name])
    }
    assert changed and all(
        name.split(".")[-2]
        in (*lora.get("targets", ["q_proj", "k_proj", "v_proj", "o_proj"]), "embed_tokens", "shared", "lm_head")
        for name in changed
    )


def differs(before: torch.Tensor, after: torch.Tensor) -> bool:
    return before.shape != after.shape or not torch.equal(before, after)


def test_the_base_beside_an_adapter_is_found_after_a_move(tmp_path: Path) -> None:
    folder = trained(tmp_path, autocompressor(lora={**LORA, "merge": False}), LLAMA)
    weights = load(folder).state_dict()
    moved = tmp_path / "moved"
    shutil.move(folder.parent, moved)
    for name, weight in load(moved / folder.name).state_dict().items():
        assert torch.equal(weight, weights[name])
    shutil.rmtree(moved / "base")
    with pytest.raises(ArtifactError, match="give the folder of its base with base="):
        load(moved / folder.name)


def test_rows_that_do_not_fit_the_base_are_reported(tmp_path: Path) -> None:
    folder = trained(tmp_path, gist(lora={**LORA, "merge": False}), LLAMA)
    settings = json.loads((folder / "adapter_config.json").read_text())
    (place,) = settings["trainable_token_indices"]["model.embed_tokens"]
    settings["trainable_token_indices"]["model.embed_tokens"] = [place, place + 1]
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    (folder / "provenance.json").unlink()  # it holds the hash of what was written
    with pytest.raises(ArtifactError, match=r"1 rows of model\.embed_tokens\.weight for 2 tokens"):
        load(folder)


def test_peft_reads_the_adapter(tmp_path: Path) -> None:
    """The folder is peft's own format: on a base with room for the gist token its model gives the same logits."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = trained(tmp_path, gist("pos_control", lora={**LORA, "merge": False}), LLAMA)
    ours = load(folder)
    base = AutoModelForCausalLM.from_pretrained(folder.parent / "base")
    base.resize_token_embeddings(ours.config.vocab_size, mean_resizing=False)
    theirs = PeftModel.from_pretrained(base, folder).eval()
    ids = torch.tensor([[5, 9, 3, ours.config.gist_token_id, 8, 4]])
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, rtol=1e-4, atol=1e-5)


def test_merging_is_the_sum_that_training_computed(tmp_path: Path) -> None:
    model = prepare(experiment(tmp_path, autocompressor(lora=LORA)), "it-s0").model.eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_()
    ids = torch.randint(3, 60, (2, 12))
    with torch.no_grad():
        expected = model(ids, segment_lengths=6).logits
    lora = LowRank(**LORA)
    save_trained(model, tmp_path / "whole", lora, None)
    with torch.no_grad():
        torch.testing.assert_close(load(tmp_path / "whole")(ids, segment_lengths=6).logits, expected)
    assert not any("lora" in name or "base_layer" in name for name in merged_state(model.state_dict(), lora))


@pytest.mark.parametrize(
    ("make", "config"), [(autocompressor, LLAMA), (autocompressor, OPT), (gist, LLAMA), (gist, T5)]
)
def test_the_new_embeddings_alone_learn(make: Any, config: Any, tmp_path: Path) -> None:
    """Weight decay, momentum and clipping leave every other number as it was, to the bit."""
    folder = trained(tmp_path, make(train_only="new_embeddings", weight_decay=0.5), config)
    before, after = load(folder.parent / "base").state_dict(), load(folder).state_dict()
    prepared = prepare(experiment(tmp_path, make(train_only="new_embeddings"), config), "it-s0").model
    initial = prepared.state_dict()
    for name, weight in after.items():
        if name in before:
            assert torch.equal(weight[: len(before[name])], before[name]), name
    if make is autocompressor:
        assert not torch.equal(after["embed_summary.weight"], initial["embed_summary.weight"])
    else:
        name = "shared.weight" if config is T5 else "model.embed_tokens.weight"
        assert not torch.equal(after[name][-1], initial[name][-1])
        assert torch.equal(after["lm_head.weight"], initial["lm_head.weight"])


def test_a_row_within_the_vocabulary_learns_alone(tmp_path: Path) -> None:
    """A base with spare rows, and a tied output layer: the gist token's row is one in the middle."""
    tied = LLAMA.__class__(**{**LLAMA.to_dict(), "tie_word_embeddings": True, "vocab_size": LLAMA.vocab_size + 7})
    folder = trained(tmp_path, gist(train_only="new_embeddings", weight_decay=0.5), tied)
    token, before = LLAMA.vocab_size, load(folder.parent / "base").state_dict()["model.embed_tokens.weight"]
    after = load(folder).state_dict()["model.embed_tokens.weight"]
    others = torch.arange(len(before)) != token
    assert after.shape == before.shape and torch.equal(after[others], before[others])
    mean = before[:token].mean(0)
    assert not torch.equal(after[token], mean) and float((after[token] - mean).abs().max()) < 0.1


def test_checkpoints_hold_what_is_trained_and_a_run_goes_on_from_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = load(trained(made(tmp_path / "whole"), autocompressor(lora=LORA), LLAMA))
    found = experiment(made(tmp_path / "stopped"), autocompressor(lora=LORA))
    checkpoint, weights = Layout(found).checkpoints("it-s0") / "checkpoint-2", []

    def killed(*arguments: Any) -> None:
        weights.append((checkpoint / "model.safetensors").stat().st_size)
        shutil.rmtree(checkpoint.with_name("checkpoint-4"))
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(stage, "_write", killed)
        stage.train(found, "it-s0")
    trained_numbers = sum(weight.numel() for weight in trained_state(prepare(found, "it-s0").model).values())
    assert weights[0] < 4 * trained_numbers + 8192
    stage.train(found, "it-s0")
    assert f"resumes from {checkpoint}" in capsys.readouterr().err
    for name, weight in load(Layout(found).model("it-s0")).state_dict().items():
        assert torch.equal(weight, whole.state_dict()[name]), name


def made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


@pytest.mark.parametrize(
    ("compressor", "message"),
    [
        (autocompressor(lora={**LORA, "targets": ["qq_proj"]}), "no linear layer qq_proj; it has"),
        (autocompressor(train_only="new_embeddings", segments_per_substep=1), "segments_per_substep 1"),
        (
            {
                "method": "full_attention",
                "base": "base",
                "training": autocompressor(train_only="new_embeddings")["training"],
            },
            "no summary tokens and no gist token",
        ),
        (gist(train_only="new_embeddings", fsdp=True), "fsdp shards the embeddings"),
        (gist(lora=LORA, deepspeed="zero.json", weight_decay=0.1), "weight_decay with deepspeed"),
    ],
)
def test_what_cannot_be_trained_is_reported(compressor: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        prepare(experiment(tmp_path, compressor), "it-s0")


def test_the_best_adapter_is_given_out(tmp_path: Path) -> None:
    """Checkpoints hold the adapter alone, and the best of them is put back into the model."""
    rising = {"steps": 6, "learning_rate": 1.0, "schedule": "constant", "evaluate_every": 1, "checkpoint_every": 1}
    folder = trained(tmp_path, autocompressor(lora={**LORA, "merge": False}, keep_best=True, **rising), LLAMA)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    evaluated = {row["step"]: row["eval_loss"] for row in rows[:-1] if "eval_loss" in row}
    provenance = json.loads((folder / "provenance.json").read_text())
    best = min(evaluated, key=evaluated.__getitem__)
    assert best < 6 and provenance["best_step"] == best and provenance["eval_loss"] == evaluated[best]
