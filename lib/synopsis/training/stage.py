"""The train stage: one run, from its base model and data to a folder that any stage can load.

    synopsis train --config config/demo.yaml autocompressor-s0

While it runs, checkpoints lie under checkpoints/<run>/; a killed run goes on from the newest whole one. At the
end models/<run>/ appears at once, with metrics.jsonl and provenance.json in it, and the checkpoints go.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import TrainingArguments, set_seed

from synopsis.artifacts import Layout, Provenance, atomic_directory, told_when_full, write_json
from synopsis.config import Experiment, Model, SummaryCompressor
from synopsis.config_training import Optimisation, SegmentTraining
from synopsis.errors import InputError, Interrupted
from synopsis.plan import train_facts
from synopsis.progress import say
from synopsis.training.callbacks import Checkpoints, Metrics, Progress, StopOnSignal, last_good_checkpoint
from synopsis.training.families import Prepared, prepare
from synopsis.training.trainer import CompressorTrainer


def train(experiment: Experiment, run: str) -> dict[str, float]:
    """Train a run, or go on with it; returns its headline figures. InputError when the run is not one to train."""
    subject = experiment.subject(run)
    training = subject.pretraining if isinstance(subject, Model) else subject.training
    if training is None:
        raise InputError(f"'{run}' is a loaded model: there is nothing to train")
    seed = 0 if isinstance(subject, Model) else experiment.trained_runs[run][1]
    layout, facts = Layout(experiment), train_facts(experiment, run)
    set_seed(seed)
    prepared = prepare(experiment, run)
    provenance = Provenance(facts, inputs=prepared.inputs, seed=seed, dtype=training.dtype)
    folder = layout.checkpoints(run)
    metrics, stop = Metrics(folder / "metrics.jsonl"), StopOnSignal()
    trainer = CompressorTrainer(
        model=prepared.model,
        args=_arguments(training, folder, seed),
        train_dataset=prepared.train,
        eval_dataset=prepared.validation,
        data_collator=prepared.collate,
        segment_training=training if isinstance(training, SegmentTraining) else None,
        longest=_longest(prepared.model.config, subject),
        callbacks=[
            metrics,
            Progress(run, training.batch_size * training.gradient_accumulation * prepared.tokens_per_sequence),
            Checkpoints(facts),
            stop,
        ],
    )
    _quiet(trainer)
    provenance.device = str(trainer.args.device)
    checkpoint = last_good_checkpoint(folder, facts)
    if checkpoint is not None:
        say(f"{run}: goes on from {checkpoint}")
    with _told_when_full(folder):
        result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if stop.received is not None and trainer.state.global_step < training.steps:
        step = f"step {trainer.state.global_step} of {training.steps}"
        raise Interrupted(f"{run}: stopped at {step}; the same command goes on from there", stop.received)
    figures = {"train_loss": float(result.training_loss), "steps": float(trainer.state.global_step)}
    figures |= {key: float(value) for key, value in trainer.evaluate().items() if key == "eval_loss"}
    _write(layout, run, prepared, metrics.path, provenance, figures)
    shutil.rmtree(folder, ignore_errors=True)
    return figures


def _write(
    layout: Layout, run: str, prepared: Prepared, metrics: Path, provenance: Provenance, figures: dict[str, float]
) -> None:
    path = layout.model(run)
    with _told_when_full(path.parent), atomic_directory(path) as temporary:
        prepared.model.save_pretrained(temporary)
        prepared.tokenizer.save_pretrained(temporary)
        shutil.copy(metrics, temporary / "metrics.jsonl")
        train = prepared.train
        unused = {key: getattr(train, key) for key in ("unused_tokens", "dropped") if hasattr(train, key)}
        report = {"run": run, "sequences": len(train), **unused, **figures}
        write_json(temporary / "provenance.json", "model", report, provenance.record())


@contextlib.contextmanager
def _told_when_full(folder: Path) -> Iterator[None]:
    """As `told_when_full`, also where torch and safetensors write: their errors hide that the disk is full."""
    with told_when_full(folder):
        try:
            yield
        except (RuntimeError, SafetensorError):
            _write_a_little(folder)
            raise


def _write_a_little(folder: Path) -> None:
    """OSError when a megabyte does not fit any more."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as stream:
        stream.write(bytes(2**20))
        stream.flush()
        os.fsync(stream.fileno())


def _arguments(training: Optimisation, folder: Path, seed: int) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=training.steps,
        per_device_train_batch_size=training.batch_size,
        per_device_eval_batch_size=training.batch_size,
        gradient_accumulation_steps=training.gradient_accumulation,
        learning_rate=training.learning_rate,
        lr_scheduler_type=training.schedule,
        warmup_steps=training.warmup_steps,
        weight_decay=training.weight_decay,
        adam_beta2=training.adam_beta2,
        max_grad_norm=training.max_grad_norm,
        bf16=training.dtype == "bfloat16",
        logging_steps=training.log_every,
        save_steps=training.checkpoint_every,
        save_total_limit=training.keep_checkpoints,
        eval_strategy="steps" if training.evaluate_every else "no",
        eval_steps=training.evaluate_every,
        seed=seed,
        data_seed=seed,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
    )


def _longest(config: Any, subject: Any) -> int:
    """Tokens of a segment that fit the positions beside the soft prompt and the summary tokens."""
    if not isinstance(subject, SummaryCompressor):
        return 0
    return config.max_position_embeddings - subject.trained_summary_vectors - subject.summary_length


def _quiet(trainer: CompressorTrainer) -> None:
    """Our progress line replaces the dictionaries that the Trainer prints."""
    from transformers.trainer_callback import PrinterCallback

    trainer.remove_callback(PrinterCallback)


def headline(layout: Layout, run: str) -> dict[str, float]:
    """Headline figures of a finished run."""
    report = json.loads((layout.model(run) / "provenance.json").read_text())
    return {key: report[key] for key in ("train_loss", "eval_loss", "steps") if key in report}
