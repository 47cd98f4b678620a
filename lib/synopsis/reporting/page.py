"""The front page of an experiment's results, `report.html`: one file that loads nothing.

It says what was found, what failed or is missing, what was run, and from which files and commits each number comes.
Its sentences are those that a stage's `findings(experiment, scores)` makes from its numbers; it links a stage's pages.

The page holds no date of its own, so that equal results give equal bytes.
"""

from __future__ import annotations

import base64
import os
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from synopsis.artifacts import Layout, read_json
from synopsis.compressors.section import Compressor
from synopsis.config.experiment import Experiment
from synopsis.errors import ArtifactError
from synopsis.reporting.items import Item, items, measured
from synopsis.reporting.rendering import DASH, Table, at_most
from synopsis.reporting.statistics import FAILURES
from synopsis.stages import job_words
from synopsis.stages.record import Job, Stage

if TYPE_CHECKING:
    import pandas as pd

MOST_NAMED, MOST_FAILURES = 5, 20
MISSING = "missing"
SHORT_HASH = 10
FILES = {
    "scores.csv": "every number, one a row, with the examples behind it",
    "scores.parquet": "the same, typed",
    "scores.provenance.json": "commit, configuration and the hash of each result file behind the scores",
    "accuracy.json": "accuracies by model, data set, setting and seed, in the published form",
    "report.provenance.json": "the hash of each table and figure",
}
PLACES = ("dataset", "split", "setting", "seed", "context_length", "length", "depth", "batch_size")
"""Columns of the scores that name what failed."""


@dataclass(frozen=True)
class Result:
    """What the record of a job says. fault: why it says nothing."""

    job: Job
    provenance: dict[str, Any]
    fault: str = ""

    @classmethod
    def of(cls, stage: Stage, job: Job) -> Result:
        if not all(path.exists() for path in (job.record, *job.outputs)):
            return cls(job, {}, MISSING)
        try:
            return cls(job, read_json(job.record, stage.kind).get("provenance", {}))
        except ArtifactError as error:
            return cls(job, {}, str(error))

    @property
    def commit(self) -> str:
        commit = self.provenance.get("commit")
        return commit[:SHORT_HASH] + (" (changed since)" if self.provenance.get("dirty") else "") if commit else DASH


def front_page(
    experiment: Experiment,
    scores: pd.DataFrame | None,
    tables: dict[str, Table],
    numbers: dict[str, float],
    options: Sequence[str] = (),
) -> str:
    """The page as HTML.

    scores: None where nothing was scored yet. tables: name -> table. numbers: the headline numbers. options: how a
    command line names the experiment (`--config FILE`, `--set KEY=VALUE`).
    """
    from jinja2 import Environment

    root = Layout(experiment).root
    options = options or ["--config", "FILE"]
    results = {stage.name: [Result.of(stage, job) for job in stage.jobs(experiment)] for stage in measured(experiment)}
    every = [result for found in results.values() for result in found]
    template = Environment(autoescape=True, trim_blocks=True, keep_trailing_newline=True).from_string(
        Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    )
    return template.render(
        title=experiment.title or experiment.name,
        name=experiment.name,
        finished=max((result.provenance.get("finished", "") for result in every), default=""),
        commits=_commits(every),
        findings={} if scores is None else _findings(experiment, scores),
        numbers={key: f"{value:.4g}" for key, value in numbers.items()},
        problems=_problems(experiment, scores, results),
        stages={} if scores is None else _stages(experiment, tables, results, root, options),
        runs=[_run(experiment, run) for run in experiment.run_names],
        data=_data(experiment),
        progress=[_progress(stage, results[stage.name]) for stage in measured(experiment)],
        environment=_environment(every),
        files=[(name, about) for name, about in FILES.items() if scores is not None],
        command=shlex.join(["synopsis", "report", *options]),
        snakemake=_snakemake(options),
        own_report=shlex.quote(str(root / "snakemake-report.html")),
    )


def _findings(experiment: Experiment, scores: pd.DataFrame) -> dict[str, list[str]]:
    """Heading -> sentences, of the stages that make some."""
    found: dict[str, list[str]] = {}
    for stage in measured(experiment):
        if sentences := getattr(stage.report, "findings", None):
            found.setdefault(stage.title, []).extend(sentences(experiment, scores))
    return found


def _problems(experiment: Experiment, scores: pd.DataFrame | None, results: dict[str, list[Result]]) -> list[str]:
    """What failed or is missing, and results that do not belong together."""
    found = [] if scores is not None else ["Nothing was scored: no tables, figures and findings."]
    every = [result for of_stage in results.values() for result in of_stage]
    root = Layout(experiment).root

    def named(stage: Stage, chosen: list[Result], what: str) -> None:
        count = len(results[stage.name])
        files = at_most((os.path.relpath(result.job.record, root) for result in chosen), MOST_NAMED, "more")
        if chosen:
            which = f": {'; '.join(files)}" if len(chosen) < count else ""
            found.append(f"{stage.title}: {len(chosen)} of {count} {what}{which}.")

    for stage in measured(experiment):
        missing = [result for result in results[stage.name] if result.fault == MISSING]
        named(stage, missing, f"results are missing (logs: logs/{stage.name})")
        other = [r for r in results[stage.name] if r.provenance.get("config", r.job.fingerprint) != r.job.fingerprint]
        named(stage, other, "results were made with other settings than the experiment has now")
    found += at_most((r.fault for r in every if r.fault not in ("", MISSING)), MOST_FAILURES, "more damaged results.")
    commits = dict.fromkeys(result.commit for result in every if result.commit != DASH)
    if len(commits) > 1:
        found.append(f"The results were made from {len(commits)} states of the sources: {', '.join(commits)}.")
    failed = [] if scores is None else scores.attrs.get(FAILURES, [])
    return found + at_most(map(_failure, failed), MOST_FAILURES, "more failures; see the tables.")


def _failure(failure: dict[str, Any]) -> str:
    axes = [f"{key} {failure[key]}" for key in PLACES if failure.get(key) not in (None, "")]
    return f"{failure['run']}, {failure['stage']}{', ' if axes else ''}{', '.join(axes)}: {failure['message']}"


def _stages(
    experiment: Experiment,
    tables: dict[str, Table],
    results: dict[str, list[Result]],
    root: Path,
    options: Sequence[str],
) -> dict[str, list[dict[str, Any]]]:
    """Heading -> what the page shows of its stages."""
    found: dict[str, list[dict[str, Any]]] = {}
    for stage in measured(experiment):
        own = [item for of, item in items(experiment) if of is stage and item.kind != "page"]
        pages = [item for of, item in items(experiment, "page") if of is stage]
        found.setdefault(stage.title, []).append(
            {
                "name": stage.name,
                "parts": [_item(experiment, item, tables, root) for item in sorted(own, key=lambda item: item.kind)],
                "pages": [(item.label, _link(item.files(experiment)[0], root)) for item in pages],
                "command": _command(stage, results[stage.name][0].job, options),
                "results": [_file(result, root) for result in results[stage.name]],
            }
        )
    return found


def _item(experiment: Experiment, item: Item, tables: dict[str, Table], root: Path) -> dict[str, Any]:
    """A table or figure as the page shows it: figures first, as the eye does."""
    files = {path.suffix[1:]: path for path in item.files(experiment)}
    shown = {"kind": item.kind, "name": item.name, "links": [(name, _link(path, root)) for name, path in files.items()]}
    if item.kind == "figure":
        picture = base64.b64encode(files["svg"].read_bytes()).decode()
        title = f"{item.label[:1].upper()}{item.label[1:]}"
        return {**shown, "title": title, "notes": [item.caption], "picture": f"data:image/svg+xml;base64,{picture}"}
    table = tables[item.name]
    return {**shown, "title": table.title, "notes": [table.note, *table.remarks], "grid": table.grid("html")}


def _link(path: Path, root: Path) -> str:
    return quote(Path(os.path.relpath(path, root)).as_posix())


def _file(result: Result, root: Path) -> dict[str, str]:
    record = result.job.record
    facts = {key: str(result.provenance.get(key) or DASH) for key in ("device", "finished")}
    link, file = _link(record, root), os.path.relpath(record, root)
    return {"file": file, "link": link, "commit": result.commit, "fault": result.fault, **facts}


def _command(stage: Stage, job: Job, options: Sequence[str]) -> str:
    """A command that makes one result again."""
    return shlex.join(["synopsis", stage.name, *options, *job_words(stage.name, job.wildcards)])


def _snakemake(options: Sequence[str]) -> str:
    """The workflow's command, whose options have other names."""
    pairs = list(zip(options[::2], options[1::2], strict=True))
    files = [file for key, file in pairs if key == "--config"]
    changes = [change for key, change in pairs if key == "--set"]
    return shlex.join(
        ["snakemake", "--cores", "all", "--configfile", *files, *(["--config", *changes] if changes else [])]
    )


def _run(experiment: Experiment, run: str) -> tuple[str, ...]:
    subject, base = experiment.subject(run), experiment.base_of(run)
    seed = str(experiment.trained_runs[run][1]) if run in experiment.trained_runs else DASH
    training: Any = getattr(subject, "training", None) if isinstance(subject, Compressor) else subject.pretraining
    data = getattr(training, "corpus", None) or getattr(training, "instructions", None)
    trained = DASH if data is None else f"{data}, {training.steps:,} steps" if training.steps else data
    start = base if base != run else str(getattr(subject, "hub", None) or getattr(subject, "path", None) or DASH)
    return run, subject.method, start, trained, seed


def _data(experiment: Experiment) -> str:
    named = {
        "Corpora": list(experiment.corpora),
        "Instructions": list(experiment.instructions),
        "Data sets of in-context learning": experiment.icl.datasets if experiment.icl else [],
        "Judges": experiment.judge.judges if experiment.judge else [],
    }
    return " ".join(f"{what}: {', '.join(names)}." for what, names in named.items() if names)


def _progress(stage: Stage, results: Iterable[Result]) -> tuple[str, ...]:
    results = list(results)
    there = [result for result in results if not result.fault]
    seconds = sum(result.provenance.get("wall_seconds") or 0 for result in there)
    finished = max((result.provenance.get("finished", "") for result in there), default="")
    return (
        stage.title,
        f"{len(there)} of {len(results)}",
        str(timedelta(seconds=round(seconds))) if seconds else DASH,
        _distinct(there, "device"),
        ", ".join(dict.fromkeys(result.commit for result in there)) or DASH,
        finished or DASH,
    )


def _distinct(results: Iterable[Result], key: str) -> str:
    return ", ".join(dict.fromkeys(str(r.provenance[key]) for r in results if r.provenance.get(key))) or DASH


def _commits(results: Sequence[Result]) -> str:
    commits = list(dict.fromkeys(result.commit for result in results if result.commit != DASH))
    return f"commit {', '.join(commits)}." if commits else "commit not known."


def _environment(results: Sequence[Result]) -> str:
    """Python, platform and packages of the results, each as often as it differs."""
    packages = dict.fromkeys(
        f"{name} {version}" for r in results for name, version in r.provenance.get("packages", {}).items()
    )
    machine = f"Python {_distinct(results, 'python')}; {_distinct(results, 'platform')}"
    return f"{machine}; {', '.join(packages)}." if packages else ""
