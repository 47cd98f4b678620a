"""The front: what a compressor's quality costs, from the numbers of the other stages in the same scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from synopsis.reporting.items import figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from synopsis.config.experiment import Experiment

QUALITY = {
    "perplexity": ("loss", "loss (nats a token)"),
    "icl": ("accuracy", "accuracy in context"),
    "needle": ("choice", "keys found (share)"),
    "generate": ("rougeL", "ROUGE-L"),
}
"""Stage -> its metric of quality, and what the axis says."""
COSTS = (
    ("wall_seconds", "time of an answer (milliseconds)", 1e3),
    ("used_bytes", "context in the cache (KiB)", 2**-10),
)


def measured_both(experiment: Experiment) -> list[str]:
    """The stages that say how good the benchmarked compressors are."""
    timed = set(experiment.runs_of("benchmark"))
    return [stage for stage in QUALITY if timed & set(experiment.runs_of(stage))]


def qualities(scores: pd.DataFrame, stage: str) -> dict[str, float]:
    """By compressor: the mean of a stage's metric; of the perplexity that of all tokens after the longest context, of
    in-context learning that of the last setting."""
    rows = scores[(scores["stage"] == stage) & (scores["metric"] == QUALITY[stage][0])]
    if stage == "perplexity":
        rows = rows[rows["tokens"] == "all"]
        rows = rows[rows["context_length"] == rows.groupby("compressor")["context_length"].transform("max").min()]
    if stage == "icl":
        rows = rows[rows["setting"] == rows.groupby("compressor")["setting"].transform("last")]
    return {str(name): found.mean() for name, found in rows.groupby("compressor", sort=False)["value"]}


@figure("front", "quality against cost", when=lambda experiment: bool(measured_both(experiment)))
def front_figure(experiment: Experiment, scores: pd.DataFrame) -> Figure:
    """
    What each compressor's quality costs: the wall time of an answer and the bytes of a context in the cache, for the
    smallest batch and the longest context of the benchmark. Grey: the base models, with the cached prefix. Better is to
    the left, and up, or for the loss down. Quality may have been measured with contexts of another length; accuracy is
    that of the last setting of each.
    """
    from synopsis.reporting.style import legend_below, new_figure, styles, subject_handles

    looks, stages = styles(experiment), measured_both(experiment)
    rows = scores[scores["stage"] == "benchmark"]
    longest, batch = rows["context_length"].max(), rows["batch_size"].min()
    rows = rows[(rows["context_length"] == longest) & (rows["batch_size"] == batch)]
    costs = rows.groupby(["compressor", "mode", "metric"], sort=False)["value"].mean()
    bases = {experiment.base_named(name): name for name in rows["compressor"].unique()}
    drawn, panels = new_figure(len(stages) * len(COSTS), 3.4, 2.7, most_columns=len(COSTS))
    shown: dict[str, None] = {}
    for place, panel in enumerate(panels):
        stage, (metric, label, factor) = stages[place // len(COSTS)], COSTS[place % len(COSTS)]
        share = factor / batch if metric == "used_bytes" else factor
        for name, quality in qualities(scores, stage).items():
            key = (bases[name], "prefix", metric) if name in bases else (name, "compressed", metric)
            if key in costs:
                panel.plot(share * costs[key], quality, looks[name].marker, color=looks[name].colour)
                shown[name] = None
        panel.set_xlim(0, 1.1 * max(panel.dataLim.x1, 0.01))  # room for the markers at the right
        panel.set_xlabel(label)
        panel.set_ylabel(QUALITY[stage][1])
    legend_below(drawn, subject_handles(looks, list(shown), lines=False))
    return drawn
