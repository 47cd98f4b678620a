"""YAML in which every value knows where it stands, so that a fault names the line to edit.

Scalars are read as YAML 1.2 reads them, which is what editors do: `no` and `on` are texts, `1e-4` is a number. Keys are
always texts. Merge keys (`<<`) and aliases work; what an alias stands for is a copy, with the place of its anchor.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from yaml.constructor import ConstructorError

from synopsis.config.types import Key
from synopsis.errors import Fault, InputError

MAX_VALUES = 100_000
"""Values of a file, aliases counted each time: a few lines of aliases of aliases would fill the memory."""

TAG = "tag:yaml.org,2002:"
SCALARS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+", list("-+0123456789")),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    "merge": (r"<<", ["<"]),
}
"""Kind of a scalar -> what it looks like, and the characters it may begin with."""


class Place(NamedTuple):
    """Where a value stands; lines and columns are 1-based, None where it is no file."""

    file: str
    line: int | None = None
    column: int | None = None


class Section(dict[str, Any]):
    """Keys and values, with the place of each key."""

    def __init__(self) -> None:
        super().__init__()
        self.places: dict[str, Place] = {}

    def put(self, key: str, value: Any, place: Place) -> None:
        self[key], self.places[key] = value, place


class Entries(list[Any]):
    """The entries of a list, with the place of each."""

    def __init__(self) -> None:
        super().__init__()
        self.places: dict[str, Place] = {}

    def put(self, key: str, value: Any, place: Place) -> None:
        self[int(key) : int(key) + 1], self.places[key] = [value], place


def entry(content: Any, step: str) -> Any:
    """The entry of a section or list; None without one."""
    if isinstance(content, Entries):
        return content[int(step)] if step in content.places else None
    return content.get(step) if isinstance(content, Section) else None


def place_of(content: Any, key: Key, default: Place) -> Place:
    """Where a key stands, or else the section that should have it."""
    for step in key:
        if not isinstance(content, Section | Entries) or step not in content.places:
            break
        default, content = content.places[step], entry(content, step)
    return default


class _Loader(yaml.SafeLoader):
    """Resolves scalars as YAML 1.2 does, and refuses a key that is given twice."""

    values = 0

    def compose_mapping_node(self, anchor: Any) -> Any:
        node, seen = super().compose_mapping_node(anchor), set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _error("a list or a section in the place of a key", key)
            if key.value in seen:
                raise _error(f"the key '{key.value}' a second time", key)
            seen.add(key.value)
        return node

    def read(self, node: yaml.Node, file: str) -> Any:
        """The value of a node."""
        self.values += 1
        if self.values > MAX_VALUES:
            raise _error(f"more than {MAX_VALUES:,} values, aliases counted each time", node)
        kind = node.tag.removeprefix(TAG)
        if isinstance(node, yaml.MappingNode) and kind == "map":
            self.flatten_mapping(node)
            section = Section()
            for key, value in node.value:
                section.put(key.value, self.read(value, file), _place(key, file))
            return section
        if isinstance(node, yaml.SequenceNode) and kind == "seq":
            entries = Entries()
            for index, value in enumerate(node.value):
                entries.put(str(index), self.read(value, file), _place(value, file))
            return entries
        try:
            return int(node.value) if kind == "int" else self.construct_object(node, deep=True)
        except (KeyError, ValueError):
            raise _error(f"'{str(node.value)[:50]}' as !!{kind}", node) from None


_Loader.yaml_implicit_resolvers = {}
for _name, (_pattern, _first) in SCALARS.items():
    _Loader.add_implicit_resolver(TAG + _name, re.compile(rf"(?:{_pattern})\Z"), _first)


def _place(node: yaml.Node, file: str) -> Place:
    return Place(file, node.start_mark.line + 1, node.start_mark.column + 1)


def _error(problem: str, node: yaml.Node) -> ConstructorError:
    return ConstructorError(None, None, problem, node.start_mark)


def read_yaml(path: Path, faults: list[Fault]) -> Section | None:
    """A YAML file of keys and values; None, and a fault, when nothing can be made of it."""
    try:
        return _parsed(path.read_text(encoding="utf-8-sig"), str(path), faults)
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        faults.append(Fault(str(path), "", f"the byte 0x{error.object[error.start]:02x}", "text in UTF-8", line))
    except OSError as error:
        faults.append(Fault(str(path), "", (error.strerror or str(error)).lower(), "a file of keys and values"))
    return None


def parse_value(text: str, origin: str) -> Any:
    """One value as it would stand in a file; InputError names `origin` when it is no valid YAML."""
    faults: list[Fault] = []
    section = _parsed(f"value: {text}", origin, faults)
    if section is None or set(section) != {"value"}:
        reason = faults[0].found if faults else "more than one value"
        raise InputError(f"{origin}: {text!r} is no YAML value: found {reason}")
    return section["value"]


def _parsed(text: str, file: str, faults: list[Fault]) -> Section | None:
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if isinstance(root, yaml.MappingNode):
            section: Section = loader.read(root, file)
            return section
        kind = "an empty file" if root is None else "a list" if isinstance(root.value, list) else "a single value"
        line = None if root is None else root.start_mark.line + 1
        faults.append(Fault(file, "", kind, "keys and values", line))
    except yaml.reader.ReaderError as error:
        found = f"the character {chr(error.character)!r}"
        faults.append(Fault(file, "", found, "printable text", text.count("\n", 0, error.position) + 1))
    except yaml.MarkedYAMLError as error:
        faults.append(_syntax_fault(error, file))
    except RecursionError:
        faults.append(Fault(file, "", "sections nested hundreds deep, or in themselves", "a few levels of sections"))
    return None


def _syntax_fault(error: yaml.MarkedYAMLError, file: str) -> Fault:
    problem, mark = error.problem or "", error.problem_mark
    if "unexpected end of stream" in problem:
        mark = error.context_mark  # where the quotation begins, not where the file ends
    reason = "a tab" if "'\\t'" in problem else ", ".join(part for part in (error.context, problem) if part)
    found = f"what is not YAML ({reason})"
    return Fault(file, "", found, "keys and values, indented by spaces", mark.line + 1 if mark else None)
