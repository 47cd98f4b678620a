"""Reading of configuration files: YAML with line numbers, merging, and every fault at once.

pydantic stops at the faults of form; the checks between sections (`synopsis.config_checks`) need a whole experiment.
So that one call tells both kinds, faulty entries are taken out until the rest is well formed, and the checks then run
on that rest, silent about what refers to an entry that was taken out.
"""

from __future__ import annotations

import copy
import difflib
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from synopsis.config import Experiment, JudgeDefinition, Task
from synopsis.config_checks import check_experiment
from synopsis.errors import ConfigError, Fault, InputError

Lines = dict[tuple[str, ...], int]


def read_experiment(paths: list[Path], overrides: dict[str, Any]) -> Experiment:
    """Read, merge and check experiment files (see `synopsis.config.load_experiment`)."""
    faults: list[Fault] = []
    merged: dict[str, Any] = {}
    origin: dict[tuple[str, ...], tuple[str, int | None]] = {}
    for path in paths:
        content, lines = read_yaml(path, faults)
        content = {key: value for key, value in content.items() if not str(key).startswith("x-")}
        _merge(merged, content)
        origin.update({key: (str(path), line) for key, line in lines.items()})
    if faults:
        raise ConfigError(faults)
    for dotted, value in overrides.items():
        _override(merged, dotted, value)
        origin[tuple(dotted.split("."))] = ("--set", None)
    place = _Places(origin, str(paths[-1]) if paths else "")

    for section, key, cls in (("icl", "datasets", Task), ("judge", "judges", JudgeDefinition)):
        folder = {"icl": "tasks", "judge": "judges"}[section]
        names = (merged.get(section) or {}).get(key) if isinstance(merged.get(section), dict) else None
        found = {}
        for index, name in enumerate(names if isinstance(names, list) else []):
            file = _named_file(paths, folder, str(name))
            if file is None:
                known = ", ".join(sorted(p.stem for d in _folders(paths, folder) for p in d.glob("*.yaml"))) or "none"
                faults.append(
                    place.fault((section, key, str(index)), repr(name), f"the name of a file in {folder}/ ({known})")
                )
                continue
            content, lines = read_yaml(file, faults)
            own = _Places({k: (str(file), line) for k, line in lines.items()}, str(file))
            found[str(name)] = _validated(cls, content, own, faults)[0]
        merged[folder] = {name: value for name, value in found.items() if value is not None}

    experiment, removed = _validated(Experiment, merged, place, faults)
    if experiment is not None:
        known = [fault for fault in check_experiment(experiment) if not _refers_to(fault, removed)]
        faults += [place.complete(fault) for fault in known]
    if faults:
        raise ConfigError(_unique(faults))
    assert isinstance(experiment, Experiment)
    return experiment


def read_yaml(path: Path, faults: list[Fault]) -> tuple[dict[str, Any], Lines]:
    """Content of a YAML file and the line of each key path. Duplicate keys and syntax errors become faults."""
    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except FileNotFoundError:
        raise InputError(f"{path}: no such configuration file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error)
        faults.append(Fault(str(path), "", problem, "valid YAML", mark.line + 1 if mark else None))
        return {}, {}
    if not isinstance(content, dict):
        faults.append(Fault(str(path), "", type(content).__name__, "a mapping of keys to values"))
        return {}, {}
    lines: Lines = {}
    _walk(root, (), lines, str(path), faults)
    return content, lines


def _walk(node: Any, at: tuple[str, ...], lines: Lines, file: str, faults: list[Fault]) -> None:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            name = str(key.value)
            if name == "<<":
                continue
            where = (*at, name)
            if name in seen:
                faults.append(
                    Fault(file, ".".join(where), "the key a second time", "each key once", key.start_mark.line + 1)
                )
            seen.add(name)
            lines[where] = key.start_mark.line + 1
            _walk(value, where, lines, file, faults)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[(*at, str(index))] = value.start_mark.line + 1
            _walk(value, (*at, str(index)), lines, file, faults)


class _Places:
    """Knows in which file and line each key stands."""

    def __init__(self, origin: dict[tuple[str, ...], tuple[str, int | None]], default: str):
        self.origin, self.default = origin, default

    def fault(self, key: tuple[str, ...], found: str, expected: str) -> Fault:
        for length in range(len(key), 0, -1):
            if key[:length] in self.origin:
                file, line = self.origin[key[:length]]
                return Fault(file, ".".join(key), found, expected, line)
        return Fault(self.default, ".".join(key), found, expected)

    def complete(self, fault: Fault) -> Fault:
        return replace(self.fault(tuple(fault.key.split(".")), fault.found, fault.expected), key=fault.key)


def _validated(
    cls: type[BaseModel], content: dict[str, Any], place: _Places, faults: list[Fault]
) -> tuple[Any, set[str]]:
    """An instance of `cls` from what is well formed in `content`, or None; and the names that were taken out."""
    content, removed, first = copy.deepcopy(content), set(), True
    for _ in range(len(str(content))):
        try:
            return cls.model_validate(content), removed
        except ValidationError as error:
            details = error.errors(include_url=False)
            if first:
                faults += [_explain(detail, cls, content, place) for detail in details]
                first = False
            if not all([_take_out(content, _path(detail, content), removed) for detail in details]):
                return None, removed
    return None, removed


def _path(detail: ErrorDetails, content: Any) -> tuple[str, ...]:
    """The error's place as a path into the YAML: without the tags that pydantic adds for unions."""
    path: list[str] = []
    here = content
    for step in detail["loc"]:
        inside = isinstance(here, dict) and step in here
        inside = inside or (isinstance(here, list) and isinstance(step, int) and step < len(here))
        if inside:
            path.append(str(step))
            here = here[step]
        elif step is detail["loc"][-1] and detail["type"] == "missing":
            path.append(str(step))
    return tuple(path)


def _take_out(content: Any, path: tuple[str, ...], removed: set[str]) -> bool:
    """Remove the entry at `path`, or the nearest entry above it that exists; False when nothing is left to remove."""
    here, trail = content, []
    for step in path:
        if isinstance(here, dict) and step in here:
            trail.append((here, step))
            here = here[step]
        elif isinstance(here, list) and step.isdigit() and int(step) < len(here):
            trail.append((here, int(step)))
            here = here[int(step)]
        else:
            break
    if not trail:
        return False
    # A fault inside a named entry (models.base.steps) takes the whole entry out: half an entry would raise more faults.
    depth = min(len(trail), 2) - 1
    container, key = trail[depth]
    removed.add(str(path[depth]))
    if isinstance(container, dict):
        container.pop(key, None)
    else:
        container[:] = container[:key] + container[key + 1 :]
    return True


def _explain(detail: ErrorDetails, cls: type[BaseModel], content: Any, place: _Places) -> Fault:
    path, kind, found = _path(detail, content), detail["type"], repr(detail["input"])
    context = detail.get("ctx", {})
    if len(found) > 80:
        found = found[:77] + "..."
    if kind == "extra_forbidden":
        allowed = _keys_at(cls, detail["loc"][:-1])
        near = difflib.get_close_matches(str(detail["loc"][-1]), allowed, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        return place.fault(path, "an unknown key", f"one of {', '.join(allowed)}{hint}")
    if kind == "missing":
        return place.fault(path, "nothing", "a value: the key is required")
    if kind in {"union_tag_not_found", "union_tag_invalid"}:
        tag = str(context.get("discriminator", "")).strip("'")
        stood = repr(context["tag"]) if "tag" in context else "nothing"
        expected = context.get("expected_tags") or "one of the kinds in the schema"
        return place.fault((*path, tag), stood, f"one of {expected}")
    if kind == "value_error":
        return place.fault(path, "this section", str(context.get("error", detail["msg"])))
    return place.fault(path, found, detail["msg"].removeprefix("Input should be ").removeprefix("Value error, "))


def _keys_at(cls: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """The keys allowed in the section at `location`, found in the JSON schema."""
    schema = cls.model_json_schema()
    here: dict[str, Any] = schema
    for step in location:
        here = _resolve(here, schema)
        if step in here.get("properties", {}):
            here = here["properties"][step]
        elif "discriminator" in here and step in here["discriminator"]["mapping"]:
            here = {"$ref": here["discriminator"]["mapping"][step]}
        elif "additionalProperties" in here or "patternProperties" in here:
            here = here.get("additionalProperties") or next(iter(here["patternProperties"].values()))
            here = here if isinstance(here, dict) else {}
    here = _resolve(here, schema)
    hidden = {"tasks", "judges"} if cls is Experiment and not location else set()
    return [key for key in here.get("properties", {}) if key not in hidden]


def _resolve(here: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    for option in here.get("anyOf", []):
        if "$ref" in option:
            here = option
    while "$ref" in here:
        here = schema["$defs"][here["$ref"].split("/")[-1]]
    return here


def _merge(into: dict[str, Any], other: dict[str, Any]) -> None:
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = copy.deepcopy(value)


def _override(content: dict[str, Any], dotted: str, value: Any) -> None:
    here, steps = content, dotted.split(".")
    for step in steps[:-1]:
        if not isinstance(here.get(step), dict):
            here[step] = {}
        here = here[step]
    here[steps[-1]] = value


def _folders(paths: list[Path], folder: str) -> list[Path]:
    """Folders of tasks or judges: beside the experiment file or above it, then below config/."""
    places = [parent / folder for path in paths for parent in [path.parent, *path.resolve().parents]]
    return [place for place in [*places, Path("config") / folder] if place.is_dir()]


def _named_file(paths: list[Path], folder: str, name: str) -> Path | None:
    return next((d / f"{name}.yaml" for d in _folders(paths, folder) if (d / f"{name}.yaml").is_file()), None)


def _refers_to(fault: Fault, removed: set[str]) -> bool:
    return any(f"'{name}'" in fault.found or name in fault.key.split(".") for name in removed)


def _unique(faults: list[Fault]) -> list[Fault]:
    return list(dict.fromkeys(faults))
