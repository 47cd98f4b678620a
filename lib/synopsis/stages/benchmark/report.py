"""The benchmark in the scores, its tables and its figures: what compressing saves, and from when on it pays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil
from statistics import median
from typing import TYPE_CHECKING, Any

from synopsis.artifacts import check_outputs, read_csv, read_json
from synopsis.errors import ArtifactError
from synopsis.reporting.items import figure, table
from synopsis.reporting.rendering import Cell, Column, Table, at_most, cell_text, counts_text
from synopsis.reporting.statistics import Group, distinct, failures, groups
from synopsis.stages.benchmark import efficiency
from synopsis.stages.benchmark.front import front_figure as front_figure
from synopsis.stages.benchmark.section import METRICS, OTHER_LOAD, STAGE

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from synopsis.config.experiment import Experiment
    from synopsis.reporting.style import Style

__all__ = [
    "benchmark_figure",
    "benchmark_table",
    "break_even_figure",
    "efficiency_table",
    "front_figure",
    "headline",
    "rows",
]

AXES = tuple(STAGE.axes)
MODES = ("none", "prefix", "compressed")
BASELINES = {"none": "reading the context again", "prefix": "the cached prefix"}
LINES = {"none": (":", "w"), "prefix": ("--", "w"), "compressed": ("-", None)}
"""Mode -> line and face of its markers."""
KIBIBYTE, MEBIBYTE = 2**10, 2**20
PANELS = (
    ("wall_seconds", "wall time (milliseconds)", 1e3),
    ("peak_bytes", "peak memory (MiB)", 1 / MEBIBYTE),
    ("used_bytes", "context in the cache (MiB)", 1 / MEBIBYTE),
)
MOST_FAILURES = 8


def rows(experiment: Experiment) -> Iterator[dict[str, Any]]:
    """Medians over the samples of each cell; of the compressed ones also differences and ratios to the other modes."""
    for job in STAGE.jobs(experiment):
        record, path = job.outputs
        check_outputs(record)
        cells: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        for sample in read_csv(path, ["run", *AXES, "sample", *METRICS, "note"]):
            numbers = {metric: _number(path, metric, sample[metric]) for metric in METRICS}
            cell = tuple(kind(sample[axis]) for axis, kind in STAGE.axes.items())
            cells.setdefault(cell, []).append({**sample, **numbers})
        first: dict[str, Any] = {}
        last: dict[str, Any] = {}
        for cell, samples in cells.items():
            axes = {**job.wildcards, **dict(zip(AXES, cell, strict=True))}
            if samples[0]["sample"] == "":
                yield {**axes, "metric": "wall_seconds", "value": None, "n": 0, "message": samples[0]["note"]}
                continue
            first.setdefault(axes["dtype"], axes)
            last[axes["dtype"]] = axes
            for metric in METRICS:
                values = [sample[metric] for sample in samples if sample[metric] is not None]
                yield {**axes, "metric": metric, "value": median(values) if values else None, "n": len(samples)}
            disturbed = sum(sample["note"] == OTHER_LOAD for sample in samples)
            yield {**axes, "metric": "disturbed", "value": disturbed, "n": len(samples)}
            for mode in BASELINES if cell[0] == "compressed" else ():
                for name, value in compared(mode, cells.get((mode, *cell[1:]), []), samples).items():
                    yield {**axes, "metric": name, "value": value, "n": len(samples)}
            if cell[0] == "compressed":
                whole = {mode: cells.get((mode, *cell[1:]), []) for mode in MODES}
                for mode, metric, value in efficiency.numbers(whole):
                    yield {**axes, "mode": mode, "metric": metric, "value": value, "n": len(samples)}
        for dtype, facts in read_json(record, STAGE.kind).get("by_dtype", {}).items():
            for check in facts["checks"]:
                if not check["agrees"] and dtype in first:
                    number = {"metric": "failed_check", "value": check.get("difference"), "n": 1}
                    yield {**first[dtype], **number, "message": failed_check(check)}
            for mode, batch in facts.get("largest_batch", {}).items() if dtype in last else ():
                yield {**last[dtype], "mode": mode, "metric": "largest_batch", "value": batch, "n": 1}


def _number(path: Any, column: str, text: str) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        raise ArtifactError(f"{path}: column {column} holds {text!r}; expected a number") from None


def failed_check(check: dict[str, Any]) -> str:
    """A check of the run that failed, in words."""
    name, mode = check["check"], check.get("mode")
    if name == "compresses":
        equal = ", and its logits equal those of the whole context to the bit" if check["equal_logits"] else ""
        return f"not compressing: the cache holds {check['difference']:.0%} of the context's positions{equal}"
    if mode is None:
        return f"the checks could not be made: {name}"
    if check["difference"] is None:
        return f"{name} of the mode '{mode}' are not finite"
    return f"{name} of the mode '{mode}' differ from one pass by {check['difference']:.2g} of the largest"


def compared(mode: str, others: list[dict[str, Any]], own: list[dict[str, Any]]) -> dict[str, float]:
    """Of the wall times: the median of the paired differences (`saved`) and ratios (`faster`), with 95 % intervals."""
    import numpy as np
    from scipy.stats import bootstrap

    found: dict[str, float] = {}
    if not others or others[0]["sample"] == "":
        return found
    # Samples are pairs by their order; a mode that failed has none.
    other, mine = (np.array([one["wall_seconds"] for one in samples]) for samples in (others, own))
    for name, values in (("saved", other - mine), ("faster", other / mine)):
        name = f"{name}_{mode}"
        found[name] = float(np.median(values))
        if len(values) > 1:
            drawn = bootstrap((values,), np.median, n_resamples=2000, method="percentile", rng=0)
            found |= {f"{name}_low": drawn.confidence_interval.low, f"{name}_high": drawn.confidence_interval.high}
    return found


# ------------------------------------------------------------------------------------------------------------- records


class Work:
    """The same work in every mode, averaged over training seeds."""

    def __init__(self, modes: dict[str, Group]):
        self.modes = modes
        self.of = next(iter(modes.values()))

    def value(self, mode: str, metric: str, factor: float = 1.0) -> float | None:
        mean = self.modes[mode].mean(metric) if mode in self.modes else None
        return None if mean is None else mean * factor

    def against(self, mode: str, name: str = "faster", factor: float = 1.0) -> Cell:
        """The compressed context against another mode, with its interval."""
        middle, low, high = (self.value("compressed", f"{name}_{mode}{part}", factor) for part in ("", "_low", "_high"))
        return Cell(middle, interval=None if low is None or high is None else (low, high))

    def smaller(self) -> float | None:
        whole, kept = self.value("none", "used_bytes"), self.value("compressed", "used_bytes")
        return whole / kept if kept and whole is not None else None

    def reuses(self, mode: str) -> int | None:
        """Uses of one context from which on compressing has paid for itself; None: never, or not measured."""
        metrics = ("compress_seconds", "wall_seconds")
        own = [self.value("compressed", metric) for metric in metrics]
        other = [0.0 if mode == "none" else self.value(mode, metrics[0]), self.value(mode, metrics[1])]
        if None in own or None in other:
            return None
        (first, each), (other_first, other_each) = own, other
        return break_even(first - other_first, other_each - each)  # type: ignore[operator]

    @property
    def samples(self) -> list[int]:
        return [count for group in self.modes.values() for count in group.counts("wall_seconds")]


def break_even(extra: float, saved: float) -> int | None:
    """Uses from which on what each saves is worth what is spent at first; None where none is enough.

    >>> break_even(10, 3), break_even(-1, 3), break_even(10, -1)
    (4, 1, None)
    """
    return None if saved <= 0 else max(1, ceil(extra / saved))


def costs(scores: pd.DataFrame) -> list[Group]:
    return groups(scores, STAGE.name, "compressor", *AXES)


def works(scores: pd.DataFrame) -> list[Work]:
    by_work: dict[tuple[Any, ...], dict[str, Group]] = {}
    for group in costs(scores):
        work = (group.compressor, *(getattr(group, axis) for axis in AXES if axis != "mode"))
        by_work.setdefault(work, {})[group.mode] = group
    return [Work(modes) for modes in by_work.values()]


def headline(experiment: Experiment, scores: pd.DataFrame) -> dict[str, Any]:
    numbers = {}
    for work in works(scores):
        key = f"benchmark/{work.of.compressor}/batch={work.of.batch_size}/context={work.of.context_length}"
        numbers[f"{key}/speed_up"] = work.against("none").value
        numbers[f"{key}/speed_up_prefix"] = work.against("prefix").value
        numbers[f"{key}/memory_saving"] = work.smaller()
        numbers[f"{key}/reuses"] = work.reuses("none")
    return numbers


def findings(experiment: Experiment, scores: pd.DataFrame) -> list[str]:
    """What each compressor saves at its longest context and largest batch, and when that has paid for itself."""
    found, sentences = works(scores), []
    for compressor in distinct(work.of for work in found):
        own = [work for work in found if work.of.compressor == compressor and work.against("none").value is not None]
        if own:
            most = max(own, key=lambda work: (work.of.context_length, work.of.batch_size))
            uses = most.reuses("none")
            sentences.append(
                f"{compressor}: reading {most.of.context_length:,} tokens of context again "
                f"(batch {most.of.batch_size}) takes {cell_text(most.against('none'), 2)} times as long as using them "
                f"compressed, and {cell_text(Cell(most.smaller()), 1)} times the cache. Compressing "
                f"{'never pays' if uses is None else f'pays from use {uses:,} on'}."
            )
    return sentences


# --------------------------------------------------------------------------------------------------- tables and figures


@table("benchmark", "three modes")
def benchmark_table(experiment: Experiment, scores: pd.DataFrame) -> Table:
    """
    What an answer costs when the context is read again (*none*), when the keys and values of all its tokens are cached
    (*prefix*), and when it was compressed before (*compressed*): medians of the wall times of a whole batch, averaged
    over training seeds. *Faster* is the median ratio of paired samples, with its bootstrap interval of 95 %.
    *Pays from use* counts the uses of one context after which compressing it has paid for itself. *Floor* is what the
    device's peak and bandwidth allow; models that fit into the processor's caches can be below it. An encoder that
    reads in both directions has no prefix to cache.
    """

    def by_mode(name: str, metric: str, factor: float, digits: int, modes: Sequence[str] = MODES) -> list[Column]:
        def column(mode: str) -> Column:
            return Column(f"{mode.title()} {name}", lambda work: work.value(mode, metric, factor), digits, brief=False)

        return [column(mode) for mode in modes]

    def varies(axis: str) -> list[Column]:
        """An axis that has one value everywhere says nothing."""
        several = len({getattr(work.of, axis) for work in found}) > 1
        return [Column(axis.replace("_", " ").capitalize(), lambda work: getattr(work.of, axis), key=True)] * several

    found, cached = works(scores), MODES[1:]
    searched = any(work.value(mode, "largest_batch") is not None for work in found for mode in MODES)
    columns = [
        Column("Compressor", lambda work: work.of.compressor, key=True),
        Column("Batch", lambda work: work.of.batch_size, key=True),
        Column("Context", lambda work: work.of.context_length, key=True),
        *(column for axis in ("new_tokens", "segments", "dtype") for column in varies(axis)),
        *by_mode("(ms)", "wall_seconds", 1e3, 1),
        Column("Faster than none (×)", lambda work: work.against("none")),
        Column("Faster than prefix (×)", lambda work: work.against("prefix")),
        Column("Saved of none (ms)", lambda work: work.against("none", "saved", 1e3), 1, brief=False),
        Column("Saved of prefix (ms)", lambda work: work.against("prefix", "saved", 1e3), 1, brief=False),
        Column("Pays from use", lambda work: work.reuses("none")),
        Column("Pays against prefix from use", lambda work: work.reuses("prefix"), brief=False),
        *by_mode("made (ms)", "compress_seconds", 1e3, 1, cached),
        *by_mode("loaded, a row (ms)", "load_seconds", 1e3, 1, cached),
        *by_mode("prefill (ms)", "prefill_seconds", 1e3, 1),
        *by_mode("first token (ms)", "first_token_seconds", 1e3, 1),
        *by_mode("further token (ms)", "token_seconds", 1e3, 2),
        *by_mode("floor (ms)", "floor_seconds", 1e3, 3),
        *by_mode("over floor (×)", "times_floor", 1, 1),
        *by_mode("GFLOP", "flops", 1e-9, 3),
        *by_mode("peak (MiB)", "peak_bytes", 1 / MEBIBYTE, 1),
        *by_mode("peak with weights (MiB)", "peak_with_weights_bytes", 1 / MEBIBYTE, 1),
        *by_mode("context stored (KiB)", "stored_bytes", 1 / KIBIBYTE, 1),
        *by_mode("context in use (KiB)", "used_bytes", 1 / KIBIBYTE, 1),
        Column("In use, a token and row (bytes)", _bytes_per_token, 1, brief=False),
        Column("Context smaller in use (×)", lambda work: work.smaller(), digits=1),
        *(by_mode("largest batch", "largest_batch", 1, 0) if searched else []),
        Column("Samples", lambda work: counts_text(work.samples), brief=False),
    ]
    note = (
        "None: the context is read again; prefix: its keys and values are cached; compressed: it was compressed. "
        "Medians of the wall time of a whole batch; faster: the median of paired ratios, with a bootstrap interval of "
        "95 %. Pays from use: compressing included, against reading the context again. Floor: the least time by the "
        "device's peak and bandwidth."
    )
    if searched:
        note += " Largest batch: that fits on the GPU, with the longest context."
    return Table("Time and memory in three modes", columns, found, note, _remarks(scores, found))


def _bytes_per_token(work: Work) -> float | None:
    return work.value("compressed", "used_bytes", 1 / (work.of.batch_size * work.of.context_length))


def _remarks(scores: pd.DataFrame, found: list[Work]) -> list[str]:
    failed = [
        f"{one['run']}, {one['dtype']}, batch {one['batch_size']}, context {one['context_length']:,}: "
        f"{'' if one.get('n') else one['mode'] + ': '}{one['message']}."
        for one in failures(scores, STAGE.name)
    ]
    disturbed = sum(group.total("disturbed") for work in found for group in work.modes.values())
    load = f"{disturbed} of {sum(sum(work.samples) for work in found)} samples lost CPU time to another process."
    remarks = [sentence(name, found) for name in distinct(work.of for work in found)]
    return [*remarks, *([load] if disturbed else []), *at_most(failed, MOST_FAILURES, "more points failed.")]


def sentence(compressor: str, found: list[Work]) -> str:
    """From when on a compressor pays: for each batch size the shortest context, and the uses that it needs there."""
    parts = []
    for mode, words in BASELINES.items():
        by_batch: dict[int, list[tuple[int, int]]] = {}
        for work in (one for one in found if one.of.compressor == compressor):
            paying = by_batch.setdefault(work.of.batch_size, [])
            if (uses := work.reuses(mode)) is not None:
                paying.append((work.of.context_length, uses))
        said = [
            ("from {:,} tokens and {:,} use{} on".format(*min(pay), "s" * (min(pay)[1] > 1)) if pay else "never")
            + f" (batch {batch})"
            for batch, pay in sorted(by_batch.items())
        ]
        parts.append(f"against {words} {', '.join(said)}")
    return f"Making the context included, {compressor} pays {'; '.join(parts)}."


@table("efficiency", "published form")
def efficiency_table(experiment: Experiment, scores: pd.DataFrame) -> Table:
    """
    The measure of Mu et al. (2023) and the wall time: means and standard deviations over samples, and what the
    compressed context saves: the mean of the paired differences with its 95 % interval (t), in percent as the ratio of
    the means, and the mean of the samples' percentages. CUDA time, CPU time and GFLOP are those of torch's profiler, of
    one pass over what is left to read, and the GFLOP of DeepSpeed's where it was asked for; CUDA time is the sum of the
    kernels' times. The wall time is that of an answer.
    """
    records = [
        (work, measure)
        for work in works(scores)
        for measure in efficiency.MEASURES
        if work.value("compressed", f"{measure}_mean") is not None
    ]
    columns = [
        Column("Compressor", lambda record: record[0].of.compressor, key=True),
        Column("Batch", lambda record: record[0].of.batch_size, key=True),
        Column("Context", lambda record: record[0].of.context_length, key=True),
        Column("Measure", lambda record: efficiency.MEASURES[record[1]][0], key=True),
        *efficiency.columns(),
    ]
    return Table("Efficiency in the published form", columns, records)


@figure("benchmark", "three modes")
def benchmark_figure(experiment: Experiment, scores: pd.DataFrame) -> Figure:
    """
    Wall time, peak memory beyond the weights and what the context takes in the cache, by context length (at equal
    distances) and batch size. Filled markers and solid lines: after the compressed context; open markers: after the
    cached prefix (dashed) and with the context read again (dotted).
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
        handle(mode, color="k", linestyle=line, marker="o", **({"markerfacecolor": face} if face else {}))
        for mode, (line, face) in LINES.items()
    ]
    legend_below(drawn, [*(patch(name, looks[name].colour) for name in compressors), *modes], most_columns=7)
    return drawn


def _cost_lines(
    panel: Axes, found: list[Group], contexts: Sequence[int], shift: float, of: tuple[str, float], style: Style
) -> None:
    metric, factor = of
    for mode, (line, face) in LINES.items():
        # Of several numbers of new tokens, segments and dtypes the first.
        chosen = {one.context_length: one for one in reversed(found) if one.mode == mode}
        means = [chosen[context].mean(metric) for context in sorted(chosen)]
        panel.plot(
            [contexts.index(context) + shift for context in sorted(chosen)],
            [float("nan") if mean is None else factor * mean for mean in means],
            color=style.colour,
            linestyle=line,
            marker=style.marker,
            markerfacecolor=face or style.colour,
        )


def _from_zero(panel: Axes) -> None:
    """Start the axis at zero, so that heights can be compared; say so where nothing was measured."""
    import numpy as np

    values = [float(value) for line in panel.get_lines() for value in np.asarray(line.get_ydata()) if value == value]
    if values:
        panel.set_ylim(0, 1.08 * max(*values, 1e-9))
    else:
        panel.text(0.5, 0.5, "not measured", ha="center", va="center", transform=panel.transAxes)


@figure("break_even", "when compressing pays")
def break_even_figure(experiment: Experiment, scores: pd.DataFrame) -> Figure:
    """
    Uses of one context after which compressing it has paid for itself, by context length (at equal distances) and batch
    size, against reading the context again (left) and against the cached prefix (right). Crosses above the line: it
    never does.
    """
    from synopsis.reporting.style import LINES as DASHES
    from synopsis.reporting.style import handle, legend_below, new_figure, styles, subject_handles

    found, looks = works(scores), styles(experiment)
    contexts, batches = (sorted({getattr(one.of, axis) for one in found}) for axis in ("context_length", "batch_size"))
    compressors = distinct(one.of for one in found)
    drawn, panels = new_figure(len(BASELINES), 3.6, 3.0, share_y=True)
    dashes = {batch: DASHES[place % len(DASHES)] for place, batch in enumerate(batches)}
    never = 2 * max([2, *(one.reuses(mode) or 0 for one in found for mode in BASELINES)])
    for panel, (mode, words) in zip(panels, BASELINES.items(), strict=True):
        for place, compressor in enumerate(compressors):
            for batch in batches:
                shift = 0.05 * (place - (len(compressors) - 1) / 2)
                line = {one.of.context_length: one for one in reversed(found) if _is(one, compressor, batch)}
                uses = [line[context].reuses(mode) for context in sorted(line)]
                at = [contexts.index(context) + shift for context in sorted(line)]
                look: dict[str, Any] = {"color": looks[compressor].colour, "linestyle": dashes[batch]}
                heights = [float("nan") if one is None else one for one in uses]
                panel.plot(at, heights, marker=looks[compressor].marker, **look)
                lost = [x for x, one in zip(at, uses, strict=True) if one is None]
                panel.plot(lost, [never] * len(lost), "x", color=looks[compressor].colour)
        panel.set_yscale("log")
        panel.set_ylim(0.8, 1.5 * never)
        panel.set_yticks([ten for ten in (1, 10, 100, 1000, 10000) if ten <= never / 2] + [never])
        panel.set_yticklabels([f"{tick:,.0f}" for tick in panel.get_yticks()[:-1]] + ["never"])
        panel.minorticks_off()
        panel.set_xticks(range(len(contexts)), [f"{context:,}" for context in contexts])
        panel.set_xlabel("context (tokens)")
        panel.set_title(f"against {words}")
    panels[0].set_ylabel("uses until it pays")
    lines = [handle(f"batch size {batch}", color="k", linestyle=dashes[batch]) for batch in batches]
    legend_below(drawn, [*subject_handles(looks, compressors, lines=False), *lines], most_columns=6)
    return drawn


def _is(work: Work, compressor: str, batch: int) -> bool:
    return (work.of.compressor, work.of.batch_size) == (compressor, batch)
