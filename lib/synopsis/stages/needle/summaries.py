"""The needle from the tidy scores to the numbers of its table and its figure."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from synopsis.config.experiment import Experiment
from synopsis.reporting.estimates import MISSING, Estimate
from synopsis.reporting.grouping import counts, estimate, grouped
from synopsis.reporting.scores import failures, setting_fields
from synopsis.stages.needle.scores import SKIPPED


@dataclass(frozen=True)
class Retrieval:
    """Keys that one subject finds in contexts of one length (tokens); dictionaries are by depth (0..1).

    choice: share (0..1) of texts whose key is the likeliest of the choices; exact: of those in which greedy decoding
    writes it; loss of the key in nats a token; examples: texts behind each share of each run. Of cells that were left
    out or failed nothing exists.
    """

    compressor: str
    length: int
    choice: dict[float, Estimate]
    exact: dict[float, Estimate]
    loss: dict[float, Estimate]
    summary_vectors: float | None
    examples: tuple[int, ...]
    runs: int

    @property
    def mean_choice(self) -> float | None:
        return _mean(self.choice)

    @property
    def mean_exact(self) -> float | None:
        return _mean(self.exact)

    @property
    def mean_loss(self) -> float | None:
        return _mean(self.loss)


def retrievals(experiment: Experiment, scores: pd.DataFrame) -> list[Retrieval]:
    """Every subject with every length of the configuration, shortest first."""
    section = experiment.needle
    assert section is not None
    found: dict[str, dict[tuple[int, str], pd.DataFrame]] = {}
    measured = scores[scores["metric"] != SKIPPED]
    for (compressor, setting), group in grouped(measured, "needle", ["compressor", "setting"]):
        fields = setting_fields(setting)
        found.setdefault(compressor, {})[int(fields["length"]), fields["depth"]] = group
    depths = {depth: f"{depth:g}" for depth in sorted(section.depths)}
    records = []
    for compressor, cells in found.items():
        for length in sorted(section.lengths):
            groups = {depth: cells[length, text] for depth, text in depths.items() if (length, text) in cells}
            by_metric = {
                metric: {depth: estimate(groups[depth], metric) if depth in groups else MISSING for depth in depths}
                for metric in ("choice", "exact", "loss", "summary_vectors")
            }
            records.append(
                Retrieval(
                    compressor=compressor,
                    length=length,
                    choice=by_metric["choice"],
                    exact=by_metric["exact"],
                    loss=by_metric["loss"],
                    summary_vectors=_mean(by_metric["summary_vectors"]),
                    examples=tuple(count for group in groups.values() for count in counts(group, "choice")),
                    runs=max(one.count for one in by_metric["choice"].values()),
                )
            )
    return records


@dataclass(frozen=True)
class LeftOut:
    """Lengths (tokens) that a subject did not read, since they need more positions than its model has."""

    compressor: str
    lengths: tuple[int, ...]
    positions: int


def left_out(scores: pd.DataFrame) -> list[LeftOut]:
    rows = scores[(scores["stage"] == "needle") & (scores["metric"] == SKIPPED)]
    return [
        LeftOut(
            compressor=str(compressor),
            lengths=tuple(sorted({int(setting_fields(setting)["length"]) for setting in group["setting"]})),
            positions=int(group["n"].max()),
        )
        for compressor, group in rows.groupby("compressor", sort=False)
    ]


def failed_cells(scores: pd.DataFrame) -> list[str]:
    """What is known of the cells that failed, one text for each."""
    found = [record for record in failures(scores) if record["stage"] == "needle"]
    return [f"{record['run']}, {record['setting']}: {record['message']}." for record in found]


def _mean(by_depth: dict[float, Estimate]) -> float | None:
    return Estimate.of(one.mean for one in by_depth.values()).mean
