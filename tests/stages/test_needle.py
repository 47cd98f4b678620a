"""The needle stage on small models: what it writes, and that its numbers are those of plain forward passes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from compressor_models import configuration, summary_model
from experiment_text import spoilt, write
from laws import cut
from model_folders import FIELDS, ids_of, world_tokenizer, write_folder
from synopsis.artifacts import Layout, read_json
from synopsis.compressors import LlamaAutoCompressorModel
from synopsis.compressors.loading import load
from synopsis.config.experiment import Experiment, load_experiment
from synopsis.engine.runs import open_run
from synopsis.errors import DataError, SynopsisError
from synopsis.stages.needle.run import Reader, needle
from synopsis.stages.needle.texts import NeedleTexts
from transformers import LlamaForCausalLM

KEYS = ["lantern", "compass", "violin", "ladder"]
OPTIONS = {
    "needle.lengths": [12, 27, 400],
    "needle.depths": [0, 1],
    "needle.examples": 3,
    "needle.tokens_per_step": 10,
    "needle.filler": ["old fox eats plums\n\n", "shy owl visits caves\n\n"],
    "needle.needle": "guest Mira holds {key}\n\n",
    "needle.keys": KEYS,
    "needle.choices": 3,
}


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """Models with random weights in the places of `base` and of two runs of a compressor, which take turns with it."""
    folder = tmp_path_factory.mktemp("needle")
    text = spoilt(("name: small", f"name: small\nresults: {folder}/results"))
    found = load_experiment(write(folder, text), overrides={**OPTIONS, "needle.runs": ["base", "auto", "rmt"]})
    layout = Layout(found)
    torch.manual_seed(3)
    write_folder(LlamaForCausalLM(configuration(**FIELDS)).eval(), layout.model("base"))
    world_tokenizer(gist=False).save_pretrained(layout.tokenizer("base"))
    write_folder(summary_model(seed=1, **FIELDS), layout.model("auto-s0"))
    write_folder(summary_model(seed=2, accumulate_summary=False, **FIELDS), layout.model("rmt-s0"))
    return found


def records_of(experiment: Experiment, run: str) -> list[dict[str, Any]]:
    path = Layout(experiment).needle(run).with_suffix(".examples.jsonl.gz")
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]


@torch.no_grad()
def plain(model: Any, context: list[int], asked: list[int]) -> torch.Tensor:
    """(tokens, vocabulary) log-probabilities after `asked`, in passes without a cache."""
    options: dict[str, Any] = {}
    if isinstance(model, LlamaAutoCompressorModel):
        first = len(context) % 10
        steps = [part for part in (context[:first], *cut(context[first:], 10)) if part]
        options["segment_lengths"] = [*map(len, steps), len(asked)]
    return model(torch.tensor([[*context, *asked]]), **options).logits[0, len(context) :].log_softmax(-1)


@pytest.mark.parametrize(("run", "vectors"), [("base", [0, 0]), ("auto-s0", [6, 9]), ("rmt-s0", [3, 3])])
def test_scores_are_those_of_plain_passes(experiment: Experiment, run: str, vectors: list[int]) -> None:
    payload = needle(experiment, run)
    written = read_json(Layout(experiment).needle(run), "needle")
    assert {key: written[key] for key in payload} == json.loads(json.dumps(payload))
    records, model = records_of(experiment, run), load(Layout(experiment).model(run), device="cpu")
    # 400 tokens are more than 256 positions at once, but not in steps.
    lengths = [12, 27] if run == "base" else [12, 27, 400]
    if run != "base":
        vectors = [*vectors, 120 if run == "auto-s0" else 3]
    left_out = {"length": 400, "positions": 404, "model_positions": 256}
    assert payload["skipped"] == ([left_out] if run == "base" else []) and payload["failed"] == []
    assert [(row["length"], row["depth"], row["n"]) for row in payload["rows"]] == [
        (length, depth, 3) for length in lengths for depth in (0, 1)
    ]
    assert [row["summary_vectors"] for row in payload["rows"]] == [count for count in vectors for _ in (0, 1)]
    assert experiment.needle is not None
    texts, question = NeedleTexts(experiment.needle, world_tokenizer(gist=False)), ids_of("guest Mira holds")
    for record in records:
        example = texts.example(record["length"], record["depth"], record["example"])
        predicted = plain(model, example.context, question)[-1]
        losses = [-float(predicted[ids_of(option)[0]]) for option in record["options"]]
        assert record["scores"] == pytest.approx(losses, rel=1e-4, abs=1e-5)
        assert record["choice"] == (losses[0] == min(losses)) and record["key"] == record["options"][0]
        best = int(predicted.argmax())
        assert record["written"] == world_tokenizer(gist=False).decode([best])
        assert record["exact"] == ([best] == ids_of(record["key"]))
    for row in payload["rows"]:
        chosen = [r for r in records if (r["length"], r["depth"]) == (row["length"], row["depth"])]
        assert row["choice"] == pytest.approx(sum(r["choice"] for r in chosen) / 3)
        assert row["exact"] == pytest.approx(sum(r["exact"] for r in chosen) / 3)
        assert row["loss"] == pytest.approx(sum(r["scores"][0] for r in chosen) / 3)


def test_provenance_names_what_was_read(experiment: Experiment) -> None:
    needle(experiment, "base")
    provenance = read_json(Layout(experiment).needle("base"), "needle")["provenance"]
    layout = Layout(experiment)
    assert set(provenance["inputs"]) == {str(layout.model("base")), str(layout.tokenizer("base"))}
    assert provenance["dtype"] == "float32" and provenance["seed"] == 0


@pytest.mark.parametrize("length", [1, 3])
def test_greedy_is_what_generate_writes_up_to_the_first_wrong_token(experiment: Experiment, length: int) -> None:
    assert experiment.needle is not None
    opened = open_run(experiment, "auto-s0", device="cpu")
    reader, model = Reader(opened, experiment.needle), opened.model
    context, question = ids_of("old fox eats plums || guest Mira holds map ||"), ids_of("guest Mira holds")
    prefix, _ = reader.read(context)
    compressed = model.compress(torch.tensor([context]), segment_lengths=[10])
    prompt = torch.tensor([question])
    whole = model.generate(prompt, context=compressed, max_new_tokens=length, do_sample=False, eos_token_id=None)
    said = whole[0, len(question) :].tolist()
    assert reader.greedy(prefix, question, said) == said
    for wrong in range(length):
        key = [*said[:wrong], said[wrong] + 1, *said[wrong + 1 :]]
        assert reader.greedy(prefix, question, key) == said[: wrong + 1]


def test_equal_scores_find_nothing(experiment: Experiment) -> None:
    assert experiment.needle is not None
    opened = open_run(experiment, "base", device="cpu")
    with torch.no_grad():
        opened.model.lm_head.weight.zero_()
    texts = NeedleTexts(experiment.needle, world_tokenizer(gist=False))
    record = Reader(opened, experiment.needle).record(texts.example(12, 0.0, 0))
    assert len(set(record["scores"])) == 1 and record["choice"] is False


# ---------------------------------------------------------------------------------------------------------- faults


def changed(experiment: Experiment, **fields: Any) -> Experiment:
    assert experiment.needle is not None
    return experiment.model_copy(update={"needle": experiment.needle.model_copy(update=fields)})


def test_no_length_fits(experiment: Experiment) -> None:
    with pytest.raises(DataError, match=r"shortest context, 300 tokens, takes 304 positions .* 'base' has 256"):
        needle(changed(experiment, lengths=[300, 400]), "base")
    with pytest.raises(DataError, match="takes 262 positions"):
        needle(changed(experiment, lengths=[300], tokens_per_step=256), "auto-s0")


def test_texts_are_checked_before_the_model_is_read(experiment: Experiment, tmp_path: Path) -> None:
    moved = experiment.model_copy(update={"results": str(tmp_path)})
    world_tokenizer(gist=False).save_pretrained(Layout(moved).tokenizer("base"))
    with pytest.raises(DataError, match="5 tokens hold no needle"):
        needle(changed(moved, lengths=[5]), "base")
    assert not (Layout(moved).root / "needle").exists()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("plain", r"length 12, depth 1: example 0: the loss of the key '\w+' is nan, no finite number"),
        ("summary", "length 12, depth 1: example 0: row 0 of the summary vectors: 6 of 6 hold numbers that are not"),
    ],
)
def test_numbers_that_are_not_finite(experiment: Experiment, tmp_path: Path, kind: str, message: str) -> None:
    moved = experiment.model_copy(update={"results": str(tmp_path)})
    run, model = ("base", LlamaForCausalLM(configuration(**FIELDS))) if kind == "plain" else ("auto-s0", None)
    model = summary_model(**FIELDS) if model is None else model
    torch.nn.init.constant_(model.model.norm.weight, float("nan"))
    write_folder(model, Layout(moved).model(run))
    world_tokenizer(gist=False).save_pretrained(Layout(moved).tokenizer("base"))
    with pytest.raises(SynopsisError, match=f"{run} needle: no cell could be measured; {message}"):
        needle(moved, run)
    assert not Layout(moved).needle(run).exists()


def test_a_cell_that_fails_leaves_the_others(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = needle(changed(experiment, lengths=[12, 27]), "base")["rows"]
    read = Reader.read

    def no_memory(self: Reader, context: list[int]) -> Any:
        if len(context) == 27 and context[:3] == ids_of("guest Mira holds"):
            raise RuntimeError("CPU: not enough memory: you tried to allocate 9 bytes")
        return read(self, context)

    monkeypatch.setattr(Reader, "read", no_memory)
    payload = needle(changed(experiment, lengths=[12, 27]), "base")
    assert payload["failed"] == [{"length": 27, "depth": 0, "error": "example 0: the text does not fit in memory"}]
    assert payload["rows"] == [row for row in whole if (row["length"], row["depth"]) != (27, 0)]
    assert {(r["length"], r["depth"]) for r in records_of(experiment, "base")} == {(12, 0), (12, 1), (27, 1)}
    assert capsys.readouterr().err.count("length 27, depth 0: example 0: the text does not fit in memory") == 1
    monkeypatch.setattr(Reader, "read", lambda self, context: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        needle(experiment, "base")
