"""The generate stage on small models: its tokens are those of passes over a row alone, for every method and batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from compressor_models import architecture_model, configuration, gist_model, summary_model
from experiment_text import spoilt, write
from laws import Eviction, Truncation, gist_greedy, greedy_in_segments
from model_folders import FIELDS, GIST_FIELDS, ids_of, world_tokenizer, write_folder
from synopsis.artifacts import Layout, read_csv, write_json
from synopsis.compressors.loading import load
from synopsis.config.experiment import Experiment, load_experiment
from synopsis.stages.generate.run import COLUMNS, generate
from t5_models import t5_greedy, t5_model
from transformers import LlamaForCausalLM, T5Config, T5ForConditionalGeneration

ROWS = [
    ("Say it into Noric", "old fox eats plums", "sizo zole"),
    ("Translate", "", "fovu"),
    ("How does one say these words in Velan", "shy owl visits the old red hills", "bale"),
    ("Give me the words", "map", "foni paze mule"),
    ("Write this for me in Lusic for the guest", "", "</s> \x00 \r\n 'a', \"b\""),
]
LIMIT = 6
GIST = GIST_FIELDS["gist_token_id"]
T5 = {**GIST_FIELDS, "eos_token_id": 2}
T5_TRAINING = "{instructions: translations, max_length: 64, steps: 1, batch_size: 1, learning_rate: 0.1}"
COMPRESSORS = f"""\
compressors:
  newest: {{method: streaming_llm, base: base, budget: 6}}
  last: {{method: truncation, base: base, budget: 3}}
  neg-1: {{method: gist, base: base, condition: neg_control, training: &gist {T5_TRAINING}}}
  t5-gist: {{method: gist, base: t5, condition: gist, training: *gist}}
  t5-pos: {{method: gist, base: t5, condition: pos_control, training: *gist}}
"""
RUNS = ["base", "t5", "auto", "rmt", "full", "gist-1", "pos-1", "neg-1", "newest", "last", "t5-gist", "t5-pos"]
EDITS = [("compressors:\n", COMPRESSORS), ("models:\n", "models:\n  t5: {path: nowhere, type: t5}\n")]


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """Models with random weights in the places of the runs, and some instructions."""
    folder = tmp_path_factory.mktemp("generate")
    text = spoilt(("name: small", f"name: small\nresults: {folder}/results"), *EDITS)
    overrides = {"generate.runs": RUNS, "generate.max_new_tokens": LIMIT, "training_seeds": [0]}
    found = load_experiment(write(folder, text), overrides=overrides)
    layout = Layout(found)
    torch.manual_seed(3)
    base = LlamaForCausalLM(configuration(**FIELDS)).eval()
    for run in ("base", "full-s0"):
        write_folder(base, layout.model(run))
    write_folder(summary_model(seed=1, **FIELDS), layout.model("auto-s0"))
    write_folder(summary_model(seed=2, accumulate_summary=False, **FIELDS), layout.model("rmt-s0"))
    for run, condition in (("gist-1-s0", "gist"), ("pos-1-s0", "pos_control"), ("neg-1-s0", "neg_control")):
        write_folder(gist_model(condition, **GIST_FIELDS), layout.model(run))
    for run, condition in (("t5-gist-s0", "gist"), ("t5-pos-s0", "pos_control")):
        world_tokenizer().save_pretrained(write_folder(t5_model(condition, **T5), layout.model(run)))
    plain = {name: value for name, value in t5_model(**T5).config.to_dict().items() if name in T5Config().to_dict()}
    T5ForConditionalGeneration(
        T5Config(**{**plain, "initializer_factor": 3.0, "decoder_start_token_id": 0})
    ).save_pretrained(layout.model("t5"))
    for name in ("base", "t5"):
        world_tokenizer(gist=False).save_pretrained(layout.tokenizer(name))
    rows = [
        {"id": f"seen-{number}", **dict(zip(("instruction", "input", "output"), texts, strict=True))}
        for number, texts in enumerate(ROWS)
    ]
    splits = {"train": rows, "seen": rows, "unseen": []}
    write_json(layout.instructions("translations"), "instructions", {"splits": splits}, {})
    return found


def changed(experiment: Experiment, **section: Any) -> Experiment:
    return experiment.model_copy(update={"generate": experiment.generate.model_copy(update=section)})


def outputs_of(experiment: Experiment, run: str) -> list[dict[str, str]]:
    return read_csv(Layout(experiment).generations(run, "seen"), COLUMNS)


def parts(row: tuple[str, str, str], seq2seq: bool) -> tuple[list[int], list[int]]:
    """Counted by hand: what can be compressed, and the rest."""
    before, rest = f"Instruction: {row[0]} |", f"| Input: {row[1]}" if row[1] else ""
    if seq2seq:
        return ids_of(before), [*(ids_of(rest) if rest else []), 2]
    return ids_of(before), ids_of(f"{rest} | Output:".strip())


def alone(experiment: Experiment, run: str, row: tuple[str, str, str], count: int = LIMIT) -> list[int]:
    """Greedy tokens after a row, each from a pass over all before it, up to the end of text."""
    layout, name = Layout(experiment), experiment.name_of(run)
    before, rest = parts(row, run.startswith("t5"))
    if name in ("newest", "last"):
        kind, law = ("eviction", Eviction) if name == "newest" else ("truncation", Truncation)
        settings = {"budget": 6, "rerotate": False} if name == "newest" else {"budget": 3}
        model: Any = architecture_model(kind, "llama", **{**FIELDS, **settings, "num_key_value_heads": 4})
        model.load_state_dict(load(layout.model("base"), device="cpu").state_dict())
        written = law(kind, settings).greedy(model, before, rest, count)
    else:
        model = load(layout.model(run), device="cpu")
        if name in ("auto", "rmt"):
            written = greedy_in_segments(model, [*before, *rest], count, [len(before), len(rest)])
        elif name in ("base", "full", "t5"):
            read = torch.tensor([[*before, *rest]])
            written = [0] if name == "t5" else read[0].tolist()
            for _ in range(count):
                given = {"input_ids": read, "decoder_input_ids": torch.tensor([written])}
                given = given if name == "t5" else {"input_ids": torch.tensor([written])}
                written.append(int(model(**given).logits[0, -1].argmax()))
            written = written[-count:]
        elif name.startswith("t5"):
            written = t5_greedy(model, [*before, GIST, *rest], count)[1:]
        else:
            written = gist_greedy(model, [*before, GIST, *rest], count)
    return written[: written.index(2)] if 2 in written else written


@pytest.mark.parametrize("run", [name if name in ("base", "t5", "newest", "last") else f"{name}-s0" for name in RUNS])
def test_outputs_are_those_of_passes_over_a_row_alone(experiment: Experiment, run: str) -> None:
    """Batches of one size and another, and gist tokens cached and in one pass, give the same tokens."""
    tokenizer, expected = world_tokenizer(), [alone(experiment, run, row) for row in ROWS]
    contexts = ("compressed", "full") if "gist" in experiment.subject(run).method else ("compressed",)
    for context in contexts:
        for size in (1, 3, 8):
            payload = generate(changed(experiment, context=context, batch_size=size), run, "seen")
            found = outputs_of(experiment, run)
            assert [row["y_pred"] for row in found] == [
                tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in expected
            ], (context, size)
            assert [int(row["new_tokens"]) for row in found] == [len(ids) for ids in expected]
            assert [row["finish_reason"] for row in found] == ["stop" if len(i) < LIMIT else "length" for i in expected]
            sizes = [sum(map(len, parts(row, run.startswith("t5")))) for row in ROWS]
            gists = "gist" in experiment.subject(run).method
            assert [int(row["prompt_tokens"]) for row in found] == [size + gists for size in sizes]
    assert len({tuple(ids) for ids in expected}) > 1 and payload["n"] == len(ROWS)
    assert [row["y_true"] for row in found] == [row[2] for row in ROWS]
