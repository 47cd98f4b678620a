"""The needle stage: does the context, compressed or whole, still hold a fact that one of its sentences stated?

    synopsis needle --config config/demo.yaml autocompressor-s0

For each length and depth some texts are made on the fly (see `needle_texts`); the model reads one and is asked for its
key. Compressors read the context in steps and answer from the summary vectors, plain models read it whole; lengths
beyond a model's positions are left out and listed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any

import torch

from synopsis.artifacts import Layout, Provenance, write_json, write_json_lines
from synopsis.compressors.loading import load_tokenizer
from synopsis.compressors.section import steps
from synopsis.config.experiment import Experiment
from synopsis.engine.last_segment import Reading, demand
from synopsis.engine.likelihood import Prefix, plain_forward, read_prefix, score_options
from synopsis.engine.memory import out_of_memory
from synopsis.engine.runs import OpenRun, open_run
from synopsis.errors import DataError, SynopsisError
from synopsis.progress import say, track
from synopsis.stages.needle.section import STAGE, Needle
from synopsis.stages.needle.texts import NeedleExample, NeedleTexts

Record = dict[str, Any]
Cell = tuple[int, float]
"""Length and depth."""


def needle(experiment: Experiment, run: str) -> dict[str, Any]:
    """Measure a run; writes rows by length and depth, and a record of each text, and returns what is in the result.

    A cell that fails is reported and kept with its reason; the others stand. DataError for texts that the tokenizer
    cannot distinguish, for lengths that hold no needle, and when the model has positions for none of the lengths;
    SynopsisError when every cell fails.
    """
    section = experiment.needle
    assert section is not None
    layout = Layout(experiment)
    folder = layout.tokenizer(experiment.base_of(run))
    provenance = Provenance(
        STAGE.fingerprint(experiment, run=run), inputs=[layout.weights(run), folder], seed=section.seed
    )
    texts = NeedleTexts(section, load_tokenizer(folder))
    opened = open_run(experiment, run, section.dtype)
    model = opened.model
    provenance.device, provenance.dtype = str(model.device), str(model.dtype).removeprefix("torch.")
    lengths, skipped = _lengths(opened, run, section, texts)
    records, failed = _measure(Reader(opened, section), texts, lengths, run)
    payload = {
        "run": run,
        "choices": section.choices,
        "tokens_per_step": section.tokens_per_step,
        "rows": list(_rows(records)),
        "failed": failed,
        "skipped": skipped,
    }
    path = layout.needle(run)
    records_path = path.with_suffix(".examples.jsonl.gz")
    write_json_lines(records_path, records)
    write_json(path, "needle", payload, provenance.record(), [records_path])
    return payload


class CellError(Exception):
    """A text that cannot be measured; its cell fails."""


class Reader:
    """Reads contexts with one model and asks for their keys."""

    def __init__(self, opened: OpenRun, section: Needle):
        self.model, self.tokenizer, self.section = opened.model, opened.tokenizer, section
        self.compresses = opened.compresses

    def record(self, example: NeedleExample) -> Record:
        """What the model makes of one text.

        scores: mean loss of each option's tokens (nats); exact: greedy decoding writes the key; choice: no other option
        has as low a score; written: what greedy decoding writes, up to its first token that is not the key's.
        CellError when a number is not finite, or the text does not fit in memory.
        """
        pairs = [(example.question, answer) for answer in example.answers]
        try:
            prefix, vectors = self.read(example.context)
            scores = score_options(self.model, prefix, pairs, self.section.batch_tokens, label=None).means
            written = self.greedy(prefix, example.question, example.answers[0])
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise CellError("the text does not fit in memory") from None
        for option, score in zip(example.options, scores, strict=True):
            if not math.isfinite(score):
                raise CellError(f"the loss of the key {option!r} is {score}, no finite number")
        return {
            "place": example.place,
            "key": example.options[0],
            "options": example.options,
            "scores": scores,
            "written": self.tokenizer.decode(written),
            "exact": written == example.answers[0],
            "choice": scores[0] < min(scores[1:]),
            "summary_vectors": vectors,
        }

    def read(self, context: Sequence[int]) -> tuple[Prefix, int]:
        """The prefix that a question continues, and how many vectors stand for the context."""
        if not self.compresses:
            return read_prefix(self.model, None, context), 0
        ids = torch.tensor([list(context)], device=self.model.device)
        lengths = steps(len(context), self.section.tokens_per_step)
        try:
            compressed = self.model.compress(ids, segment_lengths=lengths)
        except ValueError as error:  # vectors that are not finite
            raise CellError(str(error)) from None
        return read_prefix(self.model, compressed, []), compressed.length

    @torch.no_grad()
    def greedy(self, prefix: Prefix, question: Sequence[int], key: Sequence[int]) -> list[int]:
        """What greedy decoding writes after the question, up to its first token that is not the key's.

        Until then it reads the key's own tokens, so one pass over them is enough.
        """
        ids = torch.tensor([[*question, *key[:-1]]], device=self.model.device)
        positions = prefix.next_position + torch.arange(ids.shape[1], device=self.model.device)[None]
        logits = plain_forward(
            self.model,
            input_ids=ids,
            position_ids=positions,
            past_key_values=prefix.cache_to_extend(),
            use_cache=True,
            logits_to_keep=len(key),
        ).logits
        best = logits[0].argmax(-1).tolist()
        right = next((place for place, token in enumerate(key) if best[place] != token), len(key))
        return best[: right + 1]


def _lengths(opened: OpenRun, run: str, section: Needle, texts: NeedleTexts) -> tuple[list[int], list[Record]]:
    """The lengths that the model has positions for, and a record of each of the others; DataError when none is left."""
    model, lengths = opened.model, sorted(section.lengths)
    positions, step = getattr(model.config, "max_position_embeddings", None), section.tokens_per_step
    keys = section.keys or texts.example(lengths[0], 0.0, 0).options
    asked = len(texts.question) + max(len(texts.answer(key)) for key in keys)
    readings = {length: Reading(length, asked, step if opened.compresses else None) for length in lengths}
    needed = {length: demand(model, reading).positions for length, reading in readings.items()}
    kept = [length for length in lengths if positions is None or needed[length] <= positions]
    left_out = [length for length in lengths if length not in kept]
    if not kept:
        raise DataError(
            f"needle.lengths: the shortest context, {lengths[0]} tokens, takes {needed[lengths[0]]} positions in one "
            f"pass with the question and a key; '{run}' has {positions}"
        )
    if left_out:
        lengths_left_out = ", ".join(map(str, left_out))
        say(f"{run} needle: {lengths_left_out} tokens left out, which need more than the model's {positions} positions")
    return kept, [{"length": n, "positions": needed[n], "model_positions": positions} for n in left_out]


def _measure(reader: Reader, texts: NeedleTexts, lengths: Sequence[int], run: str) -> tuple[list[Record], list[Record]]:
    """Records of all texts by length and depth, and the cells that failed; SynopsisError when there is no other."""
    section = reader.section
    # Longest first: a text that does not fit shows at once, and the time left is never underestimated.
    cells = [(length, depth) for length in reversed(lengths) for depth in section.depths]
    found: dict[Cell, list[Record]] = {cell: [] for cell in cells}
    failed: dict[Cell, str] = {}
    places = [(cell, number) for cell in cells for number in range(section.examples)]
    for cell, number in track(places, f"{run} needle", unit="texts"):
        length, depth = cell
        if cell in failed:
            continue
        try:
            record = reader.record(texts.example(length, depth, number))
        except CellError as error:
            failed[cell] = f"example {number}: {error}"
            say(f"{run} needle, length {length}, depth {depth:g}: {failed[cell]}")
        else:
            found[cell].append({"length": length, "depth": depth, "example": number, **record})
    if len(failed) == len(cells):
        length, depth = cells[-1]
        raise SynopsisError(
            f"{run} needle: no cell could be measured; length {length}, depth {depth:g}: {failed[cells[-1]]}"
        )
    in_order = sorted(cells, key=lambda cell: (cell[0], section.depths.index(cell[1])))
    records = [record for cell in in_order if cell not in failed for record in found[cell]]
    failures = [{"length": cell[0], "depth": cell[1], "error": failed[cell]} for cell in in_order if cell in failed]
    return records, failures


def _rows(records: Sequence[Record]) -> Iterator[Record]:
    """Shares and means by length and depth, in the order of the records."""
    for length, depth in dict.fromkeys((record["length"], record["depth"]) for record in records):
        chosen = [record for record in records if (record["length"], record["depth"]) == (length, depth)]
        yield {
            "length": length,
            "depth": depth,
            "n": len(chosen),
            "exact": fmean(record["exact"] for record in chosen),
            "choice": fmean(record["choice"] for record in chosen),
            "loss": fmean(record["scores"][0] for record in chosen),
            "summary_vectors": chosen[0]["summary_vectors"],
        }


def headline(result: dict[str, Any]) -> dict[str, float]:
    """The shares of keys found that the command line prints."""
    cells = {f"length={row['length']}/depth={row['depth']:g}": row for row in result["rows"]}
    return {f"{metric}/{cell}": row[metric] for metric in ("choice", "exact") for cell, row in cells.items()}
