"""The file named by `training.deepspeed`; the training and the cost estimates read it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from synopsis.errors import InputError

SECTIONS = ("zero_optimization", "optimizer", "scheduler", "bf16", "fp16")


def read_deepspeed(name: str, beside: Sequence[Path] = ()) -> tuple[Path, dict[str, Any]]:
    """Path and settings of a DeepSpeed file, found in the working directory or beside the experiment files.

    InputError when there is none, or no JSON object in it.
    """
    places = [Path(name), *(Path(file).parent / name for file in beside)]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        looked = ", ".join(dict.fromkeys(map(str, places)))
        raise InputError(f"training.deepspeed: there is no file {looked}")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(settings, dict) or not all(isinstance(settings.get(key, {}), dict) for key in SECTIONS):
        raise InputError(
            f"{path}: expected a JSON object of DeepSpeed's settings, with objects at {', '.join(SECTIONS)}"
        )
    return path, settings
