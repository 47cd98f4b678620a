"""Segment lengths and training steps against outputs of the published code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from published import Golden, close
from synopsis.compressors import LlamaAutoCompressorModel
from synopsis.config import SegmentTraining
from synopsis.training.segments import random_segment_lengths
from synopsis.training.trainer import CompressorTrainer
from transformers import TrainingArguments


def test_random_segment_lengths(golden: Golden) -> None:
    document = golden.document("ac_train/random_segment_lengths.json")
    for record in document["sequences"]:
        arguments = (record["T"], record["num_segments"], record["max_position_embeddings"])
        torch.manual_seed(record["seed"])
        assert [random_segment_lengths(*arguments) for _ in record["lengths"]] == record["lengths"], record
    assert len(document["sequences"]) == 24


def test_lengths_at_the_edge(golden: Golden) -> None:
    """The published code raises as soon as nothing is left to draw; ours only where no cut exists."""
    for record in golden.document("ac_train/random_segment_lengths.json")["edge_cases"]:
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


def test_training_step(golden: Golden, training_case: tuple[str, str], tmp_path: Path) -> None:
    """Losses of the substeps, the returned loss and the gradients; the published metrics are not ours."""
    fixture, name = training_case
    case = golden.case(fixture, name)
    record, inputs = case.record, case.arguments()
    kind = record["model"].removeprefix("model_")
    model = golden.model(
        fixture, LlamaAutoCompressorModel, f"config_{kind}", f"model_{kind}", **record["config_overrides"]
    )
    settings = record["trainer_args"]
    training = SegmentTraining(
        steps=1,
        batch_size=2,
        learning_rate=1e-3,
        corpus="none",
        sequence_length=64,
        substeps=settings["training_substeps"],
        segments_per_substep=settings["segments_per_substep"],
        randomize_segments=settings["randomize_substeps"],
    )
    trainer = CompressorTrainer(
        model=model,
        args=TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True, disable_tqdm=True),
        segment_training=training,
        longest=model.config.max_position_embeddings,
    )
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
    torch.manual_seed(123)
    returned = trainer.training_step(model, inputs)
    assert json.loads(json.dumps(lengths)) == record["segment_lengths_train"]
    close(returned, case["training_step_return"])
    for index, loss in enumerate(losses):
        close(loss, case[f"substep{index}_loss"])
    close(softprompts[0], case["substep0_softprompt"])
    gradients = {key: parameter.grad for key, parameter in model.named_parameters()}
    for key, gradient in case.gradients().items():
        close(gradients[key], gradient, 1e-4)
    norms = {key: float(case[f"gradnorm.{key}"]) for key in gradients}
    for key, gradient in gradients.items():
        assert float(gradient.norm()) == pytest.approx(norms[key], rel=1e-4), key
