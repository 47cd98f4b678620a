"""The icl stage: in-context learning of one run on one data set with one seed, in all its settings.

synopsis icl --config config/demo.yaml autocompressor-s0 world_eats --seed 1
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from synopsis.artifacts import Layout, Provenance, write_json, write_json_lines
from synopsis.compressors.context import CompressedContext
from synopsis.compressors.loading import load, load_tokenizer
from synopsis.config import Experiment, Setting, Task
from synopsis.data.tasks import calibration_row, load_task, options_of, render
from synopsis.errors import DataError
from synopsis.evaluation.demonstrations import Prompt, demonstrations
from synopsis.evaluation.likelihood import Prefix, option_losses, read_prefix
from synopsis.plan import icl_facts
from synopsis.progress import say

EXAMPLE_SEED = 20230524


def icl(experiment: Experiment, run: str, dataset: str, seed: int) -> dict[str, Any]:
    """Accuracy of every setting that the run can do; writes the result and a record for each example."""
    assert experiment.icl is not None
    layout, task = Layout(experiment), experiment.tasks[dataset]
    provenance = Provenance(
        icl_facts(experiment, run, dataset, seed), inputs=[layout.model(run), layout.task(dataset)], seed=seed
    )
    model, tokenizer = load(layout.model(run)), load_tokenizer(layout.tokenizer(experiment.base_of(run)))
    provenance.device, provenance.dtype = str(model.device), str(model.dtype).removeprefix("torch.")
    rows = load_task(layout.task(dataset))
    examples = subsample(rows["test"], experiment.icl.max_examples)
    scorer = Scorer(model, tokenizer, task, experiment.icl.batch_size)
    settings, records = {}, []
    for name, setting in experiment.settings_of(run).items():
        result, of_examples = scorer.setting(
            f"{run} {dataset} seed {seed} {name}", setting, rows["train"], examples, seed
        )
        settings[name] = result
        records += [{"setting": name, **record} for record in of_examples]
        say(f"{run} {dataset} seed {seed} {name}: accuracy {result['accuracy']:.3f} of {result['n']}")
    path = layout.icl(run, dataset, seed)
    write_json_lines(path.with_suffix(".examples.jsonl.gz"), records)
    payload = {"run": run, "dataset": dataset, "seed": seed, "settings": settings}
    write_json(path, "icl", payload, provenance.record())
    return payload


def subsample(rows: Sequence[dict[str, Any]], count: int | None) -> list[dict[str, Any]]:
    """At most `count` rows, the same ones for every run, setting and seed, in their order."""
    if count is None or count >= len(rows):
        return list(rows)
    generator = torch.Generator().manual_seed(EXAMPLE_SEED)
    chosen = torch.randperm(len(rows), generator=generator)[:count].sort().values.tolist()
    return [rows[index] for index in chosen]


class Scorer:
    """Scores the options of a task's examples with one model."""

    def __init__(self, model: Any, tokenizer: Any, task: Task, batch_size: int):
        self.model, self.tokenizer, self.task, self.batch_size = model, tokenizer, task, batch_size
        self.positions = getattr(model.config, "max_position_embeddings", None)

    def setting(
        self,
        label: str,
        setting: Setting,
        pool: Sequence[dict[str, Any]],
        examples: Sequence[dict[str, Any]],
        seed: int,
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Result of one setting, and a record of each example that was scored."""
        prompt = demonstrations(self.task, pool, setting, seed, self.encode)
        start = self.beginning
        context = self.compressed(prompt, start)
        plain = prompt.plain if context is not None else [*start, *prompt.plain]
        prefix = read_prefix(self.model, context, plain)
        rendered = [self.rendered(example) for example in examples]
        longest = [max(len(query) + len(option) for query, option in rows) for rows in rendered]
        fits = [self.positions is None or prefix.next_position + length <= self.positions for length in longest]
        kept = [index for index, fit in enumerate(fits) if fit]
        if not kept:
            raise DataError(f"{label}: no test example fits the model's {self.positions} positions after its prompt")
        offsets = self.calibration(prefix, examples[kept[0]])
        losses = iter(self.losses(prefix, [pair for index in kept for pair in rendered[index]], label))
        records = []
        for index in kept:
            scores = [next(losses) - offset for offset in offsets]
            best = min(range(len(scores)), key=scores.__getitem__)
            truth = examples[index][self.task.label_field]
            record = {"id": examples[index]["id"], "label": truth, "prediction": best, "scores": scores}
            records.append({**record, "demonstrations": list(prompt.rows)})
        result = {
            "accuracy": sum(r["prediction"] == r["label"] for r in records) / len(records),
            "n": len(records),
            "dropped": len(examples) - len(kept),
            "truncated": prompt.unfilled,
            "demonstrations": len(prompt.rows),
            "summary_vectors": 0 if context is None else context.length,
            "plain_tokens": len(plain),
            "compressed_tokens": sum(map(len, prompt.chunks)),
        }
        return result, records

    @property
    def beginning(self) -> list[int]:
        """The beginning-of-text token where the tokenizer puts one, once before everything."""
        ids = self.tokenizer("a")["input_ids"]
        bos = self.tokenizer.bos_token_id
        return [bos] if bos is not None and len(ids) > 1 and ids[0] == bos else []

    def encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def compressed(self, prompt: Prompt, start: list[int]) -> CompressedContext | None:
        context = None
        for index, chunk in enumerate(prompt.chunks):
            ids = torch.tensor([[*(start if index == 0 else []), *chunk]], device=self.model.device)
            context = self.model.compress(ids, context=context)
        return context

    def rendered(self, row: dict[str, Any]) -> list[tuple[list[int], list[int]]]:
        """For each option the query's tokens and the option's: those after the query in the text with both."""
        query = self.encode(render(self.task, row))
        pairs = []
        for option in options_of(self.task, row):
            whole = self.encode(render(self.task, row, option))
            if len(whole) <= len(query):
                raise DataError(f"row {row.get('id')}: the option {option!r} adds no token to its example")
            pairs.append((whole[: len(query)], whole[len(query) :]))
        return pairs

    def calibration(self, prefix: Prefix, example: dict[str, Any]) -> list[float]:
        """Loss of each option after a content-free input, zeros where the task does not calibrate."""
        pairs = self.rendered(calibration_row(self.task, example))
        return self.losses(prefix, pairs, "calibration") if self.task.calibrate else [0.0] * len(pairs)

    def losses(self, prefix: Prefix, pairs: list[tuple[list[int], list[int]]], label: str) -> list[float]:
        return option_losses(self.model, prefix, pairs, self.batch_size, label)
