"""What each method needs to be trained: its model, its data and how batches are made."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase

from synopsis.artifacts import Layout
from synopsis.compressors.loading import load_tokenizer
from synopsis.compressors.section import Compressor
from synopsis.config.experiment import Experiment, Model
from synopsis.config.training import LanguageModelTraining, Optimisation, SegmentTraining
from synopsis.data.corpora import load_corpus
from synopsis.data.instruction_examples import InstructionExamples, collate_seq2seq, gist_collator
from synopsis.data.instructions import load_instructions
from synopsis.data.sequences import (
    IGNORED,
    DocumentSequences,
    collate_equal,
    collate_padded,
    domain_weights,
    training_sequences,
)
from synopsis.errors import DataError, InputError
from synopsis.training import distributed
from synopsis.training.trainable import choose_trainable
from synopsis.training.trainer import FILLER, SEQUENCES

VALIDATION_EXAMPLES = 128


@dataclass
class Prepared:
    """What a method needs to be trained. base: the folder that the weights came from, None for a new model."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    train: Any
    validation: Any
    collate: Callable[[list[Any]], dict[str, Tensor]]
    tokens_per_sequence: int
    inputs: list[Path] = field(default_factory=list)
    base: Path | None = None

    def collate_numbered(self, examples: list[tuple[int, Any]]) -> dict[str, Tensor]:
        """A batch that also says which sequences it is made of."""
        numbers, plain = zip(*examples, strict=True)
        return {**self.collate(list(plain)), SEQUENCES: torch.tensor(numbers)}

    def describe(self, index: int) -> str:
        """A training sequence in words: its number, and the row or document that it comes from."""
        if isinstance(self.train, InstructionExamples):
            return f"{index} ({self.train.name_of(index)})"
        if isinstance(self.train, DocumentSequences) and not self.train.crosses_documents:
            document = self.train.document_at(index * self.train.length)
            return f"{index} (document {load_corpus(self.inputs[0], 'train')[document]['id']})"
        return str(index)


class Numbered(Dataset[tuple[int, Any]]):
    """Examples with their numbers, so that a bad batch can be named.

    multiple_of: repeat the first examples, numbered FILLER, up to such a number of them.
    """

    def __init__(self, examples: Any, multiple_of: int = 1):
        self.examples = examples
        self.length = math.ceil(len(examples) / multiple_of) * multiple_of

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[int, Any]:
        count = len(self.examples)
        return index if index < count else FILLER, self.examples[index % count]


def prepare(experiment: Experiment, run: str) -> Prepared:
    """Model, tokenizer and data of a run; what is to be frozen is frozen, and adapters are in place.

    InputError, DataError or ArtifactError where something of it is missing or does not fit the rest.
    """
    subject, base = experiment.subject(run), experiment.base_of(run)
    tokenizer = load_tokenizer(Layout(experiment).tokenizer(base))
    if isinstance(subject, Model):
        assert subject.pretraining is not None
        training: Optimisation = subject.pretraining
        model, weights = _new_model(subject, tokenizer), None
        data = _sequences(experiment, subject.pretraining, base, subject.pretraining.pack_documents)
    else:
        training, weights = subject.training, Layout(experiment).model(base)
        model = subject.new_model(weights, tokenizer, **_attention(training))
        data = _data(experiment, subject, tokenizer, model)
    _check_tokenizer(model, tokenizer, base)
    _check_step(data, training)
    _check_labels(data)
    choose_trainable(model, training)
    if training.gradient_checkpointing:
        _recompute_layers(model)
    if training.compile:
        _compile_layers(model)
    inputs = data.inputs + ([] if weights is None else [weights])
    return Prepared(model, tokenizer, data.train, data.validation, data.collate, data.tokens, inputs, weights)


def _recompute_layers(model: Any) -> None:
    """Keep no activations of the layers; newer versions of transformers have another name for that."""
    settings = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=settings)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)


def _compile_layers(model: Any) -> None:
    """torch.compile each layer in place: segments of any number and length go through the same compiled code."""
    if model.config.is_encoder_decoder:
        layers = [*model.encoder.block, *model.decoder.block]
    else:
        layers = list(model.get_decoder().layers)
    for layer in layers:
        layer.compile()


# -------------------------------------------------------------------------------------------------------------- models


def _new_model(subject: Model, tokenizer: PreTrainedTokenizerBase) -> Any:
    assert subject.architecture is not None and subject.pretraining is not None
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
    return AutoModelForCausalLM.from_config(config, trust_remote_code=False, **_attention(subject.pretraining))


def _attention(training: Optimisation) -> dict[str, str]:
    if training.attention == "flash_attention_2" and training.dtype == "float32":
        raise InputError("attention flash_attention_2 computes in 16 bits: it needs dtype bfloat16")
    return {} if training.attention is None else {"attn_implementation": training.attention}


def _check_tokenizer(model: Any, tokenizer: PreTrainedTokenizerBase, base: str) -> None:
    """InputError for a tokenizer with ids that the model has no embedding for."""
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise InputError(
            f"the tokenizer of '{base}' does not fit the model: it has {len(tokenizer)} tokens, and the model "
            f"{rows} embeddings; use the tokenizer that the model was trained with"
        )


# ---------------------------------------------------------------------------------------------------------------- data


@dataclass
class _Data:
    """Training and validation sequences; tokens: of one, on average."""

    train: Any
    validation: Any
    collate: Callable[[list[Any]], dict[str, Tensor]]
    tokens: int
    inputs: list[Path]


def _data(experiment: Experiment, subject: Compressor, tokenizer: PreTrainedTokenizerBase, model: Any) -> _Data:
    if subject.trained_on == "instructions":
        return _instructions(experiment, subject, tokenizer, model)
    return _sequences(experiment, subject.training, subject.base, getattr(subject.training, "pack_documents", False))


def _sequences(
    experiment: Experiment, training: LanguageModelTraining | SegmentTraining, base: str, pack: bool
) -> _Data:
    """Training and validation sequences of a corpus; DataError names it when it holds none."""
    corpus, length = Layout(experiment).corpus(training.corpus, base), training.sequence_length
    weights = domain_weights(experiment.corpora[training.corpus])
    try:
        train = training_sequences(load_corpus(corpus, "train"), length, pack, weights)
        validation = training_sequences(load_corpus(corpus, "validation"), length, pack)
    except DataError as error:
        raise DataError(f"{corpus}: {error}") from None
    return _Data(train, _some(validation), collate_equal, length, [corpus])


def _some(dataset: Any) -> Any:
    return torch.utils.data.Subset(dataset, range(min(len(dataset), VALIDATION_EXAMPLES)))


def _instructions(experiment: Experiment, subject: Compressor, tokenizer: PreTrainedTokenizerBase, model: Any) -> _Data:
    """Instruction rows; those of the first validation split judge the training."""
    path = Layout(experiment).instructions(subject.training.instructions)
    splits = load_instructions(path)
    held_out = next((rows for split, rows in splits.items() if split != "train"), splits["train"])
    seq2seq = model.config.is_encoder_decoder
    try:
        train, validation = (
            InstructionExamples(rows, gist_collator(tokenizer, subject, seq2seq))
            for rows in (splits["train"], held_out[:VALIDATION_EXAMPLES])
        )
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    collate = partial(collate_seq2seq if seq2seq else collate_padded, pad=pad)
    return _Data(train, validation, collate, train.mean_tokens, [path])


def _check_step(data: _Data, training: Optimisation) -> None:
    """DataError when one optimizer step wants more sequences than there are: it would silently be a smaller one."""
    held, wanted = len(data.train), training.sequences(distributed.world_size())
    if held < wanted:
        raise DataError(
            f"{', '.join(map(str, data.inputs))}: found {held} training sequences; expected at least {wanted}, "
            "those of one optimizer step (batch_size x gradient_accumulation x processes, or sequences_per_step)"
        )


def _check_labels(data: _Data) -> None:
    """DataError when no sequence has a label: the loss would be 0 from the first step to the last."""
    for index in range(len(data.train)):
        if bool((data.collate([data.train[index]])["labels"] != IGNORED).any()):
            return
    where = ", ".join(map(str, data.inputs))
    raise DataError(f"{where}: the labels of all {len(data.train)} sequences are masked: there is nothing to learn")
