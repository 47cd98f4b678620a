"""Tables, figures and pages: how a stage's `report.py` declares them, and which files they become.

    @table("icl", "accuracy")
    def icl_table(experiment, scores):
        \"\"\"The caption, and the note below the table.\"\"\"
        return Table(...)

Besides, a `report.py` has `rows(experiment)`, which yields its rows of the scores, and `headline(experiment, scores)`,
its numbers under paths that say what they are. For the front page it may have `findings(experiment, scores)`, sentences
made from its numbers, and `pages(experiment)`, further pages that follow from the configuration: items whose function
makes the text of an HTML file.

The Snakefile reads the declarations at every start, so neither this module nor a `report.py` imports anything heavy
before a function is called.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synopsis.artifacts import Layout, write_text
from synopsis.errors import InputError
from synopsis.stages.record import Stage, stages

if TYPE_CHECKING:
    import pandas as pd

    from synopsis.config.experiment import Experiment
    from synopsis.config.files import TableDefinition

FORMATS = {"table": ("csv", "md", "tex", "html"), "figure": ("svg", "pdf", "png"), "page": ("html",)}
SHOWN = {"table": ".html", "figure": ".svg", "page": ".html"}
"""What stands in the HTML report; a CSV file would be offered there as a download only."""


@dataclass(frozen=True)
class Item:
    """A table, a figure or a page. label: what distinguishes it in its category; when: whether an experiment has it."""

    kind: str
    name: str
    label: str
    build: Callable[..., Any]
    when: Callable[[Experiment], bool]

    @property
    def caption(self) -> str:
        return " ".join((inspect.getdoc(self.build) or "").split())

    def make(self, experiment: Experiment, scores: pd.DataFrame) -> Any:
        """The table, with its caption as the note below it, the figure or the text of the page."""
        made = self.build(experiment, scores)
        if self.kind == "table":
            made.note = made.note or self.caption
        return made

    def files(self, experiment: Experiment) -> list[Path]:
        layout = Layout(experiment)
        folder: Path = getattr(layout, f"{self.kind}s")
        return [folder / f"{self.name}.{suffix}" for suffix in FORMATS[self.kind]]


def _declared(kind: str, name: str, label: str, when: Callable[[Experiment], bool]) -> Callable[..., Item]:
    return lambda build: Item(kind, name, label, build, when)


def table(name: str, label: str, when: Callable[[Experiment], bool] = lambda experiment: True) -> Callable[..., Item]:
    return _declared("table", name, label, when)


def figure(name: str, label: str, when: Callable[[Experiment], bool] = lambda experiment: True) -> Callable[..., Item]:
    return _declared("figure", name, label, when)


def page(name: str, label: str) -> Callable[..., Item]:
    return _declared("page", name, label, lambda experiment: True)


def items(experiment: Experiment, kind: str | None = None) -> list[tuple[Stage, Item]]:
    """What the report of an experiment has: tables, figures and pages of each stage that measures something."""
    return [
        (stage, item)
        for stage in measured(experiment)
        for item in [
            *vars(stage.report).values(),
            *_defined(experiment, stage),
            *getattr(stage.report, "pages", lambda _: ())(experiment),
        ]
        if isinstance(item, Item) and kind in (None, item.kind) and item.when(experiment)
    ]


def _defined(experiment: Experiment, stage: Stage) -> list[Item]:
    """The stage's tables of files in config/tables. InputError where one has the name of another table."""
    own = {
        item.name for other in measured(experiment) for item in vars(other.report).values() if isinstance(item, Item)
    }
    if taken := sorted(own & experiment.tables.keys()):
        raise InputError(f"report.tables: '{taken[0]}' is a table that every report has; expected another name")

    def make(definition: TableDefinition) -> Callable[..., Any]:
        def build(experiment: Experiment, scores: pd.DataFrame) -> Any:
            from synopsis.reporting.selection import defined

            return defined(definition, scores)

        build.__doc__ = definition.caption or definition.title
        return build

    found = experiment.tables.items()
    return [
        Item("table", name, definition.title, make(definition), lambda _: True)
        for name, definition in found
        if definition.stage == stage.name
    ]


def measured(experiment: Experiment) -> list[Stage]:
    """The stages that have jobs in an experiment."""
    return [stage for stage in stages().values() if any(True for _ in stage.grid(experiment))]


def report_files(experiment: Experiment) -> dict[str, list[Path]]:
    """What the report stage writes, by kind (`tables`, `figures`, `pages`, and the front `page`)."""
    files = {
        f"{kind}s": [path for _, item in items(experiment, kind) for path in item.files(experiment)] for kind in FORMATS
    }
    return {**files, "page": [Layout(experiment).page]}


def places_in_report(experiment: Experiment, captions: Path) -> dict[Path, dict[str, Any]]:
    """File -> the arguments of Snakemake's `report()`; each caption is written to a file in the folder `captions`."""
    places: dict[Path, dict[str, Any]] = {}
    for stage, item in items(experiment):
        caption = captions / f"{item.kind}-{item.name}.rst"
        if not caption.is_file() or caption.read_text(encoding="utf-8") != item.caption:
            write_text(caption, item.caption)
        # One label alone: with two, the report makes a switch of one, behind which half the results are hidden.
        place = {"caption": str(caption), "category": stage.title, "labels": {"result": f"{item.label} ({item.kind})"}}
        places |= {path: place for path in item.files(experiment) if path.suffix == SHOWN[item.kind]}
    return places
