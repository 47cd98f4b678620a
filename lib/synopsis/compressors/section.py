"""What every entry of `compressors:` says, and what the library may ask of a method.

A method is a folder of this package with a module `section`. The class there is both the section of the YAML and the
record of the method: nobody outside the folder asks for a method by name. It imports neither torch nor transformers.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from synopsis.config.types import Distinct, Name, Positions, Seed, Strict


class Compressor(Strict):
    """An entry of `compressors:`. A subclass names its method in a field `method`."""

    if TYPE_CHECKING:  # fields of the subclasses, which declare them narrower
        method: Any
        training: Any

    base: Name
    """The model that training starts from."""
    training_seeds: Annotated[list[Seed], Field(min_length=1), Distinct()] | None = None
    """Seeds of this compressor; None: the experiment's."""
    max_positions: Positions | None = None
    """Positions to train with, more than the base has: learned tables are extended by repeating them."""

    # ------------------------------------------------------------------------------------------------- the record

    trained_on: ClassVar[Literal["corpus", "instructions"] | None] = None
    """None: the method is not trained, and its run is named as the compressor."""
    compresses: ClassVar[bool] = True
    """False for a control that reads the whole context."""
    measured_by: ClassVar[frozenset[str]] = frozenset({"perplexity", "icl", "needle", "benchmark"})
    """Stages that can measure it."""


@cache
def sections() -> dict[str, type[Compressor]]:
    """Method -> its section, in the order of the folders' names."""
    found: dict[str, type[Compressor]] = {}
    for folder in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if folder.ispkg and (Path(__file__).parent / folder.name / "section.py").is_file():
            module = importlib.import_module(f"{__package__}.{folder.name}.section")
            for value in vars(module).values():
                if isinstance(value, type) and issubclass(value, Compressor) and value is not Compressor:
                    found |= dict.fromkeys(_names(value), value)
    return found


def _names(section: Any) -> tuple[str, ...]:
    return section.model_fields["method"].annotation.__args__
