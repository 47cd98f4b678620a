"""In-context learning: its section of the YAML."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from synopsis.artifacts import Layout
from synopsis.config.checks import chosen_runs, measured, not_its_language, too_long
from synopsis.config.types import Distinct, Name, NonNegativeInt, PositiveInt, Problem, Strict
from synopsis.stages.record import AMOUNT, COUNT, Bounds, Stage, untrained

if TYPE_CHECKING:
    from synopsis.config.experiment import Experiment


class Setting(Strict):
    """A row of the ICL table: how many tokens of demonstrations, compressed and plain."""

    compressed_tokens: list[PositiveInt] = Field(default_factory=list)
    """Budget of each compression step, in order."""
    plain_tokens: NonNegativeInt = 0

    @property
    def largest_budget(self) -> int:
        return max([*self.compressed_tokens, self.plain_tokens])


class InContextLearning(Strict):
    """Classification with demonstrations in the prompt."""

    datasets: Annotated[list[Name], Field(min_length=1), Distinct()]
    """Names of files in config/tasks."""
    settings: dict[Name, Setting] = Field(min_length=1)
    demonstrations: Literal["published", "fitting"] = "published"
    """How many a budget holds: `published`: budget // the task's tokens_per_demonstration, where it states them;
    `fitting`: as many as really fit."""
    repeat_demonstrations: bool = False
    """Show rows again where a balanced draw has fewer than are asked for, as published; False: that cell fails."""
    max_examples: PositiveInt | None = None
    """Test examples of each data set, drawn with a fixed seed; None: all."""
    batch_tokens: PositiveInt | None = None
    """Tokens read in one pass, halved when memory does not suffice; None: 512 on CPUs, 4096 on GPUs."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    runs: Annotated[list[Name], Field(min_length=1), Distinct()] | None = None
    """Models and compressors; None: all that read plain text."""

    def check(self, experiment: Experiment) -> Iterator[Problem]:
        """What does not fit the rest of the experiment."""
        yield from chosen_runs(experiment, "icl")
        for name, subject in measured(experiment, "icl").items():
            most, base = subject.most_vectors(), experiment.base_named(name)
            for setting, row in self.settings.items():
                if row.compressed_tokens and not subject.compresses:
                    continue  # this run leaves the setting out
                key, chunks = ("icl", "settings", setting), row.compressed_tokens
                count = subject.vectors(len(chunks))
                if most is not None and count > most:
                    found = f"{count} vectors for '{name}' ({len(chunks)} steps)"
                    wanted = f"at most {most}, as many as stand before a segment in its training"
                    yield Problem((*key, "compressed_tokens"), found, wanted)
                yield from too_long(experiment, (*key, "compressed_tokens"), name, *subject.passes(chunks))
                last = {**subject.context(chunks), "plain tokens": row.plain_tokens, "token of an example": 1}
                yield from too_long(experiment, (*key, "plain_tokens"), name, last)
            for index, dataset in enumerate(self.datasets):
                model = experiment.models.get(base)
                if model is not None and model.architecture is not None:
                    world = experiment.tasks[dataset].source.world is not None
                    yield from not_its_language(experiment, ("icl", "datasets", str(index)), base, world, "a task")


def settings_of(
    experiment: Experiment, run: str, dataset: str | None = None, seed: int | None = None
) -> dict[str, Setting]:
    """The settings that a run can do: those with compressed tokens need summary vectors.

    With a data set and a seed, those that their job computes: what shows no demonstration follows from no draw, and is
    computed once, with the first evaluation seed.
    """
    section, compresses = experiment.icl, experiment.subject(run).compresses
    settings = {name: s for name, s in section.settings.items() if compresses or not s.compressed_tokens}
    if dataset is None or seed in (None, experiment.evaluation_seeds[0]):
        return settings
    task = experiment.tasks.get(dataset)
    mean = task.tokens_per_demonstration if task and section.demonstrations == "published" else None
    return {name: setting for name, setting in settings.items() if setting.largest_budget >= (mean or 1)}


def _outputs(layout: Layout, run: str, dataset: str, seed: int | str) -> list[Path]:
    result = layout.icl(run, dataset, seed)
    return [result, layout.examples(result)]


def _inputs(experiment: Experiment, run: str, dataset: str, seed: int | str) -> list[Path]:
    layout = Layout(experiment)
    return [layout.weights(run), layout.tokenizer(experiment.base_of(run)), layout.task(dataset)]


def _parts(experiment: Experiment, run: str, dataset: str, seed: int | str) -> tuple[Any, ...]:
    settings = settings_of(experiment, run, dataset, int(seed))
    plain = {name: setting.model_dump() for name, setting in settings.items()}
    section = experiment.icl.model_dump(exclude={"datasets", "settings", "batch_tokens", "runs"})
    return "icl", experiment.tasks[dataset], plain, section, int(seed), *untrained(experiment, run)


def _grid(experiment: Experiment) -> Iterator[dict[str, Any]]:
    for run in experiment.runs_of("icl"):
        for dataset in experiment.icl.datasets:
            yield from ({"run": run, "dataset": dataset, "seed": seed} for seed in experiment.evaluation_seeds)


STAGE = Stage(
    name="icl",
    kind="icl",
    wildcards=("run", "dataset", "seed"),
    outputs=_outputs,
    inputs=_inputs,
    parts=_parts,
    grid=_grid,
    section=InContextLearning,
    place=2,
    title="In-context learning",
    metrics={
        "accuracy": Bounds(most=1, due=True, same_examples=True),
        "failed": Bounds(most=1, whole=True),
        **dict.fromkeys(("excluded", "dropped", "asked", "demonstrations", "unfilled", "over_budget"), COUNT),
        **dict.fromkeys(("summary_vectors", "tokens", "naive_tokens"), COUNT),
        **dict.fromkeys(("seconds", "examples_per_second"), AMOUNT),
    },
)
