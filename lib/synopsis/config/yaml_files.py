"""YAML in which every value knows where it stands, so that a fault names the line to edit.

Scalars are read as YAML 1.2 reads them, which is what editors do: `no` and `on` are texts, `1e-4` is a number. Keys are
always texts. Merge keys (`<<`) and aliases work; what an alias stands for is a copy, with the place of its anchor.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml

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
    """Where a value stands: lines and columns are 1-based, None where it is no file."""

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
    """Resolves scalars as YAML 1.2 does."""


_Loader.yaml_implicit_resolvers = {}
for _name, (_pattern, _first) in SCALARS.items():
    _Loader.add_implicit_resolver(TAG + _name, re.compile(rf"(?:{_pattern})\Z"), _first)


class _Unusable(Exception):
    """A fault after which nothing can be said of the rest of the file."""


def read_yaml(path: Path, faults: list[Fault]) -> Section | None:
    """A YAML file of keys and values; None, and faults, when nothing can be made of it."""
    file = str(path)
    try:
        return _parsed(path.read_text(encoding="utf-8-sig"), file, faults)
    except FileNotFoundError:
        faults.append(Fault(file, "", "no such file", "a file of keys and values"))
    except IsADirectoryError:
        faults.append(Fault(file, "", "a folder", "a file of keys and values"))
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        faults.append(Fault(file, "", f"the byte 0x{error.object[error.start]:02x}", "text in UTF-8", line))
    except OSError as error:
        faults.append(Fault(file, "", f"a file that cannot be read ({error.strerror})", "a file of keys and values"))
    return None


def parse_value(text: str, origin: str) -> Any:
    """One value as it would stand in a file; InputError names `origin` when it is no valid YAML."""
    faults: list[Fault] = []
    section = _parsed(f"value: {text}", origin, faults)
    if section is None or faults or set(section) != {"value"}:
        reason = faults[0].found if faults else "more than one value"
        raise InputError(f"{origin}: {text!r} is no YAML value: found {reason}")
    return section["value"]


def _parsed(text: str, file: str, faults: list[Fault]) -> Section | None:
    try:
        root = yaml.compose(text, Loader=_Loader)
        if isinstance(root, yaml.MappingNode):
            section = _Reader(file, faults).value(root, ())
            assert isinstance(section, Section)
            return section
        kind = "an empty file" if root is None else "a list" if isinstance(root.value, list) else "a single value"
        line = None if root is None else root.start_mark.line + 1
        faults.append(Fault(file, "", kind, "keys and values", line))
    except yaml.YAMLError as error:
        faults.append(_syntax_fault(error, text, file))
    except RecursionError:
        faults.append(Fault(file, "", "sections nested hundreds deep, or in themselves", "a few levels of sections"))
    except _Unusable as error:
        faults.append(error.args[0])
    return None


def _syntax_fault(error: yaml.YAMLError, text: str, file: str) -> Fault:
    if isinstance(error, yaml.reader.ReaderError):
        character = chr(error.character) if isinstance(error.character, int) else error.character
        before = text.count("\n", 0, error.position)
        return Fault(file, "", f"the character {character!r}", "printable text", before + 1)
    mark, problem, context = (getattr(error, name, None) for name in ("problem_mark", "problem", "context"))
    if problem and "unexpected end of stream" in problem:
        mark = getattr(error, "context_mark", None) or mark  # where the quotation begins, not where the file ends
    line = mark.line + 1 if mark else None
    if problem and "'\\t'" in problem:
        return Fault(file, "", "a tab", "spaces: YAML is not indented by tabs", line)
    details = ", ".join(part for part in (context, problem) if part) or str(error)
    return Fault(file, "", f"what is not YAML ({details})", "keys and values, indented by spaces", line)


class _Reader:
    """Makes plain values of YAML nodes."""

    def __init__(self, file: str, faults: list[Fault]):
        self.file, self.faults = file, faults
        self.values = 0

    def value(self, node: yaml.Node, at: Key) -> Any:
        self.values += 1
        if self.values > MAX_VALUES:
            raise self.unusable(node, at, f"more than {MAX_VALUES:,} values", "fewer, or fewer aliases of aliases")
        kind = node.tag.removeprefix(TAG)
        if isinstance(node, yaml.MappingNode) and kind == "map":
            return self.section(node, at)
        if isinstance(node, yaml.SequenceNode) and kind == "seq":
            entries = Entries()
            for index, value in enumerate(node.value):
                entries.put(str(index), self.value(value, (*at, str(index))), self.place(value))
            return entries
        if isinstance(node, yaml.ScalarNode) and kind in {*SCALARS, "str"}:
            return self.scalar(node, kind, at)
        tag = node.tag.replace(TAG, "!!")
        raise self.unusable(node, at, f"the tag {tag}", "plain values: text, numbers, true, false, lists, sections")

    def section(self, node: yaml.MappingNode, at: Key) -> Section:
        section, merged = Section(), []
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self.unusable(key, at, "a list or a section in the place of a key", "text before the colon")
            if key.tag == TAG + "merge":
                named = value.value if isinstance(value, yaml.SequenceNode) else [value]
                merged += [self.merged(one, at) for one in named]
                continue
            where = (*at, key.value)
            if key.value in section:
                line = key.start_mark.line + 1
                self.faults.append(Fault(self.file, ".".join(where), "the key a second time", "each key once", line))
            section.put(key.value, self.value(value, where), self.place(key))
        for other in merged:  # the keys that stand here win, and then those of the first section
            for name in other.keys() - section.keys():
                section.put(name, other[name], other.places[name])
        return section

    def merged(self, node: yaml.Node, at: Key) -> Section:
        """A section that `<<` names."""
        if not isinstance(node, yaml.MappingNode):
            raise self.unusable(node, (*at, "<<"), "no section", "an alias of a section, or a list of such")
        return self.section(node, at)

    def scalar(self, node: yaml.ScalarNode, kind: str, at: Key) -> Any:
        text = node.value
        try:
            if kind == "bool":
                return {"true": True, "false": False}[text.lower()]
            if kind == "int":
                return int(text)
            if kind == "float":
                return float(re.sub(r"\.(?=inf|nan)", "", text.lower()))
        except (KeyError, ValueError):
            found = repr(text) if len(text) < 100 else f"a number of {len(text)} digits"
            raise self.unusable(node, at, found, f"a value that can be read as !!{kind}") from None
        return None if kind == "null" else text

    def place(self, node: yaml.Node) -> Place:
        return Place(self.file, node.start_mark.line + 1, node.start_mark.column + 1)

    def unusable(self, node: yaml.Node, at: Key, found: str, expected: str) -> _Unusable:
        return _Unusable(Fault(self.file, ".".join(at), found, expected, node.start_mark.line + 1))
