"""The tables and the figure of the gist paper, regenerated from its released data."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from synopsis.paper.published import DEVIATION, Cell
from synopsis.paper.release import BENCHMARKS, UNITS, Release
from synopsis.progress import track
from synopsis.reporting.statistics import recovered_percent

Numbers = Mapping[str, tuple[float, tuple[float, float] | None]]
"""Split -> value and interval."""


def fill(cells: list[Cell], release: Release) -> None:
    """Put what the release gives beside the published numbers."""
    of = {(cell.table, cell.row, cell.column): cell for cell in cells}
    work = [(model, *kind) for model in release.about["models"] for kind in release.kinds]
    released = release.rouge()
    _benchmarks(of, release)
    judged = {run: _win_rates(of, release, *run) for run in work if run[1] != "pos_control"}
    # Everything is read, and so checked, before the slow part begins.
    outputs = {run: {split: release.outputs(*run, split) for split in release.examples} for run in work}
    scored = {
        run: _rouge(of, outputs[run], released, row_of(release, *run), run) for run in track(work, "ROUGE", unit="runs")
    }
    for model, (name, _) in release.about["models"].items():
        runs = [(model, "pos_control", 1), (model, "gist", 1), (model, "neg_control", 1)]
        half = dict.fromkeys(release.examples, (50.0, None))  # the positive control against itself, by definition
        for table, found in (("rouge", scored), ("chatgpt", {**judged, runs[0]: half})):
            positive, gist, negative = (found[run] for run in runs)
            for split in release.examples:
                for (_, condition, _), numbers in zip(runs, (positive, gist, negative), strict=True):
                    if cell := of.get((table, f"{name} {condition}", split)):
                        cell.put(*numbers[split])
                three = [numbers[split][0] for numbers in (gist, negative, positive)]
                percent, printed = recovered_percent(*three), recovered_percent(*map(as_printed, three))
                if percent is not None:
                    of[table, f"{name} gist", f"{split} (%)"].put(percent, None, printed)


def as_printed(value: float) -> float:
    """A value with one decimal, 25.45 as 25.5."""
    return float(Decimal(f"{value:.9f}").quantize(Decimal("0.1"), ROUND_HALF_UP))


def row_of(release: Release, model: str, condition: str, tokens: int) -> str:
    name = release.about["models"][model][0]
    return f"{name} gist {tokens}" if condition == "gist" else f"{name} {condition}"


def _rouge(of: Any, outputs: Any, released: Any, row: str, run: tuple[str, str, int]) -> Numbers:
    """ROUGE-L of a run by the published recipe, and beside that of rouge.csv."""
    from synopsis.stages.generate.rouge import ROUGE_TYPES, score_rouge

    found = {}
    for split, pairs in outputs.items():
        bootstrap = score_rouge(pairs, types=ROUGE_TYPES[:3]).published()["rougeL"]
        found[split] = bootstrap.mid, (bootstrap.low, bootstrap.high)
        cell, (model, condition, tokens) = of["gist_tokens_rouge", row, split], run
        cell.published = f"{released[model, condition, str(tokens), split]:.4f}"
        cell.put(*found[split])
    return found


def _win_rates(of: Any, release: Release, model: str, condition: str, tokens: int) -> Numbers:
    """Win rates of a run as the field `scores` has them, and counted from the choices."""
    from statsmodels.stats.proportion import proportion_confint

    found = {}
    for split in release.examples:
        judged = release.judgements(model, condition, tokens, split)
        low, high = proportion_confint(judged.win_rate * judged.n, judged.n, method="beta")
        found[split] = 100 * judged.win_rate, (100 * low, 100 * high)
        row = row_of(release, model, condition, tokens)
        of["gist_tokens_win_rates", row, split].put(*found[split])
        of["gist_tokens_choices", row, split].put(100 * judged.recounted)
    return found


def _benchmarks(of: Any, release: Release) -> None:
    """Means and standard deviations of a forward pass, and the paired differences between its conditions."""
    import numpy as np
    from scipy.stats import ttest_1samp

    for model, (name, _) in release.about["models"].items():
        passes = {"no cache": release.benchmark(model, "gist cache", "standard")}
        passes |= {cache: release.benchmark(model, cache, "gist") for cache in BENCHMARKS[model]}
        for unit, row in ((unit, f"{name} {unit}: ") for unit in UNITS):
            samples = {condition: np.array(found[unit]) for condition, found in passes.items()}
            for condition, values in samples.items():
                of["efficiency", row + condition, "mean"].put(values.mean())
                of["efficiency", row + condition, "mean" + DEVIATION].put(values.std(ddof=1))
            gist = samples.pop("gist cache")
            for condition, values in samples.items():
                factor, both = 100 / values.mean(), f"{row}{condition} - gist cache"
                low, high = ttest_1samp(values - gist, 0).confidence_interval(0.95)
                mean = (values - gist).mean()
                of["efficiency", both, "mean"].put(mean, (low, high))
                of["efficiency", both, "percent"].put(factor * mean, (factor * low, factor * high))
