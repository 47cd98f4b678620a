"""What the compressors cost and save, each beside what it is compared with, in one run.

    python benchmarks/compressors.py                     # a table on standard output; a few minutes on two cores
    python benchmarks/compressors.py --only machinery --out results/compressors.json

- machinery: tokens/s of an AutoCompressor's forward and backward pass over two segments, beside transformers' own model
  on as many positions (tokens, soft prompt and summary tokens counted), cut into passes of the same lengths;
- batched_decoding: tokens/s of a batch that continues from one cached gist token, beside a batch of one;
- cached_instruction: a text written after a cached instruction (one gist token), beside a pass over instruction, gist
  token and input, batch 1: under the gist mask with all of it kept, as published (this one has the limit); under the
  mask, where what is hidden is dropped after the pass, as `generate` does it here; and without a mask;
- memory: peak resident memory of a training step over many segments, each in a process of its own: logits where a label
  is, beside all logits; then with checkpoints of segments, beside without.

The two sides of a ratio take turns, so that another load on the machine slows both; the ratio is the median over the
rounds. Models have random weights and tokens: times do not depend on them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import torch
from synopsis.artifacts import Provenance, write_json
from synopsis.compressors import compressor_class
from synopsis.compressors.masks import seen
from synopsis.progress import say
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

KIND = "compressor-benchmark"
PAD, FIRST_TOKEN = 0, 3
COLUMNS = ("measure", "case", "unit", "value", "beside", "ratio", "lowest", "highest", "limit", "met")


@dataclass(frozen=True)
class Sizes:
    """What is measured. Lengths are in tokens; limits are those that a ratio must reach."""

    rounds: int = 7
    seed: int = 0
    threads: int = 2
    architectures: tuple[str, ...] = ("llama", "opt")
    vocabulary: int = 8192
    hidden: int = 256
    layers: int = 6
    segments: int = 2
    segment: int = 512
    summary: int = 50
    machinery_limit: float = 0.9
    gist_hidden: int = 512
    gist_layers: int = 8
    instruction: int = 1024
    prompt: int = 16
    new_tokens: int = 32
    batch: int = 32
    batched_limit: float = 6.0
    cached_limit: float = 3.0
    memory_segments: int = 8
    memory_vocabulary: int = 32000
    memory_limit: float = 1.5

    def record(self) -> dict[str, Any]:
        """The fields as they are written beside the results."""
        return asdict(self)

    def config(self, architecture: str, **fields: Any) -> Any:
        """A configuration of transformers with `hidden` and `layers`, unless `fields` say otherwise."""
        hidden = fields.pop("hidden", self.hidden)
        shared: dict[str, Any] = {
            "vocab_size": self.vocabulary,
            "hidden_size": hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": max(1, hidden // 64),
            "max_position_embeddings": 4096,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": PAD,
        }
        inner: dict[str, Any] = {"intermediate_size": 3 * hidden}
        if architecture == "opt":
            inner = {"ffn_dim": 4 * hidden, "word_embed_proj_dim": hidden, "dropout": 0.0}
        return AutoConfig.for_model(architecture, **{**shared, **inner, **fields})


# ------------------------------------------------------------------------------------------------------- the measures


def machinery(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Forward and backward pass in segments, beside passes of the same lengths of the plain model."""
    lengths = [sizes.segment] * sizes.segments
    # A segment stands after the summary vectors of those before it; all but the last one end with summary tokens.
    positions = [
        length + sizes.summary * (index + (index < sizes.segments - 1)) for index, length in enumerate(lengths)
    ]
    for architecture in sizes.architectures:
        torch.manual_seed(sizes.seed)
        own = compressor_class("summary", architecture)(sizes.config(architecture, summary_length=sizes.summary))
        plain = AutoModelForCausalLM.from_config(sizes.config(architecture))
        own.train(), plain.train()
        text = tokens(1, sum(lengths), sizes.vocabulary)
        texts = [tokens(1, length, sizes.vocabulary) for length in positions]

        def compressed(own: Any = own, text: torch.Tensor = text) -> None:
            own.zero_grad()
            own(text, labels=text, segment_lengths=lengths).loss.backward()

        def uncompressed(plain: Any = plain, texts: list[torch.Tensor] = texts) -> None:
            plain.zero_grad()
            torch.stack([plain(part, labels=part, use_cache=False).loss for part in texts]).mean().backward()

        seconds = in_turns([compressed, uncompressed], sizes.rounds)
        case = f"{architecture}, {sum(positions)} positions"
        yield speed("machinery", case, [sum(positions)] * 2, seconds, sizes.machinery_limit)


def batched_decoding(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Tokens written a second by a batch after one cached context, beside a batch of one."""
    model, instruction = gist_model(sizes)
    context = model.compress(instruction)
    batches = [tokens(rows, sizes.prompt, sizes.vocabulary) for rows in (sizes.batch, 1)]
    sides = [lambda ids=ids: write(model, sizes, ids, context=context) for ids in batches]
    written = [len(ids) * sizes.new_tokens for ids in batches]
    case = f"batch {sizes.batch} beside 1"
    yield speed("batched_decoding", case, written, in_turns(sides, sizes.rounds), sizes.batched_limit)


def cached_instruction(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """A text after a cached instruction, beside three ways to write without a cache, batch 1."""
    model, instruction = gist_model(sizes)
    context = model.compress(instruction)
    prompt = tokens(1, sizes.prompt, sizes.vocabulary)
    whole = torch.cat([instruction, prompt], dim=1)
    ways: dict[str, Callable[[], torch.Tensor]] = {
        "beside: masked, all kept": lambda: write_published(model, sizes, whole),
        "beside: masked, unseen dropped": lambda: write(model, sizes, whole),
        "beside: no mask, all kept": lambda: write(model, sizes, whole, condition="pos_control"),
    }

    def cached() -> torch.Tensor:
        return write(model, sizes, prompt, context=context)

    new = cached()[:, -sizes.new_tokens :]
    for way in list(ways.values())[:2]:
        if not torch.equal(new, way()[:, -sizes.new_tokens :]):
            raise RuntimeError("the text after the cached instruction is not the one after the instruction")
    ours, *others = in_turns([cached, *ways.values()], sizes.rounds)
    limits = (sizes.cached_limit, None, None)
    for case, theirs, limit in zip(ways, others, limits, strict=True):
        yield speed("cached_instruction", case, [sizes.new_tokens] * 2, [ours, theirs], limit)


def memory(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Peak memory of a training step; a ratio is what the other side takes, divided by what this side takes."""
    all_logits = alone(peak_of_step, sizes, skip_logits=False, checkpoints=False)
    where_labels_are = alone(peak_of_step, sizes, skip_logits=True, checkpoints=False)
    with_checkpoints = alone(peak_of_step, sizes, skip_logits=True, checkpoints=True)
    length = f"{sizes.memory_segments} x {sizes.segment} tokens"
    for case, value, beside in (
        (f"{length}, logits at labels", where_labels_are, all_logits),
        (f"{length}, checkpoints too", with_checkpoints, where_labels_are),
    ):
        yield row("memory", case, "MiB", value, beside, [beside / value], sizes.memory_limit)


MEASURES: dict[str, Callable[[Sizes], Iterator[dict[str, Any]]]] = {
    "machinery": machinery,
    "batched_decoding": batched_decoding,
    "cached_instruction": cached_instruction,
    "memory": memory,
}


# ------------------------------------------------------------------------------------------------ how it is measured


def tokens(rows: int, length: int, vocabulary: int) -> torch.Tensor:
    """(rows, length) ordinary tokens: the last one of the vocabulary is the gist token."""
    return torch.randint(FIRST_TOKEN, vocabulary - 1, (rows, length))


def gist_model(sizes: Sizes) -> tuple[Any, torch.Tensor]:
    """A gist model, and an instruction (1, length) that ends with its gist token."""
    torch.manual_seed(sizes.seed)
    token = sizes.vocabulary - 1
    config = sizes.config("llama", hidden=sizes.gist_hidden, num_hidden_layers=sizes.gist_layers, gist_token_id=token)
    model = compressor_class("gist", "llama")(config).eval()
    ids = tokens(1, sizes.instruction, sizes.vocabulary)
    return model, torch.nn.functional.pad(ids, (0, 1), value=token)


def write(model: Any, sizes: Sizes, ids: torch.Tensor, condition: str = "gist", **arguments: Any) -> torch.Tensor:
    """Greedy continuation by `new_tokens`: no row ends before."""
    model.config.gist_condition = condition
    return model.generate(
        ids, max_new_tokens=sizes.new_tokens, do_sample=False, eos_token_id=None, pad_token_id=PAD, **arguments
    )


@torch.no_grad()
def write_published(model: Any, sizes: Sizes, ids: torch.Tensor) -> torch.Tensor:
    """The same without a cache of the instruction as published: all stays in the cache, hidden from each new token."""
    cache = DynamicCache()
    shown = seen(ids, model.config.gist_token_id, "gist")[:, :, -1:]  # (1, 1, 1, length), the same for every new token
    logits = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
    for _ in range(sizes.new_tokens - 1):
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
        shown = torch.nn.functional.pad(shown, (0, 1), value=True)
        logits = model(ids[:, -1:], past_key_values=cache, use_cache=True, attention_mask_gist=shown).logits
    return torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)


def in_turns(sides: list[Callable[[], Any]], rounds: int) -> list[list[float]]:
    """Wall seconds of each side in each round, after one round that does not count; the first to run changes."""
    seconds: list[list[float]] = [[] for _ in sides]
    for turn in range(rounds + 1):
        order = list(enumerate(sides))
        for index, side in order if turn % 2 else reversed(order):
            start = time.perf_counter()
            side()
            if turn:
                seconds[index].append(time.perf_counter() - start)
    return seconds


def speed(
    measure: str,
    case: str,
    counts: list[int],
    seconds: list[list[float]],
    limit: float | None,
    unit: str = "tokens/s",
) -> dict[str, Any]:
    """The row of two sides that take `seconds` (side, round) for so many tokens (or what `unit` counts) each."""
    value, beside = ([count / second for second in taken] for count, taken in zip(counts, seconds, strict=True))
    ratios = [ours / theirs for ours, theirs in zip(value, beside, strict=True)]
    return row(measure, case, unit, median(value), median(beside), ratios, limit)


def row(
    measure: str, case: str, unit: str, value: float, beside: float, ratios: list[float], limit: float | None
) -> dict[str, Any]:
    ratio = median(ratios)
    rates = (round(x, 1 if x >= 10 else 3) for x in (value, beside))
    numbers = (*rates, *(round(x, 3) for x in (ratio, min(ratios), max(ratios))))
    return dict(
        zip(COLUMNS, (measure, case, unit, *numbers, limit, None if limit is None else ratio >= limit), strict=True)
    )


def alone(function: Callable[..., float], *arguments: Any, **options: Any) -> float:
    """`function` in a process of its own, so that no memory that another one took counts."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments, **options).result()


def peak_of_step(sizes: Sizes, skip_logits: bool, checkpoints: bool) -> float:
    """MiB that one training step adds to the memory of a process that holds the model."""
    torch.set_num_threads(sizes.threads)
    torch.manual_seed(sizes.seed)
    vocabulary, length = sizes.memory_vocabulary, sizes.memory_segments * sizes.segment
    config = sizes.config(
        "llama", vocab_size=vocabulary, summary_length=sizes.summary, segment_gradient_checkpointing=checkpoints
    )
    model = compressor_class("summary", "llama")(config).train()
    first = tokens(1, 2, vocabulary)
    model(first, labels=first, segment_lengths=1).loss.backward()  # gradients, and what torch loads when first used
    text = tokens(1, length, vocabulary)
    before = resident()
    model(text, labels=text, segment_lengths=sizes.segment, skip_logits=skip_logits).loss.backward()
    return resident(peak=True) - before


def resident(peak: bool = False) -> float:
    """MiB of this process in memory, or the most it ever had there (where only that is known, always)."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage on Linux counts what the process had before it became this program
        field = "VmHWM:" if peak else "VmRSS:"
        return next(int(line.split()[1]) / 1024 for line in status.read_text().splitlines() if line.startswith(field))
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


# ------------------------------------------------------------------------------------------------------- command line


def table(rows: list[dict[str, Any]]) -> str:
    """The rows, of the same columns all, as lines of text, columns aligned."""
    words = {True: "yes", False: "NO", None: "-"}
    lines = [
        {**line, "limit": "-" if line["limit"] is None else line["limit"], "met": words[line["met"]]} for line in rows
    ]
    cells = [tuple(rows[0]) if rows else COLUMNS, *(tuple(map(str, line.values())) for line in lines)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in cells)


def main(arguments: list[str] | None = None, sizes: Sizes | None = None) -> int:
    """1 when a ratio misses its limit, else 0."""
    return run(__doc__, KIND, MEASURES, sizes or Sizes(), arguments)


def run(
    description: str | None,
    kind: str,
    measures: dict[str, Callable[[Any], Iterator[dict[str, Any]]]],
    sizes: Any,
    arguments: list[str] | None,
    settable: dict[str, str] | None = None,
) -> int:
    """The command line of a benchmark with these measures. `settable`: fields of `sizes` that are options, and help."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two rounds instead of seven: the same sizes, more noise")
    parser.add_argument("--out", type=Path, help="also write the rows here, as JSON with their provenance")
    parser.add_argument("--only", choices=measures, help="one measure instead of all")
    for field, text in (settable or {}).items():
        parser.add_argument(f"--{field}", default=getattr(sizes, field), help=text)
    options = parser.parse_args(arguments)
    sizes = replace(sizes, **{field: getattr(options, field) for field in settable or {}})
    if options.quick:
        sizes = replace(sizes, rounds=2)
    torch.set_num_threads(sizes.threads)
    settings = json.dumps(sizes.record(), sort_keys=True)
    provenance = Provenance(config=hashlib.sha256(settings.encode()).hexdigest()[:16], seed=sizes.seed)
    rows = []
    for name in [options.only] if options.only else list(measures):
        say(f"measuring {name}")
        rows += measures[name](sizes)
    print(table(rows))
    if options.out is not None:
        write_json(options.out, kind, {"sizes": sizes.record(), "rows": rows}, provenance.record(threads=sizes.threads))
    return 1 if any(line["met"] is False for line in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
