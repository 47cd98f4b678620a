"""A benchmark in the form in which Mu et al. (2023) published theirs: means, deviations and paired differences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from synopsis.reporting.rendering import Cell, Column

MEASURES = {
    "profiler_cuda_seconds": ("CUDA time (ms)", 1e3),
    "profiler_cpu_seconds": ("CPU time (ms)", 1e3),
    "profiler_flops": ("GFLOP", 1e-9),
    "deepspeed_flops": ("GFLOP by DeepSpeed", 1e-9),
    "wall_seconds": ("wall time (ms)", 1e3),
}
BASELINES = ("none", "prefix")


def numbers(samples: Mapping[str, list[dict[str, Any]]]) -> Iterator[tuple[str, str, float]]:
    """(mode, metric, value) of the samples of each mode at one point, which are pairs by their order."""
    import numpy as np
    from scipy.stats import t

    for measure in MEASURES:
        found = {mode: np.array([one[measure] for one in rows], dtype=float) for mode, rows in samples.items()}
        found = {mode: values for mode, values in found.items() if len(values) > 1 and np.isfinite(values).all()}
        for mode, values in found.items():
            yield mode, f"{measure}_mean", values.mean()
            yield mode, f"{measure}_deviation", values.std(ddof=1)
        own = found.get("compressed")
        for mode in BASELINES:
            if mode not in found or own is None:
                continue
            less = found[mode] - own
            half = t.ppf(0.975, len(less) - 1) * less.std(ddof=1) / len(less) ** 0.5
            for part, value in (("", less.mean()), ("_low", less.mean() - half), ("_high", less.mean() + half)):
                yield "compressed", f"{measure}_less_than_{mode}{part}", value
            if found[mode].all():
                yield "compressed", f"{measure}_share_of_{mode}", (less / found[mode]).mean()


def columns() -> list[Column]:
    """Of records (work, measure)."""

    def mean(mode: str) -> Column:
        def value(record: Any) -> Cell:
            work, measure = record
            parts = (work.value(mode, f"{measure}_{part}", MEASURES[measure][1]) for part in ("mean", "deviation"))
            return Cell(*parts)

        return Column(mode.title(), value, 3, brief=False)

    def less(mode: str) -> Column:
        def value(record: Any) -> Cell:
            work, measure = record
            return work.against(mode, f"{measure}_less_than", MEASURES[measure][1])

        return Column(f"{mode.title()} − compressed", value, 3, brief=False)

    def percent(mode: str) -> Column:
        def value(record: Any) -> float | None:
            work, measure = record
            part, whole = work.value("compressed", f"{measure}_less_than_{mode}"), work.value(mode, f"{measure}_mean")
            return 100 * part / whole if whole and part is not None else None

        return Column(f"% of {mode}", value, 1)

    def mean_percent(mode: str) -> Column:
        def value(record: Any) -> float | None:
            work, measure = record
            return work.value("compressed", f"{measure}_share_of_{mode}", 100)

        return Column(f"Mean % of {mode}", value, 1, brief=False)

    differences = [make(mode) for mode in BASELINES for make in (less, percent, mean_percent)]
    return [*(mean(mode) for mode in (*BASELINES, "compressed")), *differences]
