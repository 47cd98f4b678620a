"""What each method's compressed context stands for, by transformers' own classes: a row alone, without padding.

One entry of `LAWS` is a method; `tests/compressors/test_law.py` holds each to its law on every architecture.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass, field
from typing import Any

import torch
from compressor_models import GIST, GREEDY, TOLERANCE, WINDOW, architecture_model, padded, real, tokens
from synopsis.compressors import architectures
from synopsis.compressors.eviction.section import SINKS
from t5_models import KINDS, START, answers, t5_by_hand, t5_greedy, t5_model
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

UNLISTED = ("glm", "olmo2")
"""Rotary architectures that the registry has no line for."""
DECODERS = (*architectures.DECODERS, *UNLISTED)


@functools.cache
def plain_of(model: Any) -> Any:
    """transformers' own class with the same weights."""
    config = AutoConfig.for_model(**{**model.config.to_dict(), "architectures": None})
    plain = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    missing, unexpected = plain.load_state_dict(model.state_dict(), strict=False)
    assert type(plain).__module__.startswith("transformers.")
    assert not missing and set(unexpected) <= {"embed_summary.weight"}
    return plain


# -------------------------------------------------------------------------------------------------- segments (summary)


@torch.no_grad()
def read_alone(model: Any, soft: Tensor, row: list[int], summarise: bool) -> tuple[Tensor, Tensor]:
    """One segment of one row, [soft prompt | tokens | summary tokens]: logits (t, vocabulary), vectors (s, width)."""
    plain = plain_of(model)
    words = plain.get_input_embeddings()(torch.tensor([row], dtype=torch.long))  # (1, t, width)
    summary = model.embed_summary.weight[None] if summarise and model.config.summary_length else words[:, :0]
    embeds = torch.cat([soft[None], words, summary], dim=1)
    if embeds.shape[1] == 0:
        return words.new_zeros(0, model.config.vocab_size), summary[0]
    if model.config.model_type == "opt":
        positions = torch.tensor([[-1] * len(soft) + list(range(len(row))) + [-1] * summary.shape[1]])
    else:
        positions = torch.arange(embeds.shape[1])[None]
    options = {"inputs_embeds": embeds, "position_ids": positions, "use_cache": False}
    start = len(soft) + len(row)
    states = plain.get_decoder()(**options).last_hidden_state[0]
    return plain(**options).logits[0, len(soft) : start], states[start:]


def in_segments(
    model: Any, segments: list[list[int]], soft: Tensor | None = None, summarise_last: bool = False
) -> tuple[Tensor, Tensor]:
    """One row's segments one after the other: the logits of all its tokens, and the soft prompt after the last."""
    soft = torch.zeros(0, model.get_input_embeddings().weight.shape[1]) if soft is None else soft
    logits = []
    for index, segment in enumerate(segments):
        out, vectors = read_alone(model, soft, segment, summarise_last or index < len(segments) - 1)
        logits.append(out)
        if model.config.accumulate_summary:
            soft = torch.cat([soft, vectors])
        elif len(vectors):
            soft = vectors
    return torch.cat(logits), soft


def cut(row: list[int], length: int) -> list[list[int]]:
    """A row's segments, counted from its own first token."""
    return [row[start : start + length] for start in range(0, len(row), length)]


def greedy_in_segments(
    model: Any, row: list[int], count: int, lengths: int | list[int] | None, soft: Tensor | None = None
) -> list[int]:
    """What follows a row, each token from a pass over all before it; with a list it belongs to the last segment."""
    written: list[int] = []
    for _ in range(count):
        if isinstance(lengths, int):
            segments = cut([*row, *written], lengths)
        else:
            ends = [0, *itertools.accumulate(lengths or [len(row)])]
            *before, last = [part for start, end in itertools.pairwise(ends) if (part := row[start:end])]
            segments = [*before, [*last, *written]]
        written.append(int(in_segments(model, segments, soft)[0][-1].argmax()))
    return written


def close_to_largest(actual: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    """Within `tolerance` of the largest value: rounding grows with every segment that is read after another."""
    assert actual.shape == expected.shape
    scale = max(1.0, float(expected.detach().abs().max())) if expected.numel() else 1.0
    torch.testing.assert_close(actual, expected, atol=tolerance * scale, rtol=0)


# ------------------------------------------------------------------------------------------------------- masks (gist)


def mask_by_hand(
    row: list[int], condition: str, prompt: int | None = None, window: int | None = None, token: int = GIST
) -> Tensor:
    """(1, 1, T, T) additive mask of one row, position by position, as section 3.1 of the paper words it.

    A gist token that the model itself writes, beyond the `prompt`, is a token like any other.
    """
    gists = [place for place, id in enumerate(row[:prompt]) if id == token]
    mask = torch.full((1, 1, len(row), len(row)), float("-inf"))
    for reader in range(len(row)):
        after = bool(gists) and reader > gists[-1]
        first = {"gist": gists[0], "neg_control": gists[-1] + 1, "pos_control": 0}[condition] if after else 0
        mask[0, 0, reader, max(first, reader - (window or len(row)) + 1) : reader + 1] = 0.0
    return mask


def gist_by_hand(model: Any, row: list[int], prompt: int | None = None) -> Tensor:
    """(T, vocabulary) logits of one row from transformers' own class under masks built by hand."""
    config = model.config
    kinds = getattr(config, "layer_types", None)
    windows = {"sliding_attention": WINDOW, "full_attention": None}
    of_row = functools.partial(mask_by_hand, row, config.gist_condition, prompt, token=config.gist_token_id)
    if kinds is None:
        mask: Any = of_row(window=WINDOW if config.model_type in ("mistral", "phi3") else None)
    else:
        mask = {kind: of_row(window=windows[kind]) for kind in set(kinds)}
    with torch.no_grad():
        places = torch.arange(len(row))[None]
        return plain_of(model)(torch.tensor([row]), attention_mask=mask, position_ids=places).logits[0]


def gist_greedy(model: Any, row: list[int], count: int) -> list[int]:
    ids = list(row)
    for _ in range(count):
        ids.append(int(gist_by_hand(model, ids, len(row))[-1].argmax()))
    return ids[len(row) :]


def instruction(generator: torch.Generator, before: int, gists: int, after: int = 0) -> list[int]:
    return tokens(generator, before) + [GIST] * gists + tokens(generator, after)


# ----------------------------------------------------------------------------------------------------------- the laws


@dataclass(frozen=True)
class Law:
    """A method on decoders: its models, what of a text it compresses, and the one pass that a context stands for."""

    kind: str
    fields: dict[str, Any]
    architectures: tuple[str, ...] = DECODERS
    options: dict[str, Any] = field(default_factory=dict)
    """Of `compress`."""

    def close(self, actual: Tensor, expected: Tensor) -> None:
        torch.testing.assert_close(actual, expected, **TOLERANCE)

    def model(self, architecture: str) -> Any:
        return _model(self.kind, architecture, tuple(self.fields.items()))

    def prompt(self, generator: torch.Generator, size: int) -> list[int]:
        """A row that is compressed."""
        return tokens(generator, size)

    def vectors(self, prompt: list[int]) -> int:
        """How many vectors stand for the row."""
        raise NotImplementedError

    def expected(self, model: Any, prompt: list[int], rest: list[int]) -> Tensor:
        """(len(rest), vocabulary) logits of the one pass."""
        raise NotImplementedError

    def after(self, model: Any, context: Any, rests: list[list[int]], side: str = "right") -> list[Tensor]:
        """The same from a context, row by row."""
        ids, mask = padded(rests, side)
        logits = model.continue_from(context, ids, mask).logits
        return [real(logits, mask, row) for row in range(len(rests))]

    def greedy(self, model: Any, prompt: list[int], rest: list[int], count: int) -> list[int]:
        """What follows, each token from a pass over all before it."""
        written: list[int] = []
        for _ in range(count):
            written.append(int(self.expected(model, prompt, [*rest, *written])[-1].argmax()))
        return written

    def written(self, model: Any, context: Any, rests: list[list[int]], **options: Any) -> list[list[int]]:
        """The new tokens of `generate` with a context."""
        ids, mask = padded(rests, "left")
        out = model.generate(ids, context=context, attention_mask=mask, do_sample=False, **options)
        assert out[:, : ids.shape[1]].equal(ids)
        return out[:, ids.shape[1] :].tolist()


@functools.cache
def _model(kind: str, architecture: str, fields: tuple[tuple[str, Any], ...]) -> Any:
    return architecture_model(kind, architecture, **dict(fields))


class Summary(Law):
    def close(self, actual: Tensor, expected: Tensor) -> None:
        close_to_largest(actual, expected)

    def vectors(self, prompt: list[int]) -> int:
        return self.fields["summary_length"] * (len(cut(prompt, 4)) if self.fields["accumulate_summary"] else 1)

    def expected(self, model: Any, prompt: list[int], rest: list[int]) -> Tensor:
        return in_segments(model, [*cut(prompt, 4), rest])[0][len(prompt) :]


class Eviction(Law):
    """What follows sees the first tokens and the newest, each where it stood."""

    def model(self, architecture: str) -> Any:
        windows = {"sliding_window": None, "use_sliding_window": False, "layer_types": None}
        return _model(self.kind, architecture, tuple({**windows, **self.fields}.items()))

    def vectors(self, prompt: list[int]) -> int:
        return min(len(prompt), self.fields["budget"])

    def expected(self, model: Any, prompt: list[int], rest: list[int]) -> Tensor:
        length = len(prompt + rest)
        mask = torch.full((length, length), float("-inf")).triu(1)
        mask[len(prompt) :, SINKS : max(SINKS, len(prompt) - self.fields["budget"] + SINKS)] = float("-inf")
        with torch.no_grad():
            given = {"attention_mask": mask[None, None], "position_ids": torch.arange(length)[None]}
            return plain_of(model)(torch.tensor([prompt + rest]), **given).logits[0, len(prompt) :]


class Truncation(Eviction):
    """What follows stands behind the kept tokens alone."""

    def model(self, architecture: str) -> Any:
        return Law.model(self, architecture)

    def expected(self, model: Any, prompt: list[int], rest: list[int]) -> Tensor:
        kept = prompt[-self.fields["budget"] :]
        with torch.no_grad():
            return plain_of(model)(torch.tensor([kept + rest])).logits[0, len(kept) :]


class Gist(Law):
    def prompt(self, generator: torch.Generator, size: int) -> list[int]:
        return instruction(generator, size - 1, 1 + size % 3)

    def vectors(self, prompt: list[int]) -> int:
        return {"gist": prompt.count(GIST), "neg_control": 0, "pos_control": len(prompt)}[self.fields["gist_condition"]]

    def expected(self, model: Any, prompt: list[int], rest: list[int]) -> Tensor:
        return gist_by_hand(model, prompt + rest, len(prompt))[len(prompt) :]

    def whole(self, model: Any, rows: list[list[int]], side: str) -> list[tuple[Tensor, Tensor]]:
        """Of one pass over whole rows: the logits of each, and those by hand."""
        ids, mask = padded(rows, side)
        logits = model(ids, mask).logits
        return [(real(logits, mask, index), gist_by_hand(model, row)) for index, row in enumerate(rows)]

    def generated(self, model: Any, rows: list[list[int]]) -> tuple[list[list[int]], list[list[int]]]:
        """Six greedy tokens after whole rows, and those by hand."""
        ids, mask = padded(rows, "left")
        out = model.generate(ids, attention_mask=mask, **GREEDY)
        assert out[:, : ids.shape[1]].equal(ids)
        return out[:, ids.shape[1] :].tolist(), [gist_greedy(model, row, 6) for row in rows]


class GistT5(Gist):
    """The decoder's logits for a given answer stand for those of what follows."""

    def model(self, architecture: str) -> Any:
        return _t5(self.fields["gist_condition"], architecture)

    def expected(self, model: Any, prompt: list[int], rest: list[int]) -> Tensor:
        return t5_by_hand(model, prompt + rest, answer_to(rest))

    def after(self, model: Any, context: Any, rests: list[list[int]], side: str = "right") -> list[Tensor]:
        answers = torch.tensor([answer_to(rest) for rest in rests])
        return list(model.continue_from(context, *padded(rests, side), decoder_input_ids=answers).logits)

    def whole(self, model: Any, rows: list[list[int]], side: str) -> list[tuple[Tensor, Tensor]]:
        logits = model(*padded(rows, side), decoder_input_ids=answers(len(rows))).logits
        expected = [
            t5_by_hand(model, row, answer.tolist()) for row, answer in zip(rows, answers(len(rows)), strict=True)
        ]
        return list(zip(logits, expected, strict=True))

    def generated(self, model: Any, rows: list[list[int]]) -> tuple[list[list[int]], list[list[int]]]:
        ids, mask = padded(rows, "right")
        out = model.generate(ids, attention_mask=mask, **GREEDY)
        return out.tolist(), [t5_greedy(model, row, 6) for row in rows]

    def greedy(self, model: Any, prompt: list[int], rest: list[int], count: int) -> list[int]:
        return t5_greedy(model, prompt + rest, count)[1:]

    def written(self, model: Any, context: Any, rests: list[list[int]], **options: Any) -> list[list[int]]:
        ids, mask = padded(rests, "left")
        out = model.generate(ids, context=context, attention_mask=mask, do_sample=False, **options)
        return out[:, 1:].tolist()


def answer_to(rest: list[int]) -> list[int]:
    return [START, *rest[:1], 7, 9, 11]


@functools.cache
def _t5(condition: str, kind: str) -> Any:
    return t5_model(condition, kind)


SEGMENTS = {"segment_lengths": 4}
ROTARY = tuple(architecture for architecture in DECODERS if architecture not in ("gemma2", "gemma3_text", "opt"))
"""Those whose layers need not slide, and whose positions are rotary."""
POS_CONTROL_T5 = GistT5("gist", {"gist_condition": "pos_control"}, tuple(KINDS))
"""It has no context."""
LAWS: dict[str, Law] = {
    "autocompressor": Summary("summary", {"summary_length": 2, "accumulate_summary": True}, options=SEGMENTS),
    "rmt": Summary("summary", {"summary_length": 2, "accumulate_summary": False}, options=SEGMENTS),
    "streaming_llm": Eviction("eviction", {"budget": 6, "rerotate": False}, ROTARY),
    "truncation": Truncation("truncation", {"budget": 3}),
    **{c: Gist("gist", {"gist_token_id": GIST, "gist_condition": c}) for c in ("gist", "pos_control", "neg_control")},
    **{f"{c} t5": GistT5("gist", {"gist_condition": c}, tuple(KINDS)) for c in ("gist", "neg_control")},
}
