"""The generate stage: outputs for the validation splits of an instruction set, and their ROUGE.

    synopsis generate --config config/demo.yaml gist-1-s0 seen

Writes generations/<run>/<split>.csv (the published columns x, y_pred, y_true, plus id, lengths and finish reason) and
beside it <split>.json with the scores. ROUGE uses the stemmer, as the published numbers do, and has two forms: means of
F x 100 with 95 % bootstrap intervals over examples (`intervals`), and what the gist paper prints (`published`).

All models read the prompt of the gist paper. Runs that were trained on instructions read it as in training, gist
tokens, tokenisation and an encoder-decoder's longest source included; others without gist tokens. What is compressed is
the instruction; input and cue are read after its context.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from transformers import LogitsProcessorList

from synopsis.artifacts import Layout, Provenance, read_json, write_csv, write_json
from synopsis.compressors.loading import load_tokenizer
from synopsis.compressors.section import Subject
from synopsis.config.experiment import Experiment
from synopsis.data.instruction_examples import gist_collator
from synopsis.data.instructions import load_instructions
from synopsis.data.prompts import GIST_TOKEN, gist_prompt, input_part, instruction_part, source_prompt
from synopsis.data.sequences import encode, gist_prompt_ids, padded
from synopsis.engine.decoding import Draws, decode, ends_and_padding
from synopsis.engine.memory import Halving
from synopsis.engine.runs import open_run
from synopsis.errors import ArtifactError, DataError, SynopsisError
from synopsis.progress import say, track
from synopsis.reporting.tracking import publish
from synopsis.stages.generate.rouge import ROUGE_TYPES, exact_match, score_rouge
from synopsis.stages.generate.section import STAGE, Generate

Parts = Callable[[dict[str, Any]], tuple[list[int], list[int]]]
"""From a row to the ids of what can be compressed, and of what is read after it."""
COLUMNS = ("id", "x", "y_pred", "y_true", "prompt_tokens", "new_tokens", "finish_reason")


@dataclass(frozen=True)
class Prompt:
    """What a model reads: `ids`, after the context of `compressed` where that is not empty.

    start: position of the first new token; limit: new tokens at most, 0 where the prompt leaves none; seed: of draws.
    """

    compressed: list[int]
    ids: list[int]
    start: int
    limit: int
    seed: int


def generate(experiment: Experiment, run: str, split: str) -> dict[str, Any]:
    """Outputs of a run for one split; writes them and their scores, and returns the scores."""
    section, subject = experiment.generate, experiment.subject(run)
    assert section is not None
    layout = Layout(experiment)
    source = layout.instructions(section.instructions)
    provenance = Provenance(
        STAGE.fingerprint(experiment, run=run, split=split),
        inputs=[layout.weights(run), source],
        seed=section.sampling.seed if section.sampling else None,
    )
    rows = _rows(source, split)[: section.max_examples]
    opened = open_run(experiment, run, section.dtype)
    model, tokenizer = opened.model, load_tokenizer(opened.folder)
    provenance.device, provenance.dtype = str(model.device), str(model.dtype).removeprefix("torch.")
    where = f"{source}: split '{split}'"
    prompts = prompts_of(rows, model, tokenizer, subject, section, split, where)
    try:
        outputs = decoded(model, tokenizer, prompts, section, f"{run} {split}")
    except ValueError as error:
        raise DataError(f"{run}, {where}: {error}") from error
    written = source_prompt if model.config.is_encoder_decoder else gist_prompt
    table = [
        {
            "id": row["id"],
            "x": written(row["instruction"], row["input"], _gist_tokens(model)[1]),
            "y_pred": str(tokenizer.decode(ids, skip_special_tokens=True)).strip(),
            "y_true": row["output"],
            "prompt_tokens": len(prompt.compressed) + len(prompt.ids),
            "new_tokens": len(ids),
            "finish_reason": "stop" if stopped else "length",
        }
        for row, prompt, (ids, stopped) in zip(rows, prompts, outputs, strict=True)
    ]
    path = layout.generations(run, split)
    write_csv(path, table, COLUMNS)
    pairs = [(row["y_pred"], row["y_true"]) for row in table]
    # It compares line by line, which says nothing of outputs that were not split into sentences.
    types = ROUGE_TYPES if any("\n" in prediction for prediction, _ in pairs) else ROUGE_TYPES[:-1]
    rouge = score_rouge(pairs, types)
    published = rouge.published()
    finished = Counter(row["finish_reason"] for row in table)
    payload = {
        "run": run,
        "split": split,
        "n": len(table),
        **rouge.mean(),
        "intervals": {kind: [found.low, found.high] for kind, found in published.items()},
        "published": {kind: found.mid for kind, found in published.items()},
        "exact_match": exact_match(pairs),
        "finish_reasons": {reason: finished[reason] for reason in ("stop", "length")},
        "without_room": sum(prompt.limit == 0 for prompt in prompts),
    }
    write_json(path.with_suffix(".json"), STAGE.kind, payload, provenance.record(), [path])
    training = getattr(subject, "training", None) or getattr(subject, "pretraining", None)
    steps = training.steps if training else 0
    publish(experiment, run, lambda: _tracked(experiment, run), steps + 1)
    return payload


def _tracked(experiment: Experiment, run: str) -> dict[str, float]:
    """ROUGE of every split that is done, under the published names."""
    row: dict[str, float] = {}
    for job in STAGE.jobs(experiment):
        if job.wildcards["run"] == run and job.record.is_file():
            found = read_json(job.record, STAGE.kind)
            if found["provenance"].get("config") == job.fingerprint:
                row |= {f"{found['split']}_{kind}": found[kind] for kind in ROUGE_TYPES[:-1]}
    return row


def _rows(source: Path, split: str) -> list[dict[str, Any]]:
    splits = load_instructions(source)
    if split not in splits:
        raise ArtifactError(f"{source}: has no split {split!r}; found {', '.join(splits)}")
    if not splits[split]:
        raise DataError(f"{source}: the split '{split}' has no rows")
    return splits[split]


# ------------------------------------------------------------------------------------------------------------- prompts


def prompts_of(
    rows: Sequence[dict[str, Any]],
    model: Any,
    tokenizer: Any,
    subject: Subject,
    section: Generate,
    split: str,
    where: str = "the rows",
) -> list[Prompt]:
    """The prompt of each row; DataError, with `where`, for one that the model has no positions for.

    Prompts without room for an output below `max_tokens` are reported, and left unanswered.
    """
    parts = _cut_prompts(model, tokenizer, subject, split, where)
    compresses = getattr(model, "compresses", False) and section.context == "compressed"
    positions = getattr(model.config, "max_position_embeddings", None)
    drawn = section.sampling.seed if section.sampling else 0
    prompts = []
    for row in rows:
        before, ids = parts(row)
        if not compresses:
            before, ids = [], [*before, *ids]
        read = len(before) + len(ids)
        limit = section.max_new_tokens or max((section.max_tokens or 0) - read, 0)
        start, needed = len(ids), 0
        if before:
            demand = model.demand(model.steps_that_fit(len(before)))
            start, needed = start + demand.next_position, demand.positions
        needed = max(needed, start + limit)
        if positions is not None and limit and needed > positions:
            raise DataError(
                f"{where}: the prompt of row {row['id']} ({read} tokens) and its output (up to {limit}) need {needed} "
                f"positions; the model has {positions}"
            )
        seed = int.from_bytes(hashlib.sha256(f"{drawn} {row['id']}".encode()).digest()[:7], "big")
        prompts.append(Prompt(before, ids, start, limit, seed))
    if unanswered := sum(prompt.limit == 0 for prompt in prompts):
        say(f"{where}: {unanswered} prompts with max_tokens ({section.max_tokens}) or more stay unanswered")
    return prompts


def _gist_tokens(model: Any) -> tuple[int, int]:
    """The gist token of a model, and how many of them stand in its prompts."""
    reads = getattr(model, "reads", "") == "instructions"
    return (model.config.gist_token_id, model.config.gist_tokens) if reads else (-1, 0)


def _cut_prompts(model: Any, tokenizer: Any, subject: Any, split: str, where: str) -> Parts:
    """Prompts, cut behind the instruction and its gist tokens.

    A source that was cut before its last gist token, as in the published training, is not compressed.
    """
    seq2seq, (gist_token, count) = model.config.is_encoder_decoder, _gist_tokens(model)
    training = subject.training if getattr(subject, "trained_on", None) == "instructions" else None
    published = training is not None and training.tokenization == "published"
    collator = (
        gist_collator(tokenizer, subject, seq2seq, keep_all=True) if training and (seq2seq or published) else None
    )

    def parts(row: dict[str, Any]) -> tuple[list[int], list[int]]:
        rest = input_part(row["input"])
        if collator is not None:
            # A prompt does not depend on the output, which only must not be empty.
            batch = collator([{**row, "split": split, "output": "."}])
            ids = batch["input_ids" if seq2seq else "prompt_input_ids"][0].tolist()
        elif seq2seq:  # the decoder needs no cue
            before, after = instruction_part(row["instruction"]), rest.removesuffix("\nOutput:")
            ids = [*encode(tokenizer, before), *[gist_token] * count, *encode(tokenizer, after), tokenizer.eos_token_id]
        else:
            ids = gist_prompt_ids(row, tokenizer, gist_token, count)
        found = ids.count(gist_token)
        if found != count and not published:
            raise DataError(f"{where}: row {row['id']} holds the gist token {GIST_TOKEN} as text; spell it otherwise")
        if count == 0:
            end = 0 if seq2seq else len(ids) - len(encode(tokenizer, rest))
        else:
            end = len(ids) - ids[::-1].index(gist_token) if found == count else 0
        return ids[:end], ids[end:]

    return parts


# ------------------------------------------------------------------------------------------------------------ decoding


def decoded(
    model: Any, tokenizer: Any, prompts: Sequence[Prompt], section: Generate, label: str
) -> list[tuple[list[int], bool]]:
    """New tokens of each prompt up to the end of text (excluded), and whether it ended; longest prompts first."""
    ends, pad = ends_and_padding(model, tokenizer)
    positions = getattr(model.config, "max_position_embeddings", None) or float("inf")
    outputs: list[tuple[list[int], bool]] = [([], False)] * len(prompts)
    waiting = [number for number, prompt in enumerate(prompts) if prompt.limit]
    waiting.sort(key=lambda number: (not prompts[number].compressed, -prompts[number].start))
    batches = Halving(section.batch_size)

    def write(numbers: list[int]) -> None:
        batch, options = [prompts[number] for number in numbers], {}
        if batch[0].compressed:
            ids = padded([prompt.compressed for prompt in batch], pad, "left").to(model.device)
            mask = padded([[1] * len(prompt.compressed) for prompt in batch], 0, "left").to(model.device)
            options["context"] = model.compress(ids, mask, segment_lengths=model.steps_that_fit(ids.shape[1]))
        if section.sampling:
            generators = [torch.Generator().manual_seed(prompt.seed) for prompt in batch]
            draws = Draws(generators, section.sampling.temperature, section.sampling.top_p)
            options["logits_processor"] = LogitsProcessorList([draws])
        longest = max(prompt.limit for prompt in batch)
        found = decode(model, [prompt.ids for prompt in batch], longest, pad, ends, **options)
        for number, prompt, (new, stopped) in zip(numbers, batch, found, strict=True):
            outputs[number] = new[: prompt.limit], stopped and len(new) < prompt.limit

    def together(first: Prompt, number: int) -> bool:
        """Whether a prompt can join a batch: no row may need positions that the model has not."""
        prompt = prompts[number]
        return bool(prompt.compressed) == bool(first.compressed) and first.start + prompt.limit <= positions

    def done() -> Iterator[int]:
        place = 0
        while place < len(waiting):
            first = prompts[waiting[place]]
            chosen = [*takewhile(partial(together, first), waiting[place : place + batches.size])]
            alone = SynopsisError(f"{label}: a prompt of {first.start} tokens does not fit in memory")
            if batches.fits(partial(write, chosen), len(chosen), "prompts", alone if len(chosen) == 1 else None):
                yield from chosen
                place += len(chosen)

    for _ in track(done(), label, total=len(waiting), unit="outputs"):
        pass
    return outputs


def headline(result: dict[str, Any]) -> dict[str, Any]:
    """The numbers that the command line prints."""
    return {key: result[key] for key in ("rouge1", "rouge2", "rougeL", "exact_match", "n")}
