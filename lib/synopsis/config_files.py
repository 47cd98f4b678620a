"""Tasks and judges: the sections that are files of their own, named by the experiment."""

from __future__ import annotations

from string import Formatter
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator

from synopsis.config_types import URL, VARIABLE, Contradiction, Distinct, PositiveFloat, Share, Strict

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
        if self.world and (self.hub or self.mirror):
            raise Contradiction(
                ("world", f"'{self.world}' beside another source", "'world' alone, or 'hub' and 'mirror'")
            )
        if not (self.world or self.hub or self.mirror):
            raise Contradiction((None, "no source", "'world', or 'hub', 'mirror' or both"))
        if self.hub_config and not self.hub:
            raise Contradiction(("hub_config", repr(self.hub_config), "'hub' beside it"))
        return self


class Task(Strict):
    """One classification data set of in-context learning: a file config/tasks/<name>.yaml."""

    source: TaskSource
    train_split: str = "train"
    """The split that demonstrations are drawn from."""
    test_split: str = "validation"
    template: str
    """Text of an example with {column} fields; `{answer}` marks where the option goes and comes last."""
    input_fields: Annotated[list[str], Field(min_length=1), Distinct()]
    """Columns that calibration replaces by "N/A"."""
    options: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=2), Distinct()] | None = None
    """Option texts in label order; None reads the options of each row from `option_fields`."""
    option_fields: Annotated[list[str], Distinct()] = Field(default_factory=list)
    label_field: str = "label"
    calibrate: bool = False
    """Subtract the loss of each option after a content-free input."""
    balanced: bool = False
    """Draw the same number of demonstrations of each label."""
    tokens_per_demonstration: PositiveInt | None = None
    """Published mean length; the demonstrations that fit a budget are budget // this. None: as many as really fit."""
    demonstration_end: str = "\n\n"

    @model_validator(mode="after")
    def _complete(self) -> Task:
        faults: list[tuple[str | None, str, str]] = []
        if (self.options is None) == (not self.option_fields):
            found = "neither of them" if self.options is None else "both of them"
            faults.append((None, found, "either 'options' or 'option_fields'"))
        elif len(self.option_fields) == 1:
            faults.append(("option_fields", "one column", "at least 2, one for each option"))
        columns, wrong = template_columns(self.template)
        if wrong is not None:
            faults.append(("template", *wrong))
        elif self.source.world is not None and set(columns) - {"text"}:
            strange = ", ".join(f"{{{column}}}" for column in columns if column != "text")
            faults.append(("template", strange, "{text} and {answer}, all that the generated language has"))
        for index, field in enumerate(self.input_fields):
            if wrong is None and field not in columns:
                shown = ", ".join(columns) or "none is shown"
                faults.append((f"input_fields.{index}", repr(field), f"a column that the template shows ({shown})"))
        if faults:
            raise Contradiction(*faults)
        return self


def template_columns(template: str) -> tuple[list[str], tuple[str, str] | None]:
    """Columns that a task's template shows, and what is wrong with it: (found, expected), or None."""
    try:
        fields = [
            (name, spec, conversion) for _, name, spec, conversion in Formatter().parse(template) if name is not None
        ]
    except ValueError:
        return [], ("braces that do not match", "{column} for a column, {{ and }} for braces of the text")
    for name, spec, conversion in fields:
        if not name or name.isdigit() or set(name) & set(".[]{}") or spec or conversion:
            written = name + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
            return [], (f"{{{written}}}", "the name of a column between braces, and nothing else")
    answers = sum(name == "answer" for name, _, _ in fields)
    if answers != 1 or not template.rstrip().endswith("{answer}"):
        found = (
            "a text without {answer}"
            if not answers
            else f"{answers} times {{answer}}"
            if answers > 1
            else "text after {answer}"
        )
        return [], (found, "a text that shows {answer} once, at its end")
    return list(dict.fromkeys(name for name, _, _ in fields if name != "answer")), None


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
    concurrency: PositiveInt = 8
    tie_margin: Share = 0.0
    """`reference` only: ROUGE-L differences up to this are ties."""

    @model_validator(mode="after")
    def _complete(self) -> JudgeDefinition:
        read = {"tie_margin"} if self.kind == "reference" else set(type(self).model_fields) - {"tie_margin"}
        faults: list[tuple[str | None, str, str]] = [
            (key, "a key that this judge does not read", f"nothing: a judge of kind '{self.kind}' works without")
            for key in sorted(self.model_fields_set - read - {"kind"})
        ]
        if self.kind == "openai":
            if not self.model:
                faults.append(("model", "nothing", "the name of the service's model: the kind 'openai' needs it"))
            hidden = [f"{{{field}}}" for field in PROMPT_FIELDS if f"{{{field}}}" not in (self.prompt or "")]
            if hidden:
                found = "a text without " + ", ".join(hidden) if self.prompt else "nothing"
                wanted = "the question to the judge, with {instruction}, {answer_a} and {answer_b}"
                faults.append(("prompt", found, wanted))
        if faults:
            raise Contradiction(*faults)
        return self


PROMPT_FIELDS = ("instruction", "answer_a", "answer_b")
"""What a judge must be shown."""
