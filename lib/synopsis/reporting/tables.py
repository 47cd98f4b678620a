"""The tables: which numbers stand in which row and column.

Each function takes the tidy scores and the experiment and returns one `Table`; `build_tables` gives all that the
experiment has sections for.
"""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from synopsis.config.experiment import Experiment
from synopsis.reporting.cells import OVER_TRAINING_SEEDS, count_text, errors_column, estimate_cell
from synopsis.reporting.files import table_names
from synopsis.reporting.rendering import Cell, Column, Table
from synopsis.reporting.scores import BENCHMARK_METRICS, ROUGE_METRICS
from synopsis.reporting.summaries import (
    CostPair,
    comparisons,
    costs,
    paired_costs,
    rouges,
)
from synopsis.stages.icl.tables import icl_speed_table, icl_table
from synopsis.stages.needle.table import needle_table
from synopsis.stages.perplexity.tables import (
    perplexity_detail_table,
    perplexity_domain_table,
    perplexity_table,
)

MEBIBYTE = 2**20
KIBIBYTE = 2**10
ROUGE_TITLES = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L", "rougeLsum": "ROUGE-Lsum"}


def build_tables(experiment: Experiment, scores: pd.DataFrame) -> list[Table]:
    return [TABLES[name](experiment, scores) for name in table_names(experiment)]


def rouge_table(experiment: Experiment, scores: pd.DataFrame) -> Table:
    rows = []
    for record in rouges(scores, experiment, ROUGE_METRICS):
        rows.append(
            [
                Cell(record.split),
                Cell(record.compressor),
                *(estimate_cell(record.metrics[metric]) for metric in ROUGE_TITLES),
                Cell(record.recovered),
                estimate_cell(record.metrics["exact_match"]),
                Cell(count_text(record.examples)),
                Cell(record.metrics["rougeL"].count),
            ]
        )
    columns = [
        Column("Split", key=True),
        Column("Compressor", key=True),
        *(Column(title, brief=metric in ("rouge2", "rougeL")) for metric, title in ROUGE_TITLES.items()),
        Column("Recovered (%)", digits=1),
        Column("Exact match (%)", digits=1),
        Column("Examples"),
        Column("Runs"),
    ]
    note = (
        "Recovered: how far ROUGE-L is on the way from the negative control (instruction hidden, 0 %) to the positive "
        f"control (instruction visible, 100 %). {OVER_TRAINING_SEEDS}"
    )
    return Table("rouge", "Outputs for instructions: ROUGE (0 to 100)", columns, rows, note)


def judgement_table(experiment: Experiment, scores: pd.DataFrame) -> Table:
    rows = []
    for record in comparisons(scores, experiment):
        interval = None if record.interval is None else (100 * record.interval[0], 100 * record.interval[1])
        rows.append(
            [
                *(Cell(text) for text in (record.judge, record.split, record.a, record.b)),
                *(Cell(count) for count in (record.win, record.tie, record.lose)),
                Cell(record.parse_errors),
                Cell(record.api_errors),
                Cell(_percent(record.win_rate), interval=interval),
                Cell(_percent(record.consistent)),
                Cell(_percent(record.first_wins)),
                Cell(count_text(record.examples)),
            ]
        )
    columns = [
        *(Column(name, key=True) for name in ("Judge", "Split", "A", "B")),
        *(Column(name) for name in ("A wins", "Ties", "B wins")),
        errors_column("Unparsed", rows, 7),
        errors_column("Failed", rows, 8),
        Column("Win rate of A (%)", digits=1),
        Column("Consistent (%)", digits=1, brief=False),
        Column("First wins (%)", digits=1, brief=False),
        Column("Examples"),
    ]
    note = (
        "Judgements in both orders of the answers. Win rate: wins and half the ties, without unparsed and failed "
        "judgements, with a 95 % Wilson interval in which each example counts once. Consistent: examples judged alike "
        "in both orders. First wins: decisions for the answer shown first."
    )
    return Table("judgements", "Pairwise judgements", columns, rows, note)


def benchmark_table(experiment: Experiment, scores: pd.DataFrame) -> Table:
    rows = [_benchmark_row(pair) for pair in paired_costs(costs(scores, BENCHMARK_METRICS))]
    columns = [
        Column("Compressor", key=True),
        Column("Batch", key=True),
        Column("Context", key=True),
        Column("New tokens", brief=False),
        *(Column(f"{mode} (ms)", digits=1) for mode in ("Uncached", "Cached")),
        Column("Faster (×)"),
        *(Column(f"{mode} floor (ms)", digits=3, brief=False) for mode in ("Uncached", "Cached")),
        *(Column(f"{mode} GFLOP", digits=3, brief=False) for mode in ("Uncached", "Cached")),
        *(Column(f"{mode} peak (MiB)", digits=1, brief=False) for mode in ("Uncached", "Cached")),
        *(Column(f"{mode} context (KiB)", digits=1, brief=False) for mode in ("Uncached", "Cached")),
        Column("Context smaller (×)", digits=1),
        Column("Samples"),
    ]
    note = (
        "Cached: decoding with the compressed context; uncached: reading the context again first. Medians of the wall "
        "time of a whole batch, averaged over training seeds. Floor: the least time by the device's peak rates, where "
        "they are known."
    )
    return Table("benchmark", "Time and memory, cached against uncached", columns, rows, note)


def _benchmark_row(pair: CostPair) -> list[Cell]:
    def both(metric: str, factor: float) -> list[Cell]:
        values = (pair.value(mode, metric) for mode in ("uncached", "cached"))
        return [Cell(None if value is None else value * factor) for value in values]

    samples = [count for cost in (pair.uncached, pair.cached) if cost for count in cost.samples]
    return [
        Cell(pair.compressor),
        *(Cell(number) for number in (pair.batch_size, pair.context, pair.new_tokens)),
        *both("wall_seconds", 1e3),
        Cell(pair.ratio("wall_seconds")),
        *both("floor_seconds", 1e3),
        *both("flops", 1e-9),
        *both("peak_bytes", 1 / MEBIBYTE),
        *both("context_bytes", 1 / KIBIBYTE),
        Cell(pair.ratio("context_bytes")),
        Cell(count_text(samples)),
    ]


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


TABLES: dict[str, Callable[[Experiment, pd.DataFrame], Table]] = {
    "perplexity": perplexity_table,
    "perplexity_domains": perplexity_domain_table,
    "perplexity_details": perplexity_detail_table,
    "icl": icl_table,
    "icl_speed": icl_speed_table,
    "needle": needle_table,
    "rouge": rouge_table,
    "judgements": judgement_table,
    "benchmark": benchmark_table,
}
"""Name of a table -> the function that builds it."""
