"""The train stage: one run, from its base model and data to a folder that any stage can load.

    synopsis train --config config/demo.yaml autocompressor-s0

While it runs, checkpoints lie under checkpoints/<run>/; a killed run resumes from the newest whole one. At the end
models/<run>/ appears at once, with metrics.jsonl and provenance.json in it, and the checkpoints go. The same command
started beside it waits and takes that model, or resumes from the checkpoints when the first one died.
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging

from synopsis.artifacts import (
    PROVENANCE,
    Layout,
    Provenance,
    atomic_directory,
    read_json,
    report_full_disk,
    write_json,
)
from synopsis.config.experiment import Experiment, Model
from synopsis.config.training import Optimisation, SegmentTraining
from synopsis.errors import InputError, Interrupted
from synopsis.progress import say
from synopsis.reporting.tracking import Tracked, check_installed
from synopsis.stages.train.section import STAGE
from synopsis.training import distributed
from synopsis.training.callbacks import Metrics, Progress, StopOnSignal, utilisation
from synopsis.training.checkpoints import Checkpoints, checkpoint_to_resume
from synopsis.training.launch import requeue
from synopsis.training.lock import RunLock, owned
from synopsis.training.preparation import Numbered, Prepared, prepare
from synopsis.training.sharding import check_deepspeed, sharding, whole_weights
from synopsis.training.trainable import save_trained
from synopsis.training.trainer import CompressorTrainer
from synopsis.training.validation import without_prefix

HEADLINES = ("eval_loss", "loss/", "perplexity/")
"""Figures of the validation that sum a run up."""


def train(experiment: Experiment, run: str, files: Sequence[Path] = ()) -> dict[str, float]:
    """Train a run, or resume it; returns its headline figures. InputError when the run is not one to train.

    One of several processes trains its part (see `synopsis.training.launch`); the first one writes. files: those of the
    experiment, beside which a DeepSpeed file may lie.
    """
    subject = experiment.subject(run)
    training = subject.pretraining if isinstance(subject, Model) else getattr(subject, "training", None)
    if training is None:
        raise InputError(f"'{run}' is not trained: there is nothing to do")
    group = training.fsdp or training.deepspeed is not None
    layout = Layout(experiment)
    with distributed.processes(group), owned(run, layout.checkpoints(run)) as lock:
        if distributed.on_first(lambda: lock.waited_for is not None and STAGE.job(experiment, run=run).is_made()):
            if distributed.is_first():
                say(f"{run}: finished by the other process; taking {layout.model(run)}")
            return headline(layout, run)
        distributed.on_all(lambda: check_installed(experiment))
        with Tracked(experiment, run, distributed.is_first()) as tracked:
            return _train(experiment, run, training, files, tracked, lock)


def _train(
    experiment: Experiment,
    run: str,
    training: Optimisation,
    files: Sequence[Path],
    tracked: Tracked,
    lock: RunLock,
) -> dict[str, float]:
    subject = experiment.subject(run)
    seed = 0 if isinstance(subject, Model) else experiment.trained_runs[run][1]
    layout, fingerprint = Layout(experiment), STAGE.fingerprint(experiment, run=run)
    set_seed(seed)
    spread = distributed.on_first(lambda: sharding(training, files))
    prepared = distributed.on_all(lambda: prepare(experiment, run))
    provenance = Provenance(fingerprint, inputs=prepared.inputs, seed=seed, dtype=training.dtype)
    folder = layout.checkpoints(run)
    arguments = _arguments(training, folder, seed, spread)
    distributed.on_all(lambda: check_deepspeed(arguments, prepared.model, training.deepspeed))
    processes = distributed.world_size()
    if training.sequences_per_step is None and processes > 1 and distributed.is_first():
        batch = f"batch_size {training.batch_size} x gradient_accumulation {training.gradient_accumulation}"
        say(
            f"{run}: {processes} processes x {batch} = {training.sequences(processes)} sequences a step: the result "
            "depends on the number of processes; training.sequences_per_step fixes it"
        )
    checkpoint = checkpoint_to_resume(folder, fingerprint)
    arguments.eval_on_start = training.evaluate_first and checkpoint is None
    tokens = prepared.tokens_per_sequence
    metrics, stop = Metrics(folder / "metrics.jsonl", tracked.log), StopOnSignal()
    speed = utilisation(prepared.model.config, subject, training, tokens)
    progress = Progress(run, training.sequences(processes) * tokens, speed)
    trainer = CompressorTrainer(
        model=prepared.model,
        args=arguments,
        train_dataset=Numbered(prepared.train),
        eval_dataset=Numbered(prepared.validation, training.batch_size * processes if processes > 1 else 1),
        data_collator=prepared.collate_numbered,
        segment_training=training if isinstance(training, SegmentTraining) else None,
        sequences_per_step=training.sequences_per_step,
        longest=0 if isinstance(subject, Model) else subject.longest_segment(prepared.model),
        describe=prepared.describe,
        measured=progress.measured,
        callbacks=[metrics, progress, Checkpoints(fingerprint), stop, lock],
    )
    logging.disable_progress_bar()
    trainer.remove_callback(PrinterCallback)  # `Progress` says what it would
    provenance.device = str(trainer.args.device)
    if checkpoint is not None and distributed.is_first():
        say(f"{run}: resumes from {checkpoint}")
    with report_full_disk(folder):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if stop.received is not None and trainer.state.global_step < training.steps:
        step = f"step {trainer.state.global_step} of {training.steps}"
        if stop.received == signal.SIGUSR1 and distributed.is_first():
            requeue()
        distributed.fail(Interrupted(f"{run}: stopped at {step}; the same command resumes there", stop.received))
    steps = trainer.state.global_step
    figures = {"train_loss": trainer.losses.mean(steps), "steps": float(steps)}
    if trainer.state.best_global_step:
        figures["best_step"] = float(trainer.state.best_global_step)
    validation = without_prefix(trainer.evaluate())
    figures |= {key: float(value) for key, value in validation.items() if key.startswith(HEADLINES)}
    weights = whole_weights(trainer)
    if distributed.is_first():
        lock.check()
        report = {"run": run, "processes": processes, "sequences_per_step": training.sequences(processes)}
        report |= {**prepared.train.record(), **figures}
        _write(layout.model(run), training, prepared, weights, metrics.path, report, provenance)
        lock.remove_checkpoints()
    return figures


def _write(
    path: Path,
    training: Optimisation,
    prepared: Prepared,
    weights: dict[str, torch.Tensor] | None,
    metrics: Path,
    report: dict[str, Any],
    provenance: Provenance,
) -> None:
    prepared.model.config.use_cache = True  # off in training; who loads the model decodes with a cache
    with atomic_directory(path) as temporary:
        save_trained(prepared.model, temporary, training.lora, prepared.base, weights)
        prepared.tokenizer.save_pretrained(temporary)
        shutil.copy(metrics, temporary / "metrics.jsonl")
        write_json(temporary / PROVENANCE, "model", report, provenance.record(), [temporary])


def _arguments(training: Optimisation, folder: Path, seed: int, spread: dict[str, Any]) -> TrainingArguments:
    """`spread`: how the run is spread over its processes, from `synopsis.training.sharding`."""
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=training.steps,
        per_device_train_batch_size=training.batch_size,
        per_device_eval_batch_size=training.batch_size,
        gradient_accumulation_steps=training.accumulation(distributed.world_size()),
        learning_rate=training.learning_rate,
        lr_scheduler_type=training.schedule,
        warmup_steps=training.warmup_steps,
        weight_decay=training.weight_decay,
        adam_beta2=training.adam_beta2,
        max_grad_norm=training.max_grad_norm,
        bf16=training.dtype == "bfloat16",
        logging_steps=training.log_every,
        save_steps=training.checkpoint_every,
        # The best weights may be in a checkpoint that is none of the newest.
        save_total_limit=training.keep_checkpoints + training.keep_best,
        load_best_model_at_end=training.keep_best,
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
        **spread,
    )


def headline(layout: Layout, run: str) -> dict[str, float]:
    """Headline figures of a finished run."""
    report = read_json(layout.model(run) / PROVENANCE, "model")
    return {key: report[key] for key in ("train_loss", "eval_loss", "steps") if key in report}
