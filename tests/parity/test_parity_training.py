"""Segment lengths and training steps against outputs of the published code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from published import Case, Golden, close, close_gradient, shifts_scores
from synopsis.compressors import compressor_class
from synopsis.config.training import SegmentTraining
from synopsis.data.sequences import collate_padded
from synopsis.training.segments import random_segment_lengths
from synopsis.training.trainer import CompressorTrainer
from transformers import TrainingArguments

LENGTHS = "ac_train*/random_segment_lengths.json"


@pytest.mark.golden(LENGTHS)
def test_random_segment_lengths(golden: Golden) -> None:
    records = [record for document in golden.documents(LENGTHS) for record in document["sequences"]]
    assert records
    for record in records:
        arguments = (record["T"], record["num_segments"], record["max_position_embeddings"])
        torch.manual_seed(record["seed"])
        assert [random_segment_lengths(*arguments) for _ in record["lengths"]] == record["lengths"], record


@pytest.mark.golden(LENGTHS)
def test_lengths_at_the_edge(golden: Golden) -> None:
    """The published code raises as soon as nothing is left to draw; ours only where no cut exists."""
    for record in (record for document in golden.documents(LENGTHS) for record in document["edge_cases"]):
        length, count, longest = record["T"], record["num_segments"], record["max_position_embeddings"]
        if "lengths" in record:
            assert random_segment_lengths(length, count, longest) == record["lengths"]
        elif length > count * longest:
            with pytest.raises(
                ValueError, match=f"{length} tokens cannot be cut into {count} segments of 2 to {longest}"
            ):
                random_segment_lengths(length, count, longest)
        else:
            assert random_segment_lengths(length, count, longest) == [length // count] * count


@pytest.mark.golden("ac_train*")
def test_training(case: Case, tmp_path: Path) -> None:
    if case.name == "collator":
        _collates(case)
    else:
        _steps(case, tmp_path)


def _collates(case: Case) -> None:
    """Padding on the right with the beginning of text, labels -100 there."""
    rows = [row[mask.bool()].tolist() for row, mask in zip(case["input_ids"], case["attention_mask"], strict=True)]
    padding = case["input_ids"][case["attention_mask"] == 0]
    assert len(padding) and bool((padding == padding[0]).all())
    batch = collate_padded([{"input_ids": row, "labels": row} for row in rows], int(padding[0]), side="right")
    for name in ("input_ids", "attention_mask", "labels"):
        assert torch.equal(batch[name], case[name]), name


def _draws_for_layerdrop(model: Any) -> None:
    """The published library draws a number for each layer of OPT and segment, also where none is dropped."""
    for layer in model.get_decoder().layers:
        layer.register_forward_pre_hook(lambda *_: torch.rand([]) and None)


def _steps(case: Case, tmp_path: Path) -> None:
    """Losses of the substeps, the returned loss and the gradients; then the validation's losses by segment."""
    record, inputs = case.record, case.arguments()
    kind = record["model"].removeprefix("model_")
    cls = compressor_class("summary", case.document(f"config_{kind}")["model_type"])
    model = case.model(cls, f"config_{kind}", f"model_{kind}", **record["config_overrides"])
    settings, fixed = record["trainer_args"], record["trainer_args"].get("segment_lengths")
    substeps, rows, length = settings["training_substeps"], *inputs["input_ids"].shape
    training = SegmentTraining(
        steps=1,
        batch_size=rows,
        learning_rate=1e-3,
        corpus="none",
        sequence_length=length if fixed is None else substeps * sum(fixed),
        substeps=substeps,
        segments_per_substep=settings["segments_per_substep"],
        randomize_segments=settings["randomize_substeps"],
        segment_lengths=fixed,
    )
    trainer = CompressorTrainer(
        model=model,
        args=TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True, disable_tqdm=True),
        segment_training=training,
        longest=model.config.max_position_embeddings,
    )
    if model.config.model_type == "opt":
        _draws_for_layerdrop(model)
    trainer.current_gradient_accumulation_steps = settings.get("gradient_accumulation_steps", 1)
    losses, softprompts, lengths = [], [], []
    forward = model.forward

    def recorded(**arguments: object) -> object:
        out = forward(**arguments)
        losses.append(out.loss.detach())
        softprompts.append(out.softprompt.detach())
        lengths.append(arguments["segment_lengths"])
        return out

    model.forward = recorded
    torch.manual_seed(int(record["call"].split("manual_seed(")[1].split(")")[0]))
    returned = trainer.training_step(model, inputs)
    assert json.loads(json.dumps(lengths)) == record["segment_lengths_train"]
    close(returned, case["training_step_return"])
    for index, loss in enumerate(losses):
        close(loss / trainer.current_gradient_accumulation_steps, case[f"substep{index}_loss"])
    close(softprompts[0], case["substep0_softprompt"])
    gradients = {key: parameter.grad for key, parameter in model.named_parameters() if parameter.grad is not None}
    norms = {key: float(case[f"gradnorm.{key}"]) for key in gradients}
    largest = max(norms.values())
    for key, gradient in case.gradients().items():
        close_gradient(key, gradients[key], gradient, largest)
    _validates(case, model.eval(), inputs, substeps)
    for key, gradient in gradients.items():
        if not shifts_scores(key):
            assert float(gradient.norm()) == pytest.approx(norms[key], rel=1e-4), key


@torch.no_grad()
def _validates(case: Case, model: Any, inputs: dict[str, torch.Tensor], substeps: int) -> None:
    """Sums and numbers of the losses of each row and segment, where the published metrics are means."""
    softprompt, lengths = None, case.record["segment_lengths_eval"]
    read = sum(map(sum, lengths))
    parts = [tensor[:, -read:].split([sum(part) for part in lengths], dim=1) for tensor in inputs.values()]
    total = torch.zeros(())
    for substep, part in enumerate(zip(*parts, strict=True)):
        batch = dict(zip(inputs, part, strict=True))
        whole = {"segment_lengths": lengths[substep], "output_softprompt": substep + 1 < substeps}
        out = model(**batch, softprompt=softprompt, output_segment_losses=True, **whole)
        softprompt, total = out.softprompt, total + out.loss
        for segment in range(len(lengths[substep])):
            sums, counts = out.segment_losses[:, segment].unbind(-1)
            name = f"metric.substep_{substep}-seg{segment}"
            assert counts.tolist() == case[f"{name}-numtokens"].tolist()
            counted = counts > 0
            close(sums[counted] / counts[counted], case[f"{name}-nll"][counted])
    close(total, case["eval_total_loss"])
