"""The benchmark in the scores, its table and its figure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from synopsis.artifacts import check_outputs, read_csv
from synopsis.errors import ArtifactError
from synopsis.reporting.items import figure, table
from synopsis.reporting.rendering import Column, Table, counts_text
from synopsis.reporting.statistics import Group, distinct, groups
from synopsis.stages.benchmark.section import METRICS, STAGE

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from synopsis.config.experiment import Experiment
    from synopsis.reporting.style import Style

AXES = tuple(STAGE.axes)
KIBIBYTE, MEBIBYTE = 2**10, 2**20
PANELS = (
    ("wall_seconds", "wall time (milliseconds)", 1e3),
    ("peak_bytes", "peak memory (MiB)", 1 / MEBIBYTE),
    ("context_bytes", "context kept (MiB)", 1 / MEBIBYTE),
)


def rows(experiment: Experiment) -> Iterator[dict[str, Any]]:
    """The median over the samples of each cell; `n` is the number of samples."""
    for job in STAGE.jobs(experiment):
        record, path = job.outputs
        cells: dict[tuple[str, ...], list[dict[str, str]]] = {}
        check_outputs(record)
        for sample in read_csv(path, ["run", *AXES, "sample", *METRICS]):
            cells.setdefault(tuple(sample[axis] for axis in AXES), []).append(sample)
        for cell, samples in cells.items():
            axes = {name: STAGE.axes[name](value) for name, value in zip(AXES, cell, strict=True)}
            for metric in METRICS:
                values = [_number(path, metric, sample[metric]) for sample in samples if sample[metric] != ""]
                number = {"metric": metric, "value": median(values) if values else None, "n": len(samples)}
                yield {**job.wildcards, **axes, **number}


def _number(path: Any, column: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ArtifactError(f"{path}: column {column} holds {text!r}; expected a number") from None


class Pair:
    """The cost of the same work cached and uncached, averaged over training seeds."""

    def __init__(self, modes: dict[str, Group]):
        self.modes = modes
        self.work = next(iter(modes.values()))

    def value(self, mode: str, metric: str, factor: float = 1.0) -> float | None:
        mean = self.modes[mode].mean(metric) if mode in self.modes else None
        return None if mean is None else mean * factor

    def ratio(self, metric: str) -> float | None:
        """Uncached over cached: how many times less the compressed context costs."""
        cached, uncached = self.value("cached", metric), self.value("uncached", metric)
        return uncached / cached if cached and uncached is not None else None

    @property
    def samples(self) -> list[int]:
        return [count for group in self.modes.values() for count in group.counts("wall_seconds")]


def costs(scores: pd.DataFrame) -> list[Group]:
    return groups(scores, STAGE.name, "compressor", *AXES)


def pairs(scores: pd.DataFrame) -> list[Pair]:
    by_work: dict[tuple[Any, ...], dict[str, Group]] = {}
    for group in costs(scores):
        work = (group.compressor, group.batch_size, group.context_length, group.new_tokens)
        by_work.setdefault(work, {})[group.mode] = group
    return [Pair(modes) for modes in by_work.values()]


def headline(experiment: Experiment, scores: pd.DataFrame) -> dict[str, float | None]:
    numbers = {}
    for pair in pairs(scores):
        key = f"benchmark/{pair.work.compressor}/batch={pair.work.batch_size}/context={pair.work.context_length}"
        numbers[f"{key}/speed_up"] = pair.ratio("wall_seconds")
        numbers[f"{key}/memory_saving"] = pair.ratio("context_bytes")
    return numbers


@table("benchmark", "cached against uncached")
def benchmark_table(experiment: Experiment, scores: pd.DataFrame) -> Table:
    """
    Cost of decoding with the compressed context (*cached*) and of reading the context again first (*uncached*): medians
    over samples, for a whole batch. *Floor* is the least time by the device's peak rates, where they are known.
    *Faster* and *context smaller* are uncached over cached.
    """

    def both(name: str, metric: str, factor: float, digits: int, brief: bool = False) -> list[Column]:
        def column(mode: str) -> Column:
            return Column(f"{mode} {name}", lambda pair: pair.value(mode.lower(), metric, factor), digits, brief=brief)

        return [column("Uncached"), column("Cached")]

    columns = [
        Column("Compressor", lambda pair: pair.work.compressor, key=True),
        Column("Batch", lambda pair: pair.work.batch_size, key=True),
        Column("Context", lambda pair: pair.work.context_length, key=True),
        Column("New tokens", lambda pair: pair.work.new_tokens, brief=False),
        *both("(ms)", "wall_seconds", 1e3, 1, brief=True),
        Column("Faster (×)", lambda pair: pair.ratio("wall_seconds")),
        *both("floor (ms)", "floor_seconds", 1e3, 3),
        *both("GFLOP", "flops", 1e-9, 3),
        *both("peak (MiB)", "peak_bytes", 1 / MEBIBYTE, 1),
        *both("context (KiB)", "context_bytes", 1 / KIBIBYTE, 1),
        Column("Context smaller (×)", lambda pair: pair.ratio("context_bytes"), digits=1),
        Column("Samples", lambda pair: counts_text(pair.samples)),
    ]
    note = (
        "Cached: decoding with the compressed context; uncached: reading the context again first. Medians of the wall "
        "time of a whole batch, averaged over training seeds. Floor: the least time by the device's peak rates, where "
        "they are known."
    )
    return Table("Time and memory, cached against uncached", columns, pairs(scores), note)


@figure("benchmark", "cached against uncached")
def benchmark_figure(experiment: Experiment, scores: pd.DataFrame) -> Figure:
    """
    Wall time, peak memory and the bytes kept of the context, by context length (at equal distances) and batch size.
    Filled markers and solid lines: decoding with the compressed context; open markers and dashed lines: reading the
    context again.
    """
    from synopsis.reporting.style import handle, legend_below, new_figure, patch, styles

    found, looks = costs(scores), styles(experiment)
    batches, contexts = sorted(distinct(found, "batch_size")), sorted(distinct(found, "context_length"))
    compressors = distinct(found)
    drawn, panels = new_figure(len(batches) * len(PANELS), 3.1, 2.6, most_columns=len(PANELS))
    of_panels = [(batch, *metric) for batch in batches for metric in PANELS]
    for panel, (batch, metric, label, factor) in zip(panels, of_panels, strict=True):
        for position, compressor in enumerate(compressors):
            line = [one for one in found if (one.compressor, one.batch_size) == (compressor, batch)]
            # Compressors of one base model cost almost the same: side by side, none hides another.
            shift = 0.05 * (position - (len(compressors) - 1) / 2)
            _cost_lines(panel, line, contexts, shift, (metric, factor), looks[compressor])
        panel.set_xticks(range(len(contexts)), [f"{context:,}" for context in contexts])
        panel.set_ylabel(label)
        panel.set_xlabel("context (tokens)")
        panel.set_title(f"batch size {batch}")
        _from_zero(panel)
    modes = [
        handle("cached", color="k", linestyle="-", marker="o"),
        handle("uncached", color="k", linestyle="--", marker="o", markerfacecolor="w"),
    ]
    legend_below(drawn, [*(patch(name, looks[name].colour) for name in compressors), *modes], most_columns=7)
    return drawn


def _cost_lines(
    panel: Axes, found: list[Group], contexts: Sequence[int], shift: float, of: tuple[str, float], style: Style
) -> None:
    metric, factor = of
    for mode, line, face in (("cached", "-", style.colour), ("uncached", "--", "w")):
        chosen = sorted((one for one in found if one.mode == mode), key=lambda one: one.context_length)
        means = [one.mean(metric) for one in chosen]
        panel.plot(
            [contexts.index(one.context_length) + shift for one in chosen],
            [float("nan") if mean is None else factor * mean for mean in means],
            color=style.colour,
            linestyle=line,
            marker=style.marker,
            markerfacecolor=face,
        )


def _from_zero(panel: Axes) -> None:
    """Start the axis at zero, so that heights can be compared; say so where nothing was measured."""
    import numpy as np

    values = [float(value) for line in panel.get_lines() for value in np.asarray(line.get_ydata()) if value == value]
    if values:
        panel.set_ylim(0, 1.08 * max(*values, 1e-9))
    else:
        panel.text(0.5, 0.5, "not measured", ha="center", va="center", transform=panel.transAxes)
