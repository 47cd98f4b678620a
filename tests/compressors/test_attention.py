"""The one attention interface: the same answer from every implementation, windows by position, clear refusals."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from compressor_models import OWN_FIELDS, WINDOW, configuration, padded, tokens
from laws import LAWS, Gist
from synopsis.compressors.architectures import DECODERS as ARCHITECTURES
from synopsis.compressors.attention import IMPLEMENTATIONS, attention_masks, causal, check_attention, sliding_window
from synopsis.errors import InputError
from torch.nn.attention.flex_attention import BlockMask
from transformers import AutoConfig

BACK_ENDS = ("eager", "sdpa", "flex_attention")


def config_of(architecture: str, implementation: str = "sdpa", **fields: Any) -> Any:
    config = AutoConfig.for_model(architecture, num_hidden_layers=2, **{**OWN_FIELDS.get(architecture, {}), **fields})
    config._attn_implementation = implementation
    return config


def masks_of(config: Any, allowed: torch.Tensor, positions: torch.Tensor | None = None) -> Any:
    keys = torch.arange(allowed.shape[3])[None] if positions is None else positions
    return attention_masks(config, allowed, keys[:, -allowed.shape[2] :], keys, torch.float32)


def test_each_implementation_gets_its_own_form() -> None:
    allowed = causal(torch.tensor([[0, 1, 1]]))
    added = masks_of(config_of("llama", "eager"), allowed)
    assert torch.equal(added == 0, allowed) and bool((added[~allowed] == torch.finfo(torch.float32).min).all())
    assert torch.equal(masks_of(config_of("llama", "sdpa"), allowed), allowed)
    block = masks_of(config_of("llama", "flex_attention"), allowed)
    assert isinstance(block, BlockMask) and block.shape == (1, 1, 3, 3)
    shown = [[bool(block.mask_mod(*map(torch.tensor, (0, 0, q, k)))) for k in range(3)] for q in range(3)]
    assert shown == allowed[0, 0].tolist()
    with pytest.raises(ValueError, match="flash_attention_2 cannot apply a gist mask; use sdpa or flex_attention"):
        masks_of(config_of("llama", "flash_attention_2"), allowed)
    with pytest.raises(ValueError, match="'paged'; expected one of eager, sdpa"):
        masks_of(config_of("llama", "paged"), allowed)


def test_a_query_that_would_see_nothing_sees_itself() -> None:
    allowed = torch.zeros(1, 1, 2, 3, dtype=torch.bool)
    assert masks_of(config_of("llama"), allowed)[0, 0].int().tolist() == [[0, 1, 0], [0, 0, 1]]
    # A window that ends before the only key that the condition leaves: in the layers that slide alone.
    allowed[..., 0] = True
    far = torch.tensor([[0, 7, 8]])
    found = masks_of(config_of("gemma2"), allowed, far)
    assert found["full_attention"][0, 0].int().tolist() == [[1, 0, 0], [1, 0, 0]]
    assert found["sliding_attention"][0, 0].int().tolist() == [[0, 1, 0], [0, 0, 1]]


def test_windows_that_are_switched_off_make_one_mask() -> None:
    allowed = causal(torch.ones(1, 9))
    for config in (
        config_of("mistral", sliding_window=None),
        config_of("qwen2", use_sliding_window=False),
        config_of("smollm3", use_sliding_window=False),
        config_of("opt"),
    ):
        assert sliding_window(config) is None
        assert torch.equal(masks_of(config, allowed), allowed)


def test_unknown_layers_are_refused() -> None:
    config = config_of("gemma2")
    config.layer_types = ["sliding_attention", "chunked_attention"]
    with pytest.raises(ValueError, match="layers of the types chunked_attention"):
        masks_of(config, causal(torch.ones(1, 3)))


def test_implementations_that_cannot_run_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for implementation in (None, *BACK_ENDS):
        check_attention(implementation)
    with pytest.raises(InputError, match="'sdp'; expected one of " + ", ".join(IMPLEMENTATIONS)):
        check_attention("sdp")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(InputError, match="flash_attention_2 needs a GPU"):
        check_attention("flash_attention_2")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("transformers.utils.is_flash_attn_2_available", lambda: False)
    with pytest.raises(InputError, match=r"needs the package flash-attn .* not installed"):
        check_attention("flash_attention_2")
    monkeypatch.setattr("transformers.utils.is_flash_attn_2_available", lambda: True)
    check_attention("flash_attention_2")


def test_every_architecture_of_the_registry_shows_its_windows_here() -> None:
    """The small models of the tests are of use for windows only if they have some."""
    sliding = {name for name in ARCHITECTURES if sliding_window(config_of(name)) == WINDOW}
    assert sliding >= {"mistral", "phi3", "qwen2", "qwen3", "gemma2", "smollm3"}
    assert {name for name in ARCHITECTURES if sliding_window(config_of(name)) is None} == {"llama", "opt"}
    assert configuration().num_hidden_layers == 2


# ----------------------------------------------------------------------------------------- the implementations agree


AGREEING = [("gist", name) for name in ARCHITECTURES]
AGREEING += [(name, kind) for name in ("gist t5", "neg_control t5") for kind in LAWS[name].architectures]
NOT_THERE = {("gemma2", "sdpa"), ("tied", "flex_attention"), ("untied", "flex_attention")}
"""transformers has no soft cap for the first, and no flex attention of T5."""


@pytest.mark.parametrize(("name", "architecture"), AGREEING)
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_implementations_agree(name: str, architecture: str) -> None:
    """One pass under the mask, and what continues from a compressed context; flex attention uncompiled."""
    law, generator = LAWS[name], torch.Generator().manual_seed(3)
    assert isinstance(law, Gist)
    model = copy.deepcopy(law.model(architecture))
    prompts, rests = [law.prompt(generator, size) for size in (9, 6)], [tokens(generator, size) for size in (3, 6)]
    rows = [prompt + rest for prompt, rest in zip(prompts, rests, strict=True)]
    outputs = {}
    for implementation in BACK_ENDS:
        if (architecture, implementation) in NOT_THERE:
            continue
        model.set_attn_implementation(implementation)
        assert getattr(model, "encoder", model).config._attn_implementation == implementation
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            whole = [found for found, _ in law.whole(model, rows, "left")]
            context = model.compress(*padded(prompts, "left"))
            after = law.after(model, context, rests, "left")
            new = law.written(model, context, rests, max_new_tokens=3, eos_token_id=None, pad_token_id=0)
        outputs[implementation] = ([*whole, *after], new)
    expected, written = outputs.pop("eager")
    assert outputs
    for found, new in outputs.values():
        assert new == written
        for logits, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(logits, wanted, atol=1e-5 * float(wanted.abs().max()), rtol=0.0)
