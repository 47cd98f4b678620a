"""What the sections of the configuration are made of: names, numbers in a range, lists without repetition."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
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
Text = Annotated[str, Field(pattern=WORDS)]
Folder = Annotated[str, Field(pattern=FOLDER)]
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

Key = tuple[str, ...]
"""Path of a value; places in lists are texts too: ("judge", "pairs", "0")."""


class Problem(NamedTuple):
    """What is wrong with a value that is well formed: its key, what stood there, and what is allowed."""

    key: Key
    found: str
    expected: str


class Problems(ValueError):
    """Every problem of one section."""

    def __init__(self, problems: list[Problem]):
        self.problems = problems
        super().__init__(
            "; ".join(f"{'.'.join(key)}: found {found}; expected {wanted}" for key, found, wanted in problems)
        )


class Distinct:
    """Marks a list whose entries must all differ: a repeated one would be computed twice or counted twice."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return core_schema.no_info_after_validator_function(_distinct, handler(source))

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> Any:
        return {**handler(schema), "uniqueItems": True}


def _distinct(values: list[Any]) -> list[Any]:
    again = [(str(index), value) for index, value in enumerate(values) if value in values[:index]]
    if again:
        raise Problems([Problem((index,), f"{_plain(value)} again", "each entry once") for index, value in again])
    return values


def _plain(value: Any) -> str:
    return f"[{', '.join(map(str, value))}]" if isinstance(value, tuple) else repr(value)


class Strict(BaseModel):
    """A section of the configuration: unknown keys are faults, and values are neither converted nor changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if problems := list(self.problems()):
            raise Problems(problems)
        return self

    def problems(self) -> Iterator[Problem]:
        """What is wrong with the keys of this section taken together; the keys begin below the section."""
        yield from ()
