"""The benchmark of in-context learning runs, compares both sides and says so; its timings are not tested here."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from synopsis.artifacts import read_json
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

FOLDER = Path(__file__).parents[2] / "benchmarks"
WORDS = ["<unk>", "<s>", "</s>", "Sentence:", "Sentiment:", "negative", "positive", "bad", "fine", "film"]


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module("icl")
    for name in ("icl", "compressors"):
        sys.modules.pop(name, None)


def tiny(benchmark, **changes):
    """Every measure at a size that takes no time; what the ratios reach is left to the machine."""
    query, option = (3, 5), (2, 3)
    cases = {
        "short_queries": (benchmark.Case("short", 9, query, 4, limit=0.0), benchmark.Case("two", 9, query, 2)),
        "long_queries": (benchmark.Case("long", 7, (12, 12), 2, limit=0.0),),
        "long_options": (benchmark.Case("options", 9, query, 3, option=option),),
        "compressed": (benchmark.Case("vectors", 9, query, 2, vectors=2),),
    }
    return benchmark.ScoringSizes(
        rounds=2, threads=torch.get_num_threads(), vocabulary=64, hidden=16, layers=2, examples=6, loop_examples=2,
        cases=cases, plain_tokens=44, real_loop_examples=1, **changes,
    )  # fmt: skip


@pytest.fixture
def real(benchmark, tmp_path):
    """Arguments for a folder with a micro model that knows a few words, and a mirror with a few rows."""
    inner = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>").save_pretrained(tmp_path / "model")
    model = AutoModelForCausalLM.from_config(tiny(benchmark).config("llama", vocab_size=len(WORDS)))
    model.save_pretrained(tmp_path / "model")
    folder = tmp_path / "mirror" / "icl" / "sst2"
    folder.mkdir(parents=True)
    rows = [{"sentence": f"{word} film", "label": label} for label, word in enumerate(("bad", "fine"))] * 3
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["--model", str(tmp_path / "model"), "--mirror", str(tmp_path / "mirror")]


def test_a_table_and_a_file_with_every_measure(benchmark, real, tmp_path, capsys):
    out = tmp_path / "icl.json"
    assert benchmark.main(["--out", str(out), *real], tiny(benchmark)) == 0
    rows, shown = read_json(out, benchmark.KIND)["rows"], capsys.readouterr().out
    assert [(row["measure"], row["met"]) for row in rows] == [
        ("short_queries", True), ("short_queries", None), ("long_queries", True), ("long_options", None),
        ("compressed", None), ("real", None),
    ]  # fmt: skip
    assert all(row["case"] in shown and row["unit"] == "examples/s" and row["ratio"] > 0 for row in rows)
    assert all(0 <= row["difference"] <= 1e-5 for row in rows)
    assert shown.splitlines()[0].split()[-3:] == ["bound", "share", "difference"]
    # 2 demonstrations of 5 words; the 6 examples are two sentences, so two queries of 4 words, of which one is shared.
    assert rows[-1]["case"] == "sst2, 2 demonstrations in 10 tokens"
    assert rows[-1]["bound"] == round(6 * 2 * (10 + 4 + 1) / (10 + 4 + 3), 1)


def test_the_bound_counts_what_both_sides_read(benchmark):
    """Each option after the prefix and its query, beside the prefix once and each query once."""
    case = benchmark.Case("one", 9, (5, 5), 3)
    problem = benchmark.random_problem(case, tiny(benchmark))
    row = benchmark.compare("m", "one", problem, 1, 1, 1e-5, None)
    first = {tuple(pairs[0][0]) for pairs in problem.examples}
    assert len({query[0] for query in first}) == len(first) == 6  # nothing in common, so nothing more is shared
    assert row["bound"] == round(6 * 3 * (9 + 5 + 1) / (9 + 6 * 5), 1)


@pytest.mark.parametrize("name", ["short_queries", "compressed"])
def test_the_loop_is_transformers_own_model_over_everything(benchmark, name):
    """Its scores are those of the labelled loss, and they depend on what stands before the query."""
    case = benchmark.Case("one", 9, (4, 4), 2, option=(2, 2), vectors=2 * (name == "compressed"))
    problem = benchmark.random_problem(case, tiny(benchmark))
    (query, option), other = problem.examples[0]
    scores = benchmark.published_scores(problem, [(query, option), other])
    embeds = problem.loop.get_input_embeddings()(torch.tensor([[*problem.prefix, *query, *option]]))
    if problem.context is not None:
        embeds = torch.cat([problem.context.summary_vectors, embeds], dim=1)
    labels = torch.full(embeds.shape[:2], -100)
    labels[0, -2:] = torch.tensor(option)
    assert scores[0] == pytest.approx(problem.loop(inputs_embeds=embeds, labels=labels).loss.item(), abs=1e-6)
    without = benchmark.Problem(problem.engine, problem.loop, [], None, problem.examples)
    assert abs(benchmark.published_scores(without, [(query, option)])[0] - scores[0]) > 1e-4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda score: score + 1e-3, "of 6 examples 0 have another prediction"),
        (lambda score: -score, "of 6 examples 6 have another prediction"),
    ],
)
def test_scores_that_disagree_miss_the_limit(benchmark, monkeypatch, capsys, change, message):
    published = benchmark.published_scores
    monkeypatch.setattr(benchmark, "published_scores", lambda *given: [change(score) for score in published(*given)])
    assert benchmark.main(["--only", "compressed"], tiny(benchmark)) == 1
    shown = capsys.readouterr()
    assert shown.out.splitlines()[1].split()[-4] == "NO" and message in shown.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--task", "nothing"], "--task nothing: no such file"), (["--mirror", "nowhere"], "train.jsonl: no such file")],
)
def test_input_that_cannot_be_used_is_reported(benchmark, real, capsys, arguments, message):
    assert benchmark.main(["--only", "real", *real, *arguments], tiny(benchmark)) == 2
    assert message in capsys.readouterr().err
