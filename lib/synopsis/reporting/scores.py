"""The score stage: every number of an experiment in one tidy table.

One row is one number: which run, what was measured (stage, dataset, split, setting, seed, metric), its value and the
number of examples or tokens behind it. `setting` is a path of `key=value` parts where a stage has several axes
(``context=96/tokens=all``) and the plain name of the setting for in-context learning.

    synopsis score --config config/demo.yaml
    frame = read_scores("results/demo/scores.parquet")
    frame.query("stage == 'icl' and metric == 'accuracy'")
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd

from synopsis.artifacts import (
    FORMAT_VERSION,
    Layout,
    Provenance,
    atomic_file,
    file_hash,
    read_csv,
    read_json,
    write_json,
    write_text,
)
from synopsis.config import Experiment
from synopsis.errors import ArtifactError
from synopsis.reporting.files import judgement_summaries, runs_with_metrics, score_inputs

COLUMNS = (
    "run",
    "compressor",
    "family",
    "training_seed",
    "stage",
    "dataset",
    "split",
    "setting",
    "seed",
    "metric",
    "value",
    "n",
)
WHOLE_NUMBERS = ("training_seed", "seed", "n")
METADATA_KEY = b"synopsis"

PERPLEXITY_METRICS = ("loss", "loss_low", "loss_high", "perplexity", "summary_vectors", "n_documents")
ICL_METRICS = ("accuracy", "dropped", "truncated", "demonstrations", "summary_vectors")
ROUGE_METRICS = ("rouge1", "rouge2", "rougeL", "rougeLsum", "exact_match")
JUDGEMENT_METRICS = (
    "judgements",
    "win",
    "lose",
    "tie",
    "parse_error",
    "api_error",
    "win_rate",
    "consistent",
    "first_position_wins",
    "identical",
)
BENCHMARK_METRICS = (
    "wall_seconds",
    "cpu_seconds",
    "cuda_seconds",
    "flops",
    "peak_bytes",
    "context_bytes",
    "floor_seconds",
)
BENCHMARK_AXES = ("mode", "batch_size", "context_length", "new_tokens")
TRAINING_METRICS = ("loss", "eval_loss", "learning_rate")

Row = dict[str, Any]


def score(experiment: Experiment) -> pd.DataFrame:
    """Gather every result of `experiment`; write and return the tidy table.

    Writes `scores.parquet`, `accuracy.json` (the published `accuracy_dict[model][dataset][experiment_name][seed]`,
    nothing else, so that it can be loaded as it is) and `scores.provenance.json`, which speaks for both.
    Raises ArtifactError when a result is missing or damaged.
    """
    layout = Layout(experiment)
    provenance = Provenance(config=experiment.facts(experiment), inputs=_hashed(experiment))
    rows = [
        row
        for rows_of in (_training, _perplexity, _icl, _rouge, _judgements, _benchmark)
        for row in rows_of(experiment)
    ]
    frame = _frame(rows)
    write_text(layout.accuracy, json.dumps(accuracy_dictionary(frame), indent=2) + "\n")
    record = provenance.record()
    _write_parquet(layout.scores, frame, record)
    outputs = {path.name: file_hash(path) for path in (layout.scores, layout.accuracy)}
    write_json(layout.root / "scores.provenance.json", "scores", {"rows": len(frame), "outputs": outputs}, record)
    return frame


def read_scores(path: str | Path) -> pd.DataFrame:
    """The tidy table of `scores.parquet`; ArtifactError names the file and what is wrong with it."""
    import pyarrow
    import pyarrow.parquet

    path = Path(path)
    if not path.is_file():
        raise ArtifactError(f"{path}: no such file; the stage that writes it has not run")
    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise ArtifactError(f"{path}: not a readable parquet file ({error}). Delete it and run again.") from None
    recorded = json.loads((table.schema.metadata or {}).get(METADATA_KEY, b"{}"))
    if recorded.get("format") != FORMAT_VERSION or table.column_names != list(COLUMNS):
        raise ArtifactError(f"{path}: not a table of scores of format {FORMAT_VERSION}. Delete it and run again.")
    return _typed(table.to_pandas())


def accuracy_dictionary(frame: pd.DataFrame) -> dict[str, dict[str, dict[str, dict[str, float | None]]]]:
    """`accuracy_dict[model][dataset][experiment_name][seed]` (0..1); None where no example was left to score."""
    accuracies = frame[(frame["stage"] == "icl") & (frame["metric"] == "accuracy")]
    nested: dict[str, dict[str, dict[str, dict[str, float | None]]]] = {}
    for row in accuracies.to_dict("records"):
        settings = nested.setdefault(row["run"], {}).setdefault(row["dataset"], {})
        value = None if pd.isna(row["value"]) else float(row["value"])
        settings.setdefault(row["setting"], {})[str(row["seed"])] = value
    return nested


def setting_fields(setting: str) -> dict[str, str]:
    """The parts of a setting.

    >>> setting_fields("context=96/tokens=all")
    {'context': '96', 'tokens': 'all'}
    """
    return dict(part.split("=", 1) for part in setting.split("/") if "=" in part)


# ------------------------------------------------------------------------------------------------ rows by stage


def _perplexity(experiment: Experiment) -> Iterator[Row]:
    for run in experiment.runs_of("perplexity"):
        path = Layout(experiment).perplexity(run)
        document = read_json(path, "perplexity")
        for found in _get(path, document, "rows"):
            take = _reader(path, found)
            common = {
                **_identity(experiment, run, "perplexity"),
                "dataset": f"{document['corpus']}/{take('domain')}",
                "split": document["split"],
                "setting": f"context={take('context_length')}/tokens={take('tokens')}",
                "n": take("n_tokens"),
            }
            yield from ({**common, "metric": metric, "value": take(metric)} for metric in PERPLEXITY_METRICS)


def _icl(experiment: Experiment) -> Iterator[Row]:
    datasets = experiment.icl.datasets if experiment.icl else []
    for run in experiment.runs_of("icl"):
        for dataset in datasets:
            task = experiment.tasks.get(dataset)
            for seed in experiment.evaluation_seeds:
                path = Layout(experiment).icl(run, dataset, seed)
                measured = _get(path, read_json(path, "icl"), "settings")
                common = {
                    **_identity(experiment, run, "icl"),
                    "dataset": dataset,
                    "split": task.test_split if task else "",
                    "seed": seed,
                }
                for setting in experiment.settings_of(run):
                    take = _reader(path, _get(path, measured, setting))
                    for metric in ICL_METRICS:
                        yield {**common, "setting": setting, "n": take("n"), "metric": metric, "value": take(metric)}


def _rouge(experiment: Experiment) -> Iterator[Row]:
    if experiment.generate is None:
        return
    for run in experiment.runs_of("generate"):
        for split in experiment.generate.splits:
            path = Layout(experiment).generations(run, split).with_suffix(".json")
            take = _reader(path, read_json(path, "rouge"))
            common = {
                **_identity(experiment, run, "generate"),
                "dataset": experiment.generate.instructions,
                "split": split,
                "n": take("n"),
            }
            yield from ({**common, "metric": metric, "value": take(metric)} for metric in ROUGE_METRICS)


def _judgements(experiment: Experiment) -> Iterator[Row]:
    for (judge, a, b, split), path in judgement_summaries(experiment).items():
        take = _reader(path, read_json(path, "judgement_summary"))
        common = {
            **_identity(experiment, a, "judge"),
            "dataset": experiment.generate.instructions if experiment.generate else "",
            "split": split,
            "setting": f"judge={judge}/against={b}",
            "n": take("n"),
        }
        yield from ({**common, "metric": metric, "value": take(metric)} for metric in JUDGEMENT_METRICS)


def _benchmark(experiment: Experiment) -> Iterator[Row]:
    """The median over the samples of each cell; `n` is the number of samples."""
    for run in experiment.runs_of("benchmark"):
        path = Layout(experiment).benchmark(run)
        cells: dict[tuple[str, ...], list[dict[str, str]]] = {}
        for sample in read_csv(path, ["run", *BENCHMARK_AXES, "sample", *BENCHMARK_METRICS]):
            cells.setdefault(tuple(sample[axis] for axis in BENCHMARK_AXES), []).append(sample)
        for (mode, batch, context, new), samples in cells.items():
            common = {
                **_identity(experiment, run, "benchmark"),
                "setting": f"mode={mode}/batch={batch}/context={context}/new={new}",
                "n": len(samples),
            }
            for metric in BENCHMARK_METRICS:
                values = [_number(path, metric, sample[metric]) for sample in samples if sample[metric] != ""]
                yield {**common, "metric": metric, "value": median(values) if values else None}


def _training(experiment: Experiment) -> Iterator[Row]:
    """Training curves; the step stands in `setting`."""
    for run in runs_with_metrics(experiment):
        common = _identity(experiment, run, "train")
        for record in _json_lines(Layout(experiment).model(run) / "metrics.jsonl"):
            setting = f"step={record['step']}"
            for metric in TRAINING_METRICS:
                if metric in record:
                    yield {**common, "setting": setting, "metric": metric, "value": record[metric]}


# ------------------------------------------------------------------------------------------------------ reading


def _identity(experiment: Experiment, run: str, stage: str) -> Row:
    compressor, training_seed = experiment.trained_runs.get(run, (run, None))
    return {
        "run": run,
        "compressor": compressor,
        "family": experiment.family_of(run),
        "training_seed": training_seed,
        "stage": stage,
    }


def _get(path: Path, document: Mapping[str, Any], key: str) -> Any:
    if key not in document:
        raise ArtifactError(
            f"{path}: the key {key!r} is missing; found {', '.join(document)}. Delete it and run again."
        )
    return document[key]


def _reader(path: Path, document: Mapping[str, Any]) -> Callable[[str], Any]:
    return lambda key: _get(path, document, key)


def _number(path: Path, column: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ArtifactError(f"{path}: column {column} holds {text!r}; expected a number") from None


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror}); the stage `train` writes it") from None
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            record = None
        if not isinstance(record, dict) or "step" not in record:
            raise ArtifactError(f"{path}: line {number} is no JSON object with the key 'step'")
        yield record


def _hashed(experiment: Experiment) -> list[Path]:
    """Inputs to record: of a model only its metrics, since weights are large and not read here."""
    models = {Layout(experiment).model(run) for run in runs_with_metrics(experiment)}
    return [path / "metrics.jsonl" if path in models else path for path in score_inputs(experiment)]


# ------------------------------------------------------------------------------------------------------ writing


def _frame(rows: Iterable[Row]) -> pd.DataFrame:
    return _typed(pd.DataFrame(list(rows), columns=list(COLUMNS)))


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    """One type a column, whatever the rows held: text, whole numbers with gaps, and the value as float64."""
    for column in COLUMNS:
        if column in WHOLE_NUMBERS:
            frame[column] = frame[column].astype("Int64")
        elif column == "value":
            frame[column] = pd.to_numeric(frame[column]).astype("float64")
        else:
            frame[column] = frame[column].astype("object").where(frame[column].notna(), "").astype("str")
    return frame


def _write_parquet(path: Path, frame: pd.DataFrame, provenance: Mapping[str, Any]) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pandas(frame, preserve_index=False)
    metadata = {"kind": "scores", "format": FORMAT_VERSION, "provenance": dict(provenance)}
    packed = {**(table.schema.metadata or {}), METADATA_KEY: json.dumps(metadata, default=str).encode()}
    with atomic_file(path) as temporary:
        pyarrow.parquet.write_table(table.replace_schema_metadata(packed), temporary)
