"""Gist compressors from rows to outputs: decoders and T5, every condition, both tokenisations."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from model_folders import WORDS
from synopsis.artifacts import Layout
from synopsis.compressors import load
from synopsis.data.gist_collators import GistCollator, GistSeq2SeqCollator
from synopsis.data.instruction_examples import InstructionExamples, collate_seq2seq, gist_collator
from synopsis.data.models import prepare_model
from synopsis.data.sequences import collate_padded
from synopsis.errors import DataError
from synopsis.stages.generate.run import generate, prompts_of
from synopsis.training import preparation, stage
from training_runs import LLAMA, T5, experiment, gist, rows

GENERATE: dict[str, Any] = {
    "instructions": "translations", "splits": ["seen"], "max_new_tokens": 4, "batch_size": 2,
}  # fmt: skip
GIST = len(WORDS)


def learning(condition: str, gist_tokens: int, **training: Any) -> dict[str, Any]:
    return gist(condition, gist_tokens, steps=6, learning_rate=5e-3, **training)


@pytest.mark.parametrize("config", [LLAMA, T5], ids=["decoder", "t5"])
@pytest.mark.parametrize(
    ("condition", "count", "tokenization"),
    [("gist", 1, "clean"), ("gist", 10, "published"), ("pos_control", 2, "clean"), ("neg_control", 2, "published")],
)
def test_a_gist_compressor_learns_and_writes(
    config: Any, condition: str, count: int, tokenization: str, tmp_path: Path
) -> None:
    compressor = learning(condition, count, tokenization=tokenization, max_length=48)
    found = experiment(tmp_path, compressor, config, generate=GENERATE)
    stage.train(found, "it-s0")
    folder = Layout(found).model("it-s0")
    losses = [row["loss"] for row in map(json.loads, (folder / "metrics.jsonl").open()) if "loss" in row]
    assert len(losses) == 6 and losses[-1] < losses[0] - 0.1
    model = load(folder)
    assert (model.config.gist_condition, model.config.gist_tokens) == (condition, count)
    assert model.config.gist_token_id == GIST and model.get_input_embeddings().weight.shape[0] == GIST + 1

    scores = generate(found, "it-s0", "seen")
    with Layout(found).generations("it-s0", "seen").open() as stream:
        written = list(csv.DictReader(stream))
    assert len(written) == scores["n"] == 5
    assert all(row["x"].count("<GIST>") == count for row in written)
    assert [row["y_true"] for row in written] == [row["output"] for row in rows("seen", 5)]
    assert all(0 <= int(row["new_tokens"]) <= 4 for row in written)


@pytest.mark.parametrize("config", [LLAMA, T5], ids=["decoder", "t5"])
def test_outputs_are_those_of_each_row_alone(config: Any, tmp_path: Path) -> None:
    """Rows of unequal length in one batch, against transformers' greedy search step by step."""
    found = experiment(tmp_path, learning("gist", 2), config, generate=GENERATE)
    stage.train(found, "it-s0")
    generate(found, "it-s0", "seen")
    model, tokenizer = load(Layout(found).model("it-s0")), preparation.load_tokenizer(Layout(found).model("it-s0"))
    subject: Any = found.compressors["it"]
    seq2seq = model.config.is_encoder_decoder
    with Layout(found).generations("it-s0", "seen").open() as stream:
        written = list(csv.DictReader(stream))
    made = prompts_of(rows("seen", 5), model, tokenizer, subject, found.generate, "seen")
    prompts = [[*prompt.compressed, *prompt.ids] for prompt in made]
    assert len({len(prompt) for prompt in prompts}) > 1
    for prompt, row in zip(prompts, written, strict=True):
        answer: list[int] = []
        while len(answer) < 4:
            with torch.no_grad():
                if seq2seq:
                    logits = model(torch.tensor([prompt]), decoder_input_ids=torch.tensor([[0, *answer]])).logits
                else:
                    logits = model(torch.tensor([[*prompt, *answer]])).logits
            answer.append(int(logits[0, -1].argmax()))
            if answer[-1] == tokenizer.eos_token_id:
                answer.pop()
                break
        assert row["y_pred"] == tokenizer.decode(answer, skip_special_tokens=True).strip()
        assert (int(row["prompt_tokens"]), int(row["new_tokens"])) == (len(prompt), len(answer))


def test_the_human_split_has_its_published_lengths(tmp_path: Path) -> None:
    found = experiment(tmp_path, gist(max_length=12), T5)
    tokenizer = preparation.load_tokenizer(Layout(found).model("base"))
    tokenizer.add_tokens(["<GIST>"], special_tokens=True)
    long = [{"id": "a", "instruction": " ".join(WORDS[5:25]), "input": WORDS[30], "output": WORDS[31]}]
    subject: Any = found.compressors["it"]
    sources = gist_collator(tokenizer, subject, seq2seq=True, keep_all=True)
    seen, human = (sources([{**long[0], "split": split}])["input_ids"][0].tolist() for split in ("seen", "human"))
    assert len(seen) == 12 and len(human) > 20 and seen[-2:] == [GIST, 2]
    collator = gist_collator(tokenizer, subject, seq2seq=False)
    assert (collator.max_length, collator.max_length_human) == (12, 768)  # type: ignore[union-attr]


def tokenizer_of(folder: Path) -> Any:
    tokenizer = preparation.load_tokenizer(Layout(experiment(folder, gist())).model("base"))
    tokenizer.add_tokens(["<GIST>"], special_tokens=True)
    return tokenizer


@pytest.mark.parametrize("tokenization", ["clean", "published"])
@pytest.mark.parametrize("seq2seq", [False, True], ids=["decoder", "t5"])
def test_batches_are_those_of_the_collators(seq2seq: bool, tokenization: str, tmp_path: Path) -> None:
    """Examples are made once and padded later; the collators do both at once."""
    tokenizer = tokenizer_of(tmp_path)
    kind: Any = GistSeq2SeqCollator if seq2seq else GistCollator
    collator = kind(tokenizer, 2, tokenization=tokenization)
    examples = InstructionExamples(rows("train", 12), collator)
    kept = [row for row in rows("train", 12) if row["id"] in examples.names]
    expected = kind(tokenizer, 2, tokenization=tokenization)(kept)
    made = [examples[index] for index in range(len(examples))]
    batch = collate_seq2seq(made, 0) if seq2seq else collate_padded(made, 0)
    for key, tensor in batch.items():
        assert torch.equal(tensor, expected[key]), key


def test_rows_that_cannot_be_used_are_counted_or_reported(tmp_path: Path) -> None:
    tokenizer, good = tokenizer_of(tmp_path), rows("train", 3)
    long = {"id": "long", "instruction": " ".join(WORDS[5:40]), "input": "", "output": "x"}
    empty = {**good[0], "id": "empty", "output": " "}
    examples = InstructionExamples([good[0], long, empty, good[1]], GistCollator(tokenizer, max_length=24))
    assert examples.names == ["train-0", "train-1"] and examples.record()["dropped"] == 2
    with pytest.raises(DataError, match="holds the gist token <GIST> as text"):
        InstructionExamples([{**good[0], "input": "<GIST>"}], GistCollator(tokenizer))
    with pytest.raises(DataError, match="none of 1 instruction rows"):
        InstructionExamples([long], GistCollator(tokenizer, max_length=24))


@pytest.mark.parametrize("tied", [True, False])
def test_an_encoder_decoder_is_prepared(tied: bool, tmp_path: Path) -> None:
    """transformers calls all T5 tied: the output layer of those that are not must come through."""
    from synopsis.config.experiment import load_experiment
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(**{**T5.to_dict(), "tie_word_embeddings": tied})
    found = experiment(tmp_path, gist(), config)
    source = Layout(found).model("base").rename(tmp_path / "source")
    if tied:
        T5ForConditionalGeneration(config).save_pretrained(source)
    text = (tmp_path / "experiment.yaml").read_text().replace("path: none", f"path: {source}")
    (tmp_path / "experiment.yaml").write_text(text)
    prepare_model(load_experiment(tmp_path / "experiment.yaml"), "base")
    before, after = (
        T5ForConditionalGeneration.from_pretrained(folder) for folder in (source, Layout(found).model("base"))
    )
    ids, answer = torch.tensor([[5, 6, 7, 2]]), torch.tensor([[0, 9]])
    torch.testing.assert_close(
        after(ids, decoder_input_ids=answer).logits, before(ids, decoder_input_ids=answer).logits
    )
    assert (after.lm_head.weight is after.shared.weight) == tied
