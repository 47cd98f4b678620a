"""What only a GPU can show, in order of worth, within the minutes given; it needs the library alone, and no network.

    python benchmarks/gpu.py --minutes 14 --out gpu.json
    python benchmarks/gpu.py --minutes 1 --out gpu.json --device cpu --micro      # does it run at all?

- parity: every method on the device against one pass, by dtype, and float32 logits against those of the CPU;
- attention: sdpa, flex attention and flash-attn (where it is installed) against eager attention, bfloat16;
- sweep: answers after 150 summary vectors against 6144 tokens read again or cached, batch 64 to 1, for a model of the
  shape of SmolLM2-135M and one of Llama-2-7B: the speed-up of a token beside its ceiling, which is the ratio of the
  bytes that a step reads (transformers' cache is also copied in each step, so that the speed-up can exceed it);
- training: tokens/s and model FLOPs utilisation of a step of both (the larger one with LoRA);
- loss: liger-kernel's fused loss against ours in slices; collectives: a sum over two GPUs by nccl.

Weights and tokens are random: times do not depend on them. Results are written after each of them; a step that fails or
has no time left says so, and the next one runs. bfloat16 unless said otherwise.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from synopsis.artifacts import Provenance, write_json
from synopsis.compressors import compressor_class, loss
from synopsis.config.training import LowRank, SegmentTraining
from synopsis.costs.devices import mfu
from synopsis.costs.flops import step_flops
from synopsis.costs.memory import generation_bytes
from synopsis.costs.model_size import known, model_size
from synopsis.progress import say
from synopsis.stages.benchmark.checks import checks
from synopsis.stages.benchmark.modes import PROMPT_TOKENS, Case, Compressed, modes_of, timed
from synopsis.stages.benchmark.run import Sweep, attempt, device_name
from synopsis.stages.benchmark.section import Benchmark
from synopsis.training.trainable import choose_trainable
from training import StepSizes, compressed_step
from transformers import AutoConfig

KIND = "gpu-benchmark"
TINY = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
METHODS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("summary", "llama", {"summary_length": 4}),
    ("summary", "opt", {"summary_length": 4, "ffn_dim": 128, "word_embed_proj_dim": 64}),
    ("gist", "llama", {"gist_token_id": 511}),
    ("eviction", "llama", {"budget": 16, "rerotate": False}),
    ("truncation", "llama", {"budget": 16}),
)
LORA = LowRank(rank=16, targets=["q_proj", "k_proj", "v_proj", "o_proj"])


@dataclass(frozen=True)
class Sizes:
    """What is measured. models: name -> (values of its configuration, LoRA or None)."""

    models: dict[str, tuple[dict[str, Any], LowRank | None]]
    context: int = 6144
    segments: int = 3
    summary: int = 50
    batches: tuple[int, ...] = (64, 1, 8, 32)
    new_tokens: int = 32
    repeats: int = 3
    segment: int = 1536
    """Tokens of a segment in training: 2 substeps of 2."""


def full() -> Sizes:
    names = {"HuggingFaceTB/SmolLM2-135M": None, "meta-llama/Llama-2-7b-hf": LORA}
    return Sizes({name: (known(name) or {}, lora) for name, lora in names.items()})


MICRO = Sizes(
    {"tiny": ({"model_type": "llama", **TINY}, None), "tiny with LoRA": ({"model_type": "llama", **TINY}, LORA)},
    **{"context": 48, "summary": 4, "batches": (2, 1), "new_tokens": 3, "repeats": 1, "segment": 16},
)


def new_model(kind: str, values: dict[str, Any], device: str, dtype: torch.dtype, **fields: Any) -> Any:
    """A model of a method with random weights, made on the device."""
    values = {"max_position_embeddings": 8192, "bos_token_id": 1, "eos_token_id": 2, **values, **fields}
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    before = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return compressor_class(kind, config.model_type)(config).eval()
    finally:
        torch.set_default_dtype(before)


# ------------------------------------------------------------------------------------------------------------ the steps


@torch.no_grad()
def parity(sizes: Sizes, device: str) -> Iterator[dict[str, Any]]:
    for kind, architecture, fields in METHODS:
        values = {"model_type": architecture, **TINY, "num_key_value_heads": 2, **fields}
        for dtype in ("float32", "bfloat16"):
            model = new_model(kind, values, "cpu", torch.float32).to(dtype=getattr(torch, dtype))
            on_cpu = Compressed(model, Case(2, 48, 8, 1)) if dtype == "float32" else None
            expected = answered(on_cpu) if on_cpu else None
            model = model.to(device)
            with tempfile.TemporaryDirectory() as folder:
                modes = modes_of(model, Case(2, 48, 8, 1))
                found = checks(modes, Path(folder), dtype)
            against = None if expected is None else float((answered(modes["compressed"]) - expected).abs().max())
            failed = [check for check in found if not check["agrees"]]
            case = {"method": kind, "architecture": architecture, "dtype": dtype}
            yield {**case, "checks": len(found), "failed": failed, "difference_from_cpu": against}


def answered(mode: Any) -> torch.Tensor:
    """Logits of the last token of the prompt, float32 on the CPU."""
    mode.compress()
    logits: torch.Tensor = mode.prefill().logits.float().cpu()
    return logits


@torch.no_grad()
def attention(sizes: Sizes, device: str) -> Iterator[dict[str, Any]]:
    for kind, architecture, fields in METHODS[:3]:
        values = {"model_type": architecture, **TINY, **fields}
        model = new_model(kind, values, device, torch.bfloat16)
        expected = None
        for name in ("eager", "sdpa", "flex_attention", "flash_attention_2"):
            case = {"method": kind, "architecture": architecture, "attention": name}
            try:
                model.set_attn_implementation(name)
                logits = answered(Compressed(model, Case(2, 48, 8, 1)))
            except Exception as error:  # whatever a back end that is not there or does not fit raises
                yield {**case, "error": first_line(error)}
                continue
            expected = logits if expected is None else expected
            yield {**case, "difference_from_eager": float((logits - expected).abs().max() / expected.abs().max())}


@torch.no_grad()
def sweep(sizes: Sizes, device: str) -> Iterator[dict[str, Any]]:
    for name, (values, _) in sizes.models.items():
        model = new_model("summary", values, device, torch.bfloat16, summary_length=sizes.summary)
        points = Sweep(model, "bfloat16", Benchmark(context_lengths=[sizes.context], repeats=sizes.repeats))
        points.checks.append({"check": "made by the step parity", "agrees": True})
        for batch in sizes.batches:
            case = Case(batch, sizes.context, sizes.new_tokens, sizes.segments)
            rows = list(points.rows(case))
            found = {name: summed_up([row for row in rows if row["mode"] == name]) for name in modes_of(model, case)}
            held = {"prefix": sizes.context, "compressed": sizes.segments * sizes.summary}
            read = {mode: step_bytes(model, batch, count) for mode, count in held.items()}
            result = {"model": name, **vars(case), "modes": found, "ceiling": read["prefix"] / read["compressed"]}
            times = [found[mode].get("token_seconds") for mode in held]
            if all(times):
                speed_up = times[0] / times[1]
                result |= {"speed_up": speed_up, "share_of_ceiling": speed_up / result["ceiling"]}
            yield result


def step_bytes(model: Any, batch: int, held: int) -> int:
    """What one step of decoding reads: the weights and the cache."""
    size, element = model_size(model.config), model.dtype.itemsize
    assert size is not None
    two, one = (generation_bytes(size, batch, held + PROMPT_TOKENS, new, element) for new in (2, 1))
    return two - one


def summed_up(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The medians over the samples of a mode; its note where it failed."""
    if "sample" not in rows[0]:
        return {"note": rows[0]["note"]}
    shown = ("compress_seconds", "first_token_seconds", "token_seconds", "wall_seconds", "times_floor", "peak_bytes")
    return {name: median(row[name] for row in rows) for name in shown if rows[0][name] is not None}


def training(sizes: Sizes, device: str) -> Iterator[dict[str, Any]]:
    step = StepSizes(substeps=2, segments=2, segment=sizes.segment)
    section = {"corpus": "none", "sequence_length": step.tokens, "steps": 1, "batch_size": 1, "learning_rate": 1e-4}
    for name, (values, lora) in sizes.models.items():
        training = SegmentTraining(**section, lora=lora)
        model = new_model("summary", values, device, torch.bfloat16, summary_length=sizes.summary).train()
        choose_trainable(model, training)
        text = torch.randint(3, model.config.vocab_size, (1, step.tokens), device=device)
        seconds = [timed(lambda m=model, t=text: compressed_step(m, step, t), model.device)[0] for _ in range(4)]
        flops = step_flops(model.config, training, lambda steps: steps * sizes.summary, 1, step.tokens)
        rate = (flops or 0) / median(seconds[1:])
        used = mfu(rate, device_name(model.device))
        yield {
            "model": name,
            "lora": lora is not None,
            "tokens_per_second": step.tokens / median(seconds[1:]),
            "mfu": used,
        }


def fused_loss(sizes: Sizes, device: str) -> Iterator[dict[str, Any]]:
    values, _ = next(iter(sizes.models.values()))
    model = new_model("summary", values, device, torch.bfloat16, summary_length=sizes.summary)
    states = torch.randn(4 * sizes.segment, model.config.hidden_size, device=device, dtype=torch.bfloat16)
    targets = torch.randint(3, model.config.vocab_size, states.shape[:1], device=device)
    if not loss._can_be_fused(states, model.logits):
        yield {"skipped": "needs a GPU and liger-kernel"}
        return
    for name, total in (("fused", loss._fused_sum), ("in slices", loss._sum_of_slices)):

        def both_ways(total: Any = total) -> Any:
            given = states.clone().requires_grad_()
            value = total(given, targets, model.logits)
            value.backward()
            return float(value), given.grad

        both_ways()
        seconds, _ = timed(both_ways, model.device)
        value, gradient = both_ways()
        yield {
            "loss": name,
            "seconds": seconds,
            "mean": value / len(targets),
            "gradient": float(gradient.float().norm()),
        }


def collectives(sizes: Sizes, device: str) -> Iterator[dict[str, Any]]:
    if torch.cuda.device_count() < 2:
        yield {"skipped": f"needs two GPUs; there is {torch.cuda.device_count()}"}
        return
    torch.multiprocessing.spawn(_sum_of_two, nprocs=2)
    yield {"nccl": "sum over two GPUs as expected"}


def _sum_of_two(rank: int) -> None:
    torch.distributed.init_process_group("nccl", init_method="tcp://127.0.0.1:29533", rank=rank, world_size=2)
    found = torch.full((2**20,), float(rank + 1), device=f"cuda:{rank}")
    torch.distributed.all_reduce(found)
    assert bool((found == 3).all())
    torch.distributed.destroy_process_group()


STEPS: dict[str, Callable[[Sizes, str], Iterator[dict[str, Any]]]] = {
    "parity": parity,
    "attention": attention,
    "sweep": sweep,
    "training": training,
    "loss": fused_loss,
    "collectives": collectives,
}


# --------------------------------------------------------------------------------------------------------- command line


def first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def main(arguments: list[str] | None = None) -> int:
    """2 without the device that is asked for, 1 when a step failed, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, required=True, help="no result is begun later than this")
    parser.add_argument("--out", type=Path, required=True, help="the results as JSON, written after each of them")
    parser.add_argument("--device", default="cuda", help="cuda (default) or cpu")
    parser.add_argument("--only", choices=STEPS, help="one step instead of all")
    parser.add_argument("--micro", action="store_true", help="very small sizes")
    options = parser.parse_args(arguments)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        print("gpu.py: --device cuda: torch finds no GPU here; expected one, or --device cpu", file=sys.stderr)
        return 2
    end, sizes = time.monotonic() + 60 * options.minutes, MICRO if options.micro else full()
    name = device_name(torch.device(options.device))
    provenance = Provenance(config="micro" if options.micro else "full", seed=0, device=name, dtype="bfloat16")
    results: dict[str, list[dict[str, Any]]] = {}
    failed = False

    def add(step: str, result: dict[str, Any]) -> None:
        results[step].append(result)
        say(f"{step}: {result}")
        write_json(options.out, KIND, {"results": results}, provenance.record())

    for step in [options.only] if options.only else STEPS:
        results[step] = []
        found = STEPS[step](sizes, options.device)
        while True:
            if time.monotonic() > end:
                add(step, {"skipped": "no time left"})
                break
            try:
                result, why = attempt(next, found, None)
            except Exception as error:  # one step must not cost the others
                result, why = None, first_line(error)
            if why:
                failed = True
                add(step, {"error": why})
            if result is None:
                break
            add(step, result)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
