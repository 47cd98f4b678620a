"""Judging: its section of the YAML."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from synopsis.config.checks import measured, unknown
from synopsis.config.types import Distinct, Name, Problem, Strict
from synopsis.stages.record import Stage

if TYPE_CHECKING:
    from synopsis.config.experiment import Experiment


class Judge(Strict):
    """Pairwise judgements of the outputs of two compressors."""

    judges: Annotated[list[Name], Field(min_length=1), Distinct()]
    """Names of files in config/judges."""
    pairs: Annotated[list[Annotated[tuple[Name, Name], Field(strict=False)]], Field(min_length=1), Distinct()]
    """Compressors: the one in question, and the one it is compared with."""

    def check(self, experiment: Experiment) -> Iterator[Problem]:
        """What does not fit the rest of the experiment."""
        if experiment.generate is None:
            yield Problem(("judge",), "judgements without outputs", "a section 'generate' beside it")
            return
        generating = measured(experiment, "generate")
        for index, (a, b) in enumerate(self.pairs):
            key = ("judge", "pairs", str(index))
            for place, name in enumerate((a, b)):
                yield from unknown((*key, str(place)), name, "a compressor whose outputs are generated", generating)
            if a == b:
                yield Problem(key, f"'{a}' against itself", "two different compressors")
            elif {a, b} <= generating.keys() and not set(experiment.seeds_of(a)) & set(experiment.seeds_of(b)):
                found = (
                    f"'{a}' with the training seeds {experiment.seeds_of(a)} and '{b}' with {experiment.seeds_of(b)}"
                )
                yield Problem(key, found, "two compressors with a training seed in common")


STAGE = Stage("judge", Judge, place=5)
