"""One folder a stage: `section` (YAML and record), `run` (the computation), `report` (rows, tables and figures).

The package of a stage holds its subcommand of the command line: the docstring is the help, WORDS name one of its jobs.
It imports nothing heavy, for `synopsis --help`.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any


@dataclass(frozen=True)
class Word:
    """A word of a subcommand, named as the wildcard of the stage's jobs that it stands for.

    known: what the experiment has; None: any whole number, given as an option. kind, where: what messages call the word
    and the place where it is looked up.
    """

    help: str
    known: Callable[[Any], Iterable[str]] | None = None
    kind: str | None = None
    where: str = "the experiment"


def run_of(stage: str, help: str = "A run: a model's name, or <compressor>-s<seed>.") -> Word:
    return Word(help, lambda experiment: experiment.runs_of(stage), "run", f"the stage '{stage}' of the experiment")


@cache
def subcommands() -> dict[str, ModuleType]:
    """Name -> package of each stage that has a subcommand."""
    packages = {found.name: f"{__name__}.{found.name}" for found in pkgutil.iter_modules(__path__) if found.ispkg}
    modules = {name: import_module(package) for name, package in packages.items()}
    return {name: module for name, module in modules.items() if hasattr(module, "WORDS")}


def job_words(stage: str, wildcards: Mapping[str, Any]) -> list[str]:
    """What names a job on the command line of its stage."""
    module, words = subcommands().get(stage), list[str]()
    for name in module.WORDS if module else wildcards:
        value = str(wildcards[name])
        words += [f"--{name}", value] if module and module.WORDS[name].known is None else [value]
    return words
