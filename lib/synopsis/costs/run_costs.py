"""What the training runs of an experiment cost: `synopsis plan`. Pure, without torch and without a network.

costs = training_costs(experiment, Machine("H100", processes=8, mfu=0.35))
print(table(costs)); total(costs).gpu_hours
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from synopsis.artifacts import Layout
from synopsis.compressors.gist.section import GistCompressor
from synopsis.compressors.section import Compressor
from synopsis.compressors.summary.section import SummaryCompressor
from synopsis.config.data import AlpacaPlus, Instructions
from synopsis.config.deepspeed import read_deepspeed
from synopsis.config.experiment import Experiment, Model
from synopsis.config.training import InstructionTraining, LanguageModelTraining, Optimisation, SegmentTraining
from synopsis.costs.dimensions import Dimensions, known
from synopsis.costs.estimates import (
    DEVICES,
    Memory,
    Substeps,
    TrainingFlops,
    find_device,
    peak_flops,
    trained_parameters,
    training_flops,
    training_memory,
    training_passes,
)
from synopsis.errors import InputError

SPECIAL_WORDS = 3
"""Padding, unknown word and end of text, beside the words of the generated language."""
SMOLLM2_FILE = "SmolLM2-135M"
ROW_TOKENS = {"alpaca_plus": (40, 40), "world": (14, 4)}
"""Tokens of the prompt and of the output of a row, in the mean, without gist tokens. Alpaca+: 150 characters each,
template included, of which 3.7 make a token."""


@dataclass(frozen=True)
class Machine:
    """What the runs are to be trained on. `mfu`: share of the device's peak that training reaches."""

    device: str = "H100"
    processes: int = 1
    mfu: float = 0.35

    def __post_init__(self) -> None:
        if find_device(self.device) is None:
            raise InputError(f"--device {self.device}: expected one of {', '.join(DEVICES)}")
        if not 0 < self.mfu <= 1:
            raise InputError(f"--mfu {self.mfu:g}: expected a share of the peak, over 0 and at most 1")


@dataclass(frozen=True)
class RunCost:
    """One training run. What follows from the size of the model is None where that is not known."""

    run: str
    model: str
    steps: int
    sequences: int
    """Of a step of all processes."""
    tokens: int
    """Read in the whole run; summary tokens and soft prompts are positions of their own, and not counted here."""
    parameters: int | None = None
    trained: int | None = None
    flops: TrainingFlops | None = None
    """Of the whole run."""
    memory: Memory | None = None
    """On each device."""
    host_bytes: int = 0
    """In the machine's own memory, for each process: what DeepSpeed moves there."""
    gpu_hours: float | None = None

    def record(self) -> dict[str, Any]:
        """As JSON has it."""
        flops, memory = self.flops, self.memory
        found = {key: value for key, value in vars(self).items() if key not in {"flops", "memory"}}
        found["flops"] = None if flops is None else {"model": flops.model, "recomputed": flops.recomputed}
        found["memory_bytes"] = None if memory is None else {**vars(memory), "total": memory.total}
        return found


# ------------------------------------------------------------------------------------------------------ size of models


def size_of(experiment: Experiment, name: str, configurations: Mapping[str, Path] | None = None) -> Dimensions | None:
    """The dimensions of a model of the experiment; None when nothing that is here tells them.

    In this order: a config.json that was named for it, the architecture of a model from scratch, what `prepare` has
    fetched, the folder of the model, and the table of known models.
    """
    model, given = experiment.models[name], (configurations or {}).get(name)
    if given is not None:
        return read_configuration(given)
    if model.architecture is not None:
        return _from_scratch(model)
    folders = [Layout(experiment).model(name), *([Path(model.path).expanduser()] if model.path else [])]
    for folder in folders:
        if (folder / "config.json").is_file():
            return read_configuration(folder / "config.json")
    if model.gguf is not None and SMOLLM2_FILE in model.gguf.file:
        return known("HuggingFaceTB/SmolLM2-135M")
    return known(model.hub or model.path or "")


def named_files(options: Sequence[str]) -> dict[str, Path]:
    """Model -> file, of options MODEL=FILE; InputError for another form."""
    found = {}
    for option in options:
        name, separator, file = option.partition("=")
        if not (name and separator and file):
            raise InputError(f"--size {option}: expected MODEL=FILE, a model of the experiment and its config.json")
        found[name] = Path(file)
    return found


def read_configuration(path: Path) -> Dimensions:
    """The dimensions that a model's config.json tells; InputError when it does not."""
    path = path / "config.json" if path.is_dir() else path
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        found = Dimensions.of(values) if isinstance(values, dict) else None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error})") from None
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise InputError(f"{path}: {error} is missing or wrong; expected the config.json of a model") from None
    if found is None:
        kind = values.get("model_type") if isinstance(values, dict) else None
        raise InputError(f"{path}: model_type is {kind!r}, whose size cannot be estimated")
    return found


def _from_scratch(model: Model) -> Dimensions | None:
    from synopsis.data.world import World

    assert model.architecture is not None
    fields = {key: value for key, value in model.architecture.model_dump().items() if value is not None}
    words = len(World().vocabulary) + SPECIAL_WORDS
    kind = {"model_type": fields.pop("type"), "vocab_size": words, "tie_word_embeddings": True}
    return Dimensions.of({**kind, **fields})


# --------------------------------------------------------------------------------------------------------------- costs


def training_costs(
    experiment: Experiment,
    machine: Machine,
    configurations: Mapping[str, Path] | None = None,
    beside: Sequence[Path] = (),
) -> list[RunCost]:
    """The cost of every run that is trained, in the order of the experiment.

    configurations: model -> its config.json. beside: the experiment's files, where DeepSpeed files are looked for too.
    InputError for a name, a config.json or a DeepSpeed file that is wrong.
    """
    for name in configurations or {}:
        if name not in experiment.models:
            raise InputError(f"--size {name}: the experiment has the models {', '.join(experiment.models)}")
    sizes = {name: size_of(experiment, name, configurations) for name in experiment.models}
    return list(_costs(experiment, machine, sizes, beside))


def _costs(
    experiment: Experiment, machine: Machine, sizes: Mapping[str, Dimensions | None], beside: Sequence[Path]
) -> Iterator[RunCost]:
    for run in experiment.run_names:
        subject, size = experiment.subject(run), sizes[experiment.base_of(run)]
        training = subject.pretraining if isinstance(subject, Model) else getattr(subject, "training", None)
        if training is not None:
            one = _sequence(experiment, subject, training, size is not None and size.encoder_layers > 0)
            yield _cost(run, subject, training, size, one, machine, zero_stage(training, beside))


def _cost(
    run: str,
    subject: Model | Compressor,
    training: Optimisation,
    size: Dimensions | None,
    one: _Sequence,
    machine: Machine,
    sharding: tuple[int, frozenset[str]],
) -> RunCost:
    training.accumulation(machine.processes)  # refuses a number of processes that does not come out even
    sequences = training.sequences(machine.processes)
    many = training.steps * sequences
    cost = RunCost(
        run, run if isinstance(subject, Model) else subject.base, training.steps, sequences, many * one.tokens
    )
    if size is None:
        return cost
    size, (stage, moved) = _extended(size, subject), sharding
    flops = training_flops(size, training, one.typical)
    trained = trained_parameters(size, training, _new_embeddings(subject))
    held = _held(size, subject, training, trained)
    whole = training_memory(size, training, one.longest, held, machine.processes, stage)
    kept = replace(whole, **{part: 0 for part in moved})
    peak = peak_flops(machine.device, training.dtype)
    return replace(
        cost,
        parameters=size.parameters,
        trained=trained,
        flops=TrainingFlops(flops.forward * many, flops.backward * many, flops.recomputed * many),
        memory=kept,
        host_bytes=whole.total - kept.total,
        gpu_hours=None if peak is None else flops.total * many / (peak * machine.mfu) / 3600,
    )


@dataclass(frozen=True)
class _Sequence:
    """A training sequence: its tokens and passes, of instruction rows in the mean, and the passes of the longest."""

    tokens: int
    typical: Substeps
    longest: Substeps


def _sequence(experiment: Experiment, subject: Model | Compressor, training: Optimisation, encoder: bool) -> _Sequence:
    summary, accumulate = _summary(subject)
    longest = training_passes(training, summary, accumulate, encoder=encoder)
    if isinstance(training, LanguageModelTraining | SegmentTraining):
        return _Sequence(training.sequence_length, longest, longest)
    assert isinstance(training, InstructionTraining)
    prompt, output = ROW_TOKENS[_kind(experiment.instructions[training.instructions])]
    prompt = min(prompt + (subject.gist_tokens if isinstance(subject, GistCompressor) else 0), training.max_length)
    output = min(output, training.max_target_length if encoder else training.max_length - prompt)
    if encoder:
        typical = training_passes(training, tokens=prompt, target_tokens=output, encoder=True)
    else:
        typical = training_passes(training, tokens=prompt + output)
    return _Sequence(prompt + output, typical, longest)


def _kind(instructions: Instructions) -> str:
    return "alpaca_plus" if isinstance(instructions, AlpacaPlus) else "world"


def _summary(subject: Model | Compressor) -> tuple[int, bool]:
    """Summary tokens of a segment, and whether they accumulate."""
    if isinstance(subject, SummaryCompressor):
        return subject.summary_length, subject.method == "autocompressor"
    return 0, True


def _new_embeddings(subject: Model | Compressor) -> int:
    return _summary(subject)[0] or int(isinstance(subject, GistCompressor))


def _held(size: Dimensions, subject: Model | Compressor, training: Optimisation, trained: int) -> int:
    """Weights that have a gradient: where a gist token's row alone learns, its whole matrix has one."""
    frozen = training.lora is not None or training.train_only == "new_embeddings"
    return trained + (size.vocabulary * size.hidden if frozen and isinstance(subject, GistCompressor) else 0)


def _extended(size: Dimensions, subject: Model | Compressor) -> Dimensions:
    """With the rows that a longer table of learned positions has."""
    longer = subject.own_positions()
    if size.model_type != "opt" or longer is None or longer <= size.positions:
        return size
    return replace(size, extra=size.extra + (longer - size.positions) * size.hidden, positions=longer)


# ----------------------------------------------------------------------------------------------------------- DeepSpeed


def zero_stage(training: Optimisation, beside: Sequence[Path] = ()) -> tuple[int, frozenset[str]]:
    """What processes share out (0 to 3), and what lies in the machine's own memory (`optimizer`, `weights`).

    InputError when the DeepSpeed file is missing or is no JSON object.
    """
    if training.deepspeed is None:
        return (3 if training.fsdp else 0), frozenset()
    path, settings = read_deepspeed(training.deepspeed, beside)
    zero = settings.get("zero_optimization", {})
    try:
        stage = int(zero.get("stage", 0))
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: cannot be read as DeepSpeed's settings: {error}") from None
    offloaded = {key for key in ("optimizer", "param") if _to_host(zero.get(f"offload_{key}"))}
    return stage, frozenset("weights" if key == "param" else key for key in offloaded)


def _to_host(section: Any) -> bool:
    return isinstance(section, dict) and section.get("device") in {"cpu", "nvme"}
