"""Checks of results before they are scores: every fault is reported with its file and its cell.

What cannot be true, or would compare what cannot be compared, is an ArtifactError. What may be meant (two commits,
other settings than the experiment has now) is a warning.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from synopsis.artifacts import read_json
from synopsis.errors import ArtifactError
from synopsis.progress import say
from synopsis.reporting.rendering import at_most
from synopsis.reporting.statistics import exists
from synopsis.stages.prepare.section import PREPARE
from synopsis.stages.record import Bounds, Jobs, is_number, stages

if TYPE_CHECKING:
    import pandas as pd

    from synopsis.config.experiment import Experiment

MOST_FAULTS, MOST_FILES = 10, 3
PLACE = ("dataset", "split", "setting", "seed")
"""With the axes of its stage, where a number stands among those of its run."""
ANY = Bounds(least=-math.inf)
Row = Mapping[str, Any]


def report_faults(experiment: Experiment, faults: Iterable[tuple[Row, str]]) -> None:
    """ArtifactError for all faults, each with the file of its row, its cell and what is wrong with it."""
    texts = [f"{_file(experiment, row)}: {_cell(row)}: {fault}" for row, fault in faults]
    _refuse(texts, "the results have faults", "Restore the files from a copy, or delete them and run again.")


def _refuse(texts: list[str], what: str, advice: str) -> None:
    if texts:
        lines = [f"  {text}" for text in at_most(texts, MOST_FAULTS, "more")]
        raise ArtifactError("\n".join([f"{what}:", *lines, advice]))


def _file(experiment: Experiment, row: Row) -> str:
    """The file that a row comes from: of the only job whose words are all in it."""
    stage = stages()[row["stage"]]
    for job in stage.jobs(experiment):
        words = job.wildcards.items()
        if all(row[name] == word if name in row else word in row.values() for name, word in words):
            return str(job.record)
    return stage.name


def _cell(row: Row) -> str:
    names = (*PLACE, *stages()[row["stage"]].axes)
    place = [f"{name} {row[name]}" for name in names if exists(row.get(name)) and row[name] != ""]
    return ", ".join([str(row["run"]), *place, str(row["metric"])])


def impossible(rows: Iterable[Row]) -> Iterator[tuple[Row, str]]:
    """Values and counts that their metric cannot have, and places that are none."""
    known = stages()
    for row in rows:
        stage, value, n = known[row["stage"]], row["value"], row.get("n")
        wanted = stage.metrics.get(row["metric"], ANY).expected(value, n)
        if wanted and not row.get("message"):
            yield row, f"found {value!r}; expected {wanted}"
        if n is not None and (not is_number(n, int) or n < 0):
            yield row, f"found n = {n!r}; expected a whole number of examples from 0 on"
        for name, kind in stage.axes.items():
            if kind is not str and row.get(name) is not None and not is_number(row[name], kind):
                yield row, f"found {name} = {row[name]!r}; expected a {'whole ' if kind is int else ''}number"


def contradictions(experiment: Experiment, frame: pd.DataFrame) -> Iterator[tuple[Row, str]]:
    """Cells that stand twice, that one run of a compressor lacks, or that are over other examples than those beside.

    frame: the scores, with a column `failed` for rows that have a message in the place of a number.
    """
    for name, stage in stages().items():
        rows = frame[frame["stage"] == name]
        place = [*PLACE, *stage.axes]
        yield from _twice(rows[~rows["failed"]], ["run", *place, "metric"])
        if stage.section is not None:  # curves of training have steps of their own
            yield from _missing(rows[rows["against"] == ""], place)  # runs need not be in as many pairs
            yield from _other_counts(rows, [*place, "metric"], stage.metrics)


def _twice(rows: pd.DataFrame, cell: list[str]) -> Iterator[tuple[Row, str]]:
    again = rows[rows.duplicated(cell, keep=False)]
    for _, found in again.groupby(cell, sort=False, dropna=False):
        values = list(dict.fromkeys(found["value"].astype(str)))
        what = "the same value" if len(values) == 1 else "the values " + " and ".join(values)
        yield _row(found), f"stands {len(found)} times, with {what}"


def _missing(rows: pd.DataFrame, place: list[str]) -> Iterator[tuple[Row, str]]:
    for _, found in rows.groupby("compressor", sort=False):
        runs = list(found["run"].unique())
        cells = found.drop_duplicates(["run", *place])
        lacking = cells[cells.groupby(place, dropna=False)["run"].transform("size") < len(runs)]
        for _, cell in lacking.groupby(place, sort=False, dropna=False):
            for run in set(runs) - set(cell["run"]):
                yield {**_row(cell), "run": run}, f"is missing; {cell['run'].iloc[0]} has it"


def _other_counts(rows: pd.DataFrame, cell: list[str], metrics: Mapping[str, Bounds]) -> Iterator[tuple[Row, str]]:
    """Runs of one compressor are averaged, and some metrics are compared between compressors."""
    counted = rows[rows["n"].notna() & rows["value"].notna()]
    compared = counted["metric"].map(lambda metric: metrics.get(metric, ANY).same_examples).astype(bool)
    for chosen, keys in ((counted[compared], cell), (counted[~compared], ["compressor", *cell])):
        numbers = chosen.groupby(keys, sort=False, dropna=False)["n"]
        wrong = chosen[numbers.transform("min") != numbers.transform("max")]
        for _, found in wrong.groupby(keys, sort=False, dropna=False):
            least, most = _row(found.sort_values("n")), _row(found.sort_values("n", ascending=False))
            yield least, f"n = {least['n']}, and {most['n']} in {most['run']}; expected the same examples"


def _row(rows: pd.DataFrame) -> dict[str, Any]:
    return {str(name): value for name, value in rows.iloc[0].items()}


def check_provenance(experiment: Experiment) -> None:
    """Warn of results of several commits, or of other settings than the experiment has.

    ArtifactError where results were made from two versions of one input: they are of other data or other weights.
    """
    kinds: list[Jobs] = [*PREPARE.values(), *stages().values()]
    other: list[str] = []
    commits: dict[str, list[str]] = defaultdict(list)
    versions: dict[str, dict[str, str]] = defaultdict(dict)
    for jobs in kinds:
        for job in jobs.jobs(experiment):
            found = read_json(job.record, jobs.kind).get("provenance", {}) if job.record.is_file() else {}
            if found.get("config", job.fingerprint) != job.fingerprint:
                other.append(str(job.record))
            if found.get("commit"):
                commits[found["commit"]].append(str(job.record))
            for path, digest in found.get("inputs", {}).items():
                if digest:
                    versions[path].setdefault(digest, str(job.record))
    mixed = {path: records for path, records in versions.items() if len(records) > 1}
    texts = [f"{path}: {' and '.join(records.values())}" for path, records in mixed.items()]
    what = "results were made from different versions of one input"
    _refuse(texts, what, "Run the workflow, or delete the older results and run again.")
    if len(commits) > 1:
        made = "; ".join(f"{commit[:10]} made {_files(paths)}" for commit, paths in commits.items())
        say(f"warning: the results are of {len(commits)} versions of the code: {made}.")
    if other:
        count = "1 file was" if len(other) == 1 else f"{len(other)} files were"
        say(
            f"warning: {count} made with other settings than the experiment has now: {_named(other)}. "
            "The scores are those of the files as they are; run the workflow to make them anew."
        )


def _files(paths: list[str]) -> str:
    return paths[0] if len(paths) == 1 else f"{len(paths)} files, such as {paths[0]}"


def _named(paths: list[str]) -> str:
    more = f" and {len(paths) - MOST_FILES} more" if len(paths) > MOST_FILES else ""
    return ", ".join(paths[:MOST_FILES]) + more
