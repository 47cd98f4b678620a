"""The section `needle`: a fact is hidden in a long text and asked for (Mohtashami and Jaggi 2023, section 4.2)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from synopsis.artifacts import Layout
from synopsis.compressors.section import steps
from synopsis.config.checks import chosen_runs, measured, too_long
from synopsis.config.types import Distinct, Name, PositiveInt, Problem, Seed, Share, Strict, Text
from synopsis.stages.record import COUNT, Bounds, Stage, of_runs, untrained

if TYPE_CHECKING:
    from synopsis.config.experiment import Experiment

KEY = "{key}"
FILLER = (
    "A narrow road leads over the hill to the next village.",
    "Soup and bread are served at noon in the long hall.",
    "In spring the water of the lake rises by a hand.",
    "Two dogs sleep beside the warm stove.",
    "The mail comes by boat on Tuesdays and Fridays.",
    "Nets hang to dry behind the boathouse.",
    "Somebody has painted the fence white again.",
    "From the tower one can see as far as the coast.",
    "The children gather pears in the garden of the mill.",
    "When the wind turns, it usually begins to rain.",
)


class Needle(Strict):
    """Retrieval of a key that one sentence of a long text states: does the compressed context still hold the fact?

    Each cell of the grid is a length of the context and a depth at which the sentence stands in it. The defaults are in
    English; models of the generated language need texts of their own.
    """

    lengths: Annotated[list[PositiveInt], Field(min_length=1), Distinct()]
    """Tokens of the context, the needle and the token that begins a text counted; the question comes after them."""
    depths: Annotated[list[Share], Field(min_length=1), Distinct()] = Field(default=[0.0, 0.25, 0.5, 0.75, 1.0])
    """Where the needle stands: 0 is the beginning of the context, 1 its end."""
    examples: PositiveInt = 10
    """Texts of each cell."""
    tokens_per_step: PositiveInt
    """Context tokens compressed in one step."""
    filler: Annotated[list[Text], Field(min_length=1)] = Field(default=list(FILLER))
    """Sentences that fill the context, in this order and again from the first, from one that is drawn."""
    needle: Text = "Remember this: the secret number is {key}."
    """The sentence that states the key; it ends as the sentences of `filler` do."""
    question: Text = "What was the secret number? The secret number is"
    """What stands after the context; the key follows it, after a space where the question does not end with one."""
    keys: Annotated[list[Text], Field(min_length=2), Distinct()] | None = None
    """What the needle may state; None: numbers of five digits."""
    choices: Annotated[int, Field(ge=2, le=1000)] = 10
    """Keys to choose among, the true one included, so that chance is 1 / choices."""
    seed: Seed = 0
    """Of the keys and of where the filler begins."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    batch_tokens: PositiveInt | None = None
    """Tokens read in one pass, halved when memory does not suffice; None: 512 on CPUs, 4096 on GPUs."""
    runs: Annotated[list[Name], Field(min_length=1), Distinct()] | None = None
    """Models and compressors; None: all that read plain text."""

    def problems(self) -> Iterator[Problem]:
        if KEY not in self.needle:
            yield Problem(("needle",), f"no {KEY}", f"a sentence that shows {KEY} where the key stands")
        if KEY in self.question:
            yield Problem(("question",), KEY, f"a text without {KEY}: the key follows at its end")
        if self.keys is not None and len(self.keys) < self.choices:
            wanted = f"{self.choices} or more, as many as 'choices' says"
            yield Problem(("keys",), f"{len(self.keys)} keys", wanted)

    def check(self, experiment: Experiment) -> Iterator[Problem]:
        """What does not fit the rest of the experiment."""
        yield from chosen_runs(experiment, "needle")
        chunks = steps(min(self.lengths), self.tokens_per_step)
        for name, subject in measured(experiment, "needle").items():
            # Lengths that are too long are left out, but one must be left.
            last = {**subject.context(chunks), "tokens of the question and the key": 2}
            yield from too_long(experiment, ("needle", "lengths"), name, *subject.passes(chunks), last)
            base = experiment.base_named(name)
            model = experiment.models.get(base)
            if model is not None and model.architecture is not None:
                yield from self._english(base)

    def _english(self, base: str) -> Iterator[Problem]:
        """A model from scratch knows the words of the generated language alone; the default texts have others."""
        for field in ("filler", "needle", "question", "keys"):
            if getattr(self, field) == Needle.model_fields[field].default:
                found = f"the default text, English, for '{base}', trained from scratch"
                yield Problem(("needle", field), found, "words of the generated language")


def _outputs(layout: Layout, run: str) -> list[Path]:
    return [layout.needle(run), layout.examples(layout.needle(run))]


def _inputs(experiment: Experiment, run: str) -> list[Path]:
    return [Layout(experiment).weights(run), Layout(experiment).tokenizer(experiment.base_of(run))]


def _parts(experiment: Experiment, run: str) -> tuple[Any, ...]:
    section = experiment.needle.model_dump(exclude={"runs", "batch_tokens"})
    return "needle", section, run, *untrained(experiment, run)


STAGE = Stage(
    name="needle",
    kind="needle",
    wildcards=("run",),
    outputs=_outputs,
    inputs=_inputs,
    parts=_parts,
    grid=of_runs("needle"),
    section=Needle,
    place=3,
    title="Needle",
    axes={"length": int, "depth": float},
    metrics={
        **dict.fromkeys(("choice", "exact"), Bounds(most=1, due=True, same_examples=True)),
        "loss": Bounds(due=True),
        **dict.fromkeys(("summary_vectors", "skipped"), COUNT),
    },
)
