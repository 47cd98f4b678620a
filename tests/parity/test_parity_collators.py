"""Batches of the published collators: every id, label and mask, and the tokenizers of 2023 behind them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from published import Case, Golden
from synopsis.data.gist_collators import GistCollator, GistSeq2SeqCollator
from synopsis.data.prompts import GIST_TOKEN
from synopsis.data.published_tokenization import FastPublishedText, PublishedText, SlowPublishedText
from transformers import AutoTokenizer, PreTrainedTokenizerBase


@cache
def tokenizer_in(folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(folder)


def is_fast(folder: Path) -> bool:
    return (folder / "tokenizer.json").is_file()


def collator_of(case: Case) -> GistCollator | GistSeq2SeqCollator:
    folder = case.golden.folder / case.fixture / f"tokenizer_{case.record['tokenizer']}"
    tokenizer, given = tokenizer_in(folder), dict(case.record["args"])
    assert given.pop("padding", "longest") == "longest"
    common: dict[str, Any] = {"tokenization": "published", "masks": True, **given}
    if "DataCollatorForAlpacaCLM" in case.record["call"]:
        return GistCollator(tokenizer, **common)
    start = int(case["decoder_input_ids"][0, 0]) if "decoder_input_ids" in case else None
    return GistSeq2SeqCollator(tokenizer, **common, decoder_start_token_id=start, slow_tokenizer=not is_fast(folder))


def naive_mask(ids: torch.Tensor, gist: int, condition: str) -> torch.Tensor:
    """The published rule, position by position."""
    rows, length = ids.shape
    mask = torch.ones(rows, 1, length, length, dtype=torch.long)
    for row in range(rows):
        gists = [place for place in range(length) if int(ids[row, place]) == gist]
        if not gists or condition == "pos_control":
            continue
        start = gists[0] if condition == "gist" else gists[-1] + 1
        for query in range(length):
            for key in range(length):
                mask[row, 0, query, key] = key <= gists[-1] if query <= gists[-1] else key >= start
    return mask


@pytest.mark.golden("gist_collators*")
def test_batches(case: Case) -> None:
    rows = case.golden.document(f"{case.fixture}/examples.json")[case.record["examples"]]
    collator = collator_of(case)
    batch = collator(rows)
    assert {name: str(tensor.dtype) for name, tensor in batch.items()} == case.record["dtypes"]
    assert {name: list(batch[name].shape) for name in case.record["outputs"]} == case.record["outputs"]
    compared = 0
    for name, found in batch.items():
        if name in case:
            assert torch.equal(found, case[name].to(found.dtype)), name
            compared += 1
        else:  # left out of the record for its size
            ids = batch[name.replace("attention_mask_gist", "input_ids")]
            condition = case.record["args"]["gist_condition"]
            assert torch.equal(found, naive_mask(ids, collator.gist_token, condition)), name
            assert not case.record["masks_4d_all_ones"] or bool(found.all()), name
    assert compared >= 4
    assert collator.dropped == len(rows) - len(batch["input_ids"])


@pytest.mark.golden("gist_collators*")
def test_plain_masks_of_published_batches(case: Case) -> None:
    """Without masks=True the ids are the same, and each mask is 1 at tokens and 0 at padding."""
    rows = case.golden.document(f"{case.fixture}/examples.json")[case.record["examples"]]
    collator = collator_of(case)
    collator.masks = False
    batch = collator(rows)
    assert not any("gist" in name or "cross" in name for name in batch)
    for name in (name for name in batch if name.endswith("input_ids") and not name.startswith("decoder")):
        assert torch.equal(batch[name], case[name])
        mask = batch[name.replace("input_ids", "attention_mask")]
        left = isinstance(collator, GistCollator)
        # Padding stands on one side, in rows of unequal length; what is padded holds the padding id.
        assert torch.equal(mask, mask.sort(dim=-1, descending=not left).values) and bool((mask.sum(-1) > 0).all())
        assert bool((batch[name][mask == 0] == collator.pad).all())
        published = case[name.replace("input_ids", "attention_mask")]
        if left:
            assert torch.equal(mask == 1, published == 1)


# --------------------------------------------------------------------------------------------------------- tokenizers


def published_texts(golden: Golden) -> list[Any]:
    found = []
    for fixture in golden.folders("gist_collators*"):
        document = golden.document(f"{fixture}/tokenization.json")
        for name in document["info"]:
            folder = golden.folder / fixture / f"tokenizer_{name}"
            found += [(folder, name, record["text"], record[name]) for record in document["strings"]]
    return found


def text_of(folder: Path) -> tuple[PublishedText, PreTrainedTokenizerBase]:
    tokenizer = tokenizer_in(folder)
    rules = FastPublishedText if is_fast(folder) else SlowPublishedText
    return rules(tokenizer, tokenizer.convert_tokens_to_ids(GIST_TOKEN)), tokenizer


@pytest.mark.golden("gist_collators*")
def test_tokenization(golden: Golden) -> None:
    """Every recorded string to its ids, and for T5, whose collator decodes, every recorded id back to its string."""
    for folder, name, string, expected in published_texts(golden):
        text, tokenizer = text_of(folder)
        start = [tokenizer.bos_token_id] if tokenizer.bos_token_id in expected["ids"] else []
        end = [tokenizer.eos_token_id] if expected["ids"][-1] == tokenizer.eos_token_id else []
        assert [*start, *text.encode(string), *end] == expected["ids"], (name, string)
        assert tokenizer.convert_ids_to_tokens(expected["ids"]) == expected["tokens"]
        if name.startswith("t5"):
            assert text.decode(expected["ids"]) == expected["decode"], (name, string)
