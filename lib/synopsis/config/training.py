"""How a run is trained (see `synopsis.config`): the optimisation, and what each kind of training adds to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from synopsis.config.types import LARGEST, Distinct, Name, NonNegativeInt, PositiveFloat, PositiveInt, Problem, Strict
from synopsis.errors import InputError


class LowRank(Strict):
    """LoRA (Hu et al. 2022) through peft; new embeddings (summary tokens, gist token) are trained whole beside it."""

    rank: PositiveInt = 16
    alpha: PositiveFloat = 16.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    targets: Annotated[list[str], Field(min_length=1), Distinct()] = Field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj"]
    )
    """Names of the linear layers that get an adapter."""
    merge: bool = True
    """Write whole weights at the end; False: the adapter and the new embeddings alone, which are small."""


class Optimisation(Strict):
    """How to train; times are in optimizer steps."""

    steps: PositiveInt
    batch_size: PositiveInt
    """Sequences in one forward pass of one process."""
    gradient_accumulation: PositiveInt = 1
    """Forward passes in an optimizer step."""
    sequences_per_step: PositiveInt | None = None
    """Sequences in an optimizer step over all processes, instead of `gradient_accumulation`, which follows from it
    then: the run is the same whatever the number of GPUs, where it has no dropout."""
    learning_rate: Annotated[float, Field(gt=0, le=10)]
    schedule: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    warmup_steps: NonNegativeInt = 0
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.0
    adam_beta2: Annotated[float, Field(gt=0, lt=1)] = 0.999
    max_grad_norm: PositiveFloat = 1.0
    dtype: Literal["float32", "bfloat16"] = "float32"
    checkpoint_every: PositiveInt = 500
    """Steps between checkpoints; a killed run resumes from the last one."""
    keep_checkpoints: Annotated[int, Field(ge=2, le=LARGEST)] = 2
    """Checkpoints kept; two at least, so that there is always a whole one while the next is written."""
    evaluate_every: PositiveInt | None = None
    """Steps between evaluations on the validation split; None: at the end only."""
    log_every: PositiveInt = 10
    evaluate_first: bool = False
    """Also evaluate before the first step."""
    keep_best: bool = False
    """Keep the weights with the lowest validation loss instead of the last ones."""
    train_only: Literal["everything", "new_embeddings"] = "everything"
    """`new_embeddings`: the summary or gist embeddings alone, all else frozen."""
    lora: LowRank | None = None
    attention: Literal["eager", "sdpa", "flex_attention", "flash_attention_2"] | None = None
    """How attention is computed; None: as transformers chooses."""
    gradient_checkpointing: bool = False
    """Compute the activations of each layer again in the backward pass."""
    compile: bool = False
    """torch.compile the model."""
    deepspeed: str | None = None
    """A DeepSpeed file, for instance config/deepspeed/zero3.json."""
    fsdp: bool = False
    """Shard weights, gradients and optimizer over the processes by PyTorch's FSDP2."""

    def problems(self) -> Iterator[Problem]:
        if self.keep_best and self.evaluate_every is None:
            yield Problem(("keep_best",), "true", "'evaluate_every' beside it")
        elif self.keep_best and self.evaluate_every and self.checkpoint_every % self.evaluate_every:
            wanted = f"a multiple of evaluate_every ({self.evaluate_every}), as keep_best is on"
            yield Problem(("checkpoint_every",), str(self.checkpoint_every), wanted)
        if self.warmup_steps > self.steps:
            yield Problem(("warmup_steps",), str(self.warmup_steps), f"at most steps ({self.steps})")
        elif self.warmup_steps and self.schedule == "constant":
            wanted = "0, or the schedule constant_with_warmup: constant has no warm-up"
            yield Problem(("warmup_steps",), str(self.warmup_steps), wanted)
        if self.sequences_per_step is not None and self.gradient_accumulation != 1:
            found, wanted = str(self.sequences_per_step), "either it or 'gradient_accumulation'"
            yield Problem(("sequences_per_step",), found, wanted)
        elif self.sequences_per_step is not None and self.sequences_per_step % self.batch_size:
            found, wanted = str(self.sequences_per_step), f"a multiple of batch_size ({self.batch_size})"
            yield Problem(("sequences_per_step",), found, wanted)
        if self.deepspeed and self.fsdp:
            yield Problem(("fsdp",), "true", "either 'deepspeed' or 'fsdp'")
        if self.lora and self.train_only == "new_embeddings":
            yield Problem(("lora",), "an adapter", "none: with train_only new_embeddings nothing else learns")

    def accumulation(self, processes: int = 1) -> int:
        """Forward passes of each process in an optimizer step; InputError where they do not come out even."""
        if self.sequences_per_step is None:
            return self.gradient_accumulation
        passes, rest = divmod(self.sequences_per_step, self.batch_size * processes)
        if rest or not passes:
            raise InputError(
                f"training.sequences_per_step {self.sequences_per_step}: found {processes} processes of batch_size "
                f"{self.batch_size}; expected numbers whose product divides it"
            )
        return passes

    def sequences(self, processes: int = 1) -> int:
        """Sequences in an optimizer step over all processes."""
        return self.sequences_per_step or self.batch_size * self.gradient_accumulation * processes


class LanguageModelTraining(Optimisation):
    """Next-token training on whole sequences."""

    corpus: Name
    sequence_length: PositiveInt
    pack_documents: bool = False
    """Lay documents end to end, sequences crossing their boundaries; False: the rest of each document is unused."""


class SegmentTraining(Optimisation):
    """Training over segments (Chevalier et al. 2023, sections 3.2 and 3.3)."""

    corpus: Name
    sequence_length: PositiveInt
    """Tokens of a training sequence over all its substeps."""
    substeps: PositiveInt = 2
    """Parts of a sequence with a gradient stop between them."""
    segments_per_substep: PositiveInt = 2
    randomize_segments: bool = True
    """Draw the segment lengths of each step anew."""
    segment_lengths: Annotated[list[PositiveInt], Field(min_length=1)] | None = None
    """Fixed lengths of the segments of a substep, instead of equal or drawn ones."""
    segment_gradient_checkpointing: bool = False
    """Compute each segment again in the backward pass: memory for one segment, a third more time."""
    random_summary_length: bool = False
    """Draw in each step how many summary tokens end a segment, from 1 to all, so that fewer can be used later."""

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        lengths, key = self.segment_lengths, ("segment_lengths",)
        if self.segments < 2:
            yield Problem((), "one segment in all", "at least two (substeps x segments_per_substep)")
        elif lengths is None and self.sequence_length % self.substeps:
            wanted = f"a multiple of substeps ({self.substeps})"
            yield Problem(("sequence_length",), str(self.sequence_length), wanted)
        elif self.sequence_length < 2 * self.segments:
            wanted = f"at least {2 * self.segments}, 2 tokens for each of {self.segments} segments"
            yield Problem(("sequence_length",), str(self.sequence_length), wanted)
        if lengths is None:
            return
        if self.randomize_segments:
            yield Problem(key, "fixed lengths", "'randomize_segments: false' beside them")
        if len(lengths) != self.segments_per_substep:
            wanted = f"{self.segments_per_substep}, one for each of segments_per_substep"
            yield Problem(key, f"{len(lengths)} lengths", wanted)
        if sum(lengths) * self.substeps != self.sequence_length:
            wanted = f"lengths that add up, over {self.substeps} substeps, to sequence_length ({self.sequence_length})"
            yield Problem(key, f"{sum(lengths) * self.substeps} tokens", wanted)

    @property
    def segments(self) -> int:
        return self.substeps * self.segments_per_substep


class InstructionTraining(Optimisation):
    """Training on instruction, input and output triples (Mu et al. 2023)."""

    instructions: Name
    max_length: PositiveInt = 256
    """Tokens of prompt and output; longer outputs are cut. Encoder-decoders: tokens of the prompt."""
    max_target_length: PositiveInt = 256
    """Tokens of the output of an encoder-decoder."""
    tokenization: Literal["clean", "published"] = "clean"
    """How texts become ids (see `synopsis.data.gist_collators`)."""
