"""What the rest of the library may ask of a stage.

A stage is a folder of this package. Its module `section` holds the section of the YAML and the record, `STAGE`; it
imports neither torch nor pandas. The command line, the workflow, `score` and `report` go over `stages()`; none of them
keeps a list of stages of its own.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from synopsis.config.types import Strict


@dataclass(frozen=True)
class Stage:
    """The record of a stage. section: its class in the YAML; place: where it stands in the order of the report."""

    name: str
    section: type[Strict]
    place: int


@cache
def stages() -> dict[str, Stage]:
    """Name -> record, in the order of the report."""
    here = Path(__file__).parent
    folders = [
        found.name for found in pkgutil.iter_modules([str(here)]) if (here / found.name / "section.py").is_file()
    ]
    records = [importlib.import_module(f"{__package__}.{folder}.section").STAGE for folder in folders]
    return {stage.name: stage for stage in sorted(records, key=lambda stage: stage.place)}
