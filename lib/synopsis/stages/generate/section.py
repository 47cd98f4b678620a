"""Generation: its section of the YAML."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from synopsis.artifacts import Layout
from synopsis.config.checks import chosen_runs, instructions_for, measured, too_long, unknown
from synopsis.config.types import Distinct, Name, PositiveFloat, PositiveInt, Problem, Seed, Strict
from synopsis.stages.generate.rouge import ROUGE_TYPES
from synopsis.stages.record import COUNT, PERCENT, Bounds, Stage, untrained

if TYPE_CHECKING:
    from synopsis.config.experiment import Experiment


class Sampling(Strict):
    """Tokens drawn from the model's distribution; each example has draws of its own, whatever it is batched with."""

    temperature: PositiveFloat = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Only the likeliest tokens are drawn, as few as have this share of the probability together."""
    seed: Seed = 0


class Generate(Strict):
    """Outputs for the validation splits of an instruction set, and their ROUGE."""

    instructions: Name
    splits: Annotated[list[Name], Field(min_length=1), Distinct()]
    max_new_tokens: PositiveInt | None = None
    max_tokens: PositiveInt | None = None
    """Tokens of prompt and output together, in the place of max_new_tokens."""
    context: Literal["compressed", "full"] = "compressed"
    """Whether the instruction is compressed before the rest of the prompt is read, or one pass reads the whole prompt
    (of gist tokens under the mask of their condition, of the others without compression)."""
    sampling: Sampling | None = None
    """None: greedy."""
    max_examples: PositiveInt | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    batch_size: PositiveInt = 16
    """Prompts that are continued at once, halved when memory does not suffice."""
    runs: Annotated[list[Name], Field(min_length=1), Distinct()] | None = None
    """Models and compressors; None: all."""

    def problems(self) -> Iterator[Problem]:
        if (self.max_new_tokens is None) == (self.max_tokens is None):
            found = "no limit" if self.max_tokens is None else "two limits"
            yield Problem((), found, "exactly one of 'max_new_tokens' and 'max_tokens'")

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
            if self.max_tokens is None:
                parts, key = {"new tokens": self.max_new_tokens or 0, "token of a prompt": 1}, "max_new_tokens"
            else:
                parts, key = {"tokens": self.max_tokens}, "max_tokens"
            yield from too_long(experiment, ("generate", key), base, parts)


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
    axes={"against": str},
    metrics={
        **dict.fromkeys((*ROUGE_TYPES[:-1], "exact_match"), Bounds(most=100, due=True, same_examples=True)),
        **{f"{kind}_{form}": PERCENT for kind in ROUGE_TYPES for form in ("low", "high", "published")},
        **dict.fromkeys(("rougeLsum", "equal_outputs"), PERCENT),
        "examples_of_one": COUNT,
    },
)
