"""In-context learning against the published code: the demonstrations drawn, their tokens, scores and predictions."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from published import NOT_CONFIGURATION, Golden, golden_sets, parameters, published_weights
from safetensors.torch import load_file
from synopsis.compressors import compressor_class
from synopsis.config.files import Task
from synopsis.engine.likelihood import read_prefix
from synopsis.errors import DataError
from synopsis.stages.icl.classification import Texts, classify
from synopsis.stages.icl.demonstrations import Prompt, demonstrations
from synopsis.stages.icl.run import Job
from synopsis.stages.icl.section import InContextLearning, Setting
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

DEMONSTRATION = 10
"""Tokens that stand for one demonstration: the files count demonstrations, and settings count tokens."""


def task_of(definition: dict[str, Any], **fields: Any) -> Task:
    """A task from what the published code defines; a template that shows an option twice stands as it is."""
    options = definition["train"][0]["options"]
    in_rows = any(row["options"] != options for row in definition["train"])
    return Task.model_validate(
        {
            "source": {"mirror": "nowhere"},
            "template": definition["template"],
            "input_fields": definition["input_keys"],
            "balanced": definition["balanced_sampling"],
            "tokens_per_demonstration": DEMONSTRATION,
            **({"option_fields": [f"option_{i}" for i in range(len(options))]} if in_rows else {"options": options}),
            **fields,
        }
    )


def rows_of(definition: dict[str, Any], split: str) -> list[dict[str, Any]]:
    return [
        {**row, "id": index, **{f"option_{i}": option for i, option in enumerate(row["options"])}}
        for index, row in enumerate(definition[split])
    ]


def setting_of(compressed: list[int], plain: int) -> Setting:
    return Setting(compressed_tokens=[DEMONSTRATION * n for n in compressed], plain_tokens=DEMONSTRATION * plain)


def with_beginning(prompt: Prompt, texts: Texts) -> tuple[list[list[int]], list[int]]:
    """Chunks and plain tokens with the beginning of text, which the first of them has as published."""
    chunks, plain = [*map(list, prompt.chunks)], list(prompt.plain)
    (chunks[0] if chunks else plain)[:0] = texts.beginning if prompt.rows else []
    return chunks, plain


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for argument, file in (("prompt", "prompt_generator.json"), ("run", "runs.json")):
        if argument in metafunc.fixturenames:
            found = {
                f"{golden.name}-{folder}-{index}": (golden, folder, index, record)
                for golden in golden_sets(metafunc.config)
                for folder in golden.folders("ac_icl*")
                for index, record in enumerate(golden.document(f"{folder}/{file}"))
            }
            metafunc.parametrize(argument, parameters(found, "ac_icl*"))


@cache
def definitions(golden: Golden, folder: str) -> dict[str, Any]:
    return golden.document(f"{folder}/dataset_definitions.json")


@cache
def tokenizer_of(golden: Golden, folder: str) -> Any:
    return AutoTokenizer.from_pretrained(golden.folder / folder / "tokenizer")


@cache
def model_of(golden: Golden, folder: str, name: str, compresses: bool) -> Any:
    written = golden.document(f"{folder}/config_{name}.json")
    config = AutoConfig.for_model(**{key: value for key, value in written.items() if key not in NOT_CONFIGURATION})
    weights = load_file(golden.folder / folder / f"model_{name}.safetensors")
    if compresses:
        model = compressor_class("summary", config.model_type)(config)
    else:
        model = AutoModelForCausalLM.from_config(config)
        weights = {key: value for key, value in weights.items() if not key.startswith("embed_summary")}
    model.load_state_dict(published_weights(model, weights))
    return model.eval()


def test_demonstrations(prompt: tuple[Golden, str, int, dict[str, Any]]) -> None:
    """Every draw: the rows and, where they are recorded, their tokens; where the published code fails, this refuses."""
    golden, folder, _, record = prompt
    definition, texts_of = definitions(golden, folder)[record["dataset"]], tokenizer_of(golden, folder)
    task, pool = task_of(definition), rows_of(definition, "train")
    texts, setting = Texts(task, texts_of), setting_of(record["soft"], record["plain"])
    if "error" in record:
        with pytest.raises(DataError, match="demonstrations are asked for"):
            demonstrations(task, pool, setting, record["seed"], texts.encode, repeat=True)
        return
    drawn = [index for call in record["calls"] for index in call]
    found = demonstrations(task, pool, setting, record["seed"], texts.encode, repeat=True)
    assert list(found.rows) == drawn
    if len(set(drawn)) < len(drawn):
        with pytest.raises(DataError, match="demonstrations are asked for"):
            demonstrations(task, pool, setting, record["seed"], texts.encode)
    if "softprompt_chunk_tokens" in record:
        chunks, plain = with_beginning(found, texts)
        assert chunks == record["softprompt_chunk_tokens"]
        assert plain == record["plaintext_demonstrations_tokens"]


def test_runs(run: tuple[Golden, str, int, dict[str, Any]]) -> None:
    """Every run: demonstrations, tokens, summary vectors, scores less calibration within 1e-4, predictions."""
    golden, folder, index, record = run
    definition = definitions(golden, folder)[record["dataset"]]
    calibration = "none"
    if record["use_calibration"]:
        calibration = "example" if record["recalibrate_every"] else "dataset"
    task = task_of(definition, balanced=record["balanced_sampling"], calibration=calibration)
    texts = Texts(task, tokenizer_of(golden, folder))
    model = model_of(golden, folder, record["model"], record["is_ac"])
    tests = rows_of(definition, "test")
    section = InContextLearning(datasets=[record["dataset"]], settings={"one": Setting()}, repeat_demonstrations=True)
    job = Job(model, texts, section, rows_of(definition, "train"), tests[0], "golden")

    setting = setting_of(record["num_softprompt_demonstrations"], record["num_plaintext_demonstrations"])
    examples = [texts.example(row) for row in tests[: record["ntest"]]]
    start = job.start(setting, record["seed"], examples)
    assert list(start.prompt.rows) == record["chosen_softprompt_idxs"] + record["chosen_plaintext_idxs"]
    chunks, plain = with_beginning(start.prompt, texts)
    assert (chunks, plain) == (record["softprompt_chunk_tokens"], record["plaintext_demonstrations_tokens"])
    if "softprompt_tensor" in record:
        expected = load_file(golden.folder / folder / "tensors.safetensors")[f"run{index}/softprompt"]
        assert start.context is not None and start.context.summary_vectors is not None
        torch.testing.assert_close(start.context.summary_vectors, expected, atol=1e-4, rtol=0)

    # Without demonstrations the beginning of text stands before the example.
    before = [] if record["chosen_softprompt_idxs"] + record["chosen_plaintext_idxs"] else start.plain
    for example, published in zip(examples, record["examples"], strict=True):
        assert [[*before, *query, *option] for query, option in example.pairs] == published["answered"]
        assert [list(option) for _, option in example.pairs] == published["option"]
        assert example.row["label"] == published["answer_idx"]

    preferences, _ = classify(model, read_prefix(model, start.context, start.plain), texts, examples, tests[0])
    scores = record["scores_minus_calibration"]
    torch.testing.assert_close(
        torch.tensor([preference.scores for preference in preferences]), torch.tensor(scores), atol=1e-4, rtol=0
    )
    lowest = [min(range(len(row)), key=row.__getitem__) for row in scores]
    assert [preference.prediction for preference in preferences] == lowest
    right = sum(found == example.row["label"] for found, example in zip(lowest, examples, strict=True))
    assert f"Accuracy: {right / len(lowest)}" == record["stdout"].strip()
