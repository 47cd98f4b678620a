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
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase, TrainingArguments, set_seed

from synopsis.artifacts import Layout, Provenance, atomic_directory, told_when_full, write_json
from synopsis.compressors.loading import load, load_tokenizer
from synopsis.compressors.registry import compressor_class
from synopsis.config import Experiment, GistCompressor, Model, SummaryCompressor
from synopsis.config_training import InstructionTraining, LanguageModelTraining, Optimisation, SegmentTraining
from synopsis.data.corpora import load_corpus
from synopsis.data.instructions import load_instructions
from synopsis.data.prompts import GIST_TOKEN
from synopsis.data.sequences import DocumentSequences, GistExamples, PackedSequences, collate_equal, collate_padded
from synopsis.errors import ArtifactError, DataError, InputError, Interrupted
from synopsis.plan import train_facts
from synopsis.progress import say
from synopsis.training.callbacks import Checkpoints, Metrics, Progress, StopOnSignal, last_good_checkpoint
from synopsis.training.trainer import CompressorTrainer

VALIDATION_EXAMPLES = 128


@dataclass
class Prepared:
    """What a family needs to be trained."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    train: Any
    validation: Any
    collate: Any
    tokens_per_sequence: int
    inputs: list[Path]


def train(experiment: Experiment, run: str) -> dict[str, float]:
    """Train a run, or go on with it; returns its headline figures. InputError when the run is not one to train."""
    subject = experiment.subject(run)
    training = subject.pretraining if isinstance(subject, Model) else subject.training
    if training is None:
        raise InputError(f"'{run}' is a loaded model: there is nothing to train")
    seed = 0 if isinstance(subject, Model) else experiment.trained_runs[run][1]
    layout, facts = Layout(experiment), train_facts(experiment, run)
    set_seed(seed)
    prepared = _prepare(experiment, run)
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


# ------------------------------------------------------------------------------------------------------ by family


def _prepare(experiment: Experiment, run: str) -> Prepared:
    subject, layout = experiment.subject(run), Layout(experiment)
    base = experiment.base_of(run)
    tokenizer = load_tokenizer(layout.tokenizer(base))
    if isinstance(subject, Model):
        assert subject.architecture is not None and subject.pretraining is not None
        model = _new_model(subject, tokenizer)
        return _language_model(experiment, model, tokenizer, subject.pretraining, base, [])
    weights = layout.model(base)
    if isinstance(subject, SummaryCompressor):
        return _summary_compressor(experiment, subject, tokenizer, base, weights)
    if isinstance(subject, GistCompressor):
        return _gist_compressor(experiment, subject, tokenizer, weights)
    return _language_model(experiment, load(weights, "cpu"), tokenizer, subject.training, base, [weights])


def _new_model(subject: Model, tokenizer: PreTrainedTokenizerBase) -> Any:
    assert subject.architecture is not None
    fields = {key: value for key, value in subject.architecture.model_dump().items() if value is not None}
    config = AutoConfig.for_model(
        fields.pop("type"),
        **fields,
        vocab_size=len(tokenizer),
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return AutoModelForCausalLM.from_config(config)


def _language_model(
    experiment: Experiment,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    training: LanguageModelTraining,
    base: str,
    inputs: list[Path],
) -> Prepared:
    length, corpus = training.sequence_length, Layout(experiment).corpus(training.corpus, base)
    sequences = _sequences(corpus, length, PackedSequences if training.pack_documents else DocumentSequences)
    return Prepared(model, tokenizer, *sequences, collate_equal, length, [corpus, *inputs])


def _summary_compressor(
    experiment: Experiment, subject: SummaryCompressor, tokenizer: PreTrainedTokenizerBase, base: str, weights: Path
) -> Prepared:
    accumulate = subject.family == "autocompressor"
    model = _compressor(weights, "summary", summary_length=subject.summary_length, accumulate_summary=accumulate)
    model.initialize_summary_embeddings()
    length, corpus = subject.training.sequence_length, Layout(experiment).corpus(subject.training.corpus, base)
    sequences = _sequences(corpus, length, DocumentSequences)
    return Prepared(model, tokenizer, *sequences, collate_equal, length, [corpus, weights])


def _compressor(weights: Path, kind: str, **fields: Any) -> Any:
    """The base model as a compressor with these fields of its configuration; ArtifactError when it is damaged."""
    try:
        config = AutoConfig.from_pretrained(weights)
        config.update(fields)
        cls = compressor_class(kind, config.model_type)
        return cls.from_pretrained(weights, config=config, dtype=torch.float32)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ArtifactError(f"{weights}: cannot be loaded as a model: {str(error).splitlines()[0]}") from error


def _sequences(corpus: Path, length: int, kind: Any) -> tuple[Any, Any]:
    """Training and validation sequences of a corpus; DataError names it when it holds none."""
    try:
        train, validation = (kind(load_corpus(corpus, split), length) for split in ("train", "validation"))
    except DataError as error:
        raise DataError(f"{corpus}: {error}") from None
    return train, _some(validation)


def _gist_compressor(
    experiment: Experiment, subject: GistCompressor, tokenizer: PreTrainedTokenizerBase, weights: Path
) -> Prepared:
    training: InstructionTraining = subject.training
    tokenizer.add_special_tokens({"additional_special_tokens": [GIST_TOKEN]})
    gist_token = tokenizer.convert_tokens_to_ids(GIST_TOKEN)
    assert isinstance(gist_token, int)
    model = _compressor(weights, "gist", gist_condition=subject.condition, gist_tokens=subject.gist_tokens)
    model.add_gist_token(gist_token)
    path = Layout(experiment).instructions(training.instructions)
    splits = load_instructions(path)
    held_out = next((rows for split, rows in splits.items() if split != "train"), splits["train"])
    examples = [
        GistExamples(rows, tokenizer, gist_token, subject.gist_tokens, training.max_length)
        for rows in (splits["train"], held_out[:VALIDATION_EXAMPLES])
    ]
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    mean = sum(len(example["input_ids"]) for example in examples[0].examples) // len(examples[0])
    collate = partial(collate_padded, pad=pad)
    return Prepared(model, tokenizer, examples[0], examples[1], collate, mean, [path, weights])


def _some(dataset: Any) -> Any:
    return torch.utils.data.Subset(dataset, range(min(len(dataset), VALIDATION_EXAMPLES)))


def headline(layout: Layout, run: str) -> dict[str, float]:
    """Headline figures of a finished run."""
    report = json.loads((layout.model(run) / "provenance.json").read_text())
    return {key: report[key] for key in ("train_loss", "eval_loss", "steps") if key in report}
