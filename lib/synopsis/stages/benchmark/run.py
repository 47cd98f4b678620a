"""The benchmark stage: what a compressed context saves when a model continues after it.

    synopsis benchmark --config config/demo.yaml gist-1-s0

For each batch size and context length two modes generate the same number of tokens after a prompt of a few tokens:

- uncached: the context's tokens are read again by the same model, as without any compression;
- cached: the context was compressed before, and only its vectors are there.

Times are wall and CPU seconds of a whole generation after warm-up runs; FLOPs are counted by torch, not estimated;
peak_bytes is the device's peak (CUDA) or the peak of torch's allocations (CPU); context_bytes is what has to be
kept of the context; floor_seconds is the time that the device's peak in the model's dtype and its bandwidth allow.
Tokens are random: time does not depend on them.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from synopsis.artifacts import Layout, Provenance, write_csv, write_json
from synopsis.config.experiment import Experiment
from synopsis.costs.devices import floor_seconds
from synopsis.costs.memory import generation_bytes
from synopsis.costs.model_size import model_size
from synopsis.engine.runs import open_run
from synopsis.progress import track
from synopsis.stages.benchmark.section import METRICS, STAGE

COLUMNS = ("run", *STAGE.axes, "sample", *METRICS)
PROMPT_TOKENS = 4


def benchmark(experiment: Experiment, run: str) -> list[dict[str, Any]]:
    """Measure a run in every mode, batch size and context length; writes and returns one row a sample."""
    section = experiment.benchmark
    assert section is not None
    layout = Layout(experiment)
    provenance = Provenance(STAGE.fingerprint(experiment, run=run), inputs=[layout.weights(run)], seed=0)
    model = open_run(experiment, run).model
    provenance.device, provenance.dtype = str(model.device), str(model.dtype).removeprefix("torch.")
    torch.manual_seed(0)
    cases = [(batch, length) for batch in section.batch_sizes for length in section.context_lengths]
    rows: list[dict[str, Any]] = []
    for batch, length in track(cases, f"benchmark {run}", unit="cases"):
        for mode, call, held, kept in _modes(model, batch, length, section.new_tokens):
            for _ in range(section.warmup):
                call()
            flops, peak = _cost(call, model.device)
            floor = _floor(model, flops, batch, held, section.new_tokens)
            for sample in range(section.repeats):
                times = _timed(call, model.device)
                values = [run, mode, batch, length, section.new_tokens, sample, *times, flops, peak, kept, floor]
                rows.append(dict(zip(COLUMNS, values, strict=True)))
    path = layout.benchmark(run)
    write_csv(path, rows, COLUMNS)
    payload = {"run": run, "threads": torch.get_num_threads()}
    write_json(path.with_suffix(".json"), STAGE.kind, payload, provenance.record(), [path])
    return rows


def _modes(model: Any, batch: int, length: int, new: int) -> Iterator[tuple[str, Callable[[], Any], int, int]]:
    """(mode, generation to be measured, positions of the context in the cache, bytes kept of the context)."""
    vocabulary = model.config.vocab_size
    ids = torch.randint(3, vocabulary - 1, (batch, length + PROMPT_TOKENS), device=model.device)
    for row in model.added_weights().values():
        if row is not None:
            ids[ids == row] = 3  # without the tokens of the method nothing is compressed
    prompt = ids[:, length:]
    options: dict[str, Any] = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}

    def uncached() -> Any:
        return model.generate(ids, attention_mask=torch.ones_like(ids), **options)

    context = model.compress(model.compressible(ids[:, :length]))

    def cached() -> Any:
        return model.generate(prompt, context=context, **options)

    yield "uncached", uncached, length, _cache_bytes(model, batch, length)
    yield "cached", cached, context.length, context.nbytes


def _cache_bytes(model: Any, batch: int, length: int) -> int:
    """Keys and values of `length` tokens in all layers."""
    config = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return batch * length * config.num_hidden_layers * 2 * heads * width * model.dtype.itemsize


def _timed(call: Callable[[], Tensor], device: torch.device) -> tuple[float, float, float | None]:
    """Wall, CPU and CUDA seconds of one call; CUDA is None on a CPU."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.synchronize(device)
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    if cuda:
        end.record()
        torch.cuda.synchronize(device)
    return (
        time.perf_counter() - wall,
        time.process_time() - cpu,
        start.elapsed_time(end) / 1000 if cuda else None,
    )


def _cost(call: Callable[[], Tensor], device: torch.device) -> tuple[int, int]:
    """FLOPs and peak bytes of one call, counted in a pass that is not timed."""
    with FlopCounterMode(display=False) as counter:
        call()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return counter.get_total_flops(), torch.cuda.max_memory_allocated(device)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with _silent_standard_error(), torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        call()
    held = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return counter.get_total_flops(), peak


@contextlib.contextmanager
def _silent_standard_error() -> Iterator[None]:
    """The profiler's native library prints two lines at each start; they say nothing and cannot be switched off."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _floor(model: Any, flops: int, batch: int, held: int, new: int) -> float | None:
    """The least seconds of a generation by the device's peak and bandwidth; None where they are not known."""
    size, dtype = model_size(model.config), str(model.dtype).removeprefix("torch.")
    if size is None:
        return None
    read = generation_bytes(size, batch, held + PROMPT_TOKENS, new, model.dtype.itemsize)
    return floor_seconds(flops, read, device_name(model.device), dtype)


def headline(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The median times that the command line prints."""
    seconds: dict[str, list[float]] = {}
    for row in rows:
        case = f"wall_seconds/{row['mode']}/batch={row['batch_size']}/context={row['context_length']}"
        seconds.setdefault(case, []).append(row["wall_seconds"])
    return {case: median(values) for case, values in seconds.items()}
