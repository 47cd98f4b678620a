"""The typed experiment; see `synopsis.config.experiment`.

from synopsis.config import load_experiment
experiment = load_experiment("config/demo.yaml")
"""

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    """Imported when used: the sections of methods and stages import from this package."""
    if name in ("Experiment", "json_schema", "load_experiment"):
        return getattr(import_module("synopsis.config.experiment"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
