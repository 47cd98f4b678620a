"""Reading of an experiment: files are merged and overridden, and every fault is reported at once with its line.

First come the faults of form, which pydantic finds; where there are none, those between the sections
(`synopsis.config.checks`).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from synopsis.config.checks import check_experiment, hint
from synopsis.config.experiment import Experiment
from synopsis.config.files import JudgeDefinition, TableDefinition, Task
from synopsis.config.types import NAME, NAME_LENGTH, PATTERNS, Key, Problem, Problems
from synopsis.config.yaml_files import Entries, Place, Section, entry, place_of, read_yaml
from synopsis.errors import ConfigError, Fault

FILED: tuple[tuple[str, str, str, type[BaseModel]], ...] = (
    ("icl", "datasets", "tasks", Task),
    ("judge", "judges", "judges", JudgeDefinition),
    ("report", "tables", "tables", TableDefinition),
)
"""Section, key of the list of names, folder of the files (and field of the experiment), what a file holds."""

OVERRIDE = Place("--set")
"""Where a value that was overridden stands."""


def read_experiment(paths: list[Path], overrides: Mapping[str, Any]) -> Experiment:
    """Read, merge and check experiment files (see `synopsis.config.load_experiment`)."""
    faults: list[Fault] = []
    content, documents = Section(), [read_yaml(path, faults) for path in paths]
    for document in documents:
        if document is None:
            raise ConfigError(faults)
        _merge(content, document, ignored="x-")
    for dotted, value in overrides.items():
        _override(content, dotted.split("."), value)
    default = Place(str(paths[-1]) if paths else "the configuration")
    problems = list(_read_files(paths, content, faults))
    experiment, found = validated(Experiment, content)
    _report([*problems, *found], content, default, faults)
    if experiment is not None and not faults:
        _report(check_experiment(experiment), content, default, faults)
    if faults or experiment is None:
        files = list(dict.fromkeys(fault.file for fault in faults))
        raise ConfigError(sorted(faults, key=lambda fault: (files.index(fault.file), fault.line or 0)))
    return experiment


def _report(problems: Iterable[Problem], content: Section, default: Place, faults: list[Fault]) -> None:
    """Add the faults; what an alias repeats stands in the file once, and is reported once."""
    reported = set()
    for key, found, expected in problems:
        place = place_of(content, key, default)
        once = (place, key if place.line is None else key[-1:], found, expected)
        if once not in reported:
            reported.add(once)
            faults.append(Fault(place.file, ".".join(key), found, expected, place.line))


# --------------------------------------------------------------------------------------------------------- merging


def _merge(content: Section, other: Section, ignored: str | None = None) -> None:
    """Lay a section over another: sections are merged, other values replaced."""
    for name, value in other.items():
        if ignored is not None and name.startswith(ignored):
            continue
        if isinstance(value, Section) and isinstance(content.get(name), Section):
            content.places[name] = other.places[name]
            _merge(content[name], value)
        else:
            content.put(name, copy.deepcopy(value), other.places[name])


def _override(here: Section | Entries, steps: list[str], value: Any) -> None:
    """Set one value; sections on the way are made. A name that holds dots is found where it is there already."""
    length = next((n for n in range(len(steps), 1, -1) if entry(here, ".".join(steps[:n])) is not None), 1)
    step, rest = ".".join(steps[:length]), steps[length:]
    if not rest:
        here.put(step, _placed(value), OVERRIDE)
        return
    inner = entry(here, step)
    if not isinstance(inner, Section) and entry(inner, rest[0]) is None:
        inner = Section()  # in the place of a list without such an entry: reported as a fault of form
        here.put(step, inner, OVERRIDE)
    _override(inner, rest, value)


def _placed(value: Any) -> Any:
    """A plain value whose entries all stand on the command line."""
    if not isinstance(value, dict | list):
        return value
    placed: Section | Entries = Section() if isinstance(value, dict) else Entries()
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        placed.put(str(key), _placed(inner), OVERRIDE)
    return placed


# ------------------------------------------------------------------------------------------------ files of their own


def _read_files(paths: list[Path], content: Section, faults: list[Fault]) -> Iterable[Problem]:
    """Put the tasks and judges that the experiment names into its content."""
    for section, key, folder, cls in FILED:
        if folder in content:
            yield Problem((folder,), "an unknown key", f"'{section}.{key}' instead, and one file for each in {folder}/")
        names, content[folder] = entry(content.get(section), key), {}
        for index, name in enumerate(names if isinstance(names, list) else []):
            if not isinstance(name, str) or not re.fullmatch(NAME, name) or len(name) > NAME_LENGTH:
                continue  # reported with the faults of form
            folders = _folders(paths, folder)
            file = next((path for place in folders if (path := place / f"{name}.yaml").exists()), None)
            if file is None:
                known = sorted({path.stem for place in folders for path in place.glob("*.yaml")})
                wanted = f"a file in {folder}/ ({', '.join(known) or 'there is none'}){hint(name, known)}"
                yield Problem((section, key, str(index)), repr(name), wanted)
            elif name not in content[folder] and (document := read_yaml(file, faults)) is not None:
                content[folder][name], problems = validated(cls, document)
                _report(problems, document, Place(str(file)), faults)
        content[folder] = {name: value for name, value in content[folder].items() if value is not None}


def read_judge(judge: str) -> tuple[str, JudgeDefinition]:
    """Name and definition of a judge, given by its name (a file in config/judges) or by the path of its file.

    Raises ConfigError with every fault of the file.
    """
    path, faults = Path(judge), list[Fault]()
    if path.suffix not in (".yaml", ".yml"):
        path = Path("config") / "judges" / f"{judge}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(found.stem for found in path.parent.glob("*.yaml"))) or "there is none"
        faults.append(Fault("--judge", "", repr(judge), f"a file, or the name of one in {path.parent} ({known})"))
    elif (document := read_yaml(path, faults)) is not None:
        definition, problems = validated(JudgeDefinition, document)
        _report(problems, document, Place(str(path)), faults)
        if definition is not None and not faults:
            return path.stem, definition
    raise ConfigError(faults)


def _folders(paths: list[Path], folder: str) -> list[Path]:
    """Folders of tasks, judges or tables: beside the experiment file or one folder above it, then below config/."""
    places = [parent / folder for path in paths for parent in (path.parent, path.resolve().parent.parent)]
    return [place for place in [*places, Path("config") / folder] if place.is_dir()]


# ------------------------------------------------------------------------------------------------- faults of form

T = TypeVar("T", bound=BaseModel)

SECTION = "a section of keys and values"
EXPECTED = {
    "missing": "a value: the key is required",
    "tuple_type": "a valid list",
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), SECTION),
}
"""Fault of pydantic -> what is allowed, where its own words are those of Python."""


def validated(cls: type[T], content: Section) -> tuple[T | None, list[Problem]]:
    """An instance, or everything that is wrong with its form."""
    try:
        return cls.model_validate(content), []
    except ValidationError as error:
        return None, [problem for fault in error.errors(include_url=False) for problem in _problems(cls, fault)]


def _problems(cls: type[BaseModel], fault: Any) -> Iterable[Problem]:
    key, holders, here = _located(cls, fault["loc"])
    kind, given, context = fault["type"], fault["input"], fault.get("ctx", {})
    if isinstance(context.get("error"), Problems):
        return [Problem((*key, *inner), *rest) for inner, *rest in context["error"].problems]
    if kind == "missing" and isinstance(given, dict) and hint(key[-1], given.keys() - holders[0].model_fields.keys()):
        return []  # reported as a misspelt key
    if kind == "extra_forbidden":
        fields = [name for found in holders for name, field in found.model_fields.items() if not field.exclude]
        return [Problem(key, "an unknown key", f"one of {', '.join(fields)}{hint(key[-1], fields)}")]
    # "Input should be greater than 0", "List should have at least 1 item after validation, not 0"
    expected = EXPECTED.get(kind) or re.sub(r"^\w+ should (be|have) | after validation.*", "", fault["msg"])
    if kind in {"union_tag_invalid", "union_tag_not_found"}:
        tag = context["discriminator"].strip("'")
        key, given = (*key, tag), given.get(tag)
        expected = _one_of(given, [name for found in here for name in get_args(found.model_fields[tag].annotation)])
    elif kind == "literal_error":
        expected = _one_of(given, re.findall(r"'([^']*)'", context["expected"]))
    elif kind == "string_pattern_mismatch":
        expected = PATTERNS[context["pattern"]]
    elif kind == "string_type" and isinstance(given, bool | int | float):
        expected += f"; in quotes, '{shown(given)}' is one"
    name = "the name " if "[key]" in fault["loc"] else ""
    return [Problem(key, "nothing" if kind == "missing" else name + shown(given), expected)]


def _one_of(given: Any, allowed: list[str]) -> str:
    return f"one of {', '.join(allowed)}{hint(str(given), allowed)}"


def shown(value: Any) -> str:
    """A value in a message."""
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return f"a section ({_cut(', '.join(map(str, value)))})" if value else "an empty section"
    if isinstance(value, list):
        return f"a list of {len(value)} {'entry' if len(value) == 1 else 'entries'}"
    return str(value).lower() if isinstance(value, bool) else _cut(repr(value))


def _cut(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."


def _located(cls: type[BaseModel], location: tuple[int | str, ...]) -> tuple[Key, list[Any], list[Any]]:
    """The key of a location, which names the tags of unions too; the sections that have such a key; what it may be."""
    key: Key = ()
    here: list[Any] = [cls]
    holders: list[Any] = []
    for step in location:
        if step == "[key]":
            break
        tagged = [part for part in here if len(here) > 1 and step in _tags(part)]
        if tagged:
            here = tagged
            continue
        key, holders = (*key, str(step)), [part for part in here if hasattr(part, "model_fields")]
        here = [inner for part in here for inner in _below(part, step)]
    return key, holders, here


def _tags(section: Any) -> set[Any]:
    return {tag for field in getattr(section, "model_fields", {}).values() for tag in get_args(field.annotation)}


def _below(annotation: Any, step: int | str) -> list[Any]:
    """What an annotation allows as one of its entries."""
    if get_origin(annotation) in (dict, list, tuple):
        return _parts(get_args(annotation)[-1])
    fields = getattr(annotation, "model_fields", {})
    return _parts(fields[step].annotation) if step in fields else []


def _parts(annotation: Any) -> list[Any]:
    """The sections, lists and mappings that an annotation allows, whatever stands around them."""
    if isinstance(annotation, type) or get_origin(annotation) in (dict, list, tuple):
        return [annotation]
    return [part for inner in get_args(annotation) for part in _parts(inner)]
