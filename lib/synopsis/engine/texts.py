"""Texts become contexts and questions are asked after them: behind `synopsis compress` and `synopsis generate`.

    from synopsis import compressing

    model, tokenizer = compressing.open_model("princeton-nlp/AutoCompressor-Llama-2-7b-6k", dtype="bfloat16")
    compressed = compressing.compress_text(model, tokenizer, text)  # AutoCompressors: segment by segment
    compressed.context.save("context.safetensors")                  # CompressedContext.load reads it again
    (answer,) = compressing.ask(model, tokenizer, ["It was"], compressed.context, max_new_tokens=12)

A gist model compresses an instruction, and a question is the input that the instruction is about; without a context a
question is itself the instruction. All is laid out as in training (`synopsis.data.prompts`), T5 as published: without
the cue for the output. Other models are asked as their tokenizer has it, and cannot compress.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from synopsis.compressors.base import ContextMixin
from synopsis.compressors.context import CompressedContext
from synopsis.compressors.loading import load, load_tokenizer
from synopsis.data.prompts import GIST_TOKEN, input_part
from synopsis.data.sequences import encode, gist_prompt_ids
from synopsis.engine.decoding import decode, ends_and_padding
from synopsis.errors import ArtifactError, DataError, InputError
from synopsis.progress import say

DTYPES = ("float32", "bfloat16", "float16")
NEW_TOKENS = 64
"""Length of an answer where none is asked for and the model's positions allow it."""


@dataclass(frozen=True)
class Compressed:
    """A context and what it replaces.

    ids: what was compressed; segments: tokens read in each forward pass; bytes_before: keys and values of all the
    tokens (and the encoder's outputs of a T5); bytes_after: the context itself; bytes_in_use: its vectors in the cache
    of a later call.
    """

    context: CompressedContext
    ids: list[int]
    vectors: int
    segments: list[int]
    bytes_before: int
    bytes_after: int
    bytes_in_use: int

    @property
    def tokens(self) -> int:
        return len(self.ids)

    def record(self) -> dict[str, Any]:
        """The numbers and their ratios; a ratio to no vector at all is None."""
        return {
            "tokens": self.tokens,
            "vectors": self.vectors,
            "tokens_per_vector": self.tokens / self.vectors if self.vectors else None,
            "segments": self.segments,
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "bytes_ratio": self.bytes_before / self.bytes_after,
            "bytes_in_use": self.bytes_in_use,
        }

    def __str__(self) -> str:
        each = f", {self.tokens / self.vectors:.1f} tokens each" if self.vectors else ""
        vectors = f"{self.vectors} vector{'s' * (self.vectors != 1)}{each}"
        parts = f" in {len(self.segments)} segments" if len(self.segments) > 1 else ""
        return (
            f"{self.tokens} tokens{parts} -> {vectors}\n"
            f"{self.bytes_before} bytes in a cache of all tokens -> {self.bytes_after} bytes "
            f"({self.bytes_before / self.bytes_after:.1f} to 1); {self.bytes_in_use} bytes in a cache when used"
        )


@dataclass(frozen=True)
class Answer:
    """What a model wrote. prompt_tokens: of the question as it was laid out; new_tokens: without the end of text."""

    question: str
    answer: str
    prompt_tokens: int
    new_tokens: int


def open_model(path: str | Path, base: str | Path | None = None, dtype: str = "float32") -> tuple[Any, Any]:
    """Model and tokenizer of a folder or hub id; `base` as of `synopsis.load`. Raises InputError and ArtifactError."""
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r}: expected one of {', '.join(DTYPES)}")
    model = load(path, dtype=dtype, base=base)
    try:
        return model, load_tokenizer(path)
    except ArtifactError:
        if base is None:
            raise
        return model, load_tokenizer(base)  # adapters often come without one


# ------------------------------------------------------------------------------------------------------------- compress


@torch.no_grad()
def compress_text(
    model: Any, tokenizer: Any, text: str, segment_length: int | None = None, gist_tokens: int | None = None
) -> Compressed:
    """The context of a text (AutoCompressor) or of an instruction (gist model).

    segment_length: tokens of each segment, None for as many as the positions allow beside soft prompt and summary
    tokens. gist_tokens: None for as many as the model was trained with. InputError names the model and what is wrong.
    """
    if not isinstance(model, ContextMixin):
        expected = "expected an AutoCompressor, an RMT or a gist model"
        raise InputError(f"{_name(model)}: {type(model).__name__} cannot compress; {expected}")
    with _naming(_name(model)):
        if model.reads == "instructions":
            _refuse(segment_length, "segment length", "reads an instruction in one piece")
            ids = _gist_instruction(model, tokenizer, text, gist_tokens)
            segments = [len(ids)]
        else:
            _refuse(gist_tokens, "number of gist tokens", "compresses texts")
            ids = encode(tokenizer, text)
            if segment_length is None:
                segments = model.steps_that_fit(len(ids))
            else:
                segments = [min(segment_length, len(ids) - start) for start in range(0, len(ids), segment_length)]
        say(f"{_name(model)}: compressing {len(ids)} tokens in {len(segments)} segment{'s' * (len(segments) > 1)}")
        context = model.compress(torch.tensor([ids], device=model.device), segment_lengths=segments)
    vectors, of_a_token = int(context.attention_mask.sum()), _bytes_of_a_token(model, context)
    before, in_use = len(ids) * of_a_token, vectors * of_a_token
    return Compressed(context, ids, vectors, segments, before, context.nbytes, in_use)


def _gist_instruction(model: Any, tokenizer: Any, instruction: str, count: int | None) -> list[int]:
    """Ids of an instruction up to its last gist token."""
    token, learned = model.config.gist_token_id, model.config.gist_tokens or 1
    count = learned if count is None else count
    if token is None:
        raise ValueError("has no gist token yet; it must be trained first")
    if count < learned:
        raise ValueError(f"was trained with {learned} gist tokens; {count} would not do")
    ids = gist_prompt_ids({"instruction": instruction, "input": ""}, tokenizer, token, count)
    _check_plain(ids, token, count, "the text")
    return ids[: ids.index(token) + count]


def _bytes_of_a_token(model: Any, context: CompressedContext) -> int:
    """What a model of these layers and heads caches for one token, in its own precision."""
    cache = model.prefix_cache(context)
    cached = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]  # (1, heads, k, width)
    if context.hidden_states is not None:
        cached.append(context.hidden_states[:, None])
    return sum(tensor.shape[1] * tensor.shape[3] * tensor.element_size() for tensor in cached)


# ------------------------------------------------------------------------------------------------------------- generate


def ask(
    model: Any,
    tokenizer: Any,
    questions: Sequence[str],
    context: CompressedContext | None = None,
    max_new_tokens: int | None = None,
) -> list[Answer]:
    """Greedy answers to questions, all in one batch, after one context for all of them (or a row for each).

    A gist model needs no question after a context: its instruction may need no input. InputError names what does not
    fit: the context, a question, or the positions of the model.
    """
    name = _name(model)
    if context is not None:
        check_context(model, context)
    if not questions and context is not None and model.reads == "instructions":
        questions = [""]
    if not questions:
        raise InputError(f"{name}: there is no question to answer")
    if context is not None and context.batch_size not in (1, len(questions)):
        raise InputError(f"{name}: the context has {context.batch_size} rows; there are {len(questions)} questions")
    prompts = [_prompt(model, tokenizer, question, context is not None) for question in questions]
    new = _greedy(model, tokenizer, prompts, context, max_new_tokens)
    return [
        Answer(question, _decoded(tokenizer, ids), len(prompt), len(ids))
        for question, prompt, ids in zip(questions, prompts, new, strict=True)
    ]


def compare(
    model: Any, tokenizer: Any, question: str, compressed: Compressed, max_new_tokens: int | None = None
) -> dict[str, str]:
    """What was compressed, and the greedy answers to a question with and without compression.

    Without compression the model reads all the tokens, and no mask hides any. InputError as of `ask`; where only the
    tokens need more positions than the model has, that stands in the place of the answer.
    """
    answers = {"compressed": str(tokenizer.decode(compressed.ids)), "input": question}
    (answer,) = ask(model, tokenizer, [question], compressed.context, max_new_tokens)
    answers["with_compression"] = answer.answer
    prompt, options = [*compressed.ids, *_prompt(model, tokenizer, question, True)], {}
    if model.reads == "instructions":
        seen = torch.ones(1, 1, len(prompt), len(prompt), dtype=torch.long, device=model.device)
        options = {"attention_mask" if model.config.is_encoder_decoder else "attention_mask_gist": seen}
    try:
        (ids,) = _greedy(model, tokenizer, [prompt], None, max_new_tokens, **options)
        answers["without_compression"] = _decoded(tokenizer, ids)
    except InputError as error:
        answers["without_compression"] = f"({error})"
    return answers


def check_context(model: Any, context: CompressedContext, source: str | Path = "the context") -> None:
    """InputError with `source`, where the context comes from, when the model cannot read it."""
    with _naming(f"{source}: {_name(model)} cannot read it"):
        if not isinstance(model, ContextMixin):
            raise ValueError(f"{type(model).__name__} knows no compressed context")
        model.check_context(context)


def _prompt(model: Any, tokenizer: Any, question: str, after_context: bool) -> list[int]:
    """Ids of a question in the form that the model was trained on."""
    kind = getattr(model, "reads", None)
    with _naming(_name(model)):
        if not question.strip() and not (after_context and kind == "instructions"):
            raise ValueError("a question is empty")
        if kind == "instructions":
            seq2seq = model.config.is_encoder_decoder
            before = [] if after_context else _gist_instruction(model, tokenizer, question, None)
            cue = input_part(question if after_context else "")
            ids = encode(tokenizer, cue.removesuffix("\nOutput:") if seq2seq else cue)
            _check_plain(ids, model.config.gist_token_id, 0, "the question")
            return [*before, *ids, *([tokenizer.eos_token_id] if seq2seq else [])]
        ids = encode(tokenizer, question) if kind == "text" else tokenizer(question)["input_ids"]
        if not ids:
            raise ValueError(f"the tokenizer finds nothing to read in the question {question!r}")
        return ids


def _room(model: Any, longest: int, context: CompressedContext | None, wanted: int | None) -> int:
    """How many tokens are written: what is wanted, or the default as far as there are positions."""
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is None:
        return wanted or NEW_TOKENS
    start = 0 if context is None else int(context.next_position.max())
    room = limit - start - longest + 1  # the last token that is written is not read
    if room < (wanted or 1):
        raise InputError(
            f"{_name(model)}: {start} positions of the context, {longest} tokens of the longest question and "
            f"{wanted or 1} new ones exceed the {limit} positions of this model"
        )
    return wanted or min(NEW_TOKENS, room)


def _greedy(
    model: Any,
    tokenizer: Any,
    prompts: list[list[int]],
    context: CompressedContext | None,
    wanted: int | None,
    **options: Any,
) -> list[list[int]]:
    """New tokens of each prompt, up to the end of text."""
    ends, pad = ends_and_padding(model, tokenizer)
    options = options if context is None else {**options, "context": context}
    room = _room(model, max(map(len, prompts)), context, wanted)
    return [ids for ids, _ in decode(model, prompts, room, pad, ends, **options)]


def _decoded(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()


# --------------------------------------------------------------------------------------------------------------- errors


def _name(model: Any) -> str:
    return str(model.config.name_or_path or type(model).__name__)


def _refuse(value: int | None, what: str, why: str) -> None:
    if value is not None:
        raise ValueError(f"takes no {what} (found {value}): this model {why}")


def _check_plain(ids: list[int], token: int, count: int, what: str) -> None:
    if ids.count(token) != count:
        raise DataError(f"{what} holds the gist token {GIST_TOKEN} itself; spell it otherwise")


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
    """An error of the model becomes one of the input, with the model's name before it."""
    try:
        yield
    except ValueError as error:
        raise InputError(f"{name}: {error}") from error
