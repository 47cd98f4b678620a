"""Tasks and judges: the sections that are files of their own, named by the experiment."""

from __future__ import annotations

from collections.abc import Iterator
from string import Formatter
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from synopsis.config.types import (
    URL,
    VARIABLE,
    Clash,
    Contradiction,
    Distinct,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Share,
    Strict,
)

NotEmpty = Annotated[str, Field(min_length=1)]

PROMPT_FIELDS = ("instruction", "answer_a", "answer_b")
"""What a judge must be shown."""


class TaskSource(Strict):
    """Where a classification data set comes from; the mirror is used when one is named."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"hub": "stanfordnlp/sst2", "mirror": "icl/sst2"}]})

    world: Literal["eats", "visits", "wears"] | None = None
    """Verb of the generated language."""
    hub: str | None = None
    hub_config: str | None = None
    mirror: str | None = None
    """Folder below the data mirror."""

    @model_validator(mode="after")
    def _has_a_source(self) -> TaskSource:
        origins, clashes = ("world", "hub", "mirror"), []
        if self.world and (self.hub or self.mirror):
            beside = f"'{self.world}' beside another source"
            clashes.append(Clash("world", beside, "'world' alone, or 'hub' and 'mirror'", origins))
        if not (self.world or self.hub or self.mirror):
            clashes.append(Clash("", "no source", "'world', or 'hub', 'mirror' or both", origins))
        if self.hub_config and not self.hub:
            clashes.append(Clash("hub_config", repr(self.hub_config), "'hub' beside it", ("hub_config", "hub")))
        if clashes:
            raise Contradiction(*clashes)
        return self


class Task(Strict):
    """One classification data set of in-context learning: a file config/tasks/<name>.yaml."""

    source: TaskSource
    train_split: str = "train"
    """The split that demonstrations are drawn from."""
    test_split: str = "validation"
    template: str = Field(examples=["{sentence} {answer}"])
    """Text of an example with {column} fields; `{answer}` is the place of the option, which comes last.

    Where it stands more than once, every place shows the option."""
    columns: dict[NotEmpty, NotEmpty] = Field(default_factory=dict)
    """Field of the template, an option or the label -> column of the data, where their names differ."""
    input_fields: Annotated[list[str], Field(min_length=1), Distinct()]
    """Fields of the template that calibration replaces by "N/A"."""
    options: Annotated[list[NotEmpty], Field(min_length=2), Distinct()] | None = None
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
    demonstration_end: str = "\n\n"
    """Text after each demonstration; those of a chunk are tokenised as one string."""

    @field_validator("template")
    @classmethod
    def _shows_columns(cls, template: str) -> str:
        wrong = _fault_of(template)
        if wrong is not None:
            raise Contradiction(wrong)
        return template

    @field_validator("options")
    @classmethod
    def _can_be_read(cls, options: list[str] | None) -> list[str] | None:
        blank = [index for index, option in enumerate(options or []) if not option.strip()]
        if blank:
            wanted = "a text that is not only white space"
            raise Contradiction(*(Clash(str(index), repr((options or [])[index]), wanted) for index in blank))
        return options

    @model_validator(mode="after")
    def _complete(self) -> Task:
        clashes = [*self._option_clashes(), *self._field_clashes(), *self._column_clashes()]
        if clashes:
            raise Contradiction(*clashes)
        return self

    def _option_clashes(self) -> Iterator[Clash]:
        both = ("options", "option_fields")
        if (self.options is None) == (not self.option_fields):
            found = "neither of them" if self.options is None else "both of them"
            yield Clash("", found, "either 'options' or 'option_fields'", both)
        elif len(self.option_fields) == 1:
            yield Clash("option_fields", "one column", "at least 2, one for each option", both)
        elif self.option_fields and self.calibration == "dataset":
            wanted = "'example' or 'none': the options differ from row to row, and so do their calibrations"
            yield Clash("calibration", "'dataset' beside 'option_fields'", wanted, (*both, "calibration"))

    def _field_clashes(self) -> Iterator[Clash]:
        shown = template_columns(self.template)
        strange = ", ".join(f"{{{field}}}" for field in shown if field != "text")
        if self.source.world is not None and strange:
            allowed = "{text} and {answer}, all that the generated language has"
            yield Clash("template", strange, allowed, ("source", "template"))
        for index, field in enumerate(self.input_fields):
            if field not in shown:
                key, allowed = f"input_fields.{index}", ", ".join(shown) or "none is shown"
                yield Clash(key, repr(field), f"a column that the template shows ({allowed})", ("template", key))
            elif field in self.option_fields:
                wanted = "a field that is no option: after a content-free input the options stay as they are"
                yield Clash(f"input_fields.{index}", repr(field), wanted, ("option_fields", f"input_fields.{index}"))
        for key, fields in (
            ("template", shown),
            ("option_fields", self.option_fields),
            ("label_field", [self.label_field]),
        ):
            if "id" in fields:
                wanted = "another name (columns: {<name>: id}), since the id of a row is its number in the data"
                yield Clash(key, "'id', the name of a column", wanted, (key,))

    def _column_clashes(self) -> Iterator[Clash]:
        if self.source.world is not None:
            allowed = "nothing: the generated language has the columns text and label, and one list of options"
            for key in ("columns", "option_fields", "label_field"):
                if getattr(self, key) not in ({}, [], "label"):
                    yield Clash(key, "names of columns", allowed, ("source", key))
            return
        read = fields_of(self)
        for field in self.columns:
            key, needs = f"columns.{field}", ("template", "option_fields", "label_field")
            if field == "answer":
                wanted = "another name for this column, since {answer} is the place of the option"
                yield Clash(key, "'answer'", wanted, (key,))
            elif field not in read:
                allowed = f"a field of the template, an option or the label ({', '.join(read)})"
                yield Clash(key, f"'{field}', which is not read", allowed, (*needs, key))


def template_columns(template: str) -> list[str]:
    """The fields that a task's template shows, in their order, without `answer`."""
    names = [name for _, name, _, _ in Formatter().parse(template) if name is not None]
    return list(dict.fromkeys(name for name in names if name != "answer"))


def fields_of(task: Task) -> list[str]:
    """The fields of a row that a task reads: those of its template in their order, its options', the label."""
    return list(dict.fromkeys([*template_columns(task.template), *task.option_fields, task.label_field]))


def _fault_of(template: str) -> Clash | None:
    """What is wrong with a task's template; `str.format` could do more, but columns are all that there is to show."""
    try:
        fields = [part[1:] for part in Formatter().parse(template) if part[1] is not None]
    except ValueError:
        return Clash("", "braces that do not match", "{column} for a column, {{ and }} for braces of the text")
    for name, form, conversion in fields:
        if not name or name.isdigit() or set(name) & set(".[]{}") or form or conversion:
            written = f"{name}{'!' if conversion else ''}{conversion or ''}{':' if form else ''}{form or ''}"
            return Clash("", f"{{{written}}}", "the name of a column between braces, and nothing else")
    answers = [name for name, _, _ in fields].count("answer")
    if answers and template.rstrip().endswith("{answer}"):
        return None
    found = f"text after the {'last ' if answers > 1 else ''}{{answer}}" if answers else "no {answer}"
    return Clash("", found, "a text that ends with {answer}, the place of the option")


class JudgeDefinition(Strict):
    """One judge: a file config/judges/<name>.yaml."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"kind": "reference"}]})

    kind: Literal["reference", "openai"]
    """`reference`: an offline rule that prefers the answer nearer to the true output; `openai`: a chat service."""
    model: str | None = None
    base_url: Annotated[str, Field(pattern=URL)] | None = None
    """None: the client's default service."""
    api_key_env: Annotated[str, Field(pattern=VARIABLE)] = "OPENAI_API_KEY"
    """Environment variable that holds the key; keys never stand in files."""
    prompt: str | None = None
    """Template with {instruction}, {input}, {answer_a} and {answer_b}."""
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    max_tokens: PositiveInt = 512
    max_retries: NonNegativeInt = 5
    timeout_seconds: PositiveFloat = 60.0
    concurrency: Annotated[int, Field(ge=1, le=1000)] = 8
    tie_margin: Share = 0.0
    """`reference` only: ROUGE-L differences up to this are ties."""

    @model_validator(mode="after")
    def _complete(self) -> JudgeDefinition:
        read = {"tie_margin"} if self.kind == "reference" else set(type(self).model_fields) - {"tie_margin"}
        unread = sorted(self.model_fields_set - read - {"kind"})
        without = f"nothing: a judge of the kind '{self.kind}' does without"
        clashes = [Clash(key, "a key that is not read", without, (key, "kind")) for key in unread]
        if self.kind == "openai":
            if not self.model:
                wanted = "the name of the service's model, for a judge of the kind 'openai'"
                clashes.append(Clash("model", "nothing", wanted, ("model", "kind")))
            hidden = [f"{{{field}}}" for field in PROMPT_FIELDS if f"{{{field}}}" not in (self.prompt or "")]
            if hidden:
                found = "a text without " + ", ".join(hidden) if self.prompt else "nothing"
                wanted = "the question to the judge, with {instruction}, {answer_a} and {answer_b}"
                clashes.append(Clash("prompt", found, wanted, ("prompt", "kind")))
        if clashes:
            raise Contradiction(*clashes)
        return self
