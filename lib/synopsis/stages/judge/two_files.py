"""Judging of any two files of outputs, without an experiment.

synopsis judge --a outputs-a.csv --b outputs-b.csv --judge reference --out judged
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from synopsis.artifacts import Provenance, read_csv, write_csv, write_json, write_text
from synopsis.config.reading import read_judge
from synopsis.errors import ArtifactError, DataError
from synopsis.progress import say
from synopsis.stages.judge.page import judgement_page
from synopsis.stages.judge.pairs import read_two_files
from synopsis.stages.judge.replay import choice_named
from synopsis.stages.judge.run import estimate, hash_of, judge_pairs
from synopsis.stages.judge.statistics import POINTS, agreement, summarise, winner

STORE, SUMMARY, VERDICTS, PAGE = "judgements.jsonl", "summary.json", "verdicts.csv", "judgements.html"


def judge_files(
    a: Path, b: Path, judge: str, out: Path, labels: Path | None = None, dry_run: bool = False
) -> dict[str, Any]:
    """Judge two files of outputs (columns x, y_pred, y_true, and id where there is one); return the summary.

    judge: the name of a file in config/judges, or a path. `out` gets the store, which a second run goes on with, the
    summary, the verdict on each example, and the page to read them. labels: a CSV with the columns id and choice (A, B
    or tie), of people or of another judge (its verdicts.csv), to count the agreement with; rows without an id are
    numbered from 1. dry_run: nothing is asked or written, and what `estimate` finds is returned. Raises DataError and
    InputError before the first question is asked.
    """
    provenance = Provenance(config="", inputs=[path for path in (a, b, labels) if path])
    name, definition = read_judge(judge)
    pairs, unmatched = read_two_files(a, b)
    named = {} if labels is None else _read_labels(labels, {pair.id for pair in pairs})
    if unmatched:
        say(f"warning: {unmatched} examples are in one of the two files only; they are left out")
    store, judge_hash = out / STORE, hash_of(definition)
    if dry_run:
        return estimate(definition, pairs, store, judge_hash)
    judgements = judge_pairs(name, definition, pairs, store, judge_hash)
    summary = {"judge": name, "a": str(a), "b": str(b), "unmatched": unmatched, **summarise(pairs, judgements)}
    if labels is not None:
        summary["labels"] = agreement(summary["scores"], {id: POINTS[choice] for id, choice in named.items()})
    winners = [{"id": id, "choice": winner(score)} for id, score in summary["scores"].items()]
    write_csv(out / VERDICTS, winners, ("id", "choice"))
    write_text(out / PAGE, judgement_page(f"Judgements of {name}", (str(a), str(b)), pairs, judgements, named))
    record = provenance.record(judge_models=sorted({one.model for one in judgements if one.model}))
    outputs = [out / VERDICTS, out / PAGE]
    summary |= {"judge_hash": judge_hash, "max_error_share": definition.max_error_share}
    write_json(out / SUMMARY, "judgement_summary", summary, record, outputs)
    say(f"{out / PAGE}: the judgements to read")
    return summary


def _read_labels(path: Path, ids: Collection[str]) -> dict[str, str]:
    """Id -> A, B or tie."""
    try:
        rows = read_csv(path, ("id", "choice"))
    except ArtifactError as error:
        raise DataError(str(error)) from None
    labels: dict[str, str] = {}
    for number, row in enumerate(rows, start=1):
        id, choice = row["id"], choice_named(row["choice"])
        if choice == "parse_error":
            raise DataError(f"{path}: row {number}: choice {row['choice']!r}; expected A, B or tie")
        if id not in ids or id in labels:
            found = "occurs a second time" if id in labels else "is no example of the two files"
            raise DataError(f"{path}: row {number}: id {id!r} {found}; expected each example once")
        labels[id] = choice
    return labels
