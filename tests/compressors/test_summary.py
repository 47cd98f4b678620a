"""AutoCompressor, RMT and full attention: a compressed context equals the segmented pass that it stands for."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from compressor_models import GREEDY, TOLERANCE, padded, real, summary_model, tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from synopsis.compressors import CompressedContext, LlamaAutoCompressorModel, load
from transformers import LlamaForCausalLM

MODELS = {
    "autocompressor": summary_model(),
    "rmt": summary_model(accumulate_summary=False),
    "grouped heads": summary_model(num_key_value_heads=2),
}
FEW = settings(max_examples=8, deadline=None, derandomize=True)
ANY_MODEL = st.sampled_from(sorted(MODELS))
SIDE = st.sampled_from(["left", "right"])


def greedy_by_hand(
    model: LlamaAutoCompressorModel, softprompt: torch.Tensor, prompt: list[int], count: int
) -> list[int]:
    """Greedy tokens of one row, each from a whole pass without a cache."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(model(torch.tensor([ids]), softprompt=softprompt).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@FEW
@given(
    name=ANY_MODEL,
    side=SIDE,
    prefix=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    rest=st.integers(1, 6),
    segment=st.integers(2, 9),
)
def test_going_on_equals_the_segmented_pass(name: str, side: str, prefix: list[int], rest: int, segment: int) -> None:
    # In float64: what rounding adds up to over many segments says nothing about the law.
    model, generator = copy.deepcopy(MODELS[name]).double(), torch.Generator().manual_seed(sum(prefix) + rest)
    texts = [tokens(generator, size) for size in prefix]
    before, mask = padded(texts, side)
    after = torch.tensor([tokens(generator, rest) for _ in prefix])
    context = model.compress(before, mask, segment_lengths=segment)
    assert context.source_tokens.tolist() == prefix
    expected = []
    for row, text in enumerate(texts):
        lengths = [min(segment, len(text) - start) for start in range(0, len(text), segment)]
        whole = model(torch.tensor([[*text, *after[row].tolist()]]), segment_lengths=[*lengths, rest])
        own = context.summary_vectors[row][context.attention_mask[row].bool()]
        torch.testing.assert_close(own, whole.softprompt[0], atol=1e-10, rtol=0.0)
        expected.append(whole.logits[0, -rest:])
    torch.testing.assert_close(model.continue_from(context, after).logits, torch.stack(expected), atol=1e-10, rtol=0.0)


@FEW
@given(name=ANY_MODEL, side=SIDE, sizes=st.lists(st.integers(1, 8), min_size=2, max_size=4))
def test_padding_and_batch_change_nothing(name: str, side: str, sizes: list[int]) -> None:
    """Continuations of unequal length: each row as it is alone."""
    model, generator = MODELS[name], torch.Generator().manual_seed(sum(sizes))
    before = torch.tensor([tokens(generator, 9) for _ in sizes])
    rows = [tokens(generator, size) for size in sizes]
    ids, mask = padded(rows, side)
    context = model.compress(before, segment_lengths=5)
    together = model.continue_from(context, ids, mask).logits
    segmented = model(ids, mask, softprompt=context.summary_vectors).logits
    for index, row in enumerate(rows):
        alone = model(torch.tensor([row]), softprompt=context.summary_vectors[index : index + 1]).logits[0]
        torch.testing.assert_close(real(together, mask, index), alone, **TOLERANCE)
        torch.testing.assert_close(real(segmented, mask, index), alone, **TOLERANCE)


@FEW
@given(name=ANY_MODEL, sizes=st.lists(st.integers(1, 7), min_size=1, max_size=3), prefix=st.integers(1, 12))
def test_greedy_tokens_equal_those_of_whole_passes(name: str, sizes: list[int], prefix: int) -> None:
    model, generator = MODELS[name], torch.Generator().manual_seed(prefix)
    context = model.compress(torch.tensor([tokens(generator, prefix) for _ in sizes]), segment_lengths=4)
    rows = [tokens(generator, size) for size in sizes]
    ids, mask = padded(rows, "left")
    out = model.generate(ids, context=context, attention_mask=mask, **GREEDY)
    assert out[:, : ids.shape[1]].equal(ids)
    assert context.summary_vectors is not None
    for index, row in enumerate(rows):
        expected = greedy_by_hand(model, context.summary_vectors[index : index + 1], row, 6)
        assert out[index, ids.shape[1] :].tolist() == expected


def test_one_segment_is_soft_prompt_tokens_and_summary_tokens_read_by_a_plain_model() -> None:
    """The layout, built by hand on transformers' own class at batch 1."""
    model = MODELS["autocompressor"]
    plain = LlamaForCausalLM(model.config).eval()
    plain.load_state_dict(model.state_dict(), strict=False)
    ids = torch.tensor([tokens(torch.Generator().manual_seed(1), 7)])
    soft = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(2))
    out = model(ids, softprompt=soft, output_softprompt=True)
    embeds = torch.cat([soft, plain.get_input_embeddings()(ids), model.embed_summary.weight[None]], 1)
    by_hand = plain(inputs_embeds=embeds, output_hidden_states=True)
    torch.testing.assert_close(out.logits, by_hand.logits[:, 4:11], **TOLERANCE)
    torch.testing.assert_close(out.softprompt, torch.cat([soft, by_hand.hidden_states[-1][:, 11:]], 1), **TOLERANCE)


def test_reading_on_after_a_context_equals_reading_at_once() -> None:
    for model in MODELS.values():
        ids = torch.tensor([tokens(torch.Generator().manual_seed(3), 12) for _ in range(2)])
        first = model.compress(ids[:, :5])
        chained = model.compress(ids[:, 5:], segment_lengths=[3, 4], context=first)
        whole = model.compress(ids, segment_lengths=[5, 3, 4])
        torch.testing.assert_close(chained.summary_vectors, whole.summary_vectors, **TOLERANCE)
        assert chained.source_tokens.tolist() == [12, 12]
        assert chained.compression_ratio.tolist() == pytest.approx([12 / whole.length] * 2)


def test_the_segment_form_without_segments_is_the_plain_model() -> None:
    model = summary_model(summary_length=0)
    ids, mask = padded([tokens(torch.Generator().manual_seed(4), size) for size in (9, 5)], "left")
    plain, segmented = model(ids, mask).logits, model(ids, mask, segment_lengths=9).logits
    for row in (0, 1):
        torch.testing.assert_close(real(plain, mask, row), real(segmented, mask, row), **TOLERANCE)
    with pytest.raises(ValueError, match="summary_length is 0"):
        model.compress(ids, mask)


def test_the_loss_is_one_mean_over_all_segments() -> None:
    model = MODELS["rmt"]
    ids, mask = padded([tokens(torch.Generator().manual_seed(5), size) for size in (10, 6)], "right")
    labels = ids.masked_fill(mask == 0, -100)
    out = model(ids, mask, labels=labels, segment_lengths=[4, 6])
    log_probabilities = out.logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
    counted = labels[:, 1:] != -100
    torch.testing.assert_close(out.loss, -log_probabilities[counted].sum() / counted.sum(), **TOLERANCE)


def test_logits_beside_the_loss_are_given_when_asked_for() -> None:
    model, ids = summary_model().train(), torch.tensor([tokens(torch.Generator().manual_seed(8), 12)])
    quick = model(ids, labels=ids, segment_lengths=[5, 7])
    whole = model(ids, labels=ids, segment_lengths=[5, 7], skip_logits=False)
    assert quick.logits is None and whole.logits.shape == (1, 12, model.config.vocab_size)
    torch.testing.assert_close(quick.loss, whole.loss, **TOLERANCE)
    plain = model(ids, labels=ids)
    assert plain.logits is None
    torch.testing.assert_close(plain.loss, model.eval()(ids, labels=ids).loss, **TOLERANCE)


def test_segment_checkpointing_gives_the_same_gradients() -> None:
    ids = torch.tensor([tokens(torch.Generator().manual_seed(6), 12) for _ in range(2)])
    gradients = []
    for checkpointing in (False, True):
        model = summary_model(segment_gradient_checkpointing=checkpointing).train()
        model(ids, labels=ids, segment_lengths=[3, 4, 5]).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert gradients[0]["embed_summary.weight"].abs().max() > 0
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


def test_saving_and_loading_changes_nothing(tmp_path: Path) -> None:
    model = MODELS["grouped heads"]
    ids = torch.tensor([tokens(torch.Generator().manual_seed(7), 8)])
    model.save_pretrained(tmp_path / "model")
    again = load(tmp_path / "model", "cpu")
    assert isinstance(again, LlamaAutoCompressorModel)
    assert torch.equal(again(ids, segment_lengths=4).logits, model(ids, segment_lengths=4).logits)

    context = model.compress(ids, segment_lengths=4)
    context.save(tmp_path / "context.safetensors")
    loaded = CompressedContext.load(tmp_path / "context.safetensors")
    assert torch.equal(again.continue_from(loaded, ids).logits, model.continue_from(context, ids).logits)


def test_summary_tokens_start_as_the_end_of_text() -> None:
    model = summary_model()
    model.initialize_summary_embeddings()
    assert torch.equal(model.embed_summary.weight, model.get_input_embeddings().weight[2].expand(3, -1))
    model.config.eos_token_id = None
    model.initialize_summary_embeddings()
    assert torch.equal(model.embed_summary.weight[0], model.get_input_embeddings().weight.mean(0))


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([3, 4], r"\[3, 4\] add up to 7, not to 8 tokens"),
        ([8, 0], r"\[8, 0\].*at least one token"),
        (0, "segment_lengths 0"),
        ([], "at least one token"),
    ],
)
def test_segments_that_do_not_fit_are_refused(lengths: int | list[int], message: str) -> None:
    model, ids = MODELS["autocompressor"], torch.full((2, 8), 5)
    for call in (model, model.compress):
        with pytest.raises(ValueError, match=message):
            call(ids, segment_lengths=lengths)


def test_wrong_inputs_are_refused() -> None:
    model, ids = MODELS["autocompressor"], torch.full((2, 8), 5)
    context = model.compress(ids)
    with pytest.raises(ValueError, match=r"\(2, 4, 31\); expected \(2, k, 32\)"):
        model(ids, softprompt=torch.zeros(2, 4, 31))
    with pytest.raises(ValueError, match=r"\(1, 4, 32\); expected \(2, k, 32\)"):
        model(ids, softprompt=torch.zeros(1, 4, 32))
    with pytest.raises(ValueError, match="row 0 has no tokens"):
        model.compress(ids[:, :0])
    with pytest.raises(ValueError, match="row 1 has no tokens"):
        model.compress(ids, torch.tensor([[1] * 8, [0] * 8]))
    with pytest.raises(ValueError, match="go on from a cache of a segment only"):
        model(ids, softprompt=torch.zeros(2, 4, 32), past_key_values=model.prefix_cache(context))
    with pytest.raises(ValueError, match="at least one prompt token"):
        model.generate(ids[:, :0], context=context)
    with pytest.raises(ValueError, match="num_beams"):
        model.generate(ids, context=context, num_beams=2, **GREEDY)
    with pytest.raises(ValueError, match="2 rows cannot serve a batch of 3"):
        model.continue_from(context, torch.full((3, 8), 5))


@pytest.mark.parametrize("change", [{"seed": 1}, {"accumulate_summary": False}, {"rope_theta": 5e4}])
def test_the_context_of_another_model_is_refused(change: dict[str, object]) -> None:
    ids = torch.full((1, 6), 5)
    context = summary_model(**change).compress(ids)  # type: ignore[arg-type]
    model = MODELS["autocompressor"]
    for call in (lambda: model.continue_from(context, ids), lambda: model.generate(ids, context=context, **GREEDY)):
        with pytest.raises(ValueError, match=f"another model.*{context.fingerprint}.*{model.fingerprint()}"):
            call()


def test_the_fingerprint_is_the_same_in_another_dtype() -> None:
    model = summary_model()
    assert model.fingerprint() == summary_model().to(torch.bfloat16).fingerprint()


def test_the_fingerprint_follows_the_weights() -> None:
    model = summary_model()
    first, kept = model.fingerprint(), model.embed_summary.weight.detach().clone()
    assert model.fingerprint() == first
    with torch.no_grad():
        model.embed_summary.weight.mul_(2.0)
    assert model.fingerprint() != first
    model.embed_summary = torch.nn.Embedding.from_pretrained(kept, freeze=False)
    assert model.fingerprint() == first


def test_generate_counts_the_prompt_towards_max_length() -> None:
    model, ids = MODELS["autocompressor"], torch.full((1, 5), 5)
    context = model.compress(ids)
    options = {**GREEDY, "max_new_tokens": None, "max_length": 9}
    assert model.generate(ids, context=context, **options).shape == (1, 9)
