"""The prompt of instruction data (Mu et al. 2023, appendix): text before and after the gist tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from synopsis.compressors.published.names import GIST_TOKEN
from synopsis.errors import DataError

COLUMNS = ("instruction", "input", "output")


def texts_of(row: Mapping[str, Any], where: str) -> dict[str, str]:
    """The three texts of a row; an input of None is an empty one. DataError names the column of what is no text."""
    texts: dict[str, Any] = {column: row.get(column) for column in COLUMNS}
    if texts["input"] is None and "input" in row:
        texts["input"] = ""
    for column, text in texts.items():
        if not isinstance(text, str):
            found = f"is {text!r}" if column in row else f"is missing (found {', '.join(row)})"
            raise DataError(f"{where}: column '{column}' {found}; expected text")
    return texts


def instruction_part(instruction: str) -> str:
    """The part that is compressed."""
    return f"Instruction: {instruction}\n"


def input_part(text: str) -> str:
    """The part that stays; without an input only the cue for the output."""
    return f"\nInput: {text}\nOutput:" if text else "\nOutput:"


def source_prompt(instruction: str, text: str, gist_tokens: int) -> str:
    """The whole source as text, as an encoder-decoder's published format has it; the decoder needs no cue."""
    return instruction_part(instruction) + GIST_TOKEN * gist_tokens + (f"\nInput: {text}" if text else "")


def gist_prompt(instruction: str, text: str, gist_tokens: int) -> str:
    """The whole prompt as text, gist tokens written as a decoder's published format has them."""
    return instruction_part(instruction) + " ".join([GIST_TOKEN] * gist_tokens) + input_part(text)
