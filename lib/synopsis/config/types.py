"""What the sections of the configuration are made of: names, numbers in a range, lists without repetition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import core_schema

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
URL = r"^https?://"
VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"
WORDS = r"\S"
FOLDER = r"^[^\x00-\x1f\x7f-\x9f{}]+$"
"""Snakemake takes braces for wildcards."""
PATTERNS = {
    NAME: "a name of letters, digits, '_', '-' and '.' that begins with a letter or a digit",
    URL: "an address that begins with http:// or https://",
    VARIABLE: "the name of an environment variable (letters, digits and '_')",
    WORDS: "a text that is not white space alone",
    FOLDER: "the path of a folder (no line breaks, no other control characters, no braces)",
}
"""What a text must look like, in words."""

NAME_LENGTH = 100
Name = Annotated[str, Field(pattern=NAME, max_length=NAME_LENGTH)]
"""Names become file names, hence their length."""
Folder = Annotated[str, Field(min_length=1, pattern=FOLDER)]
LARGEST = 10**9
"""No number of an experiment is larger: what is above it is a slip, and its products would not fit 64 bits."""
PositiveInt = Annotated[int, Field(ge=1, le=LARGEST)]
NonNegativeInt = Annotated[int, Field(ge=0, le=LARGEST)]
PositiveFloat = Annotated[float, Field(gt=0, le=LARGEST)]
Positions = Annotated[int, Field(ge=1, le=2**24)]
"""Positions of a model; learned ones have a row each."""
Share = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""The range that numpy takes."""


@dataclass(frozen=True)
class Clash:
    """What is wrong with the keys of a section taken together.

    ``key``: path from the section to the key at fault, "" for the section; ``found``: what stood there; ``expected``:
    what is allowed; ``needs``: the keys of the section that this follows from.
    """

    key: str
    found: str
    expected: str
    needs: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.key or 'here'}: found {self.found}; expected {self.expected}"


class Contradiction(ValueError):
    """The keys of a section do not fit each other."""

    def __init__(self, *clashes: Clash):
        self.clashes = clashes
        super().__init__("; ".join(map(str, clashes)))


Key = tuple[str, ...]
"""Path of a value; places in lists are texts too: ("judge", "pairs", "0")."""


class Problem(NamedTuple):
    """What is wrong with a value that is well formed: its key, what stood there, and what is allowed."""

    key: Key
    found: str
    expected: str


class Distinct:
    """Marks a list whose entries must all differ: a repeated one would be computed twice or counted twice."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return core_schema.no_info_after_validator_function(_distinct, handler(source))

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> Any:
        return {**handler(schema), "uniqueItems": True}


def _distinct(values: list[Any]) -> list[Any]:
    first = {value: index for index, value in reversed(list(enumerate(values)))}
    repeated = [(index, value) for index, value in enumerate(values) if first[value] != index]
    if repeated:
        raise Contradiction(
            *(Clash(str(index), f"{_plain(value)} again", "each entry once") for index, value in repeated)
        )
    return values


def _plain(value: Any) -> str:
    return f"[{', '.join(map(str, value))}]" if isinstance(value, tuple) else repr(value)


class Strict(BaseModel):
    """A section of the configuration: unknown keys are faults, and values are neither converted nor changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)
