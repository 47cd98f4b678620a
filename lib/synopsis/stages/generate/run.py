"""The generate stage: greedy outputs for the validation splits of an instruction set, and their ROUGE.

    synopsis generate --config config/demo.yaml gist-1-s0 seen

Writes generations/<run>/<split>.csv (the published columns x, y_pred, y_true, plus id and lengths) and beside it
<split>.json with the scores. ROUGE uses the stemmer, as the published numbers do; scores are means of F x 100, and
`intervals` their 95 % bootstrap intervals over examples.
Prompts are made as in training, tokenisation and an encoder-decoder's longest source included.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from synopsis.artifacts import Layout, Provenance, write_csv, write_json
from synopsis.compressors.loading import load_tokenizer
from synopsis.compressors.section import Compressor
from synopsis.config.experiment import Experiment
from synopsis.data.instruction_examples import gist_collator
from synopsis.data.instructions import load_instructions
from synopsis.data.prompts import GIST_TOKEN, gist_prompt, source_prompt
from synopsis.data.sequences import gist_prompt_ids
from synopsis.engine.decoding import greedy
from synopsis.engine.runs import open_run
from synopsis.errors import ArtifactError, DataError
from synopsis.progress import track
from synopsis.stages.generate.rouge import exact_match, score_rouge
from synopsis.stages.generate.section import STAGE

COLUMNS = ("id", "x", "y_pred", "y_true", "prompt_tokens", "new_tokens")


def generate(experiment: Experiment, run: str, split: str) -> dict[str, Any]:
    """Greedy outputs of a gist run for one split; writes them and their scores, and returns the scores."""
    section, subject = experiment.generate, experiment.subject(run)
    assert section is not None and isinstance(subject, Compressor)
    layout = Layout(experiment)
    source = layout.instructions(section.instructions)
    provenance = Provenance(STAGE.fingerprint(experiment, run=run, split=split), inputs=[layout.weights(run), source])
    splits = load_instructions(source)
    if split not in splits:
        raise ArtifactError(f"{source}: has no split {split!r}; found {', '.join(splits)}")
    rows = splits[split][: section.max_examples]
    opened = open_run(experiment, run)
    model, tokenizer = opened.model, load_tokenizer(opened.folder)
    provenance.device, provenance.dtype = str(model.device), str(model.dtype).removeprefix("torch.")
    seq2seq = model.config.is_encoder_decoder
    prompts = prompts_of(rows, tokenizer, subject, split, seq2seq)
    longest = max((len(prompt) for prompt in prompts), default=0)
    positions = None if seq2seq else model.config.max_position_embeddings
    if positions is not None and longest + section.max_new_tokens > positions:
        raise DataError(
            f"{source}: split '{split}': the longest prompt ({longest} tokens) and max_new_tokens "
            f"({section.max_new_tokens}) exceed the model's {positions} positions"
        )
    written = source_prompt if seq2seq else gist_prompt
    outputs = decoded(model, tokenizer, prompts, section.max_new_tokens, section.batch_size, f"{run} {split}")
    table = [
        {
            "id": row["id"],
            "x": written(row["instruction"], row["input"], subject.vectors(1)),
            "y_pred": str(tokenizer.decode(output, skip_special_tokens=True)).strip(),
            "y_true": row["output"],
            "prompt_tokens": len(prompt),
            "new_tokens": len(output),
        }
        for row, prompt, output in zip(rows, prompts, outputs, strict=True)
    ]
    path = layout.generations(run, split)
    write_csv(path, table, COLUMNS)
    pairs = [(row["y_pred"], row["y_true"]) for row in table]
    rouge = score_rouge(pairs)
    intervals = {kind: [found.low, found.high] for kind, found in rouge.published().items()}
    scores = {**rouge.mean(), "exact_match": exact_match(pairs), "intervals": intervals}
    payload = {"run": run, "split": split, "n": len(table), **scores}
    write_json(path.with_suffix(".json"), "rouge", payload, provenance.record(), [path])
    return payload


def prompts_of(
    rows: Sequence[dict[str, Any]], tokenizer: Any, subject: Compressor, split: str, seq2seq: bool
) -> list[list[int]]:
    """Ids of what the model reads before it writes. Decoders: the whole prompt; encoder-decoders: the cut source."""
    gist_token = tokenizer.convert_tokens_to_ids(GIST_TOKEN)
    if not seq2seq and subject.training.tokenization == "clean":
        return [gist_prompt_ids(row, tokenizer, gist_token, subject.vectors(1)) for row in rows]
    collator = gist_collator(tokenizer, subject, seq2seq, keep_all=True)
    key = "input_ids" if seq2seq else "prompt_input_ids"
    # A prompt does not depend on the output, which only must not be empty.
    return [collator([{**row, "split": split, "output": "."}])[key][0].tolist() for row in rows]


def decoded(
    model: Any, tokenizer: Any, prompts: Sequence[list[int]], max_new_tokens: int, batch_size: int, label: str
) -> list[list[int]]:
    """New tokens of each prompt up to the end of text (excluded), in the order of `prompts`; longest batches first."""
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    outputs: list[list[int]] = [[] for _ in prompts]
    for start in track(range(0, len(order), batch_size), label, unit="batches"):
        batch = order[start : start + batch_size]
        chosen = [prompts[index] for index in batch]
        for index, new in zip(
            batch, greedy(model, chosen, max_new_tokens, end if pad is None else pad, [end]), strict=True
        ):
            outputs[index] = new
    return outputs


def headline(result: dict[str, Any]) -> dict[str, Any]:
    """The numbers that the command line prints."""
    return {key: result[key] for key in ("rouge1", "rouge2", "rougeL", "exact_match", "n")}
