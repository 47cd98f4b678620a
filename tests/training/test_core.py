"""What a training run does beside its steps: segments, validation, the best weights, faults that are reported."""

from __future__ import annotations

import json
import math
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from compressor_models import summary_model
from synopsis.artifacts import Layout
from synopsis.compressors import load
from synopsis.config.experiment import Experiment
from synopsis.config.training import SegmentTraining
from synopsis.errors import DataError, InputError, SynopsisError
from synopsis.training import preparation, stage
from synopsis.training.trainer import CompressorTrainer, part_that_is_read
from torch.nn.functional import cross_entropy
from training_runs import LLAMA, OPT, T5, autocompressor, experiment, gist, metrics, trained

FULL: dict[str, Any] = {"method": "full_attention", "base": "base", "training": autocompressor()["training"]}


def same(a: Any, b: Any, **tolerance: float) -> None:
    other = b.state_dict()
    for name, weight in a.state_dict().items():
        torch.testing.assert_close(weight, other[name], **(tolerance or {"rtol": 0, "atol": 0}), msg=name)


def killed_at_the_end(found: Experiment, monkeypatch: pytest.MonkeyPatch, left: int) -> None:
    """Train, and die before the model is written; of the checkpoints only those up to step `left` remain."""

    def kill(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(stage, "_write", kill)
        stage.train(found, "it-s0")
    for checkpoint in Layout(found).checkpoints("it-s0").glob("checkpoint-*"):
        if int(checkpoint.name.split("-")[1]) > left:
            shutil.rmtree(checkpoint)


# ------------------------------------------------------------------------------------------------------------ segments


def test_the_end_of_a_row_is_read_where_fixed_segments_are_shorter() -> None:
    training = SegmentTraining(
        corpus="none", sequence_length=20, steps=1, batch_size=1, learning_rate=1.0, substeps=2,
        segments_per_substep=2, randomize_segments=False, segment_lengths=[4, 6],
    )  # fmt: skip
    assert part_that_is_read(20, training) == slice(0, 20)
    assert part_that_is_read(27, training) == slice(7, 27)
    with pytest.raises(ValueError, match="rows of 20 tokens; these have 19"):
        part_that_is_read(19, training)


@pytest.mark.parametrize(
    "options",
    [{"segment_gradient_checkpointing": True}, {"gradient_checkpointing": True}, {"attention": "eager"}],
    ids=lambda options: next(iter(options)),
)
def test_how_it_is_computed_does_not_change_what_is_learned(options: dict[str, Any], tmp_path: Path) -> None:
    plain, other = trained(tmp_path / "plain", autocompressor()), trained(tmp_path / "other", autocompressor(**options))
    same(plain, other, rtol=1e-4, atol=1e-5)


def test_layers_are_compiled_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the compiler taken out of torch.compile the traced layers must learn what plain ones learn."""
    compiled = []

    def compile_traced(module: torch.nn.Module) -> None:
        compiled.append(module)
        module._compiled_call_impl = torch.compile(module._call_impl, backend="eager")

    monkeypatch.setattr(torch.nn.Module, "compile", compile_traced)
    other = trained(tmp_path / "other", autocompressor(compile=True))
    assert [type(module).__name__ for module in compiled] == ["LlamaDecoderLayer"] * 2
    same(trained(tmp_path / "plain", autocompressor()), other, rtol=1e-4, atol=1e-5)


def test_positions_are_extended(tmp_path: Path) -> None:
    model = trained(tmp_path, autocompressor(max_positions=60, learning_rate=1e-9), OPT)
    table = model.model.decoder.embed_positions.weight
    assert len(table) == 62 and model.config.max_position_embeddings == 60
    torch.testing.assert_close(table[26:50], table[2:26], rtol=0, atol=1e-6)
    torch.testing.assert_close(table[50:], table[2:14], rtol=0, atol=1e-6)
    with pytest.raises(InputError, match="max_positions 10: the base 'base' has 24 already"):
        preparation.prepare(experiment(tmp_path, autocompressor(max_positions=10), OPT), "it-s0")


def test_segments_of_opt_may_fill_all_positions(tmp_path: Path) -> None:
    """Its summary vectors have none of their own, and the published lengths are drawn up to the whole table."""
    for config, longest in ((OPT, 24), (LLAMA, 48 - 9 - 3)):
        folder = tmp_path / config.model_type
        folder.mkdir()
        found = experiment(folder, autocompressor(), config)
        model = preparation.prepare(found, "it-s0").model
        assert found.compressors["it"].longest_segment(model) == longest


# ------------------------------------------------------------------------------------------------- fewer summary tokens


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many summary tokens each step of the runs to come draws."""
    drawn: list[int] = []
    original = CompressorTrainer._drawn_options

    def record(self: CompressorTrainer, training: SegmentTraining) -> dict[str, int]:
        options = original(self, training)
        drawn.append(options["summary_length"])
        return options

    monkeypatch.setattr(CompressorTrainer, "_drawn_options", record)
    return drawn


def test_each_step_draws_how_many_summary_tokens_it_uses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every number from 1 to all comes up, and a run with a stop in it draws what the whole run drew."""
    drawn = recorded(monkeypatch)
    compressor = autocompressor(random_summary_length=True, steps=16, checkpoint_every=6)
    whole = trained(tmp_path / "whole", compressor)
    expected, drawn[:] = list(drawn), []
    assert len(expected) == 16 and set(expected) == {1, 2, 3}
    (tmp_path / "stopped").mkdir()
    found = experiment(tmp_path / "stopped", compressor)
    killed_at_the_end(found, monkeypatch, left=12)
    drawn.clear()
    stage.train(found, "it-s0")
    assert drawn == expected[12:]
    same(load(Layout(found).model("it-s0")), whole)
    assert whole.config.random_summary_length


@pytest.mark.parametrize(
    ("compressor", "config"),
    [(autocompressor(random_summary_length=True), LLAMA), (gist(), T5)],
    ids=["autocompressor", "gist-t5"],
)
def test_a_step_is_the_same_in_any_number_of_passes(compressor: dict[str, Any], config: Any, tmp_path: Path) -> None:
    """Draws hold for a whole step, and its labels weigh the same in whatever pass they are."""
    models = []
    for rows in (5, 1):
        training = {**compressor["training"], "batch_size": rows, "sequences_per_step": 5}
        models.append(trained(tmp_path / str(rows), {**compressor, "training": training}, config))
    same(*models, rtol=1e-4, atol=1e-5)
    losses = [[row["loss"] for row in metrics(tmp_path / name) if "loss" in row] for name in ("5", "1")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_fewer_summary_tokens_are_a_prefix_of_all(tmp_path: Path) -> None:
    model = summary_model(random_summary_length=True)
    ids = torch.randint(3, 60, (2, 15), generator=torch.Generator().manual_seed(0))
    for count in (1, 2, 3):
        context = model.compress(ids, segment_lengths=5, summary_length=count)
        out = model(ids, segment_lengths=5, output_softprompt=True, summary_length=count)
        assert context.summary_vectors is not None and context.summary_vectors.shape[1] == 3 * count
        torch.testing.assert_close(context.summary_vectors, out.softprompt, rtol=1e-4, atol=2e-5)
        after = model.continue_from(context, ids[:, :4]).logits
        torch.testing.assert_close(after, model(ids[:, :4], softprompt=out.softprompt).logits, rtol=1e-4, atol=5e-5)
    small = summary_model(summary_length=2)
    small.load_state_dict({**model.state_dict(), "embed_summary.weight": model.embed_summary.weight[:2]})
    torch.testing.assert_close(
        small(ids, segment_lengths=5, output_softprompt=True).softprompt,
        model(ids, segment_lengths=5, output_softprompt=True, summary_length=2).softprompt,
    )


def test_fewer_summary_tokens_need_a_model_that_learned_it() -> None:
    ids = torch.randint(3, 60, (1, 10))
    with pytest.raises(ValueError, match="train with random_summary_length"):
        summary_model().compress(ids, summary_length=2)
    with pytest.raises(ValueError, match="summary_length 4; this model has 1 to 3"):
        summary_model(random_summary_length=True)(ids, output_softprompt=True, summary_length=4)


# ---------------------------------------------------------------------------------------------------------- validation


def test_losses_by_segment_are_those_of_the_tokens(tmp_path: Path) -> None:
    """Weighted by tokens over batches of unequal size, against logits of one pass over each row."""
    model = trained(tmp_path, autocompressor(learning_rate=1e-3))
    found = experiment(tmp_path, autocompressor())
    losses = []
    for row in preparation.prepare(found, "it-s0").validation:
        with torch.no_grad():
            logits = model(row["input_ids"][None], segment_lengths=6).logits[0, :-1]
        losses.append(cross_entropy(logits, row["labels"][1:], reduction="none"))
    by_token = torch.stack(losses)  # (rows, 23)
    last = metrics(tmp_path)[-1]
    assert last["eval_loss"] == pytest.approx(float(by_token.mean()), rel=1e-5)
    edges = [0, 6, 12, 18, 23]
    for index, (start, end) in enumerate(pairwise(edges)):
        loss = float(by_token[:, start:end].mean())
        assert last[f"loss/segment={index + 1}"] == pytest.approx(loss, rel=1e-5)
        assert last[f"perplexity/context={6 * index}"] == pytest.approx(math.exp(loss), rel=1e-5)
    assert {key.split("=")[0] for key in last} == {"step", "epoch", "eval_loss", "loss/segment", "perplexity/context"}


def test_masked_labels_do_not_count() -> None:
    model = summary_model()
    ids = torch.randint(3, 60, (3, 12), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[0, 2:9], labels[1] = -100, -100
    losses = model(ids, labels=labels, segment_lengths=4, output_segment_losses=True).segment_losses
    assert losses[..., 1].tolist() == [[1, 0, 3], [0, 0, 0], [4, 4, 3]]
    assert not losses[1].any() and losses[0, 1, 0].item() == 0
    whole = model(ids, labels=labels, segment_lengths=4).loss
    torch.testing.assert_close(losses[..., 0].sum() / losses[..., 1].sum(), whole)


@pytest.mark.parametrize("compressor", [FULL, gist()], ids=["full attention", "gist"])
def test_the_validation_loss_is_a_mean_over_tokens(compressor: dict[str, Any], tmp_path: Path) -> None:
    model = trained(tmp_path, compressor)
    data = preparation.prepare(experiment(tmp_path, compressor), "it-s0").validation
    total = count = 0.0
    for row in data:
        ids, labels = (torch.as_tensor(row[key])[None] for key in ("input_ids", "labels"))
        with torch.no_grad():
            logits = model(ids).logits[:, :-1]
        total += float(cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum"))
        count += int((labels[:, 1:] != -100).sum())
    assert metrics(tmp_path)[-1]["eval_loss"] == pytest.approx(total / count, rel=1e-5)


def test_the_first_evaluation_comes_before_the_first_step_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compressor = autocompressor(evaluate_first=True)
    whole = trained(tmp_path / "whole", compressor)
    (tmp_path / "stopped").mkdir()
    found = experiment(tmp_path / "stopped", compressor)
    killed_at_the_end(found, monkeypatch, left=2)
    stage.train(found, "it-s0")
    rows = metrics(tmp_path / "stopped")
    assert [row["step"] for row in rows if "eval_loss" in row] == [0, 4]
    assert rows == metrics(tmp_path / "whole")
    same(load(Layout(found).model("it-s0")), whole)


# -------------------------------------------------------------------------------------------------------- best weights

RISING: dict[str, Any] = {
    "steps": 11, "learning_rate": 0.3, "evaluate_every": 1, "checkpoint_every": 2, "schedule": "constant",
}  # fmt: skip
"""The validation loss of this run rises; its last step is no multiple of checkpoint_every."""


def test_the_best_weights_are_given_out(tmp_path: Path) -> None:
    best = trained(tmp_path / "best", autocompressor(**RISING, keep_best=True))
    rows = metrics(tmp_path / "best")
    evaluated = {row["step"]: row["eval_loss"] for row in rows[:-1] if "eval_loss" in row}
    at_checkpoints = {step: loss for step, loss in evaluated.items() if step % 2 == 0 or step == 11}
    step = min(at_checkpoints, key=at_checkpoints.__getitem__)
    assert 2 <= step < 11 and rows[-1]["eval_loss"] == at_checkpoints[step] < evaluated[11]
    provenance = json.loads((tmp_path / "best/results/runs/models/it-s0/provenance.json").read_text())
    assert (provenance["best_step"], provenance["steps"], provenance["eval_loss"]) == (step, 11, at_checkpoints[step])
    same(trained(tmp_path / "short", autocompressor(**{**RISING, "steps": step})), best)


def test_a_resumed_run_knows_what_was_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the run had only its model to write, and where the checkpoint of the best step is gone."""
    compressor = autocompressor(**RISING, keep_best=True)
    whole = trained(tmp_path / "whole", compressor)
    (tmp_path / "stopped").mkdir()
    found = experiment(tmp_path / "stopped", compressor)
    for left in (10, 11):
        killed_at_the_end(found, monkeypatch, left)
    best = min(Layout(found).checkpoints("it-s0").glob("checkpoint-?"))  # the only one so old that is still there
    shutil.rmtree(best)
    stage.train(found, "it-s0")
    said = capsys.readouterr().err
    assert f"checkpoint-11 is passed over: {best}, which has the best" in said
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "whole")
    same(load(Layout(found).model("it-s0")), whole)


# --------------------------------------------------------------------------------------------------------- faults


def test_a_loss_that_is_no_number_names_the_step_and_the_document(tmp_path: Path) -> None:
    """One word of one document has an embedding of nothing."""
    found = experiment(tmp_path, autocompressor(steps=40))
    prepared = preparation.prepare(found, "it-s0")
    others = {
        token
        for index in range(len(prepared.train))
        if index != 3
        for token in prepared.train[index]["input_ids"].tolist()
    }
    token = next(token for token in prepared.train[3]["input_ids"].tolist() if token not in others)
    folder = Layout(found).model("base")
    base = load(folder)
    with torch.no_grad():
        base.model.embed_tokens.weight[token] = float("nan")
    base.save_pretrained(folder)
    with pytest.raises(
        SynopsisError, match=r"step \d+: the loss is nan on the batch of the sequences .*3 \(document train-1\)"
    ):
        stage.train(found, "it-s0")


@pytest.mark.parametrize(
    ("compressor", "message"),
    [
        (autocompressor(batch_size=7), "data/stories/base: found 6 training sequences; expected at least 7, those of"),
        (autocompressor(gradient_accumulation=4), "found 6 training sequences; expected at least 8, those of one"),
        (autocompressor(sequences_per_step=8), "found 6 training sequences; expected at least 8, those of one"),
        (gist(batch_size=13), "translations.json: found 12 training sequences; expected at least 13, those of one"),
    ],
)
def test_an_optimizer_step_is_never_silently_smaller(compressor: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        stage.train(experiment(tmp_path, compressor), "it-s0")


def test_labels_that_are_all_masked_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = preparation.collate_equal

    def masked(examples: Any) -> Any:
        batch = original(examples)
        return {**batch, "labels": torch.full_like(batch["labels"], -100)}

    monkeypatch.setattr(preparation, "collate_equal", masked)
    with pytest.raises(DataError, match="the labels of all 6 sequences are masked"):
        preparation.prepare(experiment(tmp_path, autocompressor()), "it-s0")


def test_a_tokenizer_that_does_not_fit_is_reported(tmp_path: Path) -> None:
    small = LLAMA.__class__(**{**LLAMA.to_dict(), "vocab_size": 50})
    with pytest.raises(
        InputError, match=r"the tokenizer of 'base' does not fit the model: it has \d+ tokens, and .* 50"
    ):
        preparation.prepare(experiment(tmp_path, autocompressor(), small), "it-s0")


def test_outputs_that_do_not_fit_are_reported(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none of 12 instruction rows has an output that fits"):
        preparation.prepare(experiment(tmp_path, gist(max_length=3)), "it-s0")


def test_flash_attention_needs_half_precision(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="it needs dtype bfloat16"):
        preparation.prepare(experiment(tmp_path, autocompressor(attention="flash_attention_2")), "it-s0")
