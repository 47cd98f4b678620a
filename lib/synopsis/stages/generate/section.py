"""Generation: its section of the YAML."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from synopsis.artifacts import Layout
from synopsis.config.checks import chosen_runs, instructions_for, measured, too_long, unknown
from synopsis.config.types import Distinct, Name, PositiveInt, Problem, Strict
from synopsis.stages.record import PERCENT, Bounds, Stage, untrained

if TYPE_CHECKING:
    from synopsis.config.experiment import Experiment


class Generate(Strict):
    """Greedy outputs for the validation splits of an instruction set, and their ROUGE."""

    instructions: Name
    splits: Annotated[list[Name], Field(min_length=1), Distinct()]
    max_new_tokens: PositiveInt = 128
    max_examples: PositiveInt | None = None
    batch_size: PositiveInt = 16
    runs: Annotated[list[Name], Field(min_length=1), Distinct()] | None = None
    """Gist compressors; None: all."""

    def check(self, experiment: Experiment) -> Iterator[Problem]:
        """What does not fit the rest of the experiment."""
        yield from chosen_runs(experiment, "generate")
        known = experiment.instructions
        yield from unknown(("generate", "instructions"), self.instructions, "an instruction set", known)
        if self.instructions in known:
            for index, split in enumerate(self.splits):
                what, splits = f"a validation split of '{self.instructions}'", known[self.instructions].split_names
                yield from unknown(("generate", "splits", str(index)), split, what, splits)
        for base in dict.fromkeys(experiment.base_named(name) for name in measured(experiment, "generate")):
            yield from instructions_for(experiment, ("generate", "instructions"), self.instructions, base)
            parts = {"new tokens": self.max_new_tokens, "token of a prompt": 1}
            yield from too_long(experiment, ("generate", "max_new_tokens"), base, parts)


def _outputs(layout: Layout, run: str, split: str) -> list[Path]:
    outputs = layout.generations(run, split)
    return [outputs.with_suffix(".json"), outputs]


def _inputs(experiment: Experiment, run: str, split: str) -> list[Path]:
    return [Layout(experiment).weights(run), Layout(experiment).instructions(experiment.generate.instructions)]


def _parts(experiment: Experiment, run: str, split: str) -> tuple[Any, ...]:
    section = experiment.generate.model_dump(exclude={"runs", "splits", "batch_size"})
    return "generate", section, run, split, *untrained(experiment, run)


def _grid(experiment: Experiment) -> list[dict[str, Any]]:
    runs = experiment.runs_of("generate")
    return [{"run": run, "split": split} for run in runs for split in experiment.generate.splits]


STAGE = Stage(
    name="generate",
    kind="rouge",
    wildcards=("run", "split"),
    outputs=_outputs,
    inputs=_inputs,
    parts=_parts,
    grid=_grid,
    section=Generate,
    place=4,
    title="Instructions",
    metrics={
        **dict.fromkeys(("rouge1", "rouge2", "rougeL", "exact_match"), Bounds(most=100, due=True, same_examples=True)),
        **dict.fromkeys(("rougeLsum", "rougeL_low", "rougeL_high"), PERCENT),
    },
)
