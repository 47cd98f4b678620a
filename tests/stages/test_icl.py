"""One job of in-context learning: its settings, what is left out of them, and what fails in one of them alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from compressor_models import configuration, summary_model
from synopsis.config.files import Task
from synopsis.engine.likelihood import Prefix, read_prefix
from synopsis.stages.icl.classification import Texts, classify
from synopsis.stages.icl.run import Job, subsample
from synopsis.stages.icl.section import InContextLearning, Setting
from transformers import LlamaForCausalLM

MODEL = summary_model(num_key_value_heads=2, max_position_embeddings=128)
POOL = [{"id": i, "text": "abcdefgh"[: i % 5 + 1], "label": i % 2} for i in range(12)]
TESTS = [{"id": 100 + i, "text": "hgfedcba"[: i % 6 + 1], "label": i % 2} for i in range(9)]


class Characters:
    """One token a character, after a beginning-of-text token."""

    bos_token_id = 1

    def __call__(self, text: str | list[str], add_special_tokens: bool = True) -> dict[str, Any]:
        if isinstance(text, list):
            return {"input_ids": [self(one, add_special_tokens)["input_ids"] for one in text]}
        ids = [3 + ord(character) % 56 for character in text]
        return {"input_ids": [1, *ids] if add_special_tokens else ids}


def task(**fields: Any) -> Task:
    known = {"source": {"mirror": "nowhere"}, "template": "{text}:{answer}", "input_fields": ["text"]}
    return Task.model_validate({**known, "options": ["x", "yz"], "tokens_per_demonstration": 8, **fields})


def job(of: Task | None = None, model: Any = MODEL, pool: list[dict[str, Any]] | None = None, **fields: Any) -> Job:
    section = InContextLearning.model_validate({"datasets": ["letters"], "settings": {"zero_shot": {}}, **fields})
    texts = Texts(of or task(), Characters())
    return Job(model, texts, section, POOL if pool is None else pool, TESTS[0], "run letters seed 0")


SETTINGS = {
    "zero_shot": Setting(),
    "none": Setting(plain_tokens=7),
    "plain": Setting(plain_tokens=16),
    "mixed": Setting(compressed_tokens=[16, 8], plain_tokens=8),
}


def test_the_settings_of_a_job() -> None:
    results, records, dropped = job().results(SETTINGS, TESTS, seed=3)
    assert list(results) == list(SETTINGS) and dropped == []
    shown = {name: (r["asked"], r["demonstrations"], r["unfilled"]) for name, r in results.items()}
    assert shown == {"zero_shot": (0, 0, 0), "none": (0, 0, 1), "plain": (2, 2, 0), "mixed": (4, 4, 0)}
    assert [results[name]["summary_vectors"] for name in SETTINGS] == [0, 0, 0, 6]
    assert results["zero_shot"]["plain_tokens"] == 1  # the beginning of text
    for name, result in results.items():
        of_setting = [record for record in records if record["setting"] == name]
        right = [record["prediction"] == record["label"] for record in of_setting]
        assert (result["n"], result["accuracy"]) == (9, sum(right) / 9)
        assert [record["id"] for record in of_setting] == [row["id"] for row in TESTS]
        assert result["cost"]["naive_tokens"] > result["cost"]["tokens"] > 0
    record = next(record for record in records if record["setting"] == "plain")
    assert record["options"] == ["x", "yz"] and len(record["scores"]) == len(record["demonstrations"]) == 2
    assert record["tokens"] == [len("h:x"), len("h:yz")]


def test_what_shows_no_demonstration_is_zero_shot_and_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def counted(model: Any, context: Any, ids: list[int]) -> Prefix:
        read.append(len(ids))
        return read_prefix(model, context, ids)

    monkeypatch.setattr("synopsis.stages.icl.run.read_prefix", counted)
    results, _, _ = job().results({name: SETTINGS[name] for name in ("zero_shot", "none")}, TESTS, seed=0)
    assert read == [1]
    assert results["none"]["accuracy"] == results["zero_shot"]["accuracy"]


def test_examples_that_are_too_long_for_one_setting_are_left_out_of_all() -> None:
    long = [*TESTS, {"id": 7, "text": "a" * 95, "label": 0}]
    results, records, dropped = job().results({**SETTINGS, "long": Setting(plain_tokens=48)}, long, seed=0)
    assert dropped == [7]
    assert {(r["n"], r["dropped"]) for r in results.values()} == {(9, 1)}
    assert 7 not in {record["id"] for record in records}
    assert job().results(SETTINGS, long, seed=0)[2] == []


def test_a_setting_that_no_example_fits_fails_alone(capsys: pytest.CaptureFixture) -> None:
    """The other settings keep all of their examples."""
    pool = [{"id": i, "text": "a" * 30, "label": i % 2} for i in range(8)]
    settings = {"zero_shot": Setting(), "long": Setting(plain_tokens=40), "chunk": Setting(compressed_tokens=[40])}
    results, _, dropped = job(pool=pool).results(settings, TESTS, seed=0)
    assert dropped == [] and results["zero_shot"]["n"] == 9
    assert "no test example fits the model's 128 positions after a prompt of" in results["long"]["error"]
    assert "needs" in results["chunk"]["error"] and "the model has 128" in results["chunk"]["error"]
    assert "run letters seed 0 long: FAILED, the other settings go on:" in capsys.readouterr().err
    fitted, _, _ = job(pool=pool, demonstrations="fitting").results(settings, TESTS, seed=0)
    assert [fitted[name].get("error") for name in settings] == [None] * 3
    assert (fitted["long"]["asked"], fitted["long"]["demonstrations"], fitted["long"]["over_budget"]) == (None, 1, 0)


def test_too_few_rows_for_the_demonstrations_fail_their_setting() -> None:
    settings = {"few": Setting(plain_tokens=16), "many": Setting(plain_tokens=8 * 13)}
    results, _, _ = job().results(settings, TESTS, seed=0)
    assert "accuracy" in results["few"]
    assert results["many"] == {
        "error": "13 demonstrations are asked for; the split 'train' has 12 rows to draw from",
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["5", "m"], "row 100: the options '5' and 'm' have the same tokens"),
        (["x", "x"], "row 100: the options 'x' and 'x' have the same tokens"),
        (["x", ""], "row 100: the option '' adds no token to its example"),
    ],
)
def test_options_that_cannot_be_told_apart(options: list[str], message: str) -> None:
    rows = [{**row, "first": options[0], "second": options[1]} for row in TESTS]
    of = task(options=None, option_fields=["first", "second"])
    results, records, _ = job(of).results({"zero_shot": Setting()}, rows, seed=0)
    assert message in results["zero_shot"]["error"] and records == []


def test_what_fails_its_setting_alone_and_what_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(error: Exception) -> Any:
        def fail(*arguments: Any, **options: Any) -> Any:
            raise error

        monkeypatch.setattr("synopsis.stages.icl.run.read_prefix", fail)
        return job().results({"zero_shot": Setting()}, TESTS, seed=0)[0]["zero_shot"]["error"]

    broken = LlamaForCausalLM(configuration()).eval()
    with torch.no_grad():
        broken.lm_head.weight[5] = float("nan")
    results, _, _ = job(model=broken).results({"zero_shot": Setting()}, TESTS, seed=0)
    assert "row 100: the model's losses are not finite ('x': nan, 'yz': nan)" in results["zero_shot"]["error"]
    assert "not enough memory" in failing(RuntimeError("alloc_cpu.cpp] DefaultCPUAllocator: not enough memory"))
    with pytest.raises(ZeroDivisionError):
        failing(ZeroDivisionError())


def scores(**fields: Any) -> list[list[float]]:
    texts = Texts(task(**fields), Characters())
    examples = [texts.example(row) for row in TESTS]
    prefix = read_prefix(MODEL, None, [1])
    return [preference.scores for preference in classify(MODEL, prefix, texts, examples, TESTS[0])[0]]


def test_normalisations() -> None:
    sums, means, by_bytes = (scores(normalization=kind) for kind in ("sum", "mean", "bytes"))
    for total, mean, by_byte in zip(sums, means, by_bytes, strict=True):
        assert mean == pytest.approx([total[0], total[1] / 2])
        assert by_byte == pytest.approx([total[0], total[1] / 2])  # one byte a token here
    two_bytes = scores(normalization="bytes", options=["x", "é"])
    assert two_bytes[0][1] == pytest.approx(scores(normalization="sum", options=["x", "é"])[0][1] / 2)


def test_an_option_that_begins_another_is_scored_as_it_is_alone() -> None:
    together = scores(options=["x", "xy", "xyz"])
    apart = [scores(options=[option, "q"]) for option in ("x", "xy", "xyz")]
    for row, *alone in zip(together, *apart, strict=True):
        assert row == pytest.approx([one[0] for one in alone], abs=1e-5)


def test_equal_calibration_inputs_are_read_once() -> None:
    texts = {kind: Texts(task(calibration=kind), Characters()) for kind in ("none", "example")}
    costs = {}
    for kind, of in texts.items():
        examples = [of.example(row) for row in TESTS]
        costs[kind] = classify(MODEL, read_prefix(MODEL, None, [1]), of, examples, TESTS[0])[1]
    assert costs["example"].tokens - costs["none"].tokens <= len("N/A:y")
    assert costs["example"].naive_tokens > costs["none"].naive_tokens + 9 * len("N/A:x")


def test_subsamples_are_the_same_for_everyone() -> None:
    rows = [{"id": index} for index in range(50)]
    chosen = subsample(rows, 7)
    assert chosen == subsample(rows, 7) and len({row["id"] for row in chosen}) == 7
    assert chosen == sorted(chosen, key=lambda row: row["id"])
    assert subsample(rows, None) == subsample(rows, 50) == subsample(rows, 99) == rows
