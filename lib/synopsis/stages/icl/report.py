"""In-context learning in the scores, tables and figure, with accuracies over the same examples for all models.

An example that is longer than one model's positions is left out for all of them: where a run dropped examples of a
data set, the accuracies of all runs, settings and seeds of that data set are counted again without them, from the
records of the single examples. A cell that failed has no accuracy (never zero), and its message is kept.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from synopsis.artifacts import check_outputs
from synopsis.errors import ArtifactError
from synopsis.progress import say
from synopsis.reporting.items import figure, table
from synopsis.reporting.reading import Result, json_lines, read_result
from synopsis.reporting.rendering import Cell, Column, Table, at_most, cell_text, counts_text
from synopsis.reporting.statistics import Estimate, Group, distinct, exists, failures, groups
from synopsis.stages.icl.section import STAGE, settings_of
from synopsis.stages.record import Job

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from synopsis.config.experiment import Experiment
    from synopsis.reporting.style import Style

RESULT_METRICS = ("dropped", "asked", "demonstrations", "unfilled", "over_budget", "summary_vectors")
COST_METRICS = ("tokens", "naive_tokens", "seconds", "examples_per_second")
RECORD_KEYS = ("setting", "id", "label", "prediction")
FAILED = "failed"
EMPTY_MARK, PARTIAL_MARK = "†", "‡"
MARKS = {
    EMPTY_MARK: "No demonstration fits the budget: the same as zero-shot.",
    PARTIAL_MARK: "Over the draws that did not fail.",
}
MOST_FAILURES, MOST_CELLS, LONGEST_MESSAGE = 6, 3, 200
MEAN_TITLE = "mean of the data sets"
CHANCE_LINE: dict[str, Any] = {"color": "#6b6b6b", "linewidth": 1.1, "linestyle": (0, (5, 3))}
ZERO_SHOT_LINE: dict[str, Any] = {"linewidth": 0.9, "linestyle": ":"}


# --------------------------------------------------------------------------------------------------------- scores


class Measured:
    """What one job measured. examples: test examples of the data set, the dropped ones among them."""

    def __init__(self, experiment: Experiment, job: Job):
        self.path, self.records = job.outputs
        self.wildcards = job.wildcards
        document = read_result(self.path, STAGE.kind)
        check_outputs(self.path)
        cells = document.part("settings")
        self.settings = {name: cells.part(name) for name in settings_of(experiment, **job.wildcards)}
        self.examples, self.dropped = document["examples"], frozenset(document["dropped"])

    def answers(self) -> dict[str, dict[Any, bool]]:
        """Setting -> id of an example -> whether it was answered right, for the settings that did not fail.

        ArtifactError where the records are not those that the result was counted from.
        """
        found: dict[str, dict[Any, bool]] = {name: {} for name, cell in self.settings.items() if "error" not in cell}
        for record in json_lines(self.records, RECORD_KEYS, STAGE.name):
            if record["setting"] in found:
                found[record["setting"]][record["id"]] = record["prediction"] == record["label"]
        for setting, answers in found.items():
            cell = self.settings[setting]
            expected = cell["n"], round((cell["accuracy"] or 0) * cell["n"])
            if (len(answers), sum(answers.values())) != expected:
                raise ArtifactError(
                    f"{self.records}: setting {setting!r} has {len(answers)} examples, {sum(answers.values())} of them "
                    f"answered right; expected {expected[0]} and {expected[1]}, as in {self.path.name}. "
                    "Delete both and run again."
                )
        return found


def rows(experiment: Experiment) -> Iterator[dict[str, Any]]:
    """Every number of every run; a failed cell's row has its `message` beside.

    Raises ArtifactError when a result is missing, damaged or made from other examples than those beside it.
    """
    jobs = STAGE.jobs(experiment)
    for dataset in experiment.icl.datasets:
        results = [Measured(experiment, job) for job in jobs if job.wildcards["dataset"] == dataset]
        for other in results:
            if other.examples != results[0].examples:
                raise ArtifactError(
                    f"{other.path}: made from {other.examples} test examples, {results[0].path} from "
                    f"{results[0].examples}; expected the same for all. Delete the older one and run again."
                )
        excluded = frozenset[Any]().union(*(result.dropped for result in results))
        counted = _over_common_examples(dataset, results, excluded) if excluded else {}
        task = experiment.tasks.get(dataset)
        common = {"split": task.test_split if task else ""}
        for result in results:
            for setting, cell in result.settings.items():
                place = {**common, **result.wildcards, "setting": setting}
                answers = counted.get((result.path, setting))
                yield from ({**place, **row} for row in _cell_rows(cell, answers, len(excluded)))


def _cell_rows(cell: Result, answers: list[bool] | None, excluded: int) -> Iterator[dict[str, Any]]:
    """Accuracy and its examples as they were measured, or by `answers` where examples were left out for all."""
    yield {"metric": "excluded", "value": excluded}
    if "error" in cell:
        yield {"metric": "accuracy", "value": None}
        yield {"metric": "failed", "value": 1, "message": str(cell["error"])}
        return
    accuracy, n = cell["accuracy"], cell["n"]
    if answers is not None:
        accuracy, n = sum(answers) / len(answers) if answers else None, len(answers)
    yield {"metric": "accuracy", "value": accuracy, "n": n}
    yield {"metric": "failed", "value": 0}
    yield from ({"metric": metric, "value": cell[metric], "n": n} for metric in RESULT_METRICS)
    cost = cell.part("cost")
    yield from ({"metric": metric, "value": cost[metric], "n": cell["n"]} for metric in COST_METRICS)


def _over_common_examples(
    dataset: str, results: Iterable[Measured], excluded: frozenset[Any]
) -> dict[tuple[Any, str], list[bool]]:
    """(path of a result, setting) -> whether each of the examples was answered right that no run dropped."""
    say(f"{dataset}: left out for all, since a model's positions do not hold them: {len(excluded)} test examples")
    counted, known = {}, None
    for result in results:
        for setting, answers in result.answers().items():
            ids = result.dropped.union(answers)
            known = ids if known is None else known
            if ids != known:
                raise ArtifactError(
                    f"{result.records}: setting {setting!r} has other examples than the results before it of "
                    f"{dataset!r}. Delete the results of {dataset!r} and run again."
                )
            counted[result.path, setting] = [right for id, right in answers.items() if id not in excluded]
    return counted


def examples(outputs: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Whether each example was answered right, from what one job wrote."""
    for record in json_lines(outputs[1], RECORD_KEYS, STAGE.name):
        common = {"setting": record["setting"], "id": record["id"], "truth": record["label"]}
        yield {**common, "metric": "accuracy", "value": record["prediction"] == record["label"]}


def accuracy_dictionary(experiment: Experiment, scores: pd.DataFrame) -> dict[str, Any]:
    """`accuracy_dict[model][dataset][experiment_name][seed]` (0..1); None for a failed cell or without examples.

    A setting without demonstrations is computed once and stands under every seed, since the draw does not touch it.
    """
    first, *later = experiment.evaluation_seeds
    nested: dict[str, Any] = {}
    for row in scores[(scores["stage"] == STAGE.name) & (scores["metric"] == "accuracy")].to_dict("records"):
        settings = nested.setdefault(row["run"], {}).setdefault(row["dataset"], {})
        by_seed = settings.setdefault(row["setting"], {})
        value = float(row["value"]) if exists(row["value"]) else None
        by_seed[str(row["seed"])] = value
        if row["seed"] == first:
            computed = {seed: settings_of(experiment, row["run"], row["dataset"], seed) for seed in later}
            by_seed |= {str(seed): value for seed in later if row["setting"] not in computed[seed]}
    return nested


# --------------------------------------------------------------------------------------------------------- tables


class Accuracy:
    """Accuracy (0..1) of one compressor and setting, over draws: pairs of a training seed and a seed of demonstrations.

    by_dataset: the draws of each data set; what shows no demonstration is computed for the first seed alone. failed:
    how many of a data set's draws have no accuracy since the cell failed.
    """

    def __init__(self, group: Group, datasets: Sequence[str]):
        self.compressor, self.setting, self.group = group.compressor, group.setting, group
        accuracies = group.rows[group.rows["metric"] == "accuracy"]
        self.accuracies = accuracies.set_index(["run", "seed", "dataset"])["value"]
        self.by_dataset = {data: list(accuracies.loc[accuracies["dataset"] == data, "value"]) for data in datasets}
        self.sums = group.rows.groupby(["dataset", "metric"])["value"].sum()
        self.failed = {dataset: self.sum(dataset, "failed") for dataset in datasets}

    def sum(self, dataset: str, metric: str) -> int:
        return int(self.sums.get((dataset, metric), 0))

    def is_empty(self, dataset: str) -> bool:
        """Whether no draw shows a demonstration though the setting has a budget: it is zero-shot by another name."""
        shown = self.sum(dataset, "demonstrations") + self.sum(dataset, "summary_vectors")
        return self.sum(dataset, "unfilled") > 0 and shown == 0

    @cached_property
    def means(self) -> list[float]:
        """The mean of all data sets in each draw; NaN where one is missing.

        What is computed once for a run, since no seed touches it, is part of each of its draws.
        """
        draws = self.accuracies.unstack().reindex(columns=list(self.by_dataset))
        for key, values in self.accuracies.groupby(level=["run", "dataset"]):
            if len(values) == 1:
                run, dataset = cast(tuple[str, str], key)
                draws.loc[(run, slice(None)), dataset] = values.iloc[0]
        return list(draws.mean(axis=1, skipna=False))

    def draws(self, title: str) -> list[float]:
        return self.by_dataset.get(title, self.means)

    def cell(self, dataset: str) -> Cell:
        estimate = Estimate.of(self.by_dataset[dataset]) * 100
        if estimate.mean is None and self.failed[dataset]:
            return Cell(FAILED)
        marks = (EMPTY_MARK if self.is_empty(dataset) else "") + (PARTIAL_MARK if self.failed[dataset] else "")
        return Cell(estimate.mean, estimate.deviation, mark=marks)

    def mean_cell(self) -> Cell:
        estimate = Estimate.of(self.means) * 100
        return Cell(
            estimate.mean, estimate.deviation, mark=PARTIAL_MARK if 0 < estimate.count < len(self.means) else ""
        )


def accuracies(experiment: Experiment, scores: pd.DataFrame) -> list[Accuracy]:
    return [Accuracy(group, experiment.icl.datasets) for group in groups(scores, STAGE.name, "compressor", "setting")]


def _examples_per_second(group: Group) -> float | None:
    seconds = float(group.values("seconds").sum())
    return sum(group.counts("tokens")) / seconds if seconds else None


def _token_saving(group: Group) -> float | None:
    """How many times fewer tokens were computed than without sharing."""
    tokens = group.total("tokens")
    return group.total("naive_tokens") / tokens if tokens else None


def headline(experiment: Experiment, scores: pd.DataFrame) -> dict[str, float | None]:
    numbers = {}
    for found in accuracies(experiment, scores):
        key = f"icl/{found.compressor}/{found.setting}"
        numbers[f"{key}/mean_accuracy"] = Estimate.of(found.means).mean
        numbers[f"{key}/examples_per_second"] = _examples_per_second(found.group)
        numbers[f"{key}/token_saving"] = _token_saving(found.group)
    return numbers


def findings(experiment: Experiment, scores: pd.DataFrame) -> list[str]:
    """Of each model and compressor: without demonstrations, with the most plain ones and with the most compressed."""
    by_compressor: dict[str, list[Accuracy]] = {}
    for one in accuracies(experiment, scores):
        by_compressor.setdefault(one.compressor, []).append(one)
    sentences, count = [], len(experiment.icl.datasets)
    for compressor, found in by_compressor.items():
        settings = {one.setting: experiment.icl.settings[one.setting] for one in found}
        none = [name for name, setting in settings.items() if not setting.largest_budget]
        plain = max(settings, key=lambda name: settings[name].plain_tokens)
        compressed = max(settings, key=lambda name: sum(settings[name].compressed_tokens))
        shown = dict.fromkeys([*none[:1], plain, compressed])
        texts = [
            f"{cell_text(one.mean_cell(), 1)} % with {one.setting.replace('_', ' ')}"
            for name in shown
            for one in found
            if one.setting == name
        ]
        sentences.append(
            f"{compressor}: {f'mean accuracy on {count} data sets' if count > 1 else 'accuracy'} {', '.join(texts)} "
            f"(draws: {counts_text(len(one.means) for one in found if one.setting in shown)})."
        )
    return sentences


@table("icl", "accuracy")
def icl_table(experiment: Experiment, scores: pd.DataFrame) -> Table:
    """
    Accuracy on classification data sets, by setting: how many tokens of demonstrations are read, compressed or plain. ±
    is the standard deviation over draws: seeds of the demonstrations (one where none is shown), times training seeds
    where there are several. Ranges are over data sets and draws: examples, demonstrations (asked for: by the published
    counts), and their tokens beyond the budgets. Counted over all: examples excluded for all models since they are too
    long for one, budgets that hold no demonstration, and cells that failed.
    """
    found, excluded = accuracies(experiment, scores), _excluded(scores)
    # Where the published counts are not followed, or all that they ask for is shown, a column says nothing.
    asks = any(one.group.whole("asked") not in ([], one.group.whole("demonstrations")) for one in found)
    count = sum(number for _, number in excluded.values())

    def range_of(name: str, metric: str) -> Column:
        return Column(name, lambda one: counts_text(one.group.whole(metric)), brief=False)

    def of_dataset(dataset: str) -> Column:
        return Column(dataset, lambda one: one.cell(dataset), digits=1)

    columns = [
        Column("Compressor", lambda one: one.compressor, key=True),
        Column("Setting", lambda one: one.setting, key=True),
        *map(of_dataset, experiment.icl.datasets),
        Column("Mean", Accuracy.mean_cell, digits=1),
        Column("Draws", lambda one: len(one.means)),
        Column("Examples", lambda one: counts_text(one.group.counts("accuracy"))),
        Column("Excluded", lambda one: count, brief=None),
        range_of("Demonstrations", "demonstrations"),
        *([range_of("Asked for", "asked")] if asks else []),
        range_of("Over budget (tokens)", "over_budget"),
        Column("Unfilled budgets", lambda one: one.group.total("unfilled"), brief=False),
        Column("Failed cells", lambda one: sum(one.failed.values()), brief=None),
    ]
    built = Table("In-context learning: accuracy (%)", columns, found)
    marks = {mark for row in built.rows for cell in row for mark in cell.mark}
    built.remarks += [f"{mark} {meaning}" for mark, meaning in MARKS.items() if mark in marks]
    built.remarks += [*(text for text, _ in excluded.values()), *_failures(scores)]
    return built


def _excluded(scores: pd.DataFrame) -> dict[str, tuple[str, int]]:
    """Data sets of which examples are left out: what is to be known of it, and how many."""
    found = {}
    for group in groups(scores, STAGE.name, "dataset"):
        count = int(group.values("excluded").max())
        if count:
            rows = group.rows
            runs = rows.loc[(rows["metric"] == "dropped") & (rows["value"] > 0), "run"].unique()
            examples = count + max(group.counts("accuracy"), default=0)
            text = (
                f"{group.dataset}: {count} of {examples} examples are left out for all, since they are longer than the "
                f"positions of {', '.join(runs) or 'a model'}."
            )
            found[group.dataset] = text, count
    return found


def _failures(scores: pd.DataFrame) -> list[str]:
    """Why cells failed; one fault in the data, which causes many, is named once."""
    found: dict[tuple[str, str], dict[tuple[str, str], list[str]]] = {}
    for failure in failures(scores, STAGE.name):
        cells = found.setdefault((failure["dataset"], failure["message"]), {})
        cells.setdefault((failure["run"], failure["setting"]), []).append(str(failure["seed"]))
    texts = []
    for (dataset, message), of_fault in found.items():
        named = (
            f"{run}, {setting}, {'seed' if len(seeds) == 1 else 'seeds'} {', '.join(seeds)}"
            for (run, setting), seeds in of_fault.items()
        )
        short = textwrap.shorten(message, LONGEST_MESSAGE, placeholder=" …")
        texts.append(f"Failed on {dataset} ({'; '.join(at_most(named, MOST_CELLS, 'more'))}): {short}")
    return at_most(texts, MOST_FAILURES, "more reasons of failures stand in the results.")


@table("icl_speed", "speed")
def icl_speed_table(experiment: Experiment, scores: pd.DataFrame) -> Table:
    """
    What it took to score the examples, over all data sets and draws. Naive tokens: what a loop would compute that reads
    the demonstrations and the example again for each of its options. Seconds are those of scoring, without loading the
    model; device and dtype stand in the provenance of the results.
    """
    columns = [
        Column("Compressor", lambda group: group.compressor, key=True),
        Column("Setting", lambda group: group.setting, key=True),
        Column("Examples", lambda group: sum(group.counts("tokens"))),
        Column("Tokens computed", lambda group: group.total("tokens")),
        Column("Naive tokens", lambda group: group.total("naive_tokens")),
        Column("Fewer (×)", _token_saving, digits=1),
        Column("Seconds", lambda group: float(group.values("seconds").sum()), digits=3, brief=False),
        Column("Examples/s", _examples_per_second, digits=1),
    ]
    found = groups(scores, STAGE.name, "compressor", "setting")
    return Table("In-context learning: tokens computed and speed", columns, found)


# --------------------------------------------------------------------------------------------------------- figure


@figure("icl", "accuracy")
def icl_figure(experiment: Experiment, scores: pd.DataFrame) -> Figure:
    """
    Accuracy by setting, a panel for each data set, all on one scale. Small points are draws (seeds of the
    demonstrations times training seeds), large ones their mean. The dotted lines continue the mean accuracy of each
    compressor without demonstrations, so that the gain of demonstrations can be read off; the dashed line is what a
    draw among the options would reach. An open point is a setting whose budget holds no demonstration.
    """
    from synopsis.reporting.style import handle, legend_below, new_figure, styles, subject_handles

    datasets, settings = list(experiment.icl.datasets), list(experiment.icl.settings)
    found, looks = accuracies(experiment, scores), styles(experiment)
    compressors, chance = distinct(found), _chance(experiment)
    titles = [*datasets, MEAN_TITLE] if len(datasets) > 1 else datasets
    height = max(1.8, 0.9 + 0.12 * len(settings) * (len(compressors) + 1))
    drawn, panels = new_figure(len(titles), 3.3, height, most_columns=3)
    for panel, title in zip(panels, titles, strict=True):
        for one in found:
            shift = 0.8 * ((compressors.index(one.compressor) + 0.5) / len(compressors) - 0.5)
            _points(panel, one, title, settings.index(one.setting) + shift, looks[one.compressor])
            mean = Estimate.of(one.draws(title)).mean
            if mean is not None and not experiment.icl.settings[one.setting].largest_budget:
                panel.axvline(100 * mean, color=looks[one.compressor].colour, zorder=0, **ZERO_SHOT_LINE)
        if title in chance:
            panel.axvline(100 * chance[title], zorder=0.8, **CHANCE_LINE)
        panel.set_yticks(range(len(settings)), [setting.replace("_", " ") for setting in settings])
        panel.set_ylim(len(settings) - 0.5, -0.5)
        panel.grid(axis="y", visible=False)
        for boundary in range(1, len(settings)):
            panel.axhline(boundary - 0.5, color="#e4e4e4", linewidth=0.7)
        panel.set_xlim(-3, 103)
        panel.set_xticks(range(0, 101, 20))
        panel.set_xlabel("accuracy (%)")
        panel.set_title(title)
    shown = [settings.index(one.setting) for one in found if not experiment.icl.settings[one.setting].largest_budget]
    handles = [
        *subject_handles(looks, compressors, lines=False),
        handle("draw", color="k", marker=".", linestyle="none", alpha=0.4),
        *([handle("without demonstrations", color="k", **ZERO_SHOT_LINE)] if shown else []),
    ]
    if any(one.is_empty(dataset) for one in found for dataset in datasets):
        handles.append(handle("no demonstration fits", color="k", marker="o", markerfacecolor="w", linestyle="none"))
    legend_below(drawn, [*handles, *([handle("uniform chance", **CHANCE_LINE)] if chance else [])])
    return drawn


def _chance(experiment: Experiment) -> Mapping[str, float]:
    """Title of a panel -> accuracy of a draw among the options, each as likely as another, where they are known."""
    datasets = experiment.icl.datasets
    tasks = {dataset: experiment.tasks[dataset] for dataset in datasets if dataset in experiment.tasks}
    chance = {dataset: 1 / len(task.options or task.option_fields) for dataset, task in tasks.items()}
    if chance and len(chance) == len(datasets):
        chance[MEAN_TITLE] = sum(chance.values()) / len(chance)
    return chance


def _points(panel: Axes, one: Accuracy, title: str, place: float, style: Style) -> None:
    draws = [100 * value for value in one.draws(title) if exists(value)]
    if draws:
        open_point = title in one.by_dataset and one.is_empty(title)
        panel.plot(draws, [place] * len(draws), color=style.colour, marker=".", linestyle="none", alpha=0.4)
        panel.plot(
            sum(draws) / len(draws),
            place,
            color=style.colour,
            marker=style.marker,
            markerfacecolor="w" if open_point else style.colour,
        )
    elif one.failed.get(title):
        look: dict[str, Any] = {"color": style.colour, "fontsize": 7, "va": "center"}
        panel.text(0.02, place, FAILED, transform=panel.get_yaxis_transform(), **look)
