"""YAML with the place of every value, and every fault that a file of keys and values can have.

Scalars are read as YAML 1.2 reads them, which is what editors do: `no` and `on` are texts, `1e-4` is a number. Keys are
always texts. Merge keys (`<<`) and aliases work; what an alias stands for is a copy, with the place of its anchor.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from synopsis.errors import Fault, InputError

Key = tuple[str, ...]
"""Path of a value; places in lists are texts too: ("judge", "pairs", "0")."""

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
    value: tuple[int, int] | None = None
    """Line and column of a key's value: what an alias stands for has those of its anchor."""


@dataclass
class Document:
    """The content of a YAML file, and the place of each key in it."""

    content: dict[str, Any] = field(default_factory=dict)
    places: dict[Key, Place] = field(default_factory=dict)


class _Loader(yaml.SafeLoader):
    """Resolves scalars as YAML 1.2 does."""


_Loader.yaml_implicit_resolvers = {}
for _name, (_pattern, _first) in SCALARS.items():
    _Loader.add_implicit_resolver(TAG + _name, re.compile(rf"(?:{_pattern})\Z"), _first)


def read_yaml(path: Path, faults: list[Fault]) -> Document | None:
    """A YAML file of keys and values; None, and faults, when nothing can be made of it."""
    file = str(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        faults.append(Fault(file, "", "no such file", "a file of keys and values"))
    except IsADirectoryError:
        faults.append(Fault(file, "", "a folder", "a file of keys and values"))
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        faults.append(Fault(file, "", f"the byte 0x{error.object[error.start]:02x}", "text in UTF-8", line))
    except OSError as error:
        faults.append(Fault(file, "", f"a file that cannot be read ({error.strerror})", "a file of keys and values"))
    else:
        return _parsed(text, file, faults)
    return None


def parse_value(text: str, origin: str) -> Any:
    """One value as it would stand in a file; InputError names `origin` when it is no valid YAML."""
    faults: list[Fault] = []
    document = _parsed(f"value: {text}", origin, faults)
    if document is None or faults or set(document.content) != {"value"}:
        reason = faults[0].found if faults else "more than one value"
        raise InputError(f"{origin}: {text!r} is no YAML value: found {reason}")
    return document.content["value"]


def _parsed(text: str, file: str, faults: list[Fault]) -> Document | None:
    try:
        root = yaml.compose(text, Loader=_Loader)
        if root is None:
            faults.append(Fault(file, "", "an empty file", "keys and values"))
        elif not isinstance(root, yaml.MappingNode):
            kind = "a list" if isinstance(root, yaml.SequenceNode) else "a single value"
            faults.append(Fault(file, "", kind, "keys and values", root.start_mark.line + 1))
        else:
            return _Builder(file, faults).document(root)
    except yaml.YAMLError as error:
        faults.append(_syntax_fault(error, text, file))
    except RecursionError:
        faults.append(Fault(file, "", "sections nested hundreds deep", "a few levels of sections"))
    except _Unusable as error:
        faults.append(error.fault)
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


class _Unusable(Exception):
    """A fault after which nothing can be said of the rest of the file."""

    def __init__(self, fault: Fault):
        self.fault = fault


class _Builder:
    """Makes plain values of YAML nodes."""

    def __init__(self, file: str, faults: list[Fault]):
        self.file, self.faults = file, faults
        self.places: dict[Key, Place] = {}
        self.open: set[int] = set()
        self.values = 0

    def document(self, root: yaml.MappingNode) -> Document:
        return Document(self.value(root, ()), self.places)

    def value(self, node: yaml.Node, at: Key) -> Any:
        self.values += 1
        if self.values > MAX_VALUES:
            raise self.unusable(node, at, f"more than {MAX_VALUES:,} values", "fewer, or fewer aliases of aliases")
        if id(node) in self.open:
            raise self.unusable(node, at, "a section that contains itself", "an alias of another section")
        self.open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode) and node.tag == TAG + "map":
                return self.section(node, at)
            if isinstance(node, yaml.SequenceNode) and node.tag == TAG + "seq":
                return [self.entry(value, (*at, str(index))) for index, value in enumerate(node.value)]
            if isinstance(node, yaml.ScalarNode) and node.tag.removeprefix(TAG) in {*SCALARS, "str"}:
                return self.scalar(node, at)
            tag = node.tag.replace(TAG, "!!")
            raise self.unusable(node, at, f"the tag {tag}", "plain values: text, numbers, true, false, lists, sections")
        finally:
            self.open.discard(id(node))

    def entry(self, node: yaml.Node, at: Key) -> Any:
        self.places[at] = self.place(node, node)
        return self.value(node, at)

    def section(self, node: yaml.MappingNode, at: Key) -> dict[str, Any]:
        content: dict[str, Any] = {}
        merged: list[yaml.Node] = []
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self.unusable(key, at, "a list or a section in the place of a key", "text before the colon")
            if key.tag == TAG + "merge":
                merged += value.value if isinstance(value, yaml.SequenceNode) else [value]
                continue
            where = (*at, key.value)
            if key.value in content:
                line = key.start_mark.line + 1
                self.faults.append(Fault(self.file, ".".join(where), "the key a second time", "each key once", line))
            self.places[where] = self.place(key, value)
            content[key.value] = self.value(value, where)
        for section in merged:
            self.merge(section, content, at)
        return content

    def merge(self, node: yaml.Node, content: dict[str, Any], at: Key) -> None:
        """Add the keys of a `<<` that the section does not have itself; of several, the first one wins."""
        if not isinstance(node, yaml.MappingNode):
            raise self.unusable(node, (*at, "<<"), "no section", "an alias of a section, or a list of such")
        aside = _Builder(self.file, [])
        aside.open, aside.values = self.open, self.values
        for key, value in aside.value(node, at).items():
            if key not in content:
                content[key] = value
                self.places |= {k: p for k, p in aside.places.items() if k[: len(at) + 1] == (*at, key)}
        self.values = aside.values

    def scalar(self, node: yaml.ScalarNode, at: Key) -> Any:
        kind, text = node.tag.removeprefix(TAG), node.value
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

    def place(self, node: yaml.Node, value: yaml.Node) -> Place:
        at, inside = node.start_mark, value.start_mark
        return Place(self.file, at.line + 1, at.column + 1, (inside.line + 1, inside.column + 1))

    def unusable(self, node: yaml.Node, at: Key, found: str, expected: str) -> _Unusable:
        return _Unusable(Fault(self.file, ".".join(at), found, expected, node.start_mark.line + 1))
