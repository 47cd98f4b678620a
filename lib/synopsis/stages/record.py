"""What the rest of the library may ask of a stage.

A stage is a folder of this package. Its module `section` holds the section of the YAML and the record, `STAGE`; it
imports neither torch nor pandas. The workflow, `score` and `report` go over `stages()`; none of them keeps a list of
stages of its own.

    stage = stages()["icl"]
    stage.jobs(experiment)                                            # the whole grid
    stage.job(experiment, run="auto-s0", dataset="sst2", seed=3)      # one job: inputs, outputs, fingerprint
    stage.report                                                      # the module with its rows, tables and figures
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from synopsis.artifacts import PROVENANCE, Layout, check_outputs, read_json
from synopsis.compressors.section import Compressor
from synopsis.config.types import Strict
from synopsis.errors import ArtifactError

if TYPE_CHECKING:
    from synopsis.config.experiment import Experiment


@dataclass(frozen=True)
class Job:
    """What one job reads and writes.

    record: the JSON document with its provenance; kind: of it. fingerprint: short hash of the part of the configuration
    that its result follows from. Snakemake keeps it as a parameter of the job, so that a changed setting makes exactly
    those jobs run again that it touches; provenance keeps it too.
    """

    wildcards: Mapping[str, Any]
    inputs: list[Path]
    outputs: list[Path]
    record: Path
    kind: str
    fingerprint: str

    def is_made(self) -> bool:
        """Whether its result is there, whole and made with this configuration."""
        try:
            provenance = read_json(self.record, self.kind)["provenance"]
            check_outputs(self.record)
        except ArtifactError:
            return False
        return provenance.get("config") == self.fingerprint


@dataclass(frozen=True)
class Jobs:
    """Jobs of one kind.

    kind: of the JSON document that a job writes. wildcards: what names its jobs. folder: its output is a folder,
    with the document in it. The functions take the experiment (`outputs` its layout, and wildcards may be patterns
    such as `{run}`) and the wildcards by name:

    outputs: the paths, the JSON document or its folder first. inputs: the paths. parts: what the fingerprint is made
    of. grid: the wildcards of each job of an experiment.
    """

    name: str
    kind: str
    wildcards: tuple[str, ...]
    outputs: Callable[..., list[Path]]
    inputs: Callable[..., list[Path]]
    parts: Callable[..., tuple[Any, ...]]
    grid: Callable[[Experiment], Iterable[dict[str, Any]]]
    folder: bool = False

    def job(self, experiment: Experiment, **wildcards: Any) -> Job:
        outputs = self.outputs(Layout(experiment), **wildcards)
        return Job(
            wildcards=wildcards,
            inputs=self.inputs(experiment, **wildcards),
            outputs=outputs,
            record=outputs[0] / PROVENANCE if self.folder else outputs[0],
            kind=self.kind,
            fingerprint=self.fingerprint(experiment, **wildcards),
        )

    def jobs(self, experiment: Experiment) -> list[Job]:
        return [self.job(experiment, **wildcards) for wildcards in self.grid(experiment)]

    def fingerprint(self, experiment: Experiment, **wildcards: Any) -> str:
        return experiment.fingerprint(*self.parts(experiment, **wildcards))

    def patterns(self, layout: Layout) -> list[str]:
        """The outputs of a rule of the workflow."""
        return [str(path) for path in self.outputs(layout, **{name: f"{{{name}}}" for name in self.wildcards})]


def of_runs(stage: str) -> Callable[[Experiment], Iterable[dict[str, Any]]]:
    """The grid of a stage with one job for each run that it measures."""
    return lambda experiment: [{"run": run} for run in experiment.runs_of(stage)]


def untrained(experiment: Experiment, run: str) -> list[Compressor]:
    """The settings of a run that is not trained, which no other fingerprint holds."""
    subject = experiment.subject(run)
    return [subject] if isinstance(subject, Compressor) and subject.trained_on is None else []


@dataclass(frozen=True)
class Bounds:
    """What the values of a metric may be; None stands for a value that does not exist.

    whole: they are counts. of_n: at most as large as the number of examples. due: they exist where there are examples.
    same_examples: a table compares them between runs, so all of a cell are over equally many.
    """

    most: float = math.inf
    least: float = 0.0
    whole: bool = False
    of_n: bool = False
    due: bool = False
    same_examples: bool = False
    lower_is_better: bool = False

    def expected(self, value: Any, n: Any) -> str | None:
        """What a value should be that it is not; None where it is right."""
        if value is None:
            return "a number" if self.due and n else None
        most = n if self.of_n and n is not None else self.most
        if is_number(value, int if self.whole else float) and self.least <= value <= most:
            return None
        limits = [f" {word} {limit}" for word, limit in (("from", self.least), ("to", most)) if math.isfinite(limit)]
        return f"a {'whole' if self.whole else 'finite'} number{''.join(limits)}"


def is_number(value: Any, kind: type) -> bool:
    """Whether a value is a finite number, and a whole one where `kind` is int."""
    return isinstance(value, Real) and math.isfinite(value) and (kind is float or float(value).is_integer())


COMMON_COLUMNS = ("run", "compressor", "method", "training_seed", "stage", "dataset", "split", "setting", "seed")
"""Columns of the scores that every stage has, beside its axes, and before `metric`, `value` and `n`."""

AMOUNT, COUNT, SHARE, PERCENT = Bounds(), Bounds(whole=True), Bounds(most=1), Bounds(most=100)


@dataclass(frozen=True)
class Stage(Jobs):
    """The record of a stage.

    section: its class in the YAML; None: it has no section. place: where it stands in the order of the report. title:
    its heading there. resumes: whether a job that was stopped resumes when it is started again. axes: its own
    columns of the scores, with the type of their values. metrics: what they may be; one that is not named may be any
    finite number.
    """

    section: type[Strict] | None = None
    place: int = 0
    title: str = ""
    resumes: bool = False
    axes: Mapping[str, type] = field(default_factory=dict)
    metrics: Mapping[str, Bounds] = field(default_factory=dict)

    @property
    def report(self) -> ModuleType:
        """Its module of rows, tables and figures; see `synopsis.reporting.items`."""
        return importlib.import_module(f"{__package__}.{self.name}.report")


@cache
def stages() -> dict[str, Stage]:
    """Name -> record, in the order of the report."""
    here = Path(__file__).parent
    folders = [
        found.name for found in pkgutil.iter_modules([str(here)]) if (here / found.name / "section.py").is_file()
    ]
    modules = [importlib.import_module(f"{__package__}.{folder}.section") for folder in folders]
    records = [module.STAGE for module in modules if hasattr(module, "STAGE")]
    return {stage.name: stage for stage in sorted(records, key=lambda stage: stage.place)}
