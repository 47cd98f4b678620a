"""Text to ids as the tokenizers of transformers 4.28.1 did it, for who repeats or continues a run of that time.

Today's classes read the same files and give other ids around a gist token, so the rules of then are written down here
on top of today's vocabulary and normalisation:

    FastPublishedText(tokenizer, gist_token).encode("Instruction: Say hi.\n<GIST>")
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerBase

from synopsis.data.prompts import GIST_TOKEN
from synopsis.data.sequences import encode
from synopsis.errors import InputError

SPACE = "▁"
# What transformers did to decoded text, in this order, when clean_up_tokenization_spaces was its default.
CLEAN_UP = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")


class PublishedText(Protocol):
    """Text to ids, without a first or last special token, and back."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class SlowPublishedText:
    """The SentencePiece tokenizers of transformers 4.28.1 (LlamaTokenizer, T5Tokenizer), out of today's vocabulary.

    White space on both sides of the gist token is lost, and each text between gist tokens begins with a space of its
    own. The names of other special tokens in a text are plain text. Tokenizers without SentencePiece's space
    (byte-level ones) tokenise the texts between the gist tokens by themselves.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, gist_token: int):
        self.tokenizer, self.gist_token = tokenizer, gist_token
        self.specials = {name for name in tokenizer.all_special_tokens if name != GIST_TOKEN}
        state = json.loads(_backend(tokenizer).to_str())
        self.unigram = state["model"]["type"] == "Unigram"
        self.backend = Tokenizer.from_str(json.dumps(self._without_specials(state)))
        self.sentence_piece = self.unigram or self.backend.token_to_id(SPACE) is not None

    def _without_specials(self, state: dict[str, Any]) -> dict[str, Any]:
        """The model alone, changed so that no text becomes a special token."""
        model = state["model"]
        if self.unigram:
            # A character that normalisation removes: the id is kept and no text reaches it.
            model["vocab"] = [[f"\0{piece}" if piece in self.specials else piece, s] for piece, s in model["vocab"]]
        elif "merges" in model:
            model["merges"] = [merge for merge in model["merges"] if "".join(merge) not in self.specials]
        return {**state, "added_tokens": [], "pre_tokenizer": None, "post_processor": None}

    def encode(self, text: str) -> list[int]:
        chunks = text.split(GIST_TOKEN)
        ids: list[int] = []
        for index, chunk in enumerate(chunks):
            chunk = chunk.lstrip() if index else chunk
            chunk = chunk.rstrip() if index < len(chunks) - 1 else chunk
            ids += ([self.gist_token] if index else []) + (self._pieces(chunk) if chunk else [])
        return ids

    def _pieces(self, text: str) -> list[int]:
        if not self.sentence_piece:
            return encode(self.tokenizer, text)
        if self.backend.normalizer is not None:
            text = self.backend.normalizer.normalize_str(text)
        if self.unigram:  # T5's SentencePiece drops surplus spaces, Llama's keeps them
            text = " ".join(text.split())
        return [token.id for token in self.backend.model.tokenize(SPACE + text.replace(" ", SPACE))] if text else []

    def decode(self, ids: Sequence[int]) -> str:
        """As T5Tokenizer did: a space before each special token that ends a run of text, and around each gist token."""
        texts: list[str] = []
        run: list[str] = []
        for token in [*ids, self.gist_token]:
            if token != self.gist_token:
                run.append(str(self.tokenizer.convert_ids_to_tokens(token)))
                continue
            texts += ([self._text(run)] if run else []) + [GIST_TOKEN]
            run = []
        return _cleaned_up(" ".join(texts[:-1]))

    def _text(self, tokens: Sequence[str]) -> str:
        text, pieces, after_special = "", "", False
        for token in tokens:
            if token in self.specials:
                text += ("" if after_special else " ") + pieces.replace(SPACE, " ").lstrip(" ") + token
                pieces, after_special = "", True
            else:
                pieces, after_special = pieces + token, False
        return (text + pieces.replace(SPACE, " ").lstrip(" ")).strip()


class FastPublishedText:
    """T5TokenizerFast of transformers 4.28.1: white space before a gist token is a token of its own.

    Today's T5Tokenizer drops that space. Which special tokens are recognised in a text is read from the tokenizer.json
    beside the tokenizer, if there is one; today's tokenizers recognise all.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, gist_token: int):
        self.gist_token = gist_token
        file = Path(tokenizer.name_or_path) / "tokenizer.json"
        written = file.read_text(encoding="utf-8") if file.is_file() else _backend(tokenizer).to_str()
        self.backend = Tokenizer.from_str(written)
        self.backend.add_special_tokens([AddedToken(GIST_TOKEN, normalized=False, special=True)])
        found = self.backend.token_to_id(GIST_TOKEN)
        if found != gist_token:
            raise InputError(f"{file}: {GIST_TOKEN} has the id {found} there, and {gist_token} in the tokenizer")
        known = [self.backend.normalizer] if self.backend.normalizer is not None else []
        surplus = normalizers.Replace(Regex(" {2,}"), " ")
        self.backend.normalizer = normalizers.Sequence([*known, surplus])
        self.backend.pre_tokenizer = pre_tokenizers.Metaspace()
        self.backend.decoder = decoders.Metaspace()

    def encode(self, text: str) -> list[int]:
        return self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        return _cleaned_up(self.backend.decode(list(ids), skip_special_tokens=False))


def _backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InputError(f"{type(tokenizer).__name__} is not based on the library tokenizers, which this needs")
    return backend


def _cleaned_up(text: str) -> str:
    for spaced in CLEAN_UP:
        text = text.replace(spaced, spaced.strip())
    return text
