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
    PROVENANCE,
    Layout,
    Provenance,
    atomic_file,
    check_outputs,
    read_csv,
    read_json,
    write_json,
    write_text,
)
from synopsis.config.experiment import Experiment
from synopsis.errors import ArtifactError
from synopsis.progress import say
from synopsis.reporting.files import judgement_summaries, runs_with_metrics, score_inputs
from synopsis.reporting.reading import json_lines, required
from synopsis.stages import plan
from synopsis.stages.icl.scores import accuracy_dictionary, icl_rows
from synopsis.stages.needle.scores import needle_rows
from synopsis.stages.perplexity.scores import perplexity_rows

COLUMNS = (
    "run",
    "compressor",
    "method",
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
FAILURES = "failures"
FAILURE_KEYS = ("run", "stage", "dataset", "setting", "seed", "message")

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
    Warns of results that were made with other settings than those of `experiment`, and scores what they hold.
    Raises ArtifactError when a result is missing or damaged.
    """
    layout = Layout(experiment)
    _warn_of_other_settings(experiment)
    provenance = Provenance(config=experiment.fingerprint(experiment), inputs=_hashed(experiment))
    rows = [
        row
        for rows_of in (_training, _perplexity, _icl, _needle, _rouge, _judgements, _benchmark)
        for row in rows_of(experiment)
    ]
    frame = _frame(rows)
    write_text(layout.accuracy, json.dumps(accuracy_dictionary(experiment, frame), indent=2) + "\n")
    record = provenance.record()
    told = _failures(rows)
    _write_parquet(layout.scores, frame, record, told)
    frame.attrs[FAILURES] = told
    outputs = [layout.scores, layout.accuracy]
    write_json(_record(layout.scores), "scores", {"rows": len(frame)}, record, outputs)
    return frame


def _record(scores: Path) -> Path:
    return scores.with_suffix(".provenance.json")


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


def failures(frame: pd.DataFrame) -> list[Row]:
    """Cells that could not be measured (run, stage, dataset, setting, seed), each with the `message` of its error."""
    return list(frame.attrs.get(FAILURES, []))


def setting_fields(setting: str) -> dict[str, str]:
    """The parts of a setting.

    >>> setting_fields("context=96/tokens=all")
    {'context': '96', 'tokens': 'all'}
    """
    return dict(part.split("=", 1) for part in setting.split("/") if "=" in part)


# ------------------------------------------------------------------------------------------------ rows by stage


def _perplexity(experiment: Experiment) -> Iterator[Row]:
    for run, row in perplexity_rows(experiment):
        yield {**_identity(experiment, run, "perplexity"), **row}


def _icl(experiment: Experiment) -> Iterator[Row]:
    for run, row in icl_rows(experiment):
        yield {**_identity(experiment, run, "icl"), **row}


def _needle(experiment: Experiment) -> Iterator[Row]:
    for run, row in needle_rows(experiment):
        yield {**_identity(experiment, run, "needle"), **row}


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
        check_outputs(path.with_suffix(".json"))
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
        folder = Layout(experiment).model(run)
        check_outputs(folder / PROVENANCE, ["metrics.jsonl"])
        for record in json_lines(folder / "metrics.jsonl", ("step",), "train"):
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
        "method": experiment.method_of(run),
        "training_seed": training_seed,
        "stage": stage,
    }


def _reader(path: Path, document: Mapping[str, Any]) -> Callable[[str], Any]:
    return lambda key: required(path, document, key)


def _number(path: Path, column: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ArtifactError(f"{path}: column {column} holds {text!r}; expected a number") from None


def _warn_of_other_settings(experiment: Experiment) -> None:
    other = [
        str(path)
        for path, (kind, facts) in _facts(experiment).items()
        if path.is_file() and read_json(path, kind).get("provenance", {}).get("config", facts) != facts
    ]
    if other:
        shown = ", ".join(other[:3]) + (f" and {len(other) - 3} more" if len(other) > 3 else "")
        count = "1 file was" if len(other) == 1 else f"{len(other)} files were"
        say(
            f"warning: {count} made with other settings than the experiment has now: {shown}. "
            "The scores are those of the files as they are; run the workflow to make them anew."
        )


def _facts(experiment: Experiment) -> dict[Path, tuple[str, str]]:
    """Every file whose provenance says what settings it was made with: its kind, and the facts of these settings."""
    layout = Layout(experiment)
    found = {
        layout.model(name) / "provenance.json": ("model", plan.prepare_facts(experiment, "model", name))
        for name in experiment.models
    }
    found |= {
        layout.model(run) / "provenance.json": ("model", plan.train_facts(experiment, run))
        for run in runs_with_metrics(experiment)
    }
    for corpus in experiment.corpora:
        facts = plan.prepare_facts(experiment, "corpus", corpus)
        found |= {layout.corpus(corpus, name) / "provenance.json": ("corpus", facts) for name in experiment.models}
    for name in experiment.instructions:
        facts = plan.prepare_facts(experiment, "instructions", name)
        found[layout.instructions(name)] = ("instructions", facts)
    for dataset in experiment.tasks:
        found[layout.task(dataset)] = ("task", plan.prepare_facts(experiment, "task", dataset))
        for run in experiment.runs_of("icl"):
            for seed in experiment.evaluation_seeds:
                facts = plan.icl_facts(experiment, run, dataset, seed)
                found[layout.icl(run, dataset, seed)] = ("icl", facts)
    for run in experiment.runs_of("perplexity"):
        found[layout.perplexity(run)] = ("perplexity", plan.perplexity_facts(experiment, run))
    for run in experiment.runs_of("needle"):
        found[layout.needle(run)] = ("needle", plan.needle_facts(experiment, run))
    for run in experiment.runs_of("generate"):
        for split in experiment.generate.splits if experiment.generate else []:
            path = layout.generations(run, split).with_suffix(".json")
            found[path] = ("rouge", plan.generate_facts(experiment, run, split))
    for (judge, *_), path in judgement_summaries(experiment).items():
        found[path] = ("judgement_summary", plan.judge_facts(experiment, judge))
    for run in experiment.runs_of("benchmark"):
        path = layout.benchmark(run).with_suffix(".json")
        found[path] = ("benchmark", plan.benchmark_facts(experiment, run))
    return found


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


def _failures(rows: Iterable[Row]) -> list[Row]:
    """What stands beside the numbers, since a table of numbers has no room for messages."""
    return [{key: row[key] for key in FAILURE_KEYS} for row in rows if row.get("message")]


def _write_parquet(path: Path, frame: pd.DataFrame, provenance: Mapping[str, Any], failed: list[Row]) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pandas(frame, preserve_index=False)
    metadata = {"kind": "scores", "format": FORMAT_VERSION, "provenance": dict(provenance), FAILURES: failed}
    packed = {**(table.schema.metadata or {}), METADATA_KEY: json.dumps(metadata, default=str).encode()}
    with atomic_file(path) as temporary:
        pyarrow.parquet.write_table(table.replace_schema_metadata(packed), temporary)
