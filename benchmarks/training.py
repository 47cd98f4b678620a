"""What a training step over substeps costs, beside what it is compared with, in one run.

    python benchmarks/training.py                       # a table on standard output; a few minutes on two cores
    python benchmarks/training.py --only step --out results/training.json

- step: tokens/s of an AutoCompressor's step of 2 substeps x 2 segments x 512 tokens with 50 summary tokens, beside
  the algorithm as published (the same loop written out on transformers' own class: attention computed eagerly, all
  logits), and beside transformers' own model on as many positions, cut into passes of the same lengths;
- memory: peak resident memory of such a step over long segments, each in a process of its own: the loss in slices,
  beside all logits; then with checkpoints of segments, beside without.

The sides take turns, so that another load on the machine slows all; a ratio is the median over the rounds. Models have
random weights and tokens: times do not depend on them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from compressors import Sizes, alone, in_turns, resident, row, run, speed, tokens
from synopsis.compressors import compressor_class
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

KIND = "training-benchmark"


@dataclass(frozen=True)
class StepSizes(Sizes):
    """As `Sizes`; `segments` is the number of segments in a substep."""

    substeps: int = 2
    published_limit: float = 1.2
    plain_limit: float = 0.9
    memory_segment: int = 2048

    @property
    def lengths(self) -> list[int]:
        return [self.segment] * self.segments

    @property
    def tokens(self) -> int:
        return self.substeps * self.segments * self.segment


def compressed_step(model: Any, sizes: StepSizes, text: Tensor, **options: Any) -> None:
    """A step as the trainer does it: each substep by itself, its soft prompt going on without gradient."""
    model.zero_grad()
    softprompt = None
    for index, part in enumerate(text.chunk(sizes.substeps, dim=1)):
        out = model(
            part,
            labels=part,
            softprompt=softprompt,
            segment_lengths=sizes.lengths,
            output_softprompt=index < sizes.substeps - 1,
            **options,
        )
        softprompt = out.softprompt.detach()
        out.loss.backward()


def published_step(model: Any, summary: nn.Embedding, sizes: StepSizes, text: Tensor) -> None:
    """The same step as published, on transformers' own class: a loop over segments, and the logits of all tokens."""
    model.zero_grad()
    softprompt: Tensor = text.new_zeros(1, 0, sizes.hidden, dtype=summary.weight.dtype)
    for substep, part in enumerate(text.chunk(sizes.substeps, dim=1)):
        hidden, softprompt = [], softprompt.detach()
        for index, ids in enumerate(part.split(sizes.lengths, dim=1)):
            embeds = model.get_input_embeddings()(ids)
            last = substep == sizes.substeps - 1 and index == sizes.segments - 1
            ends = embeds[:, :0] if last else summary.weight[None]
            states = model.get_decoder()(inputs_embeds=torch.cat([softprompt, embeds, ends], 1), use_cache=False)[0]
            start = softprompt.shape[1]
            hidden.append(states[:, start : start + ids.shape[1]])
            softprompt = torch.cat([softprompt, states[:, start + ids.shape[1] :]], dim=1)
        logits = model.get_output_embeddings()(torch.cat(hidden, dim=1)).float()
        nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), part[:, 1:].flatten()).backward()


def plain_step(model: Any, sizes: StepSizes, passes: list[list[Tensor]]) -> None:
    """transformers' own model on as many positions."""
    model.zero_grad()
    for texts in passes:
        torch.stack([model(ids, labels=ids, use_cache=False).loss for ids in texts]).mean().backward()


def step(sizes: StepSizes) -> Iterator[dict[str, Any]]:
    positions = []  # of each pass: the tokens, the summary vectors of all segments before them, the summary tokens
    for index in range(sizes.substeps * sizes.segments):
        ends = index < sizes.substeps * sizes.segments - 1
        positions.append(sizes.segment + sizes.summary * (index + ends))
    for architecture in sizes.architectures:
        torch.manual_seed(sizes.seed)
        own = compressor_class("summary", architecture)(sizes.config(architecture, summary_length=sizes.summary))
        eager = AutoModelForCausalLM.from_config(sizes.config(architecture), attn_implementation="eager")
        plain = AutoModelForCausalLM.from_config(sizes.config(architecture))
        summary = nn.Embedding(sizes.summary, sizes.hidden)
        for model in (own, eager, plain):
            model.train()
        text = tokens(1, sizes.tokens, sizes.vocabulary)
        texts = [tokens(1, length, sizes.vocabulary) for length in positions]
        passes = [texts[start : start + sizes.segments] for start in range(0, len(texts), sizes.segments)]
        sides: list[Callable[[], None]] = [
            lambda own=own, text=text: compressed_step(own, sizes, text),
            lambda eager=eager, summary=summary, text=text: published_step(eager, summary, sizes, text),
            lambda plain=plain, passes=passes: plain_step(plain, sizes, passes),
        ]
        ours, published, uncompressed = in_turns(sides, sizes.rounds)
        case = f"{architecture}, beside"
        yield speed("step", f"{case} as published", [sizes.tokens] * 2, [ours, published], sizes.published_limit)
        counts = [sum(positions)] * 2
        yield speed("step", f"{case} the plain model", counts, [ours, uncompressed], sizes.plain_limit)


def peak(sizes: StepSizes, skip_logits: bool, checkpoints: bool) -> float:
    """MiB that one step adds to the memory of a process that holds the model and its gradients."""
    torch.set_num_threads(sizes.threads)
    torch.manual_seed(sizes.seed)
    sizes = replace(sizes, segment=sizes.memory_segment)
    fields = {"summary_length": sizes.summary, "segment_gradient_checkpointing": checkpoints}
    config = sizes.config("llama", vocab_size=sizes.memory_vocabulary, **fields)
    model = compressor_class("summary", "llama")(config).train()
    first = tokens(1, 2, sizes.memory_vocabulary)
    model(first, labels=first, segment_lengths=1).loss.backward()
    before = resident()
    compressed_step(model, sizes, tokens(1, sizes.tokens, sizes.memory_vocabulary), skip_logits=skip_logits)
    return resident(peak=True) - before


def memory(sizes: StepSizes) -> Iterator[dict[str, Any]]:
    all_logits = alone(peak, sizes, skip_logits=False, checkpoints=False)
    in_slices = alone(peak, sizes, skip_logits=True, checkpoints=False)
    with_checkpoints = alone(peak, sizes, skip_logits=True, checkpoints=True)
    shape = f"{sizes.substeps} x {sizes.segments} x {sizes.memory_segment} tokens"
    for case, value, beside in (
        (f"{shape}, loss in slices", in_slices, all_logits),
        (f"{shape}, checkpoints too", with_checkpoints, in_slices),
    ):
        yield row("memory", case, "MiB", value, beside, [beside / value], None)


MEASURES: dict[str, Callable[[StepSizes], Iterator[dict[str, Any]]]] = {"step": step, "memory": memory}


def main(arguments: list[str] | None = None, sizes: StepSizes | None = None) -> int:
    """1 when a ratio misses its limit, else 0."""
    return run(__doc__, KIND, MEASURES, sizes or StepSizes(), arguments)


if __name__ == "__main__":
    sys.exit(main())
