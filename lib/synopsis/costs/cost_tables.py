"""What `synopsis plan` prints: the costs of training runs as tables for people and as JSON, and the jobs after them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from synopsis.config.experiment import Experiment
from synopsis.costs.estimates import TrainingFlops, find_device
from synopsis.costs.run_costs import Machine, RunCost

UNKNOWN = "?"
PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
PARTS = ("weights", "gradients", "optimizer", "activations", "logits")


def short(number: float | None) -> str:
    """Three digits and a letter.

    >>> short(2_651_596_800), short(512), short(None)
    ('2.65B', '512', '?')
    """
    if number is None:
        return UNKNOWN
    for size, letter in PREFIXES:
        if number >= 0.9995 * size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"


def hours(value: float | None) -> str:
    """Hours of a device; below ten with a digit after the point."""
    if value is None:
        return UNKNOWN
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}" if value >= 0.1 else "under 0.1"


def gigabytes(count: float | None) -> str:
    """10^9 bytes; below one with two digits."""
    if count is None:
        return UNKNOWN
    return f"{count / 1e9:.1f}" if count >= 1e9 or not count else f"{count / 1e9:.2g}"


def totals(costs: Sequence[RunCost]) -> dict[str, Any]:
    """Sums over the runs whose costs are known, and how many are not."""
    flops = [cost.flops for cost in costs if cost.flops is not None]
    spent = [cost.gpu_hours for cost in costs if cost.gpu_hours is not None]
    return {
        "runs": len(costs),
        "unknown": sum(cost.flops is None or cost.gpu_hours is None for cost in costs),
        "tokens": sum(cost.tokens for cost in costs),
        "flops": sum(one.total for one in flops),
        "gpu_hours": sum(spent),
    }


def jobs(experiment: Experiment) -> dict[str, int]:
    """Jobs of each stage after training."""
    generated = 0 if experiment.generate is None else len(experiment.generate.splits)
    judged = 0 if experiment.judge is None else len(experiment.judge.judges) * len(experiment.judged_pairs())
    datasets = 0 if experiment.icl is None else len(experiment.icl.datasets) * len(experiment.evaluation_seeds)
    return {
        "perplexity": len(experiment.runs_of("perplexity")),
        "icl": datasets * len(experiment.runs_of("icl")),
        "needle": len(experiment.runs_of("needle")),
        "generate": generated * len(experiment.runs_of("generate")),
        "judge": generated * judged,
        "benchmark": len(experiment.runs_of("benchmark")),
    }


def as_json(experiment: Experiment, costs: Sequence[RunCost], machine: Machine) -> dict[str, Any]:
    return {
        "experiment": experiment.name,
        **vars(machine),
        "runs": [cost.record() for cost in costs],
        "totals": totals(costs),
        "jobs": jobs(experiment),
    }


def as_text(experiment: Experiment, costs: Sequence[RunCost], machine: Machine) -> str:
    """The tables, and what has to be said about them."""
    parts = [f"{experiment.name}: {experiment.title}".removesuffix(": ")]
    if costs:
        parts += [_work(costs, machine), _memory(costs, machine)]
        parts += ["\n".join(_notes(costs, machine))]
    else:
        parts += ["Nothing is trained."]
    counted = ", ".join(f"{count} {stage}" for stage, count in jobs(experiment).items() if count)
    return "\n\n".join([*parts, f"Jobs after training: {counted or 'none'}."])


def _work(costs: Sequence[RunCost], machine: Machine) -> str:
    sums = totals(costs)
    rows = [
        [
            cost.run,
            short(cost.parameters),
            short(cost.trained),
            str(cost.steps),
            str(cost.sequences),
            short(cost.tokens),
            _exponent(cost.flops),
            hours(cost.gpu_hours),
        ]
        for cost in costs
    ]
    more = " and more" if sums["unknown"] else ""
    spent = [f"{sums['flops']:.2e}".replace("e+", "e") + more, hours(sums["gpu_hours"]) + more]
    rows.append(["all", "", "", "", "", short(sums["tokens"]), *spent])
    heads = ["run", "parameters", "trained", "steps", "sequences/step", "tokens", "FLOPs"]
    return _table([*heads, f"{machine.device} hours"], rows)


def _memory(costs: Sequence[RunCost], machine: Machine) -> str:
    rows = []
    for cost in costs:
        parts = [None] * len(PARTS) if cost.memory is None else [getattr(cost.memory, part) for part in PARTS]
        whole = gigabytes(None if cost.memory is None else cost.memory.total)
        rows.append([cost.run, *map(gigabytes, parts), whole + (" (too much)" if _too_much(cost, machine) else "")])
    return _table(["GB on each device", *PARTS, "all"], rows)


def _too_much(cost: RunCost, machine: Machine) -> bool:
    device = find_device(machine.device)
    return cost.memory is not None and device is not None and cost.memory.total > device.memory


def _notes(costs: Sequence[RunCost], machine: Machine) -> list[str]:
    devices = f"{machine.processes} x {machine.device}" if machine.processes > 1 else f"one {machine.device}"
    notes = [f"On {devices} at {100 * machine.mfu:.3g} % of the peak in each run's dtype."]
    sums = totals(costs)
    if machine.processes > 1 and sums["gpu_hours"]:
        notes.append(f"All runs, one after the other: {hours(sums['gpu_hours'] / machine.processes)} hours.")
    if any(cost.flops is not None and cost.flops.recomputed for cost in costs):
        notes.append("FLOPs with what gradient checkpointing computes again.")
    moved = max((cost.host_bytes for cost in costs), default=0)
    if moved:
        notes.append(f"Of the largest run {gigabytes(moved)} GB for each process lie in the machine's own memory.")
    if any(_too_much(cost, machine) for cost in costs):
        notes.append(
            "Too much for the device: more --processes with deepspeed or fsdp, gradient_checkpointing, or lora."
        )
    strangers = dict.fromkeys(cost.model for cost in costs if cost.flops is None)
    notes += [
        f"The size of '{name}' is not known: name its config.json with --size {name}=FILE, or run "
        f"`synopsis prepare --config ... model {name}` first."
        for name in strangers
    ]
    if any(cost.flops is not None and cost.gpu_hours is None for cost in costs):
        notes.append(f"The peak of {machine.device} in float32 is not known; so hours are not either.")
    return notes


def _exponent(flops: TrainingFlops | None) -> str:
    return UNKNOWN if flops is None else f"{flops.total:.2e}".replace("e+", "e")


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned, the first to the left."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    lines = []
    for row in (heads, *rows):
        numbers = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *numbers]).rstrip())
    return "\n".join(lines)
