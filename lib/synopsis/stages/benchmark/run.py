"""The benchmark stage: what a compressed context saves in time and memory, and what making it costs.

For each point of the sweep three modes answer the same prompt of a few tokens: `none` reads the context again, `prefix`
starts from the cached keys and values of all tokens, `compressed` from the compressed context. In each sample the modes
take turns in a random order, so that another load slows all of them; samples are pairs by their number. FLOPs, memory
and the profiler's numbers come from passes of their own, which are not timed.

The floor is the time that the device's peak and bandwidth allow: of the table of devices, or measured when the stage
starts (`synopsis benchmark --calibrate` prints them).
"""

from __future__ import annotations

import importlib.util
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from synopsis.artifacts import Layout, Provenance, write_csv, write_json
from synopsis.config.experiment import Experiment
from synopsis.costs.devices import Rates, floor_seconds, measured_rates, rates_of
from synopsis.costs.memory import cache_bytes, generation_bytes
from synopsis.costs.model_size import model_size
from synopsis.engine.memory import out_of_memory
from synopsis.engine.runs import open_run
from synopsis.errors import InputError
from synopsis.progress import say, track
from synopsis.stages.benchmark.checks import TOLERANCE, checks
from synopsis.stages.benchmark.modes import (
    PROMPT_TOKENS,
    Case,
    Mode,
    cost,
    deepspeed_flops,
    modes_of,
    published,
    sample,
)
from synopsis.stages.benchmark.section import METRICS, OTHER_LOAD, STAGE

COLUMNS = ("run", *STAGE.axes, "sample", *METRICS, "note")
LOST = 0.8
"""A sample that got less than this share of its mode's usual CPU time has lost its cores to another process."""


@torch.no_grad()
def benchmark(experiment: Experiment, run: str) -> list[dict[str, Any]]:
    """Measure a run in every mode and at every point; writes and returns one row a sample.

    A point that does not fit into memory or into the model's positions has one row, whose `note` says so.
    """
    section, layout = experiment.benchmark, Layout(experiment)
    if section.deepspeed and importlib.util.find_spec("deepspeed") is None:
        raise InputError("benchmark.deepspeed: the package deepspeed is not installed; pip install 'synopsis[scale]'")
    provenance = Provenance(STAGE.fingerprint(experiment, run=run), inputs=[layout.weights(run)], seed=0)
    warnings = list(_warnings(section.repeats))
    for warning in warnings:
        say(f"warning: {warning}")
    rows: list[dict[str, Any]] = []
    facts: dict[str, Any] = {}
    for dtype in section.dtypes:
        model = open_run(experiment, run, dtype).model
        sweep = Sweep(model, dtype, section)
        cases = section.cases(experiment.subject(run))
        for case in track(cases, f"benchmark {run} {dtype}", unit="cases"):
            axes = {"run": run, **vars(case), "dtype": dtype}
            rows += [{**dict.fromkeys(COLUMNS), **axes, **row} for row in sweep.rows(case)]
        facts[dtype] = sweep.facts(cases[-1])
    provenance.device, provenance.dtype = str(model.device), ", ".join(section.dtypes)
    path = layout.benchmark(run)
    write_csv(path, rows, COLUMNS)
    payload = {"run": run, "threads": torch.get_num_threads(), "warnings": warnings, "by_dtype": facts}
    write_json(path.with_suffix(".json"), STAGE.kind, payload, provenance.record(), [path])
    return rows


class Sweep:
    """A model in one dtype, measured point by point."""

    def __init__(self, model: Any, dtype: str, section: Any):
        size = model_size(model.config)
        assert size is not None  # methods are put before architectures that are known
        self.model, self.section, self.size = model, section, size
        self.rates: Rates = rates_of(device_name(model.device), dtype) or measured_rates(model.device, dtype)
        self.dtype, self.random, self.checks = dtype, random.Random(0), list[dict[str, Any]]()
        if section.compile:
            torch._dynamo.config.suppress_errors = True  # what cannot be compiled stays eager, with a warning
            decoder = model.get_decoder()
            decoder.forward = torch.compile(decoder.forward, dynamic=True)

    def rows(self, case: Case) -> Iterator[dict[str, Any]]:
        """One row a sample and mode, in the order in which they were taken; of modes that fail one row."""
        with tempfile.TemporaryDirectory() as name:
            folder, modes, fixed = Path(name), modes_of(self.model, case), dict[str, dict[str, Any]]()
            for name, mode in list(modes.items()):
                fixed[name], note = attempt(self._prepared, mode, folder)
                mode.context = None  # one at a time
                if note:
                    yield {"mode": name, "note": note}
                    del modes[name]
            if not self.checks:
                found, note = attempt(checks, modes, folder, self.dtype)
                self.checks += found or [{"check": note, "agrees": False}]
            rows: list[dict[str, Any]] = []
            for number in range(self.section.repeats):
                for name in self.random.sample(list(modes), len(modes)):
                    times, note = attempt(_measured, modes[name], folder)
                    modes[name].context = None
                    if note:
                        rows = [row for row in rows if row["mode"] != name] + [{"mode": name, "note": note}]
                        del modes[name]
                    else:
                        floor = times["wall_seconds"] / fixed[name]["floor_seconds"]
                        rows.append({"mode": name, "sample": number, **fixed[name], **times, "times_floor": floor})
            yield from marked(rows)

    def _prepared(self, mode: Mode, folder: Path) -> dict[str, Any]:
        """Warm up, keep the context of one row as a file, and count what does not vary."""
        case, element = mode.case, self.model.dtype.itemsize
        mode.compress()
        for _ in range(self.section.warmup):
            mode.generate()
        with torch.compiler.set_stance("force_eager"):
            flops, peak = cost(mode)
            second = deepspeed_flops(mode) if self.section.deepspeed else None
        stored = mode.ids[:, : case.context_length].nbytes
        if mode.context is not None:
            stored = mode.context.nbytes
            mode.context.select([0]).save(_file(folder, mode.name))
        read = generation_bytes(self.size, case.batch_size, mode.held + PROMPT_TOKENS, case.new_tokens, element)
        return {
            "flops": flops,
            "deepspeed_flops": second,
            "peak_bytes": peak,
            "peak_with_weights_bytes": peak + self.model.get_memory_footprint(),
            "stored_bytes": stored,
            "used_bytes": case.batch_size * mode.held * cache_bytes(self.size, element),
            "floor_seconds": floor_seconds(flops, read, self.rates),
        }

    def facts(self, last: Case) -> dict[str, Any]:
        """What holds for all rows; on a GPU also the largest batch of each mode that fits at the last point."""
        found = {
            "parameters": self.size.parameters,
            "cache_bytes_per_token": cache_bytes(self.size, self.model.dtype.itemsize),
            "rates": vars(self.rates),
            "checks": self.checks,
        }
        if self.model.device.type == "cuda":

            def fits(name: str, batch: int) -> bool:
                mode = modes_of(self.model, replace(last, batch_size=batch))[name]
                return not (attempt(mode.compress)[1] or attempt(mode.generate)[1])

            found["largest_batch"] = {name: largest(partial(fits, name)) for name in modes_of(self.model, last)}
        return found


def _file(folder: Path, mode: str) -> Path:
    return folder / f"{mode}.safetensors"


def _measured(mode: Mode, folder: Path) -> dict[str, Any]:
    return {**sample(mode, _file(folder, mode.name)), **published(mode)}


def attempt(call: Callable[..., Any], *arguments: Any) -> tuple[Any, str]:
    """What a call gives, and why this device or model cannot do it, or ""; other errors are raised."""
    try:
        return call(*arguments), ""
    except (RuntimeError, MemoryError, ValueError) as error:
        if isinstance(error, ValueError):
            return None, str(error)
        if not out_of_memory(error):
            raise
    # Only here, as the error holds what the call had made.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None, "out of memory"


def largest(fits: Callable[[int], bool], most: int = 2**14) -> int:
    """The largest number of at most `most` that fits, to within an eighth; 0 where one does not.

    >>> largest(lambda batch: batch <= 40), largest(lambda batch: False)
    (40, 0)
    """
    low, high = 0, 1
    while high <= most and fits(high):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > max(1, low // 8):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def marked(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """With a note at the samples that had less CPU time for their wall time than is usual for their mode.

    No thread of ours sleeps, so that each has at least one core's time too.
    """
    shares: dict[str, list[float]] = {}
    for row in rows:
        if "wall_seconds" in row:
            shares.setdefault(row["mode"], []).append(row["cpu_seconds"] / row["wall_seconds"])
    for row in rows:
        if "wall_seconds" in row:
            usual = max(1.0, median(shares[row["mode"]]))
            row["note"] = OTHER_LOAD if row["cpu_seconds"] / row["wall_seconds"] < LOST * usual else ""
    return rows


def _warnings(repeats: int) -> Iterator[str]:
    """What makes times worth little."""
    load, cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
    if load > 0.5:
        yield f"other load on this machine ({load:.1f} processes in the last minute): look at ratios, not at times"
    if repeats == 1:
        yield "one repeat has no interval; set benchmark.repeats"
    if torch.get_num_threads() > cores:
        yield f"{torch.get_num_threads()} threads on {cores} cores wait for each other; set OMP_NUM_THREADS={cores}"
    if hasattr(sys, "gettotalrefcount") or torch.version.debug:
        yield "a debug build of Python or torch is slow"


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def calibrate() -> dict[str, float]:
    """Peak and bandwidth of this machine's device, measured in each dtype."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = {dtype: measured_rates(device, dtype) for dtype in TOLERANCE}
    names = {"TFLOP/s": lambda rates: rates.flops / 1e12, "copied GB/s": lambda rates: rates.bandwidth / 1e9}
    return {
        f"{device_name(device)} {dtype} {name}": of(rates)
        for dtype, rates in found.items()
        for name, of in names.items()
    }


def headline(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The median times that the command line prints."""
    seconds: dict[str, list[float]] = {}
    for row in rows:
        if row["wall_seconds"] is not None:
            case = f"wall_seconds/{row['mode']}/batch={row['batch_size']}/context={row['context_length']}"
            seconds.setdefault(case, []).append(row["wall_seconds"])
    return {case: median(values) for case, values in seconds.items()}
