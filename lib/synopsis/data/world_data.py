"""Artifacts of the generated language: its tokenizer, corpora, instruction rows and classification tasks."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from synopsis.artifacts import PROVENANCE, Layout, Provenance, atomic_directory, write_json
from synopsis.config.data import SPLITS, WorldCorpus, WorldInstructions
from synopsis.config.experiment import Experiment
from synopsis.data.prepare import prepare_fingerprint
from synopsis.data.prompts import input_part, instruction_part
from synopsis.data.world import ATTRIBUTES, World
from synopsis.errors import DataError

TRIPLES_PER_DOCUMENT = 12


def prepare_world_tokenizer(experiment: Experiment, model: str) -> Path:
    """A word-level tokenizer of the language: words, line breaks, and the usual special tokens."""
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Sequence, Split
    from transformers import PreTrainedTokenizerFast

    provenance = Provenance(prepare_fingerprint(experiment, "tokenizer", model))
    words = ["<pad>", "<unk>", "</s>", *World().vocabulary]
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Sequence([Split(Regex(" +"), "removed"), Split(Regex(r"\n\n|\n"), "isolated")])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>", pad_token="<pad>", padding_side="left"
    )
    path = Layout(experiment).tokenizer(model)
    with atomic_directory(path) as temporary:
        fast.save_pretrained(temporary)
        write_json(temporary / PROVENANCE, "tokenizer", {"vocabulary": len(words)}, provenance.record(), [temporary])
    return path


def prepare_world_corpus(experiment: Experiment, corpus: str, model: str) -> Path:
    """Tokenised documents of every split, with the kind of each token (see `synopsis.data.world.KINDS`)."""
    from datasets import Dataset, DatasetDict, Features, List, Value

    from synopsis.compressors.loading import load_tokenizer

    settings = experiment.corpora[corpus]
    assert isinstance(settings, WorldCorpus)
    layout = Layout(experiment)
    fingerprint = prepare_fingerprint(experiment, "corpus", corpus)
    provenance = Provenance(fingerprint, inputs=[layout.tokenizer(model)], seed=settings.seed)
    vocabulary = load_tokenizer(layout.tokenizer(model)).get_vocab()
    columns = {"input_ids": List(Value("int32")), "kind": List(Value("int8"))}
    columns |= {"domain": Value("string"), "bytes": Value("int64"), "id": Value("string")}
    digest, counts, tokens, splits = hashlib.sha256(), {}, {}, {}
    for number, split in enumerate(SPLITS):
        rows = [
            {"input_ids": [vocabulary[word] for word in row.pop("words")], **row}
            for row in _documents(settings, split, number)
        ]
        for row in rows:
            digest.update(np.asarray(row["input_ids"], dtype="<i4").tobytes())
        splits[split] = Dataset.from_list(rows, features=Features(columns))
        counts[split] = dict(Counter(row["domain"] for row in rows))
        tokens[split] = sum(len(row["input_ids"]) for row in rows)
    path = layout.corpus(corpus, model)
    with atomic_directory(path) as temporary:
        DatasetDict(splits).save_to_disk(temporary)
        report = {"corpus": corpus, "documents": counts, "tokens": tokens, "token_sha256": digest.hexdigest()}
        write_json(temporary / PROVENANCE, "corpus", report, provenance.record(), [temporary])
    return path


def _documents(settings: WorldCorpus, split: str, number: int) -> Iterator[dict[str, Any]]:
    world = World()
    rng = np.random.default_rng([settings.seed, 11, number])
    for index in range(settings.documents if split == "train" else settings.held_out):
        if rng.random() < settings.instruction_share:
            words = [word for _ in range(TRIPLES_PER_DOCUMENT) for word in _triple(world.instruction(rng))]
            kinds, domain = [0] * len(words), "instructions"
        else:
            (words, kinds), domain = world.story(rng, settings.facts), "stories"
        size = len(" ".join(words).encode())
        yield {"words": words, "kind": kinds, "domain": domain, "bytes": size, "id": f"{split}-{index}"}


def _triple(row: dict[str, str]) -> list[str]:
    parts = [instruction_part(row["instruction"]), input_part(row["input"]), row["output"]]
    return [*(word for part in parts for word in re.findall(r"\n|[^ \n]+", part)), "</s>"]


def prepare_world_instructions(experiment: Experiment, name: str) -> Path:
    """Rows of the splits train, seen (instructions that occur in training) and unseen (held-out instructions)."""
    settings = experiment.instructions[name]
    assert isinstance(settings, WorldInstructions)
    world = World()
    splits: dict[str, list[dict[str, Any]]] = {}
    sizes = {"train": settings.train, "seen": settings.held_out, "unseen": settings.held_out}
    for number, (split, rows) in enumerate(sizes.items()):
        rng = np.random.default_rng([0, 13, number])
        splits[split] = [{"id": index, **world.instruction(rng, held_out=split == "unseen")} for index in range(rows)]
    path = Layout(experiment).instructions(name)
    provenance = Provenance(prepare_fingerprint(experiment, "instructions", name), seed=0)
    write_json(path, "instructions", {"splits": splits}, provenance.record())
    return path


def prepare_world_task(experiment: Experiment, dataset: str) -> Path:
    """Training and test rows of a task of the language; its labels are places among the words of the verb."""
    task = experiment.tasks[dataset]
    verb = task.source.world
    if verb not in ATTRIBUTES:
        raise DataError(f"task '{dataset}': source.world is {verb!r}; expected one of {', '.join(ATTRIBUTES)}")
    if task.options != list(ATTRIBUTES[verb]):
        found, words = ", ".join(task.options or []), ", ".join(ATTRIBUTES[verb])
        raise DataError(f"task '{dataset}': options: found {found}; expected the words of '{verb}' in order: {words}")
    rows = World().task(verb, seed=0)
    provenance = Provenance(prepare_fingerprint(experiment, "task", dataset), seed=0)
    write_json(Layout(experiment).task(dataset), "task", {"dataset": dataset, **rows}, provenance.record())
    return Layout(experiment).task(dataset)
