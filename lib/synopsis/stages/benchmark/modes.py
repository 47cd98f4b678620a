"""What is timed: the same prompt answered without a cache, after a cached prefix, and after a compressed context.

A mode holds the context of one case while it is measured. Tokens are random: time does not depend on them.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache
from transformers.generation.streamers import BaseStreamer

from synopsis.compressors.base import lengths_of_segments
from synopsis.compressors.context import CompressedContext

PROMPT_TOKENS = 4


@dataclass(frozen=True)
class Case:
    """One point of the sweep."""

    batch_size: int
    context_length: int
    new_tokens: int
    segments: int


class Mode:
    """`none`: context and prompt are read again each time, as without any cache."""

    name = "none"

    def __init__(self, model: Any, case: Case):
        self.model, self.case = model, case
        self.context: CompressedContext | None = None
        generator = torch.Generator().manual_seed(case.context_length)
        shape = (case.batch_size, case.context_length + PROMPT_TOKENS)
        ids = torch.randint(3, model.config.vocab_size - 1, shape, generator=generator)
        own = [row for row in model.added_weights().values() if row is not None]
        self.own_tokens = torch.tensor(own, dtype=torch.long, device=model.device)
        # Without the tokens of the method nothing is compressed.
        self.ids = torch.where(torch.isin(ids, self.own_tokens.cpu()), 3, ids).to(model.device)

    @property
    def prompt(self) -> Tensor:
        return self.ids[:, self.case.context_length :]

    @property
    def held(self) -> int:
        """Positions of the context in the cache of each row."""
        return self.case.context_length if self.context is None else self.context.length

    def compress(self) -> None:
        """Make the context."""

    def given(self) -> tuple[Tensor, dict[str, Any]]:
        """The tokens that are left to read, and what the model is given beside them."""
        return self.ids, {}

    def prefill(self, more: Tensor | None = None) -> Any:
        """One pass over what is left to read and the tokens `more` (batch, n); logits of these and the one before."""
        ids, options = self.given()
        if self.model.config.is_encoder_decoder:
            start = self.ids.new_full((len(ids), 1), self.model.config.decoder_start_token_id)
            target = start if more is None else torch.cat([start, more], dim=1)
            return self.model(ids, decoder_input_ids=target, **options)
        ids = ids if more is None else torch.cat([ids, more], dim=1)
        return self.model(ids, logits_to_keep=1 + (0 if more is None else more.shape[1]), **options)

    def generate(self, streamer: Any = None) -> Tensor:
        """(batch, new) greedy tokens."""
        ids, options = self.given()
        new = self.case.new_tokens
        fixed = {"max_new_tokens": new, "eos_token_id": None, "do_sample": False, "pad_token_id": 0, "use_cache": True}
        return self.model.generate(ids, streamer=streamer, **fixed, **options)[:, -new:]


class Prefix(Mode):
    """The keys and values of all tokens are kept, as any user can do without a compressor."""

    name = "prefix"

    def compress(self) -> None:
        cache, ids = DynamicCache(), self.ids[:, : self.case.context_length]
        self.model.get_decoder()(input_ids=ids, past_key_values=cache, use_cache=True)
        layers: Any = cache.layers
        length = torch.full_like(ids[:, 0], ids.shape[1])
        self.context = CompressedContext(
            next_position=length,
            source_tokens=length,
            fingerprint=self.model.fingerprint(),
            keys=tuple(layer.keys for layer in layers),
            values=tuple(layer.values for layer in layers),
        )

    def cache(self) -> DynamicCache:
        """A fresh one, which what follows may grow."""
        assert self.context is not None
        cache = DynamicCache()
        for layer, (key, value) in enumerate(zip(self.context.keys, self.context.values, strict=True)):
            cache.update(key, value, layer)
        return cache

    def prefill(self, more: Tensor | None = None) -> Any:
        ids = self.prompt if more is None else torch.cat([self.prompt, more], dim=1)
        return self.model(ids, past_key_values=self.cache(), logits_to_keep=1 + ids.shape[1] - PROMPT_TOKENS)

    def given(self) -> tuple[Tensor, dict[str, Any]]:
        return self.ids, {"past_key_values": self.cache()}


class Compressed(Mode):
    """The method's own context."""

    name = "compressed"

    def compress(self) -> None:
        ids = self.model.compressible(self.ids[:, : self.case.context_length])
        step = -(-self.case.context_length // self.case.segments)
        self.context = self.model.compress(ids, segment_lengths=lengths_of_segments(step, ids.shape[1]))

    def given(self) -> tuple[Tensor, dict[str, Any]]:
        return self.prompt, {"context": self.context}


def modes_of(model: Any, case: Case) -> dict[str, Mode]:
    """By name; an encoder that reads in both directions has no cache of plain tokens, hence no `prefix`."""
    classes = (Mode, Compressed) if model.config.is_encoder_decoder else (Mode, Prefix, Compressed)
    return {cls.name: cls(model, case) for cls in classes}


# -------------------------------------------------------------------------------------------------------------- clocks


def timed(call: Callable[[], Any], device: torch.device) -> tuple[float, float]:
    """Wall and CPU seconds of one call; on a GPU the wall time is that between two events."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.synchronize(device)
        begun, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begun.record()
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    if cuda:
        ended.record()
        torch.cuda.synchronize(device)
    seconds = begun.elapsed_time(ended) / 1000 if cuda else time.perf_counter() - wall
    return seconds, time.process_time() - cpu


class Tokens(BaseStreamer):
    """When each token arrives; generate hands over the prompt first, and waits for the device each time."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.times: list[float] = []

    def put(self, value: Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass

    @property
    def first(self) -> float:
        """Seconds to the first token."""
        return self.times[1] - self.start

    @property
    def each(self) -> float | None:
        """Seconds of each token after the first."""
        further = len(self.times) - 2
        return (self.times[-1] - self.times[1]) / further if further else None


def sample(mode: Mode, file: Path) -> dict[str, float | None]:
    """The times of one sample, by phase; `file`: holds the context of one row."""
    device = mode.model.device
    compress = load = None
    if file.is_file():
        compress, _ = timed(mode.compress, device)
        load, _ = timed(lambda: CompressedContext.load(file).to(device), device)
    prefill, _ = timed(mode.prefill, device)
    tokens = Tokens()
    wall, cpu = timed(lambda: mode.generate(tokens), device)
    return {
        "compress_seconds": compress,
        "load_seconds": load,
        "prefill_seconds": prefill,
        "first_token_seconds": tokens.first,
        "token_seconds": tokens.each,
        "wall_seconds": wall,
        "cpu_seconds": cpu,
    }


def published(mode: Mode) -> dict[str, float | None]:
    """The measure of Mu et al. (2023): what torch's profiler says of the forward pass over what is left to read.

    CUDA time is the sum of the kernels' times, no wall time; None without a GPU.
    """
    cuda = mode.model.device.type == "cuda"
    with _silent_standard_error(), torch.profiler.profile(with_flops=True) as profiler:
        mode.prefill()
    events = profiler.key_averages()
    return {
        "profiler_cpu_seconds": sum(event.self_cpu_time_total for event in events) / 1e6,
        "profiler_cuda_seconds": sum(event.self_device_time_total for event in events) / 1e6 if cuda else None,
        "profiler_flops": sum(event.flops for event in events),
    }


def deepspeed_flops(mode: Mode) -> int:
    """The same pass as counted by DeepSpeed's profiler."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from deepspeed.profiling.flops_profiler import FlopsProfiler

    profiler = FlopsProfiler(mode.model)
    profiler.start_profile()
    try:
        mode.prefill()
        return int(profiler.get_total_flops())
    finally:
        profiler.end_profile()


def cost(mode: Mode) -> tuple[int, int]:
    """FLOPs of a generation, and the most bytes that it takes beside the weights, the context counted; not timed."""
    device, kept = mode.model.device, mode.context.nbytes if mode.context is not None else 0
    with FlopCounterMode(display=False) as counter:
        mode.generate()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        mode.generate()
        return counter.get_total_flops(), torch.cuda.max_memory_allocated(device) - before + kept
    activities = [torch.profiler.ProfilerActivity.CPU]
    with _silent_standard_error(), torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        mode.generate()
    held = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return counter.get_total_flops(), peak + kept


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
