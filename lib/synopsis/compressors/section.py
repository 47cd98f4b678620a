"""What every entry of `compressors:` says, and what the library may ask of a method.

A method is a folder of this package with a module `section`. The class there is both the section of the YAML and the
record of the method: nobody outside the folder asks for a method by name. It imports neither torch nor transformers
before one of its models is asked for.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field

from synopsis.compressors.architectures import ENCODER_DECODERS
from synopsis.config.types import Distinct, Key, Name, Positions, Problem, Seed, Strict
from synopsis.errors import InputError

if TYPE_CHECKING:
    from synopsis.config.experiment import Experiment


class Subject(Strict):
    """What can be measured: a model as it is, or a compressor. The defaults are those of a reader of whole contexts."""

    if TYPE_CHECKING:  # a field of the subclasses, which declare it narrower

        @property
        def method(self) -> Any: ...

    compresses: ClassVar[bool] = False
    """False for what reads the whole context."""
    measured_by: ClassVar[frozenset[str]] = frozenset({"perplexity", "icl", "needle", "generate"})
    """Stages that can measure it."""
    architectures: ClassVar[frozenset[str] | None] = None
    """Architectures that it works on; None: every decoder."""

    @classmethod
    def serves(cls, architecture: str | None) -> bool:
        """Whether it works on an architecture; None is one that is not known before the model is loaded."""
        if architecture is None:
            return True
        return architecture not in ENCODER_DECODERS if cls.architectures is None else architecture in cls.architectures

    @classmethod
    def measured_on(cls, stage: str, architecture: str | None) -> bool:
        """Whether a stage can measure it on an architecture."""
        return stage in cls.measured_by and cls.serves(architecture)

    def own_positions(self) -> int | None:
        """Positions of a pass; None: those of the base model."""
        return None

    def vectors(self, steps: int) -> int:
        """Vectors that stand for the context after so many steps of compression."""
        return 0

    def most_vectors(self) -> int | None:
        """The most vectors that stood before a segment in training; None: there is no such limit."""
        return None

    def passes(self, chunks: Sequence[int]) -> list[dict[str, int]]:
        """What stands in each forward pass of a compression of chunks of so many tokens: what -> positions."""
        return []

    def context(self, chunks: Sequence[int]) -> dict[str, int]:
        """What stands before the text that follows such chunks: what -> positions."""
        return {"tokens of context": sum(chunks)}

    def shortest_context(self) -> int:
        """Tokens that a context has at least."""
        return 1

    def new_embeddings(self) -> int:
        """Rows that learn beside the base's embeddings."""
        return 0

    def with_length(self, length: int) -> Self:
        """The same with only so many vectors after each step."""
        return self

    def wrong_length(self, length: int) -> str | None:
        """What is expected instead of so many vectors after each step; None: it can do with them."""
        return None


class Compressor(Subject):
    """An entry of `compressors:`. A subclass names its method in a field `method`."""

    compresses = True
    measured_by = frozenset({"perplexity", "icl", "needle", "generate", "benchmark"})
    trained_on: ClassVar[Literal["corpus", "instructions"] | None] = None
    """None: the method is not trained, and its run is named as the compressor."""

    if TYPE_CHECKING:  # fields of some subclasses
        training: Any
        condition: Any
        gist_tokens: Any

    base: Name
    """The model that is loaded, or that training starts from."""

    def check(self, key: Key, name: str, experiment: Experiment) -> Iterator[Problem]:
        """What does not fit the rest of the experiment; `key`: where this section stands."""
        yield from ()

    # ------------------------------------------------------------------------------------------------ its models

    kind: ClassVar[str | None] = None
    """Name of its classes in config.json (`compressor_kind`); None: its models are of transformers' own class."""
    mixin: ClassVar[str] = ""
    """`module:class` that is put before transformers' class of an architecture."""
    explicit: ClassVar[dict[str, str]] = {}
    """Architecture -> `module:class`, where the mixin is not enough."""
    class_name: ClassVar[str] = ""
    """Name of a class; `{stem}` stands for that of transformers' class without `ForCausalLM`."""

    def settings(self) -> dict[str, Any]:
        """Fields of the configuration of its models."""
        return {}

    def new_model(self, base: Path, tokenizer: Any, device: Any = "cpu", dtype: Any = "float32", **options: Any) -> Any:
        """The base with what the method adds to it: where training starts, or what is measured without a training.

        base: its folder; tokenizer: of the base, to which a method may add tokens; options: of `from_pretrained`.
        """
        from synopsis.compressors.loading import build

        return build(self.open_base(base), device, dtype, **options)

    def open_base(self, folder: Path) -> Any:
        """The base's checkpoint with the class, settings and positions of this compressor."""
        from synopsis.compressors.loading import open_checkpoint
        from synopsis.compressors.registry import compressor_class

        checkpoint, wanted = open_checkpoint(folder), self.own_positions()
        if wanted is not None:
            has = getattr(checkpoint.config, "max_position_embeddings", None)
            if has is None or wanted < has:
                found = "none that could be extended" if has is None else f"{has} already"
                raise InputError(f"max_positions {wanted}: the base '{self.base}' has {found}")
            checkpoint = open_checkpoint(folder, max_position_embeddings=wanted)
        if self.kind is not None:
            checkpoint.cls = compressor_class(self.kind, checkpoint.config.model_type)
        for name, value in self.settings().items():
            setattr(checkpoint.config, name, value)
        return checkpoint

    def longest_segment(self, model: Any) -> int:
        """Tokens of a segment that fit the positions in training; 0 for a method without segments."""
        return 0


class TrainedCompressor(Compressor):
    """A compressor with a training and its seeds."""

    training_seeds: Annotated[list[Seed], Field(min_length=1), Distinct()] | None = None
    """Seeds of this compressor; None: the experiment's."""
    max_positions: Positions | None = None
    """Positions to train with, more than the base has: learned tables are extended by repeating them."""

    def own_positions(self) -> int | None:
        return self.max_positions


def steps(length: int, step: int) -> list[int]:
    """Whole steps that end at the end of a context; the first one is shorter where `length` is no multiple.

    >>> steps(25, 10)
    [5, 10, 10]
    """
    whole, rest = divmod(length, step)
    return ([rest] if rest else []) + [step] * whole


@cache
def sections() -> dict[str, type[Compressor]]:
    """Method -> its section, in the order of the folders' names."""
    found: dict[str, type[Compressor]] = {}
    for folder in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if folder.ispkg and (Path(__file__).parent / folder.name / "section.py").is_file():
            module = importlib.import_module(f"{__package__}.{folder.name}.section")
            for value in vars(module).values():
                if isinstance(value, type) and issubclass(value, Compressor) and "method" in value.model_fields:
                    found |= dict.fromkeys(_names(value), value)
    return found


@cache
def kinds() -> dict[str, type[Compressor]]:
    """Kind of models -> the section that describes its classes."""
    return {section.kind: section for section in sections().values() if section.kind is not None}


def _names(section: Any) -> tuple[str, ...]:
    return section.model_fields["method"].annotation.__args__
