"""The form of a section: every fault in words, and a mended copy that the checks between sections can go on with.

pydantic tells faults in its own terms and gives nothing back when there is one. Here each fault is told in terms of the
file, and then mended (an unknown key is taken out, a wrong value replaced by one that fits), until the section is well
formed. What was mended is *doubtful*: later faults that follow from it would be false.
"""

from __future__ import annotations

import copy
import difflib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from synopsis.config.types import PATTERNS, Clash, Contradiction
from synopsis.config.yaml_files import Key

Tell = Callable[[Key, str, str], None]
"""Takes the key, what stood there and what is allowed."""

Schema = dict[str, Any]

MAX_ROUNDS = 100


@dataclass
class Mended:
    """A well-formed section (None when nothing fits), and what in it is not as the file has it."""

    value: Any
    doubtful: set[Key] = field(default_factory=set)
    """Keys whose values were made up."""
    renamed: dict[Key, Key] = field(default_factory=dict)
    """Key of a section -> the misspelling under which it stands in the file."""

    def written(self, key: Key) -> Key:
        """The key as the file has it."""
        for right, wrong in self.renamed.items():
            if key[: len(right)] == right:
                key = (*wrong, *key[len(right) :])
        return key


def overlap(key: Key, others: Iterable[Key]) -> bool:
    """Whether one of the others is the key, lies in it, or holds it."""
    return any(key[: len(other)] == other[: len(key)] for other in others)


def within(key: Key, others: Iterable[Key]) -> bool:
    """Whether one of the others is the key or holds it."""
    return any(key[: len(other)] == other for other in others)


def closest(name: str, known: Iterable[str], likeness: float = 0.7) -> str | None:
    """The known name that was probably meant."""
    return next(iter(difflib.get_close_matches(name[:100], list(known), n=1, cutoff=likeness)), None)


def hint(name: str, known: Iterable[str], likeness: float = 0.6) -> str:
    """A suggestion for a name that is not known, or nothing."""
    near = closest(name, known, likeness)
    return f"; did you mean '{near}'?" if near else ""


def shown(value: Any) -> str:
    """A value as a message tells it."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return f"a section ({_cut(', '.join(map(str, value)))})" if value else "an empty section"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)} entries" if len(value) != 1 else "a list of 1 entry"
    return _cut(repr(value))


def _cut(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."


def mend(cls: type[BaseModel], content: dict[str, Any], tell: Tell, hidden: frozenset[str] = frozenset()) -> Mended:
    """An instance of `cls` from `content`; `tell` gets every fault once. `hidden`: fields that no file may set."""
    return _Form(cls, content, tell, hidden).mended()


class _Form:
    def __init__(self, cls: type[BaseModel], content: dict[str, Any], tell: Tell, hidden: frozenset[str]):
        self.cls, self.told_to, self.hidden = cls, tell, hidden
        self.content = copy.deepcopy(content)
        self.result = Mended(None)
        self.tries: Counter[Key] = Counter()

    @property
    def schema(self) -> Schema:
        return _schema_of(self.cls)

    def mended(self) -> Mended:
        for _ in range(MAX_ROUNDS):
            try:
                self.result.value = self.cls.model_validate(self.content)
                break
            except ValidationError as error:
                faults = [_Found(*self.at(found["loc"]), found) for found in error.errors(include_url=False)]
            # Unknown keys first: where one is a misspelling, what it stands for is not missing.
            unknown = [found for found in faults if found.kind == "extra_forbidden"]
            for found in unknown:
                self.explain(found)
                self.take_out(found)
            others = [
                found
                for found in faults
                if found.kind != "extra_forbidden" and not (found.kind == "missing" and self.is_there(found.key))
            ]
            doubtful = set(self.result.doubtful)
            for found in others:
                if found.clashes:
                    self.explain_clashes(found, doubtful)
                elif not overlap(found.key, doubtful):
                    self.explain(found)
            if not all([self.repair(found) for found in others]):
                break
        return self.result

    def tell(self, key: Key, found: str, expected: str) -> None:
        self.told_to(self.result.written(key), found, expected)

    # -------------------------------------------------------------------------------------------------- places

    def at(self, location: tuple[int | str, ...]) -> tuple[Key, list[Schema]]:
        """The key of a fault, and the schemas of the whole, of its first step, ... and of the key.

        pydantic's location also holds the tags of unions, which are no keys.
        """
        key: Key = ()
        schemas = [self.schema]
        here = self.schema
        for step in location:
            if step == "[key]":
                break
            mapping = here.get("discriminator", {}).get("mapping", {})
            if step in mapping:
                here = self.resolved({"$ref": mapping[step]})
                schemas[-1] = here
                continue
            key = (*key, str(step))
            schemas.append(_below(here, step))
            here = self.resolved(schemas[-1])
        return key, schemas

    def resolved(self, here: Schema) -> Schema:
        """The schema itself: what a reference points to, and of an optional value what it is when it is there."""
        while "$ref" in here or "anyOf" in here:
            if "$ref" in here:
                here = self.schema["$defs"][here["$ref"].rsplit("/", 1)[-1]]
            else:
                here = next(option for option in here["anyOf"] if option.get("type") != "null")
        return here

    def is_there(self, key: Key) -> bool:
        parent = self.parent(key)
        return isinstance(parent, dict) and key[-1] in parent

    def parent(self, key: Key) -> Any:
        """The list or section that holds a key; None when it is gone, mended along with another fault."""
        here: Any = self.content
        for step in key[:-1]:
            if isinstance(here, list) and int(step) < len(here):
                here = here[int(step)]
            elif isinstance(here, dict) and step in here:
                here = here[step]
            else:
                return None
        return here

    def keys_beside(self, found: _Found) -> list[str]:
        """The keys that the section of an unknown key may have."""
        known = self.resolved(found.schemas[-2]).get("properties", {})
        return [name for name in known if len(found.key) > 1 or name not in self.hidden]

    # -------------------------------------------------------------------------------------------------- words

    def explain(self, found: _Found) -> None:
        key, kind, given = found.key, found.kind, found.fault["input"]
        schema = self.resolved(found.schemas[-1])
        if kind == "extra_forbidden":
            allowed, section = self.keys_beside(found), self.parent(key)
            free = [name for name in allowed if name not in section]
            # A key that is there already was hardly meant, unless it is all but the same.
            near = hint(key[-1], free, likeness=0.7) or hint(key[-1], allowed, likeness=0.8)
            self.tell(key, "an unknown key", f"one of {', '.join(allowed)}{near}")
        elif kind in {"union_tag_not_found", "union_tag_invalid"}:
            tag, tags = schema["discriminator"]["propertyName"], list(schema["discriminator"]["mapping"])
            stood = given.get(tag)
            self.tell((*key, tag), shown(stood), f"one of {', '.join(tags)}{hint(str(stood), tags)}")
        elif found.fault["loc"][-1:] == ("[key]",):
            self.tell(key, f"the name {shown(given)}", expected_name(found.fault))
        elif kind == "missing":
            self.tell(key, "nothing", f"{expected(schema)}: the key is required")
        else:
            self.tell(key, shown(given), expected(schema, given))

    def explain_clashes(self, found: _Found, doubtful: set[Key]) -> None:
        for clash in found.clashes:
            key = (*found.key, *clash.key.split(".")) if clash.key else found.key
            needs = [(*found.key, *need.split(".")) for need in clash.needs]
            if not within(key, doubtful) and not any(overlap(need, doubtful) for need in needs):
                self.tell(key, clash.found, clash.expected)

    # -------------------------------------------------------------------------------------------------- mending

    def take_out(self, found: _Found) -> None:
        """A misspelt key becomes the one that was meant, if that is not there; any other is forgotten."""
        section, key = self.parent(found.key), found.key
        if not isinstance(section, dict):
            return
        value = section.pop(key[-1], None)
        near = closest(key[-1], self.keys_beside(found))
        if near is None or near in section:
            return
        section[near] = value
        right = (*key[:-1], near)
        if isinstance(value, dict):
            self.result.renamed[right] = key
        else:
            self.result.doubtful.add(right)

    def repair(self, found: _Found) -> bool:
        """Make the place well formed; False when nothing can be done any more."""
        self.tries[found.key] += 1
        # What was mended in vain is mended one level up.
        key = found.key[: len(found.key) + 1 - self.tries[found.key]]
        if not key:
            return False
        section = self.parent(key)
        if found.clashes and isinstance(section, dict) and isinstance(section.get(key[-1]), list):
            for clash in found.clashes:
                self.tell_apart(section[key[-1]], key, int(clash.key))
            return True
        self.result.doubtful.add(key)
        removed = found.kind.startswith("union_tag") or found.fault["loc"][-1:] == ("[key]",)
        sample = self.sample(found.schemas[len(key)])
        if isinstance(section, list):
            place = int(key[-1])
            section[place : place + 1] = [sample]
            if section.count(sample) > 1:
                self.tell_apart(section, key[:-1], place)
        elif isinstance(section, dict):
            section.pop(key[-1], None)
            if not removed:
                section[key[-1]] = sample
        return True

    def tell_apart(self, values: list[Any], key: Key, index: int) -> None:
        """Another entry in the place of a repeated one."""
        self.result.doubtful.add((*key, str(index)))
        if isinstance(values[index], int):
            values[index] = next(number for number in range(1, len(values) + 2) if number not in values)
        else:
            values[index] = [f"x{index}", f"y{index}"] if isinstance(values[index], list) else f"x{index}"

    def sample(self, schema: Schema) -> Any:
        """Some value that fits a schema."""
        if "default" in schema:
            return copy.deepcopy(schema["default"])
        if any(option.get("type") == "null" for option in schema.get("anyOf", [])):
            return None
        schema = {**self.resolved(schema), **schema}
        if "examples" in schema:
            return copy.deepcopy(schema["examples"][0])
        if "oneOf" in schema:
            return self.sample(schema["oneOf"][0])
        if "const" in schema or "enum" in schema:
            return schema.get("const", next(iter(schema.get("enum", [])), None))
        kind = schema.get("type")
        if kind == "object":
            content = {name: self.sample(schema["properties"][name]) for name in schema.get("required", [])}
            if schema.get("minProperties"):
                content["x"] = self.sample(_below(schema, "x"))
            return content
        if kind == "array":
            items = schema.get("prefixItems") or [schema.get("items", {})] * schema.get("minItems", 0)
            return [self.sample(item) for item in items]
        if kind in {"integer", "number"}:
            return max(schema.get("minimum", 1), 1)
        return False if kind == "boolean" else "x"


@cache
def _schema_of(cls: type[BaseModel]) -> Schema:
    return cls.model_json_schema()


@dataclass
class _Found:
    """A fault of pydantic and where it is (see `_Form.at`)."""

    key: Key
    schemas: list[Schema]
    fault: ErrorDetails

    @property
    def kind(self) -> str:
        return self.fault["type"]

    @property
    def clashes(self) -> tuple[Clash, ...]:
        error = self.fault.get("ctx", {}).get("error")
        return error.clashes if isinstance(error, Contradiction) else ()


def _below(here: Schema, step: int | str) -> Schema:
    """The schema of an entry of a list or section."""
    if isinstance(step, int):
        items = here.get("prefixItems", [])
        return items[step] if step < len(items) else here.get("items", {})
    if step in here.get("properties", {}):
        return here["properties"][step]
    entries: Any = here.get("additionalProperties") or next(iter(here.get("patternProperties", {}).values()), {})
    return entries if isinstance(entries, dict) else {}


def expected_name(fault: ErrorDetails) -> str:
    """What the name of an entry must be."""
    context = fault.get("ctx", {})
    if fault["type"] == "literal_error":
        allowed = context["expected"].replace(" or ", ", ").replace("'", "").split(", ")
        return f"one of {', '.join(allowed)}{hint(str(fault['input']), allowed)}"
    if fault["type"] == "string_too_long":
        return f"a name of at most {context['max_length']} characters"
    return PATTERNS.get(context.get("pattern", ""), "a name")


def expected(schema: Schema, found: Any = None) -> str:
    """What a schema allows, in words; of a text, with what may be wrong with `found`."""
    kind = schema.get("type")
    if "const" in schema or "enum" in schema:
        allowed = [schema["const"]] if "const" in schema else schema["enum"]
        return f"one of {', '.join(map(str, allowed))}" + (hint(found, allowed) if isinstance(found, str) else "")
    if kind == "boolean":
        return "true or false"
    if kind in {"integer", "number"}:
        return ("a whole number" if kind == "integer" else "a number") + _range(schema)
    if kind == "array":
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        if most is not None:
            return f"a list of {most} entries"
        return "a list" + (f" of at least {least} {'entry' if least == 1 else 'entries'}" if least else "")
    if kind == "object" or "oneOf" in schema:
        least = schema.get("minProperties")
        if schema.get("required"):
            return f"a section of keys and values ({', '.join(schema['required'])})"
        bare = found is None and "examples" not in schema
        wanted = " with at least one entry" if least else " ({} for an empty one)" if bare else ""
        return "a section of keys and values" + wanted
    text = PATTERNS.get(schema.get("pattern", ""), "a text")
    if isinstance(found, str) and len(found) > schema.get("maxLength", len(found)):
        return f"at most {schema['maxLength']} characters"
    if isinstance(found, bool | int | float):
        text += f"; in quotes, '{shown(found)}' is one"
    return text if found != "" else text + " that is not empty"


def _range(schema: Schema) -> str:
    low, high, below = schema.get("minimum"), schema.get("maximum"), schema.get("exclusiveMaximum")
    if schema["type"] == "integer" and below is not None:
        high, below = below - 1, None
    if low is not None and high is not None:
        return f" from {low} to {high}"
    least = f", {low} or more" if low is not None else f" above {schema['exclusiveMinimum']}"
    most = "" if high is None and below is None else f" and below {below}" if high is None else f" and at most {high}"
    return least + most
