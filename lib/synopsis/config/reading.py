"""Reading of configuration files: merging, overriding, and every fault at once.

Faults of form are found by `synopsis.config.form`, which hands back a mended copy, so that the checks between sections
(`synopsis.config.checks`) run in the same call; what these find about mended values is not told.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from synopsis.config.checks import check_experiment
from synopsis.config.experiment import Experiment
from synopsis.config.files import JudgeDefinition, Task
from synopsis.config.form import Mended, hint, mend, shown
from synopsis.config.types import NAME, NAME_LENGTH
from synopsis.config.yaml_files import Key, Place, read_yaml
from synopsis.errors import ConfigError, Fault

FILED: tuple[tuple[str, str, str, type[BaseModel]], ...] = (
    ("icl", "datasets", "tasks", Task),
    ("judge", "judges", "judges", JudgeDefinition),
)
"""Section, key of the list of names, folder of the files (and field of the experiment), what a file holds."""

OVERRIDE = "--set"
"""What stands for the file of a value that was overridden."""


def read_experiment(paths: list[Path], overrides: Mapping[str, Any]) -> Experiment:
    """Read, merge and check experiment files (see `synopsis.config.load_experiment`)."""
    faults: list[Fault] = []
    draft = _Draft(str(paths[-1]) if paths else "the configuration")
    documents = [read_yaml(path, faults) for path in paths]
    for document in documents:
        if document is not None:
            draft.merge({k: v for k, v in document.content.items() if not k.startswith("x-")}, document.places)
    for dotted, value in overrides.items():
        draft.override(dotted, value)
    if None in documents:
        raise ConfigError(faults)

    told: set[tuple[Any, ...]] = set()

    def tell(key: Key, found: str, expected: str) -> None:
        place, rest = draft.place(key)
        # What an alias repeats stands in the file once, and is told once.
        once = (place.file, place.value if rest else place[:3], rest, found, expected)
        if place.line is None or once not in told:
            told.add(once)
            faults.append(Fault(place.file, ".".join(key), found, expected, place.line))

    doubtful = _read_files(paths, draft, tell, faults)
    mended = mend(Experiment, draft.content, tell, hidden=frozenset(folder for _, _, folder, _ in FILED))
    doubtful |= mended.doubtful
    if mended.value is not None:
        for finding in check_experiment(mended.value, doubtful):
            tell(mended.written(finding.key), finding.found, finding.expected)
    if faults:
        raise ConfigError(_sorted(faults))
    assert isinstance(mended.value, Experiment)
    return mended.value


def _sorted(faults: list[Fault]) -> list[Fault]:
    """Each fault once, by file and line, those of one line in the order in which they were found."""
    files = list(dict.fromkeys(fault.file for fault in faults))
    return sorted(dict.fromkeys(faults), key=lambda fault: (files.index(fault.file), fault.line or 0))


class _Draft:
    """The merged content of all files, and where each key of it stands."""

    def __init__(self, default: str):
        self.content: dict[str, Any] = {}
        self.places: dict[Key, Place] = {}
        self.default = default

    def merge(self, content: Mapping[str, Any], places: Mapping[Key, Place], at: Key = ()) -> None:
        """Lay the content of a section over what is there: sections are merged, other values replaced."""
        section = self.section(at)
        for name, value in content.items():
            key = (*at, name)
            if isinstance(value, dict) and isinstance(section.get(name), dict):
                if key in places:
                    self.places[key] = places[key]
                self.merge(value, places, key)
            else:
                self.put(key, value, {k: place for k, place in places.items() if k[: len(key)] == key})

    def override(self, dotted: str, value: Any) -> None:
        """Set one value; sections on the way are made. A name that holds dots is found where it is there already."""
        steps = dotted.split(".")
        here: Any = self.content
        key: Key = ()
        while steps:
            if isinstance(here, list) and not _holds(here, steps[0]):
                self.put(key, {}, {key: Place(OVERRIDE)})  # no place in this list: told as a fault of form
                here = self.section(key)
            length = next((n for n in range(len(steps), 1, -1) if _holds(here, ".".join(steps[:n]))), 1)
            step, steps = ".".join(steps[:length]), steps[length:]
            key = (*key, step)
            if steps and not _holds(here, step, (dict, list)):
                self.put(key, {}, {key: Place(OVERRIDE)})
            if steps:
                here = here[int(step) if isinstance(here, list) else step]
        self.put(key, value, {key: Place(OVERRIDE)})

    def put(self, key: Key, value: Any, places: Mapping[Key, Place]) -> None:
        parent = self.section(key[:-1])
        for old in [k for k in self.places if k[: len(key)] == key]:
            del self.places[old]
        parent[int(key[-1]) if isinstance(parent, list) else key[-1]] = copy.deepcopy(value)
        self.places |= places

    def section(self, key: Key) -> Any:
        here: Any = self.content
        for step in key:
            here = here[int(step) if isinstance(here, list) else step]
        return here

    def place(self, key: Key) -> tuple[Place, Key]:
        """Where a key stands, or else the section that should have it; and the rest of the key, below that section."""
        for length in range(len(key), 0, -1):
            if key[:length] in self.places:
                return self.places[key[:length]], key[length:]
        return Place(self.default), key


def _holds(here: Any, step: str, kinds: type | tuple[type, ...] = object) -> bool:
    if isinstance(here, list):
        return step.isdigit() and int(step) < len(here) and isinstance(here[int(step)], kinds)
    return isinstance(here, dict) and isinstance(here.get(step), kinds) and step in here


# ------------------------------------------------------------------------------------------------ tasks and judges


def _read_files(paths: list[Path], draft: _Draft, tell: Any, faults: list[Fault]) -> set[Key]:
    """Put the tasks and judges that the experiment names into the draft; returns what is doubtful in them."""
    doubtful: set[Key] = set()
    for section, key, folder, cls in FILED:
        if folder in draft.content:
            wanted = f"'{section}.{key}' instead, and one file for each in {folder}/"
            tell((folder,), "an unknown key", wanted)
        draft.content[folder] = {}
        named = draft.content.get(section)
        names = named.get(key) if isinstance(named, dict) else None
        for index, name in enumerate(names if isinstance(names, list) else []):
            named_so = isinstance(name, str) and re.fullmatch(NAME, name) and len(name) <= NAME_LENGTH
            if not named_so or name in draft.content[folder]:
                continue  # no name, which is told with the faults of form, or one that was read already
            file = _named_file(paths, folder, name)
            if file is None:
                known = sorted({path.stem for place in _folders(paths, folder) for path in place.glob("*.yaml")})
                files = ", ".join(known) or "there is none"
                tell((section, key, str(index)), shown(name), f"a file in {folder}/ ({files}){hint(name, known)}")
                continue
            filed = _read_file(file, cls, faults)
            doubtful |= {(folder, name, *inner) for inner in filed.doubtful}
            if filed.value is not None:
                draft.content[folder][name] = filed.value
    return doubtful


def _read_file(file: Path, cls: type[BaseModel], faults: list[Fault]) -> Mended:
    document = read_yaml(file, faults)
    if document is None:
        return Mended(None)
    draft = _Draft(str(file))
    draft.merge(document.content, document.places)

    def tell(key: Key, found: str, expected: str) -> None:
        place, _ = draft.place(key)
        faults.append(Fault(place.file, ".".join(key), found, expected, place.line))

    return mend(cls, draft.content, tell)


def _folders(paths: list[Path], folder: str) -> list[Path]:
    """Folders of tasks or judges: beside the experiment file or one folder above it, then below config/."""
    places = [parent / folder for path in paths for parent in (path.parent, path.resolve().parent.parent)]
    return [place for place in [*places, Path("config") / folder] if place.is_dir()]


def _named_file(paths: list[Path], folder: str, name: str) -> Path | None:
    files = [place / f"{name}.yaml" for place in _folders(paths, folder)]
    return next((file for file in files if file.exists()), None)
