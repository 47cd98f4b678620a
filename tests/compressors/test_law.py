"""The law of compressors, for summary vectors on every architecture: whatever the way to it, a row's result is that of
the segments read one after the other by transformers' own class, alone, without padding and without a cache."""

from __future__ import annotations

import copy
import functools
import itertools
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from compressor_models import PAD, architecture_model, padded, tokens
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synopsis.compressors import CompressedContext, load
from synopsis.compressors.architectures import DECODERS as ARCHITECTURES
from synopsis.compressors.registry import class_by_name
from torch import Tensor
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

UNLISTED = ("glm", "olmo2")
"""Rotary architectures that the registry has no line for."""
FEW = settings(
    max_examples=3,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
EVERY = pytest.mark.parametrize("architecture", (*ARCHITECTURES, *UNLISTED))
SIDES = st.sampled_from(["left", "right"])
KINDS: dict[str, dict[str, Any]] = {
    "autocompressor": {"accumulate_summary": True},
    "rmt": {"accumulate_summary": False},
}


# -------------------------------------------------------------------------------------------- what the law is held to


@functools.cache
def model_of(architecture: str, kind: str, summary_length: int) -> Any:
    return architecture_model("summary", architecture, summary_length=summary_length, **KINDS[kind])


@functools.cache
def plain_of(model: Any) -> Any:
    """transformers' own class with the same weights."""
    config = copy.deepcopy(model.config)
    plain = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config).eval()
    missing, unexpected = plain.load_state_dict(model.state_dict(), strict=False)
    assert not missing and set(unexpected) <= {"embed_summary.weight"}
    return plain


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


def cut(row: list[int], lengths: int | list[int]) -> list[list[int]]:
    """A row's segments, counted from its own first token."""
    if isinstance(lengths, int):
        return [row[start : start + lengths] for start in range(0, len(row), lengths)]
    ends = list(itertools.accumulate(lengths))
    return [part for part in (row[end - length : end] for end, length in zip(ends, lengths, strict=True)) if part]


def greedy(model: Any, row: list[int], count: int, lengths: int | list[int], soft: Tensor | None = None) -> list[int]:
    """What follows a row, each token from a pass over all before it; with a list it belongs to the last segment."""
    written: list[int] = []
    for _ in range(count):
        if isinstance(lengths, int):
            segments = cut([*row, *written], lengths)
        else:
            *before, last = cut(row, lengths)
            segments = [*before, [*last, *written]]
        logits, _ = in_segments(model, segments, soft)
        written.append(int(logits[-1].argmax()))
    return written


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    """Within `tolerance` of the largest value: rounding grows with every segment that is read after another."""
    assert actual.shape == expected.shape
    scale = max(1.0, float(expected.detach().abs().max())) if expected.numel() else 1.0
    torch.testing.assert_close(actual, expected, atol=tolerance * scale, rtol=0)


@dataclass
class Drawn:
    """A model's kind and the rows that it reads; `softs`: a soft prompt (k, width) for each row, k the same for all."""

    kind: str
    summary_length: int
    sizes: list[int]
    side: str
    segment: int
    seed: int
    vectors: int = 0
    rows: list[list[int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)
        self.rows = self.texts(self.sizes)

    def texts(self, sizes: list[int]) -> list[list[int]]:
        return [tokens(self.generator, size) for size in sizes]

    def model(self, architecture: str) -> Any:
        return model_of(architecture, self.kind, self.summary_length)

    def batch(self) -> tuple[Tensor, Tensor]:
        return padded(self.rows, self.side)

    def softprompt(self) -> Tensor:
        return torch.randn(len(self.rows), self.vectors, 32, generator=self.generator)


def drawn(least: int = 1, most: int = 13, least_vectors: int = 0, summaries: tuple[int, int] = (1, 3)) -> Any:
    return st.builds(
        Drawn,
        kind=st.sampled_from(sorted(KINDS)),
        summary_length=st.integers(*summaries),
        sizes=st.lists(st.integers(least, most), min_size=1, max_size=3),
        side=SIDES,
        segment=st.integers(2, 7),
        seed=st.integers(0, 9),
        vectors=st.integers(least_vectors, 5),
    )


def vectors_of(context: CompressedContext, row: int) -> Tensor:
    assert context.summary_vectors is not None
    return context.summary_vectors[row][context.attention_mask[row].bool()]


# ----------------------------------------------------------------------------------------------------- reading at once


@EVERY
@FEW
@given(case=drawn(summaries=(0, 3)), asks=st.booleans())
def test_a_segmented_pass_is_its_segments_read_one_by_one(architecture: str, case: Drawn, asks: bool) -> None:
    """Padding on either side, which moves the borders of segments: each keeps the tokens that it holds."""
    model, soft = case.model(architecture), case.softprompt()
    ids, mask = case.batch()
    out = model(ids, mask, segment_lengths=case.segment, softprompt=soft, output_softprompt=asks)
    parts = [zip(*(t[row].split(case.segment) for t in (ids, mask)), strict=True) for row in range(len(ids))]
    for row, pairs in enumerate(parts):
        segments = [part[real.bool()].tolist() for part, real in pairs]
        logits, after = in_segments(model, segments, soft[row], asks)
        close(out.logits[row][mask[row].bool()], logits)
        close(out.softprompt[row], after)


@EVERY
@FEW
@given(case=drawn(least=2), asks=st.booleans())
def test_without_segments_the_plain_class_reads(architecture: str, case: Drawn, asks: bool) -> None:
    model = case.model(architecture)
    ids, mask = case.batch()
    out = model(ids, mask, output_softprompt=asks)
    for row, text in enumerate(case.rows):
        logits, after = in_segments(model, [text], None, asks)
        close(out.logits[row][mask[row].bool()], logits)
        if asks:
            close(out.softprompt[row], after)


# ---------------------------------------------------------------------------------------------------------- in chunks


@EVERY
@FEW
@given(case=drawn(least=3, summaries=(0, 3)), chunks=st.lists(st.integers(1, 4), min_size=6, max_size=6))
def test_chunks_through_a_cache_equal_one_pass(architecture: str, case: Drawn, chunks: list[int]) -> None:
    """One segment, in chunks that may be padding only for some rows; the cache that a call gets stays as it was."""
    model, soft = case.model(architecture), case.softprompt()
    ids, mask = case.batch()
    logits, past, read = [], None, 0
    for size in chunks:
        part = ids[:, read : read + size]
        if part.shape[1] == 0:
            break
        covers = mask[:, : read + part.shape[1]]
        before = {"softprompt": soft} if past is None else {"past_key_values": past}
        asked = model(part, covers, use_cache=True, output_softprompt=True, **before)
        out = model(part, covers, use_cache=True, **before)
        close(asked.logits, out.logits)
        logits, past, read = [*logits, out.logits], out.past_key_values, read + part.shape[1]
    whole = torch.cat(logits, dim=1)
    for row in range(len(ids)):
        seen = mask[row, :read].bool()
        expected, after = in_segments(model, [ids[row, :read][seen].tolist()], soft[row], True)
        close(whole[row][seen], expected)
        close(asked.softprompt[row], after)


@EVERY
@FEW
@given(case=drawn(least=5, summaries=(0, 3)), chunks=st.lists(st.integers(1, 9), min_size=5, max_size=5))
def test_chunks_with_one_segment_length_equal_the_segmented_pass(
    architecture: str, case: Drawn, chunks: list[int]
) -> None:
    model, soft = case.model(architecture), case.softprompt()
    ids, mask = case.batch()
    logits, past, read = [], None, 0
    for size in chunks:
        part = ids[:, read : read + size]
        if part.shape[1] == 0:
            break
        before = {"softprompt": soft} if past is None else {"past_key_values": past}
        covers = mask[:, read : read + part.shape[1]]
        out = model(part, covers, segment_lengths=case.segment, use_cache=True, **before)
        logits, past, read = [*logits, out.logits], out.past_key_values, read + part.shape[1]
    whole = torch.cat(logits, dim=1)
    for row in range(len(ids)):
        parts = zip(ids[row, :read].split(case.segment), mask[row, :read].split(case.segment), strict=True)
        expected, _ = in_segments(model, [part[real.bool()].tolist() for part, real in parts], soft[row])
        close(whole[row][mask[row, :read].bool()], expected)


# ----------------------------------------------------------------------------------------------------------- contexts


@EVERY
@FEW
@given(case=drawn(), side=SIDES, sizes=st.lists(st.integers(1, 8), min_size=3, max_size=3))
def test_going_on_from_a_context_equals_the_segmented_pass(
    architecture: str, case: Drawn, side: str, sizes: list[int]
) -> None:
    """Rows of unequal length before and after; then what follows once more, as a further segment."""
    model = case.model(architecture)
    after = case.texts(sizes[: len(case.rows)])
    context = model.compress(*case.batch(), segment_lengths=case.segment)
    ids, mask = padded(after, side)
    out = model.continue_from(context, ids, mask)
    longer = model.compress(ids, mask, context=context)
    assert context.source_tokens.tolist() == case.sizes
    for row, text in enumerate(case.rows):
        segments = cut(text, case.segment)
        _, vectors = in_segments(model, segments, None, True)
        close(vectors_of(context, row), vectors)
        logits, _ = in_segments(model, [*segments, after[row]])
        close(out.logits[row][mask[row].bool()], logits[-len(after[row]) :])
        _, vectors = in_segments(model, [*segments, after[row]], None, True)
        close(vectors_of(longer, row), vectors)
        alone = model.compress(torch.tensor([text]), segment_lengths=case.segment)
        close(model.continue_from(alone, torch.tensor([after[row]])).logits[0], logits[-len(after[row]) :])


@EVERY
@FEW
@given(case=drawn(), sizes=st.lists(st.integers(1, 6), min_size=3, max_size=3))
def test_greedy_tokens_after_a_context_are_those_of_whole_passes(
    architecture: str, case: Drawn, sizes: list[int]
) -> None:
    model = case.model(architecture)
    prompts = case.texts(sizes[: len(case.rows)])
    context = model.compress(*case.batch(), segment_lengths=case.segment)
    ids, mask = padded(prompts, "left")
    softs = [in_segments(model, cut(text, case.segment), None, True)[1] for text in case.rows]
    expected = [greedy(model, row, 5, [len(row) + 5], soft) for row, soft in zip(prompts, softs, strict=True)]
    end = expected[0][2]  # the first row stops early, and perhaps others
    for stop in (None, end):
        out = model.generate(
            ids,
            context=context,
            attention_mask=mask,
            max_new_tokens=5,
            do_sample=False,
            eos_token_id=stop,
            pad_token_id=9,
        )
        assert out[:, : ids.shape[1]].equal(ids)
        assert out[:, ids.shape[1] :].tolist() == filled([upto(row, stop) for row in expected], 9)


@EVERY
@FEW
@given(case=drawn(), more=drawn())
def test_contexts_put_together_and_taken_apart_are_what_they_were(architecture: str, case: Drawn, more: Drawn) -> None:
    model = case.model(architecture)
    first = model.compress(*case.batch(), segment_lengths=case.segment)
    second = model.compress(*more.batch(), segment_lengths=more.segment)
    both = CompressedContext.concat([first, second])
    ids = torch.tensor(case.texts([4] * both.batch_size))
    out = model.continue_from(both, ids).logits
    close(out, torch.cat([model.continue_from(part, rows).logits for part, rows in split(first, second, ids)]))
    order = list(range(both.batch_size))[::-1]
    close(model.continue_from(both.select(order), ids[order]).logits, out[order])
    one = both.select([order[0]])
    close(model.continue_from(one, ids).logits[order[0]], out[order[0]])
    close(model.continue_from(one.expand(len(ids)), ids).logits[order[0]], out[order[0]])


def split(first: CompressedContext, second: CompressedContext, ids: Tensor) -> list[tuple[CompressedContext, Tensor]]:
    return list(zip((first, second), ids.split([first.batch_size, second.batch_size]), strict=True))


# ------------------------------------------------------------------------------------------------- writing in segments


def upto(row: list[int], end: int | None) -> list[int]:
    return row if end not in row else row[: row.index(end) + 1]


def filled(rows: list[list[int]], pad: int) -> list[list[int]]:
    longest = max(map(len, rows))
    return [row + [pad] * (longest - len(row)) for row in rows]


@EVERY
@FEW
@given(
    case=drawn(least_vectors=1, summaries=(0, 3)),
    before=st.sampled_from(["nothing", "softprompt", "context"]),
    listed=st.booleans(),
    place=st.integers(0, 7),
)
def test_text_written_in_segments_is_that_of_segmented_passes(
    architecture: str, case: Drawn, before: str, listed: bool, place: int
) -> None:
    model, count = case.model(architecture), 8
    ids, mask = padded(case.rows, "left")
    given, softs = {}, [None] * len(case.rows)
    if before == "softprompt":
        given = {"softprompt": case.softprompt()}
        softs = list(given["softprompt"])
    if before == "context" and case.summary_length:
        texts = case.texts([size % 5 + 1 for size in case.sizes])
        given = {"context": model.compress(*padded(texts, "right"), segment_lengths=3)}
        softs = [in_segments(model, cut(text, 3), None, True)[1] for text in texts]
    width = ids.shape[1]
    lengths: Any = [width // 2, width - width // 2] if listed and width > 1 else case.segment
    expected = [greedy(model, row, count, lengths, soft) for row, soft in zip(case.rows, softs, strict=True)]
    for stop in (None, expected[-1][place]):
        out = model.generate(
            ids,
            attention_mask=mask,
            segment_lengths=lengths,
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=stop,
            pad_token_id=9,
            **given,
        )
        assert out[:, :width].equal(ids)
        assert out[:, width:].tolist() == filled([upto(row, stop) for row in expected], 9)


# ---------------------------------------------------------------------------------------------- files, dtypes, training


@EVERY
def test_saving_and_loading_changes_nothing(architecture: str, tmp_path: Path) -> None:
    model = model_of(architecture, "rmt", 2)
    ids, mask = padded([tokens(torch.Generator().manual_seed(1), size) for size in (9, 4)], "right")
    model.save_pretrained(tmp_path / "model")
    again = load(tmp_path / "model", "cpu")
    assert type(again) is type(model)
    context = model.compress(ids, mask, segment_lengths=4)
    context.save(tmp_path / "context.safetensors")
    loaded = CompressedContext.load(tmp_path / "context.safetensors")
    assert torch.equal(again.continue_from(loaded, ids, mask).logits, model.continue_from(context, ids, mask).logits)
    assert torch.equal(again(ids, mask, segment_lengths=4).logits, model(ids, mask, segment_lengths=4).logits)


@EVERY
def test_models_can_be_pickled(architecture: str) -> None:
    model = model_of(architecture, "autocompressor", 2)
    ids = torch.tensor([[5, 6, 7, 8]])
    again = pickle.loads(pickle.dumps(model))
    assert type(again) is type(model)
    assert torch.equal(again(ids, segment_lengths=2).logits, model(ids, segment_lengths=2).logits)
    if architecture in ARCHITECTURES:
        assert class_by_name(type(model).__name__) is type(model)


@EVERY
def test_bfloat16_decodes_near_float32(architecture: str) -> None:
    model = model_of(architecture, "autocompressor", 2)
    half = copy.deepcopy(model).to(torch.bfloat16)
    ids, mask = padded([tokens(torch.Generator().manual_seed(2), size) for size in (11, 6)], "left")
    context, halved = (each.compress(ids, mask, segment_lengths=4) for each in (model, half))
    assert halved.summary_vectors is not None and halved.summary_vectors.dtype == torch.bfloat16
    expected = model.continue_from(context, ids, mask).logits[mask.bool()]
    for own in (context, halved):  # a context in float32 serves the model in bfloat16
        found = half.continue_from(own, ids, mask).logits[mask.bool()].float()
        assert float(((found - expected).norm() / expected.norm()).detach()) < 0.2  # unrelated ones: 1.4
    options = {"attention_mask": mask, "max_new_tokens": 4, "do_sample": False, "pad_token_id": PAD}
    for out in (half.generate(ids, context=halved, **options), half.generate(ids, segment_lengths=4, **options)):
        assert out.shape[1] > ids.shape[1] and out[:, : ids.shape[1]].equal(ids)


@EVERY
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_segment_checkpointing_gives_the_same_loss_and_gradients(architecture: str, kind: str) -> None:
    model = copy.deepcopy(model_of(architecture, kind, 2)).train()
    ids, mask = padded([tokens(torch.Generator().manual_seed(3), size) for size in (12, 7)], "right")
    labels = ids.masked_fill(mask == 0, -100)
    results = []
    for checkpointing in (False, True):
        model.config.segment_gradient_checkpointing = checkpointing
        model.zero_grad()
        soft = torch.ones(2, 2, 32).requires_grad_()
        loss = model(ids, mask, labels=labels, segment_lengths=[3, 4, 5], softprompt=soft).loss
        loss.backward()
        gradients = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
        results.append((loss.detach(), {**gradients, "softprompt": soft.grad}))
    (loss, gradients), (again, same) = results
    assert torch.equal(loss, again) and set(gradients) == set(same)
    assert gradients["embed_summary.weight"].abs().max() > 0
    for name, gradient in gradients.items():
        close(same[name], gradient, 1e-6)


@pytest.mark.parametrize("kind", ["summary", "gist"])
def test_a_call_with_a_context_goes_on_from_it(kind: str) -> None:
    model = architecture_model(kind, "llama", **{"summary_length": 2} if kind == "summary" else {"gist_token_id": 8})
    ids = torch.tensor([[5, 6, 7, 8]])
    context, rest = model.compress(ids), torch.tensor([[9, 10]])
    assert torch.equal(model(rest, context=context).logits, model.continue_from(context, rest).logits)
