"""What the training runs of an experiment cost, before anyone starts them: `synopsis plan`.

costs = training_costs(experiment, Machine("H100", processes=8, mfu=0.35))
print(as_text(experiment, costs, machine))
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from synopsis.artifacts import Layout
from synopsis.config.experiment import Experiment, Model
from synopsis.config.training import InstructionTraining, Optimisation
from synopsis.costs.devices import DEVICES, find_device
from synopsis.costs.flops import TrainingFlops, adapter_parameters, training_flops, training_passes
from synopsis.costs.memory import training_memory, zero_stage
from synopsis.costs.model_size import ModelSize, known, model_size
from synopsis.errors import InputError

SPECIAL_WORDS = 3
"""Padding, unknown word and end of text, beside the words of the generated language."""
ROW_TOKENS = {"alpaca_plus": (40, 40), "world": (14, 4)}
"""Tokens of the prompt and of the output of a row, in the mean, without gist tokens. Alpaca+: 150 characters each,
template included, of which 3.7 make a token."""
UNKNOWN = "?"
PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"), (1, ""))
PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "total")


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
    memory_bytes: dict[str, int] | None = None
    """On each device, by what they hold, and the total."""
    host_bytes: int = 0
    """In the machine's own memory, for each process: what DeepSpeed moves there."""
    gpu_hours: float | None = None


# ------------------------------------------------------------------------------------------------------ size of models


def named_files(options: Sequence[str]) -> dict[str, Path]:
    """Model -> file, of options MODEL=FILE; InputError for another form."""
    for option in options:
        if not all(option.partition("=")):
            raise InputError(f"--size {option}: expected MODEL=FILE, a model of the experiment and its config.json")
    return {name: Path(file) for name, _, file in (option.partition("=") for option in options)}


def size_values(experiment: Experiment, name: str, file: Path | None = None) -> dict[str, Any] | None:
    """The values of the config.json of a model of the experiment; None where nothing here has them.

    In this order: the file named for it, the architecture of a model from scratch, what `prepare` has fetched, the
    folder of the model, and the table of known models.
    """
    model = experiment.models[name]
    if file is not None:
        return _read(file / "config.json" if file.is_dir() else file)
    if model.architecture is not None:
        from synopsis.data.world import World

        values = model.architecture.model_dump(exclude_none=True)
        words = len(World().vocabulary) + SPECIAL_WORDS
        return {"model_type": values.pop("type"), "vocab_size": words, "tie_word_embeddings": True, **values}
    for folder in [Layout(experiment).model(name), *([Path(model.path).expanduser()] if model.path else [])]:
        if (folder / "config.json").is_file():
            return _read(folder / "config.json")
    return known(model.hub or model.path or (model.gguf.file if model.gguf else ""))


def _read(path: Path) -> dict[str, Any]:
    """InputError where the size of a model does not follow from the file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        size = model_size(values)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: not valid JSON ({error})") from None
    except Exception as error:  # whatever transformers makes of a wrong value
        raise InputError(f"{path}: {str(error).splitlines()[0]}; expected the config.json of a model") from None
    if size is None:
        raise InputError(f"{path}: model_type is {values.get('model_type')!r}, whose size cannot be estimated")
    return dict(values)


# --------------------------------------------------------------------------------------------------------------- costs


def training_costs(
    experiment: Experiment, machine: Machine, files: Mapping[str, Path] | None = None, beside: Sequence[Path] = ()
) -> list[RunCost]:
    """The cost of every run that is trained, in the order of the experiment.

    files: model -> its config.json. beside: the experiment's files, where DeepSpeed files are looked for too.
    InputError for a name, a config.json or a DeepSpeed file that is wrong.
    """
    files, costs = files or {}, []
    for name in files:
        if name not in experiment.models:
            raise InputError(f"--size {name}: the experiment has the models {', '.join(experiment.models)}")
    values = {name: size_values(experiment, name, files.get(name)) for name in experiment.models}

    @cache
    def size_of(model: str, positions: int | None) -> ModelSize | None:
        found = values[model]
        return None if found is None else model_size(found, positions)

    for run in experiment.run_names:
        subject = experiment.subject(run)
        training = subject.pretraining if isinstance(subject, Model) else getattr(subject, "training", None)
        if training is not None:
            size = size_of(experiment.base_of(run), subject.own_positions())
            costs.append(_cost(experiment, run, training, size, machine, zero_stage(training, beside)))
    return costs


def _cost(
    experiment: Experiment,
    run: str,
    training: Optimisation,
    size: ModelSize | None,
    machine: Machine,
    sharding: tuple[int, frozenset[str]],
) -> RunCost:
    subject, encoder = experiment.subject(run), size is not None and size.encoder_layers > 0
    longest = typical = training_passes(training, subject.vectors, encoder=encoder)
    if isinstance(training, InstructionTraining):
        prompt, output = ROW_TOKENS[experiment.instructions[training.instructions].source]
        prompt = min(prompt + subject.vectors(1), training.max_length)
        output = min(output, training.max_target_length if encoder else training.max_length - prompt)
        tokens = prompt + output
        typical = training_passes(training, subject.vectors, prompt if encoder else tokens, output, encoder)
    else:
        tokens = training.sequence_length  # type: ignore[attr-defined]
    training.accumulation(machine.processes)  # refuses a number of processes that does not come out even
    sequences = training.sequences(machine.processes)
    many = training.steps * sequences
    cost = RunCost(run, experiment.base_of(run), training.steps, sequences, many * tokens)
    if size is None:
        return cost
    flops = training_flops(size, training, typical)
    trained = adapter_parameters(size, training) + subject.new_embeddings() * size.embedding
    if training.lora is None and training.train_only == "everything":
        trained += size.parameters
    whole = training_memory(size, training, longest, trained, machine.processes, sharding[0])
    kept = {part: 0 if part in sharding[1] else count for part, count in whole.items()}
    device = find_device(machine.device)
    peak = None if device is None else device.peak(training.dtype)
    return replace(
        cost,
        parameters=size.parameters,
        trained=trained,
        flops=TrainingFlops(flops.model * many, flops.recomputed * many),
        memory_bytes={**kept, "total": sum(kept.values())},
        host_bytes=sum(whole.values()) - sum(kept.values()),
        gpu_hours=None if peak is None else flops.total * many / (peak * machine.mfu) / 3600,
    )


def totals(costs: Sequence[RunCost]) -> dict[str, Any]:
    """Sums over the runs whose costs are known, and how many are not."""
    return {
        "runs": len(costs),
        "unknown": sum(cost.gpu_hours is None for cost in costs),
        "tokens": sum(cost.tokens for cost in costs),
        "flops": sum(cost.flops.total for cost in costs if cost.flops is not None),
        "gpu_hours": sum(cost.gpu_hours for cost in costs if cost.gpu_hours is not None),
    }


def as_json(
    experiment: Experiment, costs: Sequence[RunCost], machine: Machine, jobs: Mapping[str, int]
) -> dict[str, Any]:
    """What `synopsis plan --json` prints; jobs: of each stage after training."""
    head = {"experiment": experiment.name, **asdict(machine)}
    return {**head, "runs": [asdict(cost) for cost in costs], "totals": totals(costs), "jobs": jobs}


# --------------------------------------------------------------------------------------------------------------- tables


def short(number: float | None) -> str:
    """Three digits and a letter.

    >>> short(2_651_596_800), short(512), short(None)
    ('2.65B', '512', '?')
    """
    if number is None:
        return UNKNOWN
    size, letter = next((prefix for prefix in PREFIXES if number >= 0.9995 * prefix[0]), PREFIXES[-1])
    return f"{number / size:.3g}{letter}"


def hours(value: float | None) -> str:
    """Hours of a device; below ten with a digit after the point."""
    if value is None:
        return UNKNOWN
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}" if value >= 0.1 else "under 0.1"


def gigabytes(count: float | None) -> str:
    """10^9 bytes; below one with two digits."""
    if count is None:
        return UNKNOWN
    return f"{count / 1e9:.1f}" if count >= 1e9 or not count else f"{count / 1e9:.2g}"


def as_text(experiment: Experiment, costs: Sequence[RunCost], machine: Machine, jobs: Mapping[str, int]) -> str:
    """What `synopsis plan` prints: two tables, and what a reader must know about them."""
    parts = [f"{experiment.name}: {experiment.title}".removesuffix(": ")]
    if costs:
        parts += [_work(costs, machine), _memory(costs, machine), "\n".join(_notes(costs, machine))]
    else:
        parts += ["Nothing is trained."]
    counted = ", ".join(f"{count} {stage}" for stage, count in jobs.items() if count)
    return "\n\n".join([*parts, f"Jobs after training: {counted or 'none'}."])


def _work(costs: Sequence[RunCost], machine: Machine) -> str:
    rows, sums = [], totals(costs)
    for cost in costs:
        numbers = [short(cost.parameters), short(cost.trained), str(cost.steps), str(cost.sequences)]
        flops = UNKNOWN if cost.flops is None else f"{cost.flops.total:.2e}".replace("e+", "e")
        rows.append([cost.run, *numbers, short(cost.tokens), flops, hours(cost.gpu_hours)])
    more = " and more" if sums["unknown"] else ""
    spent = [f"{sums['flops']:.2e}".replace("e+", "e") + more, hours(sums["gpu_hours"]) + more]
    rows.append(["all", "", "", "", "", short(sums["tokens"]), *spent])
    heads = ["run", "parameters", "trained", "steps", "sequences/step", "tokens", "FLOPs", f"{machine.device} hours"]
    return _table(heads, rows)


def _memory(costs: Sequence[RunCost], machine: Machine) -> str:
    rows = []
    for cost in costs:
        *parts, whole = (gigabytes((cost.memory_bytes or {}).get(part)) for part in PARTS)
        rows.append([cost.run, *parts, whole + (" (too much)" if _too_much(cost, machine) else "")])
    return _table(["GB on each device", *PARTS[:-1], "all"], rows)


def _too_much(cost: RunCost, machine: Machine) -> bool:
    device = find_device(machine.device)
    return device is not None and (cost.memory_bytes or {"total": 0})["total"] > device.memory


def _notes(costs: Sequence[RunCost], machine: Machine) -> list[str]:
    devices = f"{machine.processes} x {machine.device}" if machine.processes > 1 else f"one {machine.device}"
    notes = [f"On {devices} at {100 * machine.mfu:.3g} % of the peak in each run's dtype."]
    spent, moved = totals(costs)["gpu_hours"], max(cost.host_bytes for cost in costs)
    if machine.processes > 1 and spent:
        notes.append(f"All runs, one after the other: {hours(spent / machine.processes)} hours.")
    if any(cost.flops is not None and cost.flops.recomputed for cost in costs):
        notes.append("FLOPs with what gradient checkpointing computes again.")
    if moved:
        notes.append(f"Of the largest run {gigabytes(moved)} GB for each process lie in the machine's own memory.")
    if any(_too_much(cost, machine) for cost in costs):
        more = "more --processes with deepspeed or fsdp, gradient_checkpointing, or lora"
        notes.append(f"Too much for the device: {more}.")
    notes += [
        f"The size of '{name}' is not known: name its config.json with --size {name}=FILE, or run "
        f"`synopsis prepare --config ... model {name}` first."
        for name in dict.fromkeys(cost.model for cost in costs if cost.flops is None)
    ]
    if any(cost.flops is not None and cost.gpu_hours is None for cost in costs):
        notes.append(f"The peak of {machine.device} in float32 is not known; so hours are not either.")
    return notes


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned, the first to the left."""
    import tabulate

    tabulate.MIN_PADDING = 0  # headers of its own width
    sides = ["left", *["right"] * (len(heads) - 1)]
    return tabulate.tabulate(rows, heads, tablefmt="plain", disable_numparse=True, colalign=sides)
