"""AutoCompressor, RMT and full attention on every architecture: segments, soft prompts, caches.

Each row's result is that of its segments read one after the other by transformers' own class.
"""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from compressor_models import padded, summary_model, tokens
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from laws import DECODERS, LAWS, close_to_largest, cut, greedy_in_segments, in_segments
from synopsis.compressors import CompressedContext
from torch import Tensor

close = close_to_largest
FEW = settings(
    max_examples=3,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
EVERY = pytest.mark.parametrize("architecture", DECODERS)


@dataclass
class Drawn:
    """A model, the rows that it reads, and a soft prompt (k, width) for each of them, k the same for all."""

    method: str
    summary_length: int
    sizes: list[int]
    side: str
    segment: int
    seed: int
    vectors: int

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)
        self.rows = self.texts(self.sizes)
        self.ids, self.mask = padded(self.rows, self.side)
        self.softprompt = torch.randn(len(self.rows), self.vectors, 32, generator=self.generator)

    def texts(self, sizes: list[int]) -> list[list[int]]:
        return [tokens(self.generator, size) for size in sizes]

    def model(self, architecture: str) -> Any:
        law = LAWS[self.method]
        return replace(law, fields={**law.fields, "summary_length": self.summary_length}).model(architecture)

    def cells(self, end: int | None = None) -> list[list[list[int]]]:
        """The segments of each row up to the column `end`, cut where padding counts, without it."""
        both = zip(self.ids[:, :end], self.mask[:, :end], strict=True)
        pairs = [zip(ids.split(self.segment), real.split(self.segment), strict=True) for ids, real in both]
        return [[part[seen.bool()].tolist() for part, seen in row] for row in pairs]


def drawn(least: int = 1, least_vectors: int = 0, summaries: tuple[int, int] = (0, 3)) -> Any:
    return st.builds(
        Drawn,
        method=st.sampled_from(["autocompressor", "rmt"]),
        summary_length=st.integers(*summaries),
        sizes=st.lists(st.integers(least, 13), min_size=1, max_size=3),
        side=st.sampled_from(["left", "right"]),
        segment=st.integers(2, 7),
        seed=st.integers(0, 9),
        vectors=st.integers(least_vectors, 5),
    )


# ------------------------------------------------------------------------------------------------------------- reading


@EVERY
@FEW
@given(case=drawn(), asks=st.booleans())
def test_a_segmented_pass_is_its_segments_read_one_by_one(architecture: str, case: Drawn, asks: bool) -> None:
    """Padding on either side, which moves the borders of segments: each keeps the tokens that it holds."""
    model, soft = case.model(architecture), case.softprompt
    out = model(case.ids, case.mask, segment_lengths=case.segment, softprompt=soft, output_softprompt=asks)
    for row, segments in enumerate(case.cells()):
        logits, after = in_segments(model, segments, soft[row], asks)
        close(out.logits[row][case.mask[row].bool()], logits)
        close(out.softprompt[row], after)


@EVERY
@FEW
@given(case=drawn(least=2), asks=st.booleans())
def test_without_segments_the_plain_class_reads(architecture: str, case: Drawn, asks: bool) -> None:
    model = case.model(architecture)
    out = model(case.ids, case.mask, output_softprompt=asks)
    for row, text in enumerate(case.rows):
        logits, after = in_segments(model, [text], None, asks)
        close(out.logits[row][case.mask[row].bool()], logits)
        if asks:
            close(out.softprompt[row], after)


@EVERY
@FEW
@given(case=drawn(least=3), chunks=st.lists(st.integers(1, 9), min_size=6, max_size=6), segmented=st.booleans())
def test_chunks_through_a_cache_equal_one_pass(
    architecture: str, case: Drawn, chunks: list[int], segmented: bool
) -> None:
    """Of one segment, or in segments; a chunk may be padding only for some rows, and a cache stays as it was."""
    model, soft = case.model(architecture), case.softprompt
    logits, past, read = [], None, 0
    for size in chunks:
        part, real = case.ids[:, read : read + size], case.mask[:, read : read + size]
        if part.shape[1] == 0:
            break
        read += part.shape[1]
        options: dict[str, Any] = {"softprompt": soft} if past is None else {"past_key_values": past}
        options |= {"use_cache": True, "segment_lengths": case.segment} if segmented else {"use_cache": True}
        covers = real if segmented else case.mask[:, :read]
        if not segmented:
            asked = model(part, covers, output_softprompt=True, **options)
        out = model(part, covers, **options)
        logits, past = [*logits, out.logits], out.past_key_values
        if not segmented:
            close(asked.logits, out.logits)
    whole, seen = torch.cat(logits, dim=1), case.mask[:, :read].bool()
    for row, segments in enumerate(case.cells(read)):
        segments = segments if segmented else [list(itertools.chain(*segments))]
        expected, after = in_segments(model, segments, soft[row], True)
        close(whole[row][seen[row]], expected)
        if not segmented:
            close(asked.softprompt[row], after)


@EVERY
@FEW
@given(case=drawn(summaries=(1, 3)), sizes=st.lists(st.integers(1, 8), min_size=3, max_size=3))
def test_summary_vectors_are_those_of_the_segments(architecture: str, case: Drawn, sizes: list[int]) -> None:
    """Of what is compressed, and of what follows once more, as a further segment."""
    model, after = case.model(architecture), case.texts(sizes[: len(case.rows)])
    context = model.compress(case.ids, case.mask, segment_lengths=case.segment)
    longer = model.compress(*padded(after, "left"), context=context)
    for row, text in enumerate(case.rows):
        segments = cut(text, case.segment)
        close(vectors_of(context, row), in_segments(model, segments, None, True)[1])
        close(vectors_of(longer, row), in_segments(model, [*segments, after[row]], None, True)[1])
    read = [len(text) + len(more) for text, more in zip(case.rows, after, strict=True)]
    assert longer.source_tokens.tolist() == read
    taken = longer.attention_mask.sum(-1).tolist()
    assert longer.compression_ratio.tolist() == pytest.approx([n / k for n, k in zip(read, taken, strict=True)])


def vectors_of(context: CompressedContext, row: int) -> Tensor:
    assert context.summary_vectors is not None
    return context.summary_vectors[row][context.attention_mask[row].bool()]


# ------------------------------------------------------------------------------------------------- writing in segments


@EVERY
@FEW
@given(
    case=drawn(least_vectors=1),
    before=st.sampled_from(["nothing", "softprompt", "context"]),
    listed=st.booleans(),
    place=st.integers(0, 7),
)
def test_text_written_in_segments_is_that_of_segmented_passes(
    architecture: str, case: Drawn, before: str, listed: bool, place: int
) -> None:
    model, width = case.model(architecture), case.ids.shape[1]
    ids, mask = padded(case.rows, "left")
    given, softs = {}, [None] * len(case.rows)
    if before == "softprompt":
        given = {"softprompt": case.softprompt}
        softs = list(case.softprompt)
    if before == "context" and case.summary_length:
        texts = case.texts([size % 5 + 1 for size in case.sizes])
        given = {"context": model.compress(*padded(texts, "right"), segment_lengths=3)}
        softs = [in_segments(model, cut(text, 3), None, True)[1] for text in texts]
    lengths: Any = [width // 2, width - width // 2] if listed and width > 1 else case.segment
    expected = [greedy_in_segments(model, row, 8, lengths, soft) for row, soft in zip(case.rows, softs, strict=True)]
    for end in (None, expected[-1][place]):
        stopped = [row if end not in row else row[: row.index(end) + 1] for row in expected]
        options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": end, "pad_token_id": 9}
        out = model.generate(ids, attention_mask=mask, segment_lengths=lengths, **options, **given)
        assert out[:, :width].equal(ids)
        longest = max(map(len, stopped))
        assert out[:, width:].tolist() == [row + [9] * (longest - len(row)) for row in stopped]


# ----------------------------------------------------------------------------------------------- training, fingerprints


@EVERY
@pytest.mark.parametrize("method", ["autocompressor", "rmt"])
def test_segment_checkpointing_gives_the_same_loss_and_gradients(architecture: str, method: str) -> None:
    model = copy.deepcopy(LAWS[method].model(architecture)).train()
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


def test_summary_tokens_start_as_the_end_of_text() -> None:
    model = summary_model()
    model.initialize_summary_embeddings()
    assert torch.equal(model.embed_summary.weight, model.get_input_embeddings().weight[2].expand(3, -1))
    model.config.eos_token_id = None
    model.initialize_summary_embeddings()
    assert torch.equal(model.embed_summary.weight[0], model.get_input_embeddings().weight.mean(0))


def test_the_fingerprint_follows_the_weights_and_not_the_dtype() -> None:
    model = summary_model()
    first, kept = model.fingerprint(), model.embed_summary.weight.detach().clone()
    assert model.fingerprint() == first == summary_model().to(torch.bfloat16).fingerprint()
    with torch.no_grad():
        model.embed_summary.weight.mul_(2.0)
    assert model.fingerprint() != first
    model.embed_summary = torch.nn.Embedding.from_pretrained(kept, freeze=False)
    assert model.fingerprint() == first
