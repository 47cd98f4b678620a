"""The report stage: tables and figures of an experiment, from its scores alone.

    synopsis report --config config/demo.yaml

The same scores give the same bytes: nothing written here holds a date or a random identifier, apart from
`report.provenance.json`, which says what the files were made from.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from synopsis.artifacts import Layout, Provenance, write_json, write_text
from synopsis.config.experiment import Experiment
from synopsis.progress import say
from synopsis.reporting.files import TABLE_FORMATS, figure_names, report_files
from synopsis.reporting.rendering import Table, as_csv, as_html, as_latex, as_markdown, as_terminal_text
from synopsis.reporting.scores import BENCHMARK_METRICS, ROUGE_METRICS, read_scores
from synopsis.reporting.summaries import comparisons, costs, paired_costs, rouges
from synopsis.reporting.tables import build_tables
from synopsis.stages.icl.summaries import accuracies, speeds
from synopsis.stages.needle.summaries import retrievals
from synopsis.stages.perplexity.summaries import losses, overall

WIDTH_WITHOUT_TERMINAL = 110
RENDERERS: dict[str, Callable[[Table], str]] = {"csv": as_csv, "md": as_markdown, "tex": as_latex, "html": as_html}


def report(experiment: Experiment) -> dict[str, list[Path]]:
    """Write every table and figure of `experiment` and return their paths as `report_files` names them.

    Raises ArtifactError when the scores are missing, damaged or lack a stage of the experiment.
    """
    from synopsis.reporting.figures import build_figure, save_figure

    layout = Layout(experiment)
    scores = read_scores(layout.scores)
    provenance = Provenance(config=experiment.fingerprint(experiment), inputs=[layout.scores])
    for table in build_tables(experiment, scores):
        for suffix in TABLE_FORMATS:
            write_text(layout.tables / f"{table.name}.{suffix}", RENDERERS[suffix](table))
    for name in figure_names(experiment):
        save_figure(build_figure(name, experiment, scores), layout.figures / name)
    files = report_files(experiment)
    outputs = [path for paths in files.values() for path in paths]
    write_json(layout.root / "report.provenance.json", "report", {}, provenance.record(), outputs)
    say(f"{layout.root}: {len(files['tables'])} tables and {len(files['figures'])} figures written")
    return files


def main_tables(experiment: Experiment) -> str:
    """Every table as text that fits the terminal."""
    scores = read_scores(Layout(experiment).scores)
    width = shutil.get_terminal_size((WIDTH_WITHOUT_TERMINAL, 24)).columns
    return "\n\n\n".join(as_terminal_text(table, width) for table in build_tables(experiment, scores)) + "\n"


def headline(experiment: Experiment) -> dict[str, float]:
    """The headline numbers, each under a path that says what it is; numbers that do not exist are left out.

    perplexity/<compressor>/context=96/tokens=all/loss    nats a token
    perplexity/<compressor>/context=96/tokens=all/bits_per_byte
    icl/<compressor>/<setting>/mean_accuracy              0..1, mean over data sets and draws
    icl/<compressor>/<setting>/examples_per_second
    icl/<compressor>/<setting>/token_saving               naive over computed tokens
    needle/<compressor>/length=512/choice                 0..1, mean over depths
    needle/<compressor>/length=512/exact
    rouge/<compressor>/<split>/rougeL                     0..100
    rouge/<compressor>/<split>/recovered_percent
    judge/<judge>/<a>-vs-<b>/<split>/win_rate             0..1
    benchmark/<compressor>/batch=1/context=96/speed_up    uncached over cached wall time
    benchmark/<compressor>/batch=1/context=96/memory_saving    uncached over cached bytes of context
    """
    scores = read_scores(Layout(experiment).scores)
    numbers: dict[str, float | None] = {}
    for section in (_perplexity_numbers, _icl_numbers, _needle_numbers, _instruction_numbers, _benchmark_numbers):
        numbers |= section(experiment, scores)
    return {key: float(value) for key, value in numbers.items() if value is not None}


def _perplexity_numbers(experiment: Experiment, scores: pd.DataFrame) -> dict[str, float | None]:
    if not experiment.runs_of("perplexity"):
        return {}
    return {
        f"perplexity/{record.compressor}/{record.setting}/{name}": estimate.mean
        for record in overall(losses(scores))
        for name, estimate in (("loss", record.loss), ("bits_per_byte", record.bits_per_byte))
    }


def _icl_numbers(experiment: Experiment, scores: pd.DataFrame) -> dict[str, float | None]:
    if experiment.icl is None or not experiment.runs_of("icl"):
        return {}
    numbers: dict[str, float | None] = {}
    for accuracy, speed in zip(accuracies(scores, experiment.icl.datasets), speeds(scores), strict=True):
        key = f"icl/{accuracy.compressor}/{accuracy.setting}"
        numbers[f"{key}/mean_accuracy"] = accuracy.mean.mean
        numbers[f"{key}/examples_per_second"] = speed.examples_per_second
        numbers[f"{key}/token_saving"] = speed.saving
    return numbers


def _needle_numbers(experiment: Experiment, scores: pd.DataFrame) -> dict[str, float | None]:
    numbers: dict[str, float | None] = {}
    if experiment.runs_of("needle"):
        for record in retrievals(experiment, scores):
            key = f"needle/{record.compressor}/length={record.length}"
            numbers |= {f"{key}/choice": record.mean_choice, f"{key}/exact": record.mean_exact}
    return numbers


def _instruction_numbers(experiment: Experiment, scores: pd.DataFrame) -> dict[str, float | None]:
    numbers: dict[str, float | None] = {}
    if experiment.runs_of("generate"):
        for rouge in rouges(scores, experiment, ROUGE_METRICS):
            key = f"rouge/{rouge.compressor}/{rouge.split}"
            numbers |= {f"{key}/rougeL": rouge.metrics["rougeL"].mean, f"{key}/recovered_percent": rouge.recovered}
    if experiment.judged_pairs():
        for judged in comparisons(scores, experiment):
            numbers[f"judge/{judged.judge}/{judged.a}-vs-{judged.b}/{judged.split}/win_rate"] = judged.win_rate
    return numbers


def _benchmark_numbers(experiment: Experiment, scores: pd.DataFrame) -> dict[str, float | None]:
    numbers: dict[str, float | None] = {}
    if experiment.runs_of("benchmark"):
        for pair in paired_costs(costs(scores, BENCHMARK_METRICS)):
            key = f"benchmark/{pair.compressor}/batch={pair.batch_size}/context={pair.context}"
            numbers[f"{key}/speed_up"] = pair.ratio("wall_seconds")
            numbers[f"{key}/memory_saving"] = pair.ratio("context_bytes")
    return numbers
