"""How a run is trained (see `synopsis.config`): the optimisation, and what each kind of training adds to it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from synopsis.config_types import Name, PositiveFloat, Strict


class Optimisation(Strict):
    """How to train; times are in optimizer steps."""

    steps: PositiveInt
    batch_size: PositiveInt
    """Sequences in one forward pass of one process."""
    gradient_accumulation: PositiveInt = 1
    learning_rate: PositiveFloat
    schedule: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    warmup_steps: NonNegativeInt = 0
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    adam_beta2: Annotated[float, Field(gt=0, lt=1)] = 0.999
    max_grad_norm: PositiveFloat = 1.0
    dtype: Literal["float32", "bfloat16"] = "float32"
    checkpoint_every: PositiveInt = 500
    """Steps between checkpoints; a killed run goes on from the last one."""
    keep_checkpoints: Annotated[int, Field(ge=2)] = 2
    """Checkpoints kept; two at least, so that there is always a whole one while the next is written."""
    evaluate_every: PositiveInt | None = None
    """Steps between evaluations on the validation split; None: at the end only."""
    log_every: PositiveInt = 10


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

    @property
    def segments(self) -> int:
        return self.substeps * self.segments_per_substep


class InstructionTraining(Optimisation):
    """Training on instruction, input and output triples (Mu et al. 2023)."""

    instructions: Name
    max_length: PositiveInt = 256
    """Tokens of prompt and output; longer outputs are cut."""
