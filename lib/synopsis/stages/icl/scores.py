"""In-context learning in the tidy scores: every result, with accuracies over the same examples for all models.

An example that is longer than one model's positions is left out for all of them: where a run dropped examples of a
data set, the accuracies of all runs, settings and seeds of that data set are counted again without them, from the
records of the single examples. A cell that failed has no accuracy (never zero), and its message is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from synopsis.artifacts import Layout, check_outputs, read_json
from synopsis.config.experiment import Experiment
from synopsis.errors import ArtifactError
from synopsis.progress import say
from synopsis.reporting.files import icl_records
from synopsis.reporting.reading import MEND, json_lines, required

RESULT_METRICS = ("dropped", "asked", "demonstrations", "unfilled", "over_budget", "summary_vectors")
COST_METRICS = ("tokens", "naive_tokens", "seconds", "examples_per_second")
RECORD_KEYS = ("setting", "id", "label", "prediction")

Row = dict[str, Any]


@dataclass(frozen=True)
class Result:
    """What one job measured: the results of its settings, and the ids of the examples that it had to leave out.

    examples: test examples of the data set, the dropped ones among them.
    """

    path: Path
    run: str
    seed: int
    settings: Mapping[str, Mapping[str, Any]]
    examples: int
    dropped: frozenset[Any]


@dataclass(frozen=True)
class Tally:
    """Examples that were scored, and how many of them were answered right."""

    n: int = 0
    right: int = 0

    @property
    def accuracy(self) -> float | None:
        return self.right / self.n if self.n else None


def icl_rows(experiment: Experiment) -> Iterator[tuple[str, Row]]:
    """(run, row) of every number, without what follows from the run; a failed cell's row has its `message` beside.

    Raises ArtifactError when a result is missing, damaged or made from other examples than those beside it.
    """
    for dataset in experiment.icl.datasets if experiment.icl else []:
        task = experiment.tasks.get(dataset)
        common = {"dataset": dataset, "split": task.test_split if task else ""}
        results = [
            _result(experiment, run, dataset, seed)
            for run in experiment.runs_of("icl")
            for seed in experiment.evaluation_seeds
        ]
        _same_count(results)
        excluded = frozenset().union(*(result.dropped for result in results))
        tallies = _over_common_examples(dataset, results, excluded) if excluded else {}
        for result in results:
            for setting, cell in result.settings.items():
                tally = tallies.get((result.path, setting))
                for row in _cell_rows(result.path, cell, tally, len(excluded)):
                    yield result.run, {**common, "seed": result.seed, "setting": setting, **row}


def accuracy_dictionary(
    experiment: Experiment, frame: pd.DataFrame
) -> dict[str, dict[str, dict[str, dict[str, float | None]]]]:
    """`accuracy_dict[model][dataset][experiment_name][seed]` (0..1); None for a failed cell or without examples.

    A setting without demonstrations is computed once and stands under every seed, since the draw does not touch it.
    """
    first, *later = experiment.evaluation_seeds
    accuracies = frame[(frame["stage"] == "icl") & (frame["metric"] == "accuracy")]
    nested: dict[str, dict[str, dict[str, dict[str, float | None]]]] = {}
    for row in accuracies.to_dict("records"):
        settings = nested.setdefault(row["run"], {}).setdefault(row["dataset"], {})
        value = None if pd.isna(row["value"]) else float(row["value"])
        settings.setdefault(row["setting"], {})[str(row["seed"])] = value
        if row["seed"] == first:
            once = [
                seed for seed in later if row["setting"] not in experiment.settings_of(row["run"], row["dataset"], seed)
            ]
            settings[row["setting"]] |= {str(seed): value for seed in once}
    return nested


# ------------------------------------------------------------------------------------------------------- results


def _result(experiment: Experiment, run: str, dataset: str, seed: int) -> Result:
    path = Layout(experiment).icl(run, dataset, seed)
    document = read_json(path, "icl")
    check_outputs(path)
    measured = required(path, document, "settings")
    return Result(
        path=path,
        run=run,
        seed=seed,
        settings={name: required(path, measured, name) for name in experiment.settings_of(run, dataset, seed)},
        examples=required(path, document, "examples"),
        dropped=frozenset(required(path, document, "dropped")),
    )


def _same_count(results: Iterable[Result]) -> None:
    first, *others = results
    for other in others:
        if other.examples != first.examples:
            raise ArtifactError(
                f"{other.path}: made from {other.examples} test examples, {first.path} from {first.examples}; "
                "expected the same for all. Delete the older one and run again."
            )


def _cell_rows(path: Path, cell: Mapping[str, Any], tally: Tally | None, excluded: int) -> Iterator[Row]:
    """Accuracy and its examples as they were measured, or by `tally` where examples were left out for all."""
    yield {"metric": "excluded", "value": excluded}
    if "error" in cell:
        yield {"metric": "accuracy", "value": None}
        yield {"metric": "failed", "value": 1, "message": str(cell["error"])}
        return
    scored, cost = required(path, cell, "n"), required(path, cell, "cost")
    accuracy, n = (required(path, cell, "accuracy"), scored) if tally is None else (tally.accuracy, tally.n)
    yield {"metric": "accuracy", "value": accuracy, "n": n}
    yield {"metric": "failed", "value": 0}
    yield from ({"metric": name, "value": required(path, cell, name), "n": n} for name in RESULT_METRICS)
    yield from ({"metric": name, "value": required(path, cost, name), "n": scored} for name in COST_METRICS)


# ---------------------------------------------------------------------------------------- the same examples for all


def _over_common_examples(
    dataset: str, results: Iterable[Result], excluded: frozenset[Any]
) -> dict[tuple[Path, str], Tally]:
    """(path of a result, setting) -> right answers among the examples that no run dropped."""
    say(f"{dataset}: left out for all, since a model's positions do not hold them: {len(excluded)} test examples")
    tallies: dict[tuple[Path, str], Tally] = {}
    known: frozenset[Any] | None = None
    for result in results:
        records = icl_records(result.path)
        answers = _answers(records, result)
        for setting, of_setting in answers.items():
            _agree(records, result, setting, of_setting)
            ids = result.dropped.union(of_setting)
            known = ids if known is None else known
            if ids != known:
                raise ArtifactError(
                    f"{records}: setting {setting!r} has other examples than the results before it of {dataset!r}. "
                    f"Delete the results of {dataset!r} and run again."
                )
            kept = [right for example, right in of_setting.items() if example not in excluded]
            tallies[result.path, setting] = Tally(len(kept), sum(kept))
    return tallies


def _answers(path: Path, result: Result) -> dict[str, dict[Any, bool]]:
    """Setting -> id of an example -> whether it was answered right, for the settings that did not fail."""
    answers: dict[str, dict[Any, bool]] = {name: {} for name, cell in result.settings.items() if "error" not in cell}
    for record in json_lines(path, RECORD_KEYS, "icl"):
        if record["setting"] in answers:
            answers[record["setting"]][record["id"]] = record["prediction"] == record["label"]
    return answers


def _agree(path: Path, result: Result, setting: str, answers: Mapping[Any, bool]) -> None:
    """Raise ArtifactError where the records of a setting are not those that its result was counted from."""
    cell = result.settings[setting]
    told = Tally(required(result.path, cell, "n"), round((required(result.path, cell, "accuracy") or 0) * cell["n"]))
    found = Tally(len(answers), sum(answers.values()))
    if found != told:
        raise ArtifactError(
            f"{path}: setting {setting!r} has {found.n} examples, {found.right} of them answered right; "
            f"expected {told.n} and {told.right}, as in {result.path.name}. {MEND.replace('it', 'both')}"
        )
