"""The icl stage: in-context learning of one run on one data set with one seed, in all its settings.

    synopsis icl --config config/demo.yaml autocompressor-s0 world_eats --seed 1

Settings without demonstrations follow from no seed: the first evaluation seed's job computes them. All settings of a
job score the same examples; those that are too long for one of them are left out of all, and the score stage leaves
them out for every run. What is wrong with one setting fails that cell, which then says why, and not the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch

from synopsis.artifacts import Layout, Provenance, write_json, write_json_lines
from synopsis.compressors.context import CompressedContext
from synopsis.config.experiment import Experiment
from synopsis.config.files import Task
from synopsis.data.tasks import load_task
from synopsis.engine.likelihood import Cost, read_prefix
from synopsis.engine.memory import out_of_memory
from synopsis.engine.runs import open_run
from synopsis.errors import DataError
from synopsis.progress import say
from synopsis.stages.icl.classification import Example, Texts, classify
from synopsis.stages.icl.demonstrations import Prompt, demonstrations
from synopsis.stages.icl.section import STAGE, InContextLearning, Setting, settings_of

EXAMPLE_SEED = 20230524

Result = dict[str, Any]
Records = list[dict[str, Any]]


def icl(experiment: Experiment, run: str, dataset: str, seed: int) -> dict[str, Any]:
    """Accuracy of every setting that the run can do; writes the result and a record for each example."""
    assert experiment.icl is not None
    layout, task, section = Layout(experiment), experiment.tasks[dataset], experiment.icl
    fingerprint = STAGE.fingerprint(experiment, run=run, dataset=dataset, seed=seed)
    provenance = Provenance(fingerprint, inputs=[layout.weights(run), layout.task(dataset)], seed=seed)
    rows = load_task(layout.task(dataset), task)
    opened = open_run(experiment, run, section.dtype)
    model = opened.model
    provenance.device, provenance.dtype = str(model.device), str(model.dtype).removeprefix("torch.")
    examples = subsample(rows["test"], section.max_examples)
    job = Job(
        model, Texts(task, opened.tokenizer), section, rows["train"], rows["test"][0], f"{run} {dataset} seed {seed}"
    )
    settings, records, dropped = job.results(settings_of(experiment, run, dataset, seed), examples, seed)
    path = layout.icl(run, dataset, seed)
    records_path = path.with_suffix(".examples.jsonl.gz")
    write_json_lines(records_path, records)
    payload = {
        "run": run,
        "dataset": dataset,
        "seed": seed,
        "examples": len(examples),
        "dropped": dropped,
        "settings": settings,
    }
    write_json(path, "icl", payload, provenance.record(), [records_path])
    return payload


def subsample(rows: Sequence[dict[str, Any]], count: int | None) -> list[dict[str, Any]]:
    """At most `count` rows, the same ones for every run, setting and seed, in their order."""
    if count is None or count >= len(rows):
        return list(rows)
    generator = torch.Generator().manual_seed(EXAMPLE_SEED)
    chosen = torch.randperm(len(rows), generator=generator)[:count].sort().values.tolist()
    return [rows[index] for index in chosen]


@dataclass(frozen=True)
class Start:
    """What stands before the examples of a setting: its prompt, of which the chunks are compressed already."""

    prompt: Prompt
    context: CompressedContext | None
    plain: list[int]

    @property
    def position(self) -> int:
        """Of an example's first token."""
        return (0 if self.context is None else int(self.context.next_position[0])) + len(self.plain)


class Job:
    """The settings of one run, data set and seed. `pool`: rows for demonstrations; `content_free`: see `classify`."""

    def __init__(
        self,
        model: Any,
        texts: Texts,
        section: InContextLearning,
        pool: Sequence[dict[str, Any]],
        content_free: dict[str, Any],
        label: str,
    ):
        self.model, self.texts, self.section = model, texts, section
        self.pool, self.content_free, self.label = pool, content_free, label
        self.task: Task = texts.task
        self.positions: int | None = getattr(model.config, "max_position_embeddings", None)

    def results(
        self, settings: dict[str, Setting], rows: Sequence[dict[str, Any]], seed: int
    ) -> tuple[dict[str, Result], Records, list[Any]]:
        """Results by setting, records of the examples, and the ids of those that were left out."""
        results: dict[str, Result] = {}
        try:
            examples = [self.texts.example(row) for row in rows]
        except DataError as error:
            return {name: self._failed(name, error) for name in settings}, [], []
        starts: dict[str, Start] = {}
        for name, setting in settings.items():
            with self._cell(name, results):
                starts[name] = self.start(setting, seed, examples)
        furthest = max((start.position for start in starts.values()), default=0)
        kept = [example for example in examples if self._fits(furthest, example)]
        dropped = [example.row["id"] for example in examples if not self._fits(furthest, example)]
        records: Records = []
        known: dict[tuple[Any, ...], tuple[Result, Records]] = {}
        for name, start in starts.items():
            # Where no demonstration fits, several settings are the same.
            shown = (tuple(map(tuple, start.prompt.chunks)), tuple(start.plain))
            with self._cell(name, results):
                if shown not in known:
                    known[shown] = self.scored(name, start, kept)
                result, of_examples = known[shown]
                results[name] = {**result, **self.about(start), "dropped": len(dropped)}
                records += [{"setting": name, **record} for record in of_examples]
                say(self._told(name, results[name]))
        return {name: results[name] for name in settings}, records, dropped

    @contextmanager
    def _cell(self, name: str, results: dict[str, Result]) -> Iterator[None]:
        """What goes wrong inside fails one setting, and not the others."""
        try:
            yield
        except (DataError, MemoryError, RuntimeError) as error:
            if not isinstance(error, DataError) and not out_of_memory(error):
                raise
            results[name] = self._failed(name, error)

    def start(self, setting: Setting, seed: int, examples: Sequence[Example]) -> Start:
        """Draw the demonstrations and compress those that are to be; DataError when no example fits after them."""
        prompt = demonstrations(
            self.task,
            self.pool,
            setting,
            seed,
            self.texts.encode,
            fitting=self.section.demonstrations == "fitting",
            repeat=self.section.repeat_demonstrations,
        )
        context, beginning = None, self.texts.beginning
        for index, chunk in enumerate(prompt.chunks):
            ids = [*(beginning if index == 0 else []), *chunk]
            self._check_step(ids, context)
            context = self.model.compress(torch.tensor([ids], device=self.model.device), context=context)
        start = Start(prompt, context, prompt.plain if prompt.chunks else [*beginning, *prompt.plain])
        if not any(self._fits(start.position, example) for example in examples):
            raise DataError(
                f"no test example fits the model's {self.positions} positions after a prompt of {start.position}"
            )
        return start

    def _check_step(self, ids: list[int], context: CompressedContext | None) -> None:
        """DataError when a chunk is too long to be compressed; the published counts do not look at lengths."""
        needed = self.model.demand([len(ids)], context).positions
        if self.positions is not None and needed > self.positions:
            raise DataError(
                f"a chunk of {len(ids)} tokens of demonstrations needs {needed} positions to be compressed, and the "
                f"model has {self.positions}; demonstrations: fitting takes as many as fit the budgets"
            )

    def scored(self, name: str, start: Start, examples: Sequence[Example]) -> tuple[Result, Records]:
        """Accuracy and cost of one setting, and a record of each example."""
        prefix = read_prefix(self.model, start.context, start.plain)
        label = f"{self.label} {name}"
        preferences, cost = classify(
            self.model, prefix, self.texts, examples, self.content_free, self.section.batch_tokens, label
        )
        shown = list(start.prompt.rows)
        records = [
            {
                "id": example.row["id"],
                "label": example.row[self.task.label_field],
                "prediction": preference.prediction,
                "scores": preference.scores,
                "options": example.options,
                "tokens": example.lengths,
                "demonstrations": shown,
            }
            for example, preference in zip(examples, preferences, strict=True)
        ]
        right = sum(record["prediction"] == record["label"] for record in records)
        cost_of_all = self._cost(cost, start, len(records))
        return {"accuracy": right / len(records), "n": len(records), "cost": cost_of_all}, records

    def _cost(self, cost: Cost, start: Start, examples: int) -> dict[str, Any]:
        """The cost with the prompt, which is read once here, and by a loop without sharing for each option."""
        once = sum(map(len, start.prompt.chunks)) + len(start.plain)
        rate = examples / cost.seconds if cost.seconds else 0.0
        return {**asdict(cost), "tokens": cost.tokens + once, "examples_per_second": rate}

    def about(self, start: Start) -> dict[str, Any]:
        """What a setting shows before its examples."""
        prompt = start.prompt
        return {
            "asked": prompt.asked,
            "demonstrations": len(prompt.rows),
            "unfilled": prompt.unfilled,
            "over_budget": prompt.over_budget,
            "summary_vectors": 0 if start.context is None else start.context.length,
            "plain_tokens": len(start.plain),
            "compressed_tokens": sum(map(len, prompt.chunks)),
        }

    def _fits(self, position: int, example: Example) -> bool:
        # An option's last token is predicted and never read.
        return self.positions is None or position + max(example.lengths) - 1 <= self.positions

    def _failed(self, name: str, error: Exception) -> Result:
        say(f"{self.label} {name}: FAILED, the other settings go on: {error}")
        return {"error": str(error)}

    def _told(self, name: str, result: Result) -> str:
        count = result["demonstrations"]
        shown = f"{count} demonstration{'s' if count > 1 else ''}" if count else "no demonstration"
        left_out = f", {result['dropped']} too long" if result["dropped"] else ""
        found = f"accuracy {result['accuracy']:.3f} of {result['n']}{left_out}"
        return f"{self.label} {name}: {found}, {shown}, {result['cost']['examples_per_second']:.1f} examples/s"


def headline(result: dict[str, Any]) -> dict[str, float]:
    """The accuracies that the command line prints."""
    cells = result["settings"].items()
    return {f"accuracy/{name}": cell["accuracy"] for name, cell in cells if "error" not in cell}
