"""The tables: which numbers stand in which row and column.

Each function takes the tidy scores and the experiment and returns one `Table`; `build_tables` gives all that the
experiment has sections for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import pandas as pd

from synopsis.config import Experiment
from synopsis.reporting.estimates import MISSING, Estimate
from synopsis.reporting.files import domains_of, table_names
from synopsis.reporting.rendering import Cell, Column, Table
from synopsis.reporting.scores import BENCHMARK_METRICS, ROUGE_METRICS
from synopsis.reporting.summaries import (
    CostPair,
    LossAtContext,
    accuracies,
    comparisons,
    costs,
    losses,
    overall,
    paired_costs,
    rouges,
)

MEBIBYTE = 2**20
KIBIBYTE = 2**10
ROUGE_TITLES = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L", "rougeLsum": "ROUGE-Lsum"}
OVER_TRAINING_SEEDS = "± is the standard deviation over training seeds, where there are several."


def build_tables(experiment: Experiment, scores: pd.DataFrame) -> list[Table]:
    return [TABLES[name](experiment, scores) for name in table_names(experiment)]


def perplexity_table(experiment: Experiment, scores: pd.DataFrame) -> Table:
    found = overall(losses(scores))
    groups = [(record.tokens, record.compressor) for record in found]
    return _by_context(
        "perplexity",
        "Perplexity by context length",
        ("Tokens", "Compressor"),
        [(key, [r for r in found if (r.tokens, r.compressor) == key]) for key in dict.fromkeys(groups)],
        f"Columns: tokens of context read before the scored tokens. {OVER_TRAINING_SEEDS}",
    )


def perplexity_domain_table(experiment: Experiment, scores: pd.DataFrame) -> Table:
    domains = domains_of(experiment)
    found = [record for record in losses(scores) if record.domain in domains and record.tokens == "all"]
    groups = [(record.domain, record.compressor) for record in found]
    return _by_context(
        "perplexity_domains",
        "Perplexity by domain and context length",
        ("Domain", "Compressor"),
        [(key, [r for r in found if (r.domain, r.compressor) == key]) for key in dict.fromkeys(groups)],
        f"Columns: tokens of context read before the scored tokens. {OVER_TRAINING_SEEDS}",
    )


def _by_context(
    name: str,
    title: str,
    keys: tuple[str, str],
    groups: Sequence[tuple[tuple[str, str], list[LossAtContext]]],
    note: str,
) -> Table:
    contexts = sorted({record.context for _, records in groups for record in records})
    rows = []
    for key, records in groups:
        by_context = {record.context: record for record in records}
        cells = [_cell(by_context[c].perplexity if c in by_context else MISSING) for c in contexts]
        scored = [count for record in records for count in record.scored]
        seeds = max(record.perplexity.count for record in records)
        rows.append([*(Cell(part) for part in key), *cells, Cell(count_text(scored)), Cell(seeds)])
    columns = [
        *(Column(key, key=True) for key in keys),
        *(Column(f"{context:,} tokens") for context in contexts),
        Column("Scored tokens", digits=0),
        Column("Runs", digits=0),
    ]
    return Table(name, title, columns, rows, note)


def icl_table(experiment: Experiment, scores: pd.DataFrame) -> Table:
    datasets = experiment.icl.datasets if experiment.icl else []
    rows = []
    for record in accuracies(scores, datasets):
        cells = [_cell(record.by_dataset[dataset], 100) for dataset in datasets]
        rows.append(
            [
                Cell(record.compressor),
                Cell(record.setting),
                *cells,
                _cell(record.mean, 100),
                Cell(record.draws),
                Cell(count_text(record.examples)),
                Cell(record.demonstrations),
                Cell(record.dropped),
                Cell(record.truncated),
            ]
        )
    columns = [
        Column("Compressor", key=True),
        Column("Setting", key=True),
        *(Column(dataset, digits=1) for dataset in datasets),
        Column("Mean", digits=1),
        Column("Draws"),
        Column("Examples"),
        Column("Demonstrations", digits=1, brief=False),
        _errors("Dropped", rows, -2),
        _errors("Empty budgets", rows, -1),
    ]
    note = (
        "± is the standard deviation over draws: seeds of the demonstrations, times training seeds where there are "
        "several. Examples are those of one data set and draw. Dropped (examples that do not fit) and empty budgets "
        "(for which every demonstration is too long) are counted over all."
    )
    return Table("icl", "In-context learning: accuracy (%)", columns, rows, note)


def rouge_table(experiment: Experiment, scores: pd.DataFrame) -> Table:
    rows = []
    for record in rouges(scores, experiment, ROUGE_METRICS):
        rows.append(
            [
                Cell(record.split),
                Cell(record.compressor),
                *(_cell(record.metrics[metric]) for metric in ROUGE_TITLES),
                Cell(record.recovered),
                _cell(record.metrics["exact_match"]),
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
        _errors("Unparsed", rows, 7),
        _errors("Failed", rows, 8),
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


def _errors(name: str, rows: list[list[Cell]], place: int) -> Column:
    """A column of counts that are zero when all is well; the terminal shows it when one is not."""
    return Column(name, brief=any(row[place].value for row in rows))


def count_text(counts: Iterable[int]) -> str:
    """Counts that are equal once, others as a range; "" when there is none.

    >>> count_text([100, 100]), count_text([87, 1821])
    ('100', '87–1821')
    """
    found = sorted(set(counts))
    return "" if not found else str(found[0]) if len(found) == 1 else f"{found[0]}–{found[-1]}"


def _cell(estimate: Estimate, factor: float = 1.0) -> Cell:
    if estimate.mean is None:
        return Cell(None)
    deviation = None if estimate.deviation is None else factor * estimate.deviation
    return Cell(factor * estimate.mean, deviation=deviation)


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


TABLES: dict[str, Callable[[Experiment, pd.DataFrame], Table]] = {
    "perplexity": perplexity_table,
    "perplexity_domains": perplexity_domain_table,
    "icl": icl_table,
    "rouge": rouge_table,
    "judgements": judgement_table,
    "benchmark": benchmark_table,
}
"""Name of a table -> the function that builds it."""
