"""The score stage: every number of an experiment in one tidy table.

One row is one number: which run, what was measured (stage, dataset, split, setting, seed, the stage's own axes such as
`context_length` or `depth`, metric), its value, and the number of examples or tokens behind it.

    synopsis score --config config/demo.yaml
    frame = read_scores("results/demo/scores.parquet")
    frame.query("stage == 'perplexity' and metric == 'loss' and context_length > 96")
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from synopsis.artifacts import (
    FORMAT_VERSION,
    Layout,
    Provenance,
    atomic_file,
    check_outputs,
    write_json,
    write_text,
)
from synopsis.config.experiment import Experiment
from synopsis.errors import ArtifactError
from synopsis.reporting.checks import check_provenance, contradictions, impossible, report_faults
from synopsis.reporting.items import measured
from synopsis.reporting.statistics import FAILURES
from synopsis.stages.record import COMMON_COLUMNS, stages

AXES = {name: kind for stage in stages().values() for name, kind in stage.axes.items()}
"""The stages' own columns, and the type of their values."""
TYPES: dict[str, type] = {
    **dict.fromkeys(COMMON_COLUMNS, str),
    "training_seed": int,
    "seed": int,
    **AXES,
    "metric": str,
    "value": float,
    "n": int,
}
COLUMNS = tuple(TYPES)
METADATA_KEY = b"synopsis"

Row = dict[str, Any]


def score(experiment: Experiment) -> pd.DataFrame:
    """Gather every result of `experiment`; write and return the tidy table.

    Writes `scores.parquet`, the same rows as `scores.csv`, `accuracy.json` (the published
    `accuracy_dict[model][dataset][experiment_name][seed]`, nothing else, so that it can be loaded as it is) and
    `scores.provenance.json`, which speaks for all three. Warns of results that were made with other settings than those
    of `experiment` or by several versions of the code, and scores what they hold. Raises ArtifactError when a result is
    missing or damaged, and where numbers are impossible or contradict each other (see `checks`).
    """
    layout = Layout(experiment)
    check_provenance(experiment)
    provenance = Provenance(config=experiment.fingerprint(experiment), inputs=_hashed(experiment))
    identities = {run: _identity(experiment, run) for run in experiment.run_names}
    rows = [
        {**identities[row["run"]], "stage": stage.name, **row}
        for stage in measured(experiment)
        for row in stage.report.rows(experiment)
    ]
    report_faults(experiment, impossible(rows))
    frame = _typed(pd.DataFrame(rows, columns=list(COLUMNS)))
    report_faults(experiment, contradictions(experiment, frame.assign(failed=["message" in row for row in rows])))
    accuracies = stages()["icl"].report.accuracy_dictionary(experiment, frame)
    write_text(layout.accuracy, json.dumps(accuracies, indent=2) + "\n")
    record = provenance.record()
    frame.attrs[FAILURES] = [
        {key: row[key] for key in row if key not in ("metric", "value")} for row in rows if row.get("message")
    ]
    _write_parquet(layout.scores, frame, record)
    write_text(layout.scores_csv, frame.to_csv(index=False, lineterminator="\n"))
    outputs = [layout.scores, layout.scores_csv, layout.accuracy]
    write_json(_record(layout.scores), "scores", {"rows": len(frame)}, record, outputs)
    return frame


def score_inputs(experiment: Experiment) -> list[Path]:
    """Every artifact that the score stage reads; a trained model stands for the `metrics.jsonl` inside it."""
    return [path for stage in measured(experiment) for job in stage.jobs(experiment) for path in job.outputs]


def _hashed(experiment: Experiment) -> list[Path]:
    """Inputs to record: of a model only its metrics, since weights are large and not read here."""
    models = {path for job in stages()["train"].jobs(experiment) for path in job.outputs}
    return [path / "metrics.jsonl" if path in models else path for path in score_inputs(experiment)]


def read_scores(path: str | Path) -> pd.DataFrame:
    """The tidy table of `scores.parquet`, with `failures`; ArtifactError names the file and what is wrong with it."""
    import pyarrow
    import pyarrow.parquet

    path = Path(path)
    if not path.is_file():
        raise ArtifactError(f"{path}: no such file; the stage that writes it has not run")
    check_outputs(_record(path), [path.name])
    try:
        table = pyarrow.parquet.read_table(path)
        recorded = json.loads((table.schema.metadata or {}).get(METADATA_KEY, b"{}"))
        known = recorded.get("format") == FORMAT_VERSION and table.column_names == list(COLUMNS)
        frame = _typed(table.to_pandas(ignore_metadata=True)) if known else None
    except (pyarrow.ArrowException, OSError, ValueError, TypeError, AttributeError) as error:  # any of them for a bit
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ArtifactError(f"{path}: not a readable parquet file ({reason}). Delete it and run again.") from None
    if frame is None:
        raise ArtifactError(f"{path}: not a table of scores of format {FORMAT_VERSION}. Delete it and run again.")
    frame.attrs[FAILURES] = recorded.get(FAILURES, [])
    return frame


def _record(scores: Path) -> Path:
    return scores.with_suffix(".provenance.json")


def _identity(experiment: Experiment, run: str) -> Row:
    seed = experiment.trained_runs[run][1] if run in experiment.trained_runs else None
    return {"compressor": experiment.name_of(run), "method": experiment.subject(run).method, "training_seed": seed}


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    """One type a column, whatever the rows held: text, whole numbers with gaps, and floats."""
    for column, kind in TYPES.items():
        if kind is int:
            frame[column] = frame[column].astype("Int64")
        elif kind is float:
            frame[column] = pd.to_numeric(frame[column]).astype("float64")
        else:
            frame[column] = frame[column].astype("object").where(frame[column].notna(), "").astype("str")
    return frame


def _write_parquet(path: Path, frame: pd.DataFrame, provenance: Mapping[str, Any]) -> None:
    import pyarrow
    import pyarrow.parquet

    plain = frame.copy()
    plain.attrs = {}
    table = pyarrow.Table.from_pandas(plain, preserve_index=False)
    # Failures stand beside the numbers, since a table of numbers has no room for messages.
    metadata = {"kind": "scores", "format": FORMAT_VERSION, "provenance": dict(provenance), **frame.attrs}
    packed = {**(table.schema.metadata or {}), METADATA_KEY: json.dumps(metadata, default=str).encode()}
    with atomic_file(path) as temporary:
        pyarrow.parquet.write_table(table.replace_schema_metadata(packed), temporary)
