"""Perplexity: any reading in pieces equals one pass, batches do not matter, and what is left out is counted."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compressor_models import architecture_model, configuration, summary_model
from datasets import Dataset, DatasetDict, Features, List, Value
from laws import plain_of
from synopsis.artifacts import Layout
from synopsis.compressors.section import steps
from synopsis.config.experiment import Experiment
from synopsis.engine import last_segment
from synopsis.engine.last_segment import Batches, Reading, demand, scored_losses
from synopsis.errors import DataError, InputError
from synopsis.stages.perplexity import run as stage
from synopsis.stages.perplexity.documents import Documents, text_bytes
from synopsis.stages.perplexity.report import examples
from synopsis.stages.perplexity.section import STAGE
from text_corpora import make_tokenizer
from tokenizers import Tokenizer, decoders
from tokenizers.models import WordLevel
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

SCORED, STEP = 12, 10
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def plain(architecture: str) -> Any:
    """The class of transformers itself, not one of a compressor."""
    return plain_of(architecture_model("summary", architecture, summary_length=0))


METHODS: dict[str, Callable[[str], Any]] = {
    "base": plain,
    "full_attention": lambda name: architecture_model("summary", name, summary_length=0),
    "autocompressor": lambda name: architecture_model("summary", name, summary_length=3),
    "rmt": lambda name: architecture_model("summary", name, summary_length=3, accumulate_summary=False),
}


@pytest.fixture(
    scope="module",
    params=[(method, name) for method in METHODS for name in ("llama", "opt", "mistral", "gemma2")],
    ids="-".join,
)
def model(request: pytest.FixtureRequest) -> Any:
    method, architecture = request.param
    return METHODS[method](architecture)


def reading_of(model: Any, context: int) -> Reading:
    return Reading(context, SCORED, STEP if getattr(model, "compresses", False) else None)


def texts(rows: int, length: int = 60, seed: int = 0) -> Tensor:
    return torch.randint(3, 60, (rows, length), generator=torch.Generator().manual_seed(seed))


def in_one_pass(model: Any, reading: Reading, ids: Tensor) -> Tensor:
    """The losses from the logits of one forward call over the whole text."""
    text = ids[:, ids.shape[1] - reading.scored - reading.context :]
    options: dict[str, Any] = {}
    if getattr(model.config, "summary_length", 0):
        options["segment_lengths"] = [*steps(reading.context, reading.step), reading.scored]
    with torch.no_grad():
        logits = model(input_ids=text, **options).logits[:, reading.context :]
    flat = cross_entropy(logits[:, :-1].flatten(0, 1), text[:, reading.context + 1 :].flatten(), reduction="none")
    return flat.view(len(ids), -1)


# --------------------------------------------------------------------------------------------------------- exactness


@pytest.mark.parametrize("context", [0, 7, 20, 35])
@pytest.mark.parametrize("at_once", [5, 1000])
def test_reading_in_pieces_equals_one_pass(
    model: Any, context: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(last_segment, "TOKENS_AT_ONCE", at_once)
    ids, reading = texts(3), reading_of(model, context)
    losses = scored_losses(model, reading, ids)
    assert losses.shape == (3, SCORED - 1) and losses.dtype == torch.float32
    torch.testing.assert_close(losses, in_one_pass(model, reading, ids), **CLOSE)
    batches = torch.cat([scored_losses(model, reading, part) for part in ids.split([1, 2])])
    torch.testing.assert_close(batches, losses, **CLOSE)


def test_logits_are_made_a_slice_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids, reading = summary_model(), texts(2), Reading(20, SCORED, STEP)
    expected = in_one_pass(model, reading, ids)
    monkeypatch.setattr(last_segment, "LOGITS_AT_ONCE", 2 * 3 * model.config.vocab_size)
    shapes = []
    model.lm_head.register_forward_hook(lambda layer, given, logits: shapes.append(tuple(logits.shape)))
    torch.testing.assert_close(scored_losses(model, reading, ids), expected, **CLOSE)
    assert [shape[:2] for shape in shapes] == [(2, 3), (2, 3), (2, 3), (2, 2)], "11 predictions of 2 rows, 6 at a time"


def test_a_plain_model_makes_no_logits_of_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    model = plain("llama")
    monkeypatch.setattr(last_segment, "TOKENS_AT_ONCE", 16)
    made = []
    model.lm_head.register_forward_hook(lambda layer, given, logits: made.append(logits.shape[1]))
    scored_losses(model, Reading(40, SCORED, None), texts(2))
    assert made == [1] * 5 + [8, 3], "context in pieces of 8 with one prediction each, then 11 scored tokens"


@pytest.mark.parametrize("accumulates", [True, False])
def test_fewer_summary_vectors_are_those_of_the_forward_pass(accumulates: bool) -> None:
    model = summary_model(random_summary_length=True, accumulate_summary=accumulates)
    ids, reading = texts(2), Reading(20, SCORED, STEP, summary_length=2)
    with torch.no_grad():
        out = model(ids[:, -32:], segment_lengths=[10, 10, SCORED], summary_length=2)
    flat = cross_entropy(out.logits[:, 20:-1].flatten(0, 1), ids[:, -SCORED + 1 :].flatten(), reduction="none")
    torch.testing.assert_close(scored_losses(model, reading, ids), flat.view(2, -1), **CLOSE)
    assert demand(model, reading).vectors == (4 if accumulates else 2)


def test_positions_of_a_reading() -> None:
    reading = Reading(25, SCORED, STEP)
    assert demand(summary_model(summary_length=0), Reading(25, SCORED, None)).positions == 25 + SCORED
    assert demand(summary_model(), reading).positions == 9 + SCORED
    assert demand(summary_model(), Reading(25, 2, STEP)).positions == 6 + 10 + 3, "the last step is the longest pass"
    assert demand(summary_model(accumulate_summary=False), reading).positions == 3 + 10 + 3
    assert demand(architecture_model("summary", "opt", summary_length=3), reading).positions == SCORED


# ------------------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")])
def test_a_batch_that_does_not_fit_is_halved_down_to_a_document(
    error: BaseException, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = []

    def needs_room(rows: Tensor) -> Tensor:
        sizes.append(len(rows))
        if len(rows) > 2:
            raise error
        return rows.sum(-1, keepdim=True).float()

    batches, ids = Batches(8), texts(9)
    assert torch.equal(batches.measure(ids, needs_room, "6,144 tokens"), ids.sum(-1, keepdim=True).float())
    assert sizes == [8, 4, 2, 2, 2, 2, 1] and (batches.size, batches.halvings) == (2, 2)
    assert "out of memory with 8 documents in a batch (6,144 tokens); continuing with 4\n" in capsys.readouterr().err
    for other, fault, message in (
        (error, InputError, r"one document does not fit in memory \(6,144 tokens\)"),
        (RuntimeError("shapes do not match"), RuntimeError, "shapes do not match"),
    ):

        def fails(rows: Tensor, other: BaseException = other) -> Tensor:
            raise other

        with pytest.raises(fault, match=message):
            Batches(4).measure(texts(4), fails, "6,144 tokens")


def test_the_bootstrap_is_the_same_in_any_number_of_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    sums, counts = rng.random(40) * 100, rng.integers(1, 60, 40)
    at_once = stage.bootstrap(sums, counts)
    monkeypatch.setattr(stage, "DRAWN_AT_ONCE", 300)
    assert stage.bootstrap(sums, counts) == at_once
    assert at_once[0] < sums.sum() / counts.sum() < at_once[1]


# -------------------------------------------------------------------------------------------------------------- bytes


def test_bytes_are_those_of_the_text_after_the_first_token(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path)
    text = "é 日本 🦊 !"
    ids = np.array(tokenizer(text)["input_ids"])
    assert len(ids) == len(text.encode()) == 16
    assert text_bytes(tokenizer, ids[2:]) == 13, "the space is the first token"
    assert abs(text_bytes(tokenizer, ids) - 15) <= 2, "the first token is half of é"
    assert abs(text_bytes(tokenizer, ids[2:13]) - 10) <= 2, "the last one is a part of the fox"
    assert text_bytes(tokenizer, ids[:1]) == 0
    ids = np.array([*tokenizer("a fox")["input_ids"], tokenizer.eos_token_id])
    assert text_bytes(tokenizer, ids) == len(" fox"), "special tokens have none"
    # Words that carry the space before them, which the decoder drops at the beginning, as SentencePiece does.
    inner = Tokenizer(WordLevel({"▁old": 0, "▁fox": 1, "es": 2, "<unk>": 3}, unk_token="<unk>"))
    inner.decoder = decoders.Metaspace()
    pieces = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")
    assert text_bytes(pieces, np.array([0, 1, 2])) == len(" foxes")


# ---------------------------------------------------------------------------------------------------------- documents


def corpus(documents: list[tuple[str, int]], kinds: bool = False) -> Dataset:
    """Documents of (domain, tokens) with ids of their own."""
    rng = np.random.default_rng(0)
    text, number = Value("string"), Value("int64")
    columns: dict[str, Any] = {"input_ids": List(Value("int32")), "domain": text, "bytes": number, "id": text}
    rows = [
        {"input_ids": rng.integers(3, 60, length).tolist(), "domain": domain, "bytes": None, "id": str(number)}
        for number, (domain, length) in enumerate(documents)
    ]
    if kinds:
        columns["kind"] = List(Value("int8"))
        rows = [{**row, "kind": [i % 3 for i in range(len(row["input_ids"]))]} for row in rows]
    return Dataset.from_list(rows, features=Features(columns))


def test_documents_that_are_too_short_or_too_many_are_counted() -> None:
    dataset = corpus([("law", 50), ("books", 49), ("books", 70), ("law", 60), ("law", 80), ("code", 9)])
    documents = Documents.of(dataset, needed=50, limit=2)
    assert (documents.rows, documents.too_short, documents.beyond_limit) == ([0, 2, 3], 2, 1)
    assert documents.domains == ["books", "law"]
    assert [documents.domain_of(number) for number in range(3)] == ["law", "books", "law"]
    ids, kinds = documents.read(slice(1, 3))
    assert ids.tolist() == [dataset[2]["input_ids"][:50], dataset[3]["input_ids"][:50]] and kinds is None
    assert documents.of_domain("law").tolist() == [True, False, True]


# ---------------------------------------------------------------------------------------------------------- the stage

DOCUMENTS = [("law", 60), ("books", 52), ("law", 47), ("books", 70), ("law", 100), ("books", 12)]


def experiment(folder: Path, **changes: Any) -> Experiment:
    section = {"corpus": "papers", "context_lengths": [0, 15, 40], "scored_tokens": SCORED, "tokens_per_step": STEP}
    training = {"steps": 1, "batch_size": 1, "learning_rate": 1e-3, "corpus": "papers", "sequence_length": 40}
    auto = {"summary_length": 3, "training": {**training, "random_summary_length": True}}
    return Experiment.model_validate(
        {
            "name": "small",
            "results": str(folder / "results"),
            "corpora": {"papers": {"source": "text", "domains": {"law": {"hub": "a"}, "books": {"hub": "b"}}}},
            "models": {"base": {"path": "nowhere", "type": "llama"}},
            "compressors": {
                "auto": {"method": "autocompressor", "base": "base", **auto},
                "full": {"method": "full_attention", "base": "base", "training": training},
            },
            "perplexity": {"batch_size": 2, **section, **changes},
        }
    )


def prepared(folder: Path, documents: list[tuple[str, int]] = DOCUMENTS, kinds: bool = False, **changes: Any) -> Any:
    """An experiment with a corpus, a tokenizer, a base of 50 positions and an AutoCompressor."""
    found = experiment(folder, **changes)
    layout = Layout(found)
    DatasetDict({"test": corpus(documents, kinds)}).save_to_disk(layout.corpus("papers", "base"))
    words = Tokenizer(WordLevel({f"w{number:02}": number for number in range(61)}, unk_token="w00"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(layout.tokenizer("base"))
    torch.manual_seed(0)
    LlamaForCausalLM(configuration(max_position_embeddings=50)).save_pretrained(layout.model("base"))
    summary_model(random_summary_length=True).save_pretrained(layout.model("auto-s0"))
    summary_model(summary_length=0).save_pretrained(layout.model("full-s0"))
    return found


def by_row(result: dict[str, Any]) -> dict[tuple[Any, ...], dict[str, Any]]:
    keys = ("domain", "context_length", "summary_length", "tokens")
    return {tuple(row[key] for key in keys): row for row in result["rows"]}


def test_the_stage_gives_the_losses_of_one_pass(tmp_path: Path) -> None:
    found = prepared(tmp_path)
    result, layout = stage.perplexity(found, "auto-s0"), Layout(found)
    written = json.loads(layout.perplexity("auto-s0").read_text())
    assert result == {key: written[key] for key in written if key not in ("kind", "format", "provenance")}
    rows = by_row(result)
    assert list(rows) == [(domain, length, None, "all") for length in (0, 15, 40) for domain in ("all", "books", "law")]
    dataset = corpus(DOCUMENTS)
    long = {"law": [0, 4], "books": [1, 3]}
    long["all"] = sorted(long["law"] + long["books"])
    model = summary_model(random_summary_length=True)
    for (domain, length, _, _), row in rows.items():
        ids = torch.tensor([dataset[number]["input_ids"][:52] for number in long[domain]])
        losses = in_one_pass(model, Reading(length, SCORED, STEP), ids)
        assert row["loss"] == pytest.approx(float(losses.mean()), abs=1e-5)
        assert row["perplexity"] == pytest.approx(math.exp(row["loss"]))
        assert row["loss_low"] <= row["loss"] <= row["loss_high"]
        assert (row["n_documents"], row["n_tokens"]) == (len(ids), len(ids) * (SCORED - 1))
        assert row["n_bytes"] == len(ids) * (SCORED - 1) * len(" w00")
        assert row["bits_per_byte"] == pytest.approx(row["loss"] / math.log(2) / 4)
        assert row["summary_vectors"] == {0: 0, 15: 6, 40: 12}[length]
    assert (result["documents"], result["too_short"], result["beyond_limit"]) == (4, 2, 0)
    assert result["skipped"] == result["not_finite"] == []


def test_losses_of_documents_make_the_mean(tmp_path: Path) -> None:
    found = prepared(tmp_path, kinds=True)
    rows = by_row(stage.perplexity(found, "auto-s0"))
    of_documents: dict[Any, list[dict[str, Any]]] = {}
    for record in examples(STAGE.outputs(Layout(found), run="auto-s0")):
        of_documents.setdefault((record["context_length"], None, record["tokens"]), []).append(record)
    assert len({record["truth"] for record in of_documents[40, None, "all"]}) == 4
    assert of_documents.keys() == {key[1:] for key in rows}
    for (domain, *key), row in rows.items():
        if domain == "all":
            records = of_documents[tuple(key)]
            losses, weights = ([record[name] for record in records] for name in ("value", "weight"))
            assert np.average(losses, weights=weights) == pytest.approx(row["loss"])
            assert sum(weights) == row["n_tokens"]


@pytest.mark.parametrize("run", ["base", "auto-s0", "full-s0"])
def test_results_do_not_depend_on_the_batch(tmp_path: Path, run: str) -> None:
    results = []
    for size in (1, 3, 8):
        found = prepared(tmp_path, batch_size=size, context_lengths=[0, 15])
        results.append(by_row(stage.perplexity(found, run)))
    for other in results[1:]:
        assert list(other) == list(results[0])
        for key, row in other.items():
            expected = dict(results[0][key])
            # Rounding of the loss by 1e-5 is rounding of the perplexity by that share of it.
            assert row["perplexity"] == pytest.approx(expected.pop("perplexity"), rel=1e-5)
            assert {name: row[name] for name in expected} == pytest.approx(expected, abs=1e-5)


def test_contexts_beyond_the_positions_are_skipped_and_listed(tmp_path: Path) -> None:
    result = stage.perplexity(prepared(tmp_path), "base")
    assert {row["context_length"] for row in result["rows"]} == {0, 15}
    assert result["skipped"] == [{"context_length": 40, "summary_length": None, "positions": 52, "model_positions": 50}]


@pytest.mark.parametrize(
    ("run", "lengths", "fault", "message"),
    [
        ("base", [40, 45], InputError, "run 'base' has 50 positions; the shortest reading needs 52"),
        ("auto-s0", [100], DataError, "none of 6 documents of the split 'test' has 112 tokens"),
        (
            "full-s0",
            [0],
            InputError,
            r"run 'full-s0': document 0 of the split \(domain law\): 11 of its losses",
        ),
    ],
)
def test_nothing_can_be_measured(
    tmp_path: Path, run: str, lengths: list[int], fault: type[Exception], message: str
) -> None:
    """Too few positions, too short documents, weights that are no numbers."""
    found = prepared(tmp_path, context_lengths=lengths)
    model = summary_model(summary_length=0)
    torch.nn.init.constant_(model.lm_head.weight, math.nan)
    model.save_pretrained(Layout(found).model("full-s0"))
    with pytest.raises(fault, match=message):
        stage.perplexity(found, run)
    assert not Layout(found).perplexity(run).exists()


def test_numbers_of_summary_vectors(tmp_path: Path) -> None:
    found = prepared(tmp_path, summary_lengths=[1, 3], context_lengths=[0, 40])
    rows = by_row(stage.perplexity(found, "auto-s0"))
    vectors = {key[1:3]: row["summary_vectors"] for key, row in rows.items() if key[0] == "all"}
    assert vectors == {(0, None): 0, (40, None): 12, (40, 1): 4}, "without context there is one row for all"
    all_of_them = by_row(stage.perplexity(prepared(tmp_path, context_lengths=[0, 40]), "auto-s0"))
    assert all_of_them.items() <= rows.items()
    assert rows["all", 40, 1, "all"]["loss"] != rows["all", 40, None, "all"]["loss"]
    plain_rows = by_row(stage.perplexity(found, "full-s0"))
    assert {key[2] for key in plain_rows} == {None}


def test_classes_of_tokens_of_the_generated_language(tmp_path: Path) -> None:
    rows = by_row(stage.perplexity(prepared(tmp_path, kinds=True, context_lengths=[0]), "full-s0"))
    counts = {key[3]: row["n_tokens"] for key, row in rows.items() if key[0] == "all"}
    kinds = [i % 3 for i in range(1, SCORED)]
    expected = {"all": 11, "dependent": 11 - kinds.count(0), "topic": kinds.count(1), "recall": kinds.count(2)}
    assert counts == {name: len(DOCUMENTS) * count for name, count in expected.items()}
    assert rows["all", 0, None, "topic"]["bits_per_byte"] is None
    parts = [rows["all", 0, None, name] for name in ("topic", "recall")]
    whole = rows["all", 0, None, "dependent"]
    assert sum(part["loss"] * part["n_tokens"] for part in parts) == pytest.approx(whole["loss"] * whole["n_tokens"])


def test_losses_that_are_not_finite_are_reported_with_document_and_domain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = prepared(tmp_path)
    spoilt = torch.tensor(corpus(DOCUMENTS)[3]["input_ids"][:52])

    def losses(model: Any, reading: Reading, ids: Tensor) -> Tensor:
        values = scored_losses(model, reading, ids)
        values[(ids == spoilt).all(-1) & (reading.context == 15), 2] = math.nan
        return values

    monkeypatch.setattr(stage, "scored_losses", losses)
    result = stage.perplexity(found, "auto-s0")
    record = {"document": 3, "domain": "books", "context_length": 15, "summary_length": None, "tokens": 1}
    assert result["not_finite"] == [record]
    rows = by_row(result)
    for domain in ("all", "books"):
        row = rows[domain, 15, None, "all"]
        assert {row[key] for key in ("loss", "loss_low", "loss_high", "perplexity", "bits_per_byte")} == {None}
    assert math.isfinite(rows["law", 15, None, "all"]["loss"]) and math.isfinite(rows["all", 40, None, "all"]["loss"])
    assert "auto-s0: document 3 of the split (domain books): 1 of its losses after 15 tokens" in capsys.readouterr().err


def test_one_spoilt_row_leaves_the_others_of_its_batch() -> None:
    """Numbers that overflow in the summary vectors of one document must not end the run."""
    model, ids, reading = summary_model(), texts(3), Reading(20, SCORED, STEP)
    expected = scored_losses(model, reading, ids)
    with torch.no_grad():
        model.model.embed_tokens.weight[60] = math.inf
    ids[1, 35] = 60
    losses = scored_losses(model, reading, ids)
    assert not losses[1].isfinite().any()
    torch.testing.assert_close(losses[[0, 2]], expected[[0, 2]], **CLOSE)


def test_bfloat16_is_near(tmp_path: Path) -> None:
    exact = stage.perplexity(prepared(tmp_path), "auto-s0")
    found = prepared(tmp_path, dtype="bfloat16")
    near = stage.perplexity(found, "auto-s0")
    assert json.loads(Layout(found).perplexity("auto-s0").read_text())["provenance"]["dtype"] == "bfloat16"
    for row, other in zip(exact["rows"], near["rows"], strict=True):
        assert other["loss"] != row["loss"] and other["loss"] == pytest.approx(row["loss"], rel=0.03)


def test_the_fingerprint_follows_what_changes_the_numbers(tmp_path: Path) -> None:
    def fingerprint(run: str, **changes: Any) -> str:
        return STAGE.fingerprint(experiment(tmp_path, **changes), run=run)

    assert fingerprint("auto-s0", batch_size=4) == fingerprint("auto-s0")
    for change in ({"dtype": "bfloat16"}, {"summary_lengths": [1]}, {"tokens_per_step": 8}, {"max_documents": 2}):
        assert fingerprint("auto-s0", **change) != fingerprint("auto-s0")
    assert fingerprint("full-s0", summary_lengths=[1], tokens_per_step=8) == fingerprint("full-s0"), (
        "nothing is compressed"
    )
