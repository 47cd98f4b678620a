"""Tasks, judges and tables: the sections that are files of their own, named by the experiment."""

from __future__ import annotations

from collections.abc import Iterator
from string import Formatter
from typing import Annotated, Literal

from pydantic import Field

from synopsis.config.types import (
    URL,
    VARIABLE,
    Distinct,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Problem,
    Share,
    Strict,
    Text,
)

NotEmpty = Annotated[str, Field(min_length=1)]

PROMPT_FIELDS = ("instruction", "answer_a", "answer_b")
"""What a judge must be shown."""


class TaskSource(Strict):
    """Where a classification data set comes from; the mirror is used when one is named."""

    world: Literal["eats", "visits", "wears"] | None = None
    """Verb of the generated language."""
    hub: str | None = None
    hub_config: str | None = None
    mirror: str | None = None
    """Folder below the data mirror."""

    def problems(self) -> Iterator[Problem]:
        if self.world and (self.hub or self.mirror):
            found = f"'{self.world}' beside another source"
            yield Problem(("world",), found, "'world' alone, or 'hub' and 'mirror'")
        if not (self.world or self.hub or self.mirror):
            yield Problem((), "no source", "'world', or 'hub', 'mirror' or both")
        if self.hub_config and not self.hub:
            yield Problem(("hub_config",), repr(self.hub_config), "'hub' beside it")


class Task(Strict):
    """One classification data set of in-context learning: a file config/tasks/<name>.yaml."""

    source: TaskSource
    train_split: str = "train"
    """The split that demonstrations are drawn from."""
    test_split: str = "validation"
    template: str
    """Text of an example with {column} fields; `{answer}` is the place of the option, which comes last.

    Where it stands more than once, every place shows the option."""
    columns: dict[NotEmpty, NotEmpty] = Field(default_factory=dict)
    """Field of the template, an option or the label -> column of the data, where their names differ."""
    input_fields: Annotated[list[str], Field(min_length=1), Distinct()]
    """Fields of the template that calibration replaces by "N/A"."""
    options: Annotated[list[Text], Field(min_length=2), Distinct()] | None = None
    """Option texts in label order; None reads the options of each row from `option_fields`."""
    option_fields: Annotated[list[str], Distinct()] = Field(default_factory=list)
    label_field: str = "label"
    calibration: Literal["none", "dataset", "example"] = "none"
    """Subtract the score of each option after a content-free input: once, made of the first test row, for the whole
    data set, or for each example its own."""
    normalization: Literal["mean", "sum", "bytes"] = "mean"
    """How the loss of an option is counted: the mean or the sum over its tokens, or the sum over its UTF-8 bytes."""
    balanced: bool = False
    """Draw the same number of demonstrations of each label."""
    tokens_per_demonstration: PositiveInt | None = None
    """Published mean length; the demonstrations that fit a budget are budget // this. None: as many as really fit."""

    def problems(self) -> Iterator[Problem]:
        wrong = _fault_of(self.template)
        if wrong is not None:
            yield Problem(("template",), *wrong)
        else:
            yield from self._field_problems()
        if (self.options is None) == (not self.option_fields):
            found = "neither of them" if self.options is None else "both of them"
            yield Problem((), found, "either 'options' or 'option_fields'")
        elif len(self.option_fields) == 1:
            yield Problem(("option_fields",), "one column", "at least 2, one for each option")
        elif self.option_fields and self.calibration == "dataset":
            wanted = "'example' or 'none': the options differ from row to row, and so do their calibrations"
            yield Problem(("calibration",), "'dataset' beside 'option_fields'", wanted)

    def _field_problems(self) -> Iterator[Problem]:
        visible, world = template_columns(self.template), self.source.world is not None
        strange = ", ".join(f"{{{field}}}" for field in visible if field != "text")
        if world and strange:
            yield Problem(("template",), strange, "{text} and {answer}, all that the generated language has")
        for index, field in enumerate(self.input_fields):
            if field not in visible:
                wanted = f"a column that the template shows ({', '.join(visible) or 'none is shown'})"
                yield Problem(("input_fields", str(index)), repr(field), wanted)
            elif field in self.option_fields:
                wanted = "a field that is no option: after a content-free input the options stay as they are"
                yield Problem(("input_fields", str(index)), repr(field), wanted)
        places = {"template": visible, "option_fields": self.option_fields, "label_field": [self.label_field]}
        for key, fields in places.items():
            if "id" in fields:
                wanted = "another name (columns: {<name>: id}), since the id of a row is its number in the data"
                yield Problem((key,), "'id', the name of a column", wanted)
        for key in ("columns", "option_fields", "label_field"):
            if world and getattr(self, key) not in ({}, [], "label"):
                wanted = "nothing: the generated language has the columns text and label, and one list of options"
                yield Problem((key,), "names of columns", wanted)
        for field in self.columns if not world else ():
            if field == "answer":
                wanted = "another name for this column, since {answer} is the place of the option"
                yield Problem(("columns", field), "'answer'", wanted)
            elif field not in fields_of(self):
                wanted = f"a field of the template, an option or the label ({', '.join(fields_of(self))})"
                yield Problem(("columns", field), f"'{field}', which is not read", wanted)


def template_columns(template: str) -> list[str]:
    """The fields that a task's template shows, in their order, without `answer`."""
    names = [name for _, name, _, _ in Formatter().parse(template) if name is not None]
    return list(dict.fromkeys(name for name in names if name != "answer"))


def fields_of(task: Task) -> list[str]:
    """The fields of a row that a task reads: those of its template in their order, its options', the label."""
    return list(dict.fromkeys([*template_columns(task.template), *task.option_fields, task.label_field]))


def _fault_of(template: str) -> tuple[str, str] | None:
    """What stood in a template and what is allowed: `str.format` could do more, but only columns can be shown."""
    try:
        fields = [part[1:] for part in Formatter().parse(template) if part[1] is not None]
    except ValueError:
        return ("braces that do not match", "{column} for a column, {{ and }} for braces of the text")
    for name, form, conversion in fields:
        if not name or name.isdigit() or set(name) & set(".[]{}") or form or conversion:
            written = f"{name}{'!' if conversion else ''}{conversion or ''}{':' if form else ''}{form or ''}"
            return (f"{{{written}}}", "the name of a column between braces, and nothing else")
    answers = [name for name, _, _ in fields].count("answer")
    if answers and template.rstrip().endswith("{answer}"):
        return None
    found = f"text after the {'last ' if answers > 1 else ''}{{answer}}" if answers else "no {answer}"
    return (found, "a text that ends with {answer}, the place of the option")


class Price(Strict):
    """Of a million tokens, in any currency."""

    prompt: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    completion: Annotated[float, Field(ge=0, allow_inf_nan=False)]


class JudgeDefinition(Strict):
    """One judge: a file config/judges/<name>.yaml."""

    kind: Literal["reference", "openai", "replay"]
    """`reference`: an offline rule that prefers the answer nearer to the true output; `openai`: a chat service;
    `replay`: judgements that were recorded before."""
    model: str | None = None
    base_url: Annotated[str, Field(pattern=URL)] | None = None
    """None: the client's default service."""
    api_key_env: Annotated[str, Field(pattern=VARIABLE)] = "OPENAI_API_KEY"
    """Environment variable that holds the key; keys never stand in files."""
    prompt: str | None = None
    """Template with {instruction}, {input}, {answer_a} and {answer_b}."""
    parser: Literal["choice_json", "choice_ab"] = "choice_json"
    """How an answer is read: its `choice` is 0, 1 or 2 (equal), or as published A (the answer shown first), B, tie."""
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    max_tokens: PositiveInt = 512
    max_retries: NonNegativeInt = 5
    timeout_seconds: PositiveFloat = 60.0
    concurrency: Annotated[int, Field(ge=1, le=1000)] = 8
    structured: bool = False
    """Ask for JSON of the form that the parser reads; a service that refuses is asked without."""
    price: Price | None = None
    max_cost: PositiveFloat | None = None
    """Of one comparison, in the currency of `price`: asking stops before this is passed."""
    max_error_share: Share = 0.0
    """Judgements that may stay without an answer; with more of them the stage fails."""
    tie_margin: Share = 0.0
    """`reference` only: ROUGE-L differences up to this are ties."""
    judgements: NotEmpty | None = None
    """`replay` only: a store of judgements (.jsonl), a released comparison (.json), or a folder of stores."""

    def problems(self) -> Iterator[Problem]:
        own = {"reference": {"tie_margin"}, "replay": {"judgements"}}
        read = {"kind", *own.get(self.kind, set(type(self).model_fields) - {"tie_margin", "judgements"})}
        for key in sorted(self.model_fields_set - read):
            wanted = f"nothing: a judge of the kind '{self.kind}' does without"
            yield Problem((key,), "a key that is not read", wanted)
        if self.kind == "replay" and not self.judgements:
            yield Problem(("judgements",), "nothing", "the file of the recorded judgements")
        if self.kind != "openai":
            return
        if not self.model:
            yield Problem(("model",), "nothing", "the name of the service's model, for a judge of the kind 'openai'")
        if self.max_cost is not None and self.price is None:
            yield Problem(("max_cost",), "a limit without a price", "`price: {prompt: ..., completion: ...}` beside it")
        hidden = [f"{{{field}}}" for field in PROMPT_FIELDS if f"{{{field}}}" not in (self.prompt or "")]
        if hidden:
            found = "a text without " + ", ".join(hidden) if self.prompt else "nothing"
            wanted = "the question to the judge, with {instruction}, {answer_a} and {answer_b}"
            yield Problem(("prompt",), found, wanted)


class TableDefinition(Strict):
    """A table of means of one metric of a stage: a file config/tables/<name>.yaml."""

    stage: str
    metric: str
    """As `synopsis scores` lists it."""
    rows: Annotated[list[str], Field(min_length=1), Distinct()]
    """Columns of the scores; each combination of their values that occurs is a row."""
    columns: str | None = None
    """The column whose values are the columns of the table; None: one column."""
    where: dict[str, str | int | float | list[str | int | float]] = Field(default_factory=dict)
    """Only scores with this value, or one of these values, in a column."""
    title: NotEmpty
    caption: str = ""
    factor: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    """100 for shares that are to be shown in percent."""
    digits: Annotated[int, Field(ge=0, le=12)] = 2
    best: Literal["highest", "lowest"] | None = None
    """Marks the best mean of each column."""
