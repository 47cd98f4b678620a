"""Folders of small models with a tokenizer of the demo's language, as `load` and `load_tokenizer` read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from synopsis.compressors import GistMixin
from synopsis.data.prompts import GIST_TOKEN
from synopsis.data.world import World
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Sequence, Split
from transformers import PreTrainedTokenizerFast

WORDS = ["<pad>", "<unk>", "</s>", *World().vocabulary]
FIELDS: dict[str, Any] = {"vocab_size": len(WORDS) + 1, "bos_token_id": None}
"""What the configuration of a model for this tokenizer needs."""
GIST_FIELDS: dict[str, Any] = {**FIELDS, "gist_token_id": len(WORDS)}


def world_tokenizer(gist: bool = True) -> PreTrainedTokenizerFast:
    """A word, a line break or an empty line each; the gist token comes last, if it is there."""
    inner = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = Sequence([Split(Regex(" +"), "removed"), Split(Regex(r"\n\n|\n"), "isolated")])  # type: ignore[assignment]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", eos_token="</s>", pad_token="<pad>", padding_side="left"
    )
    if gist:
        tokenizer.add_special_tokens({"additional_special_tokens": [GIST_TOKEN]})
    return tokenizer


def ids_of(text: str) -> list[int]:
    """Counted by hand: words between spaces, where line breaks are written as words of their own."""
    return [WORDS.index({"|": "\n", "||": "\n\n"}.get(word, word)) for word in text.split(" ")]


def write_folder(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    world_tokenizer(gist=isinstance(model, GistMixin)).save_pretrained(folder)
    return folder
