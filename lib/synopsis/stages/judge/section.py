"""Judging: its section of the YAML."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from synopsis.artifacts import Layout
from synopsis.config.checks import measured, unknown
from synopsis.config.types import Distinct, Name, Problem, Strict
from synopsis.stages.record import AMOUNT, COUNT, SHARE, Bounds, Stage

if TYPE_CHECKING:
    from synopsis.config.experiment import Experiment


class Judge(Strict):
    """Pairwise judgements of the outputs of two compressors."""

    judges: Annotated[list[Name], Field(min_length=1), Distinct()]
    """Names of files in config/judges."""
    pairs: Annotated[list[Annotated[tuple[Name, Name], Field(strict=False)]], Field(min_length=1), Distinct()]
    """Compressors: the one in question, and the one it is compared with."""

    def check(self, experiment: Experiment) -> Iterator[Problem]:
        """What does not fit the rest of the experiment."""
        if experiment.generate is None:
            yield Problem(("judge",), "judgements without outputs", "a section 'generate' beside it")
            return
        generating = measured(experiment, "generate")
        for index, (a, b) in enumerate(self.pairs):
            key = ("judge", "pairs", str(index))
            for place, name in enumerate((a, b)):
                yield from unknown((*key, str(place)), name, "a compressor whose outputs are generated", generating)
            if a == b:
                yield Problem(key, f"'{a}' against itself", "two different compressors")
            elif {a, b} <= generating.keys() and not experiment.paired_runs(a, b):
                found = (
                    f"'{a}' with the training seeds {experiment.seeds_of(a)} and '{b}' with {experiment.seeds_of(b)}"
                )
                yield Problem(key, found, "two compressors with a training seed in common")


def _outputs(layout: Layout, judge: str, a: str, b: str, split: str) -> list[Path]:
    """The summary. The store of single judgements is no declared output: a failed job keeps it."""
    return [layout.judgements(judge, a, b, split).with_suffix(".json")]


def _inputs(experiment: Experiment, judge: str, a: str, b: str, split: str) -> list[Path]:
    layout = Layout(experiment)
    outputs = [layout.generations(run, split) for run in (a, b)]
    return [*outputs, layout.instructions(experiment.generate.instructions)]


def _grid(experiment: Experiment) -> Iterator[dict[str, Any]]:
    if experiment.judge is None or experiment.generate is None:
        return
    for judge in experiment.judge.judges:
        for a, b in experiment.judged_pairs():
            yield from ({"judge": judge, "a": a, "b": b, "split": split} for split in experiment.generate.splits)


STAGE = Stage(
    name="judge",
    kind="judgement_summary",
    wildcards=("judge", "a", "b", "split"),
    outputs=_outputs,
    inputs=_inputs,
    parts=lambda experiment, judge, a, b, split: ("judge", experiment.judges[judge]),
    grid=_grid,
    section=Judge,
    place=5,
    title="Instructions",
    resumes=True,
    axes={"judge": str, "against": str},
    metrics={
        **dict.fromkeys(("judgements", "win", "lose", "tie", "parse_error", "api_error", "unmatched"), COUNT),
        **dict.fromkeys(("decided", "first_position_wins"), COUNT),
        **dict.fromkeys(("scored", "identical", "both_orders", "consistent"), Bounds(whole=True, of_n=True)),
        **dict.fromkeys(("win_rate", "win_rate_low", "win_rate_high", "tie_rate", "length_controlled"), SHARE),
        **dict.fromkeys(("longer_wins", "sign_test", "agreement"), SHARE),
        **dict.fromkeys(("length_a", "length_b"), AMOUNT),
    },
)
