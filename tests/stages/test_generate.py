"""The generate stage on small models: its tokens are those of passes over a row alone, for every method and batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from compressor_models import architecture_model, configuration, gist_model, summary_model
from experiment_text import spoilt, write
from laws import Eviction, Truncation, gist_greedy, greedy_in_segments
from model_folders import FIELDS, GIST_FIELDS, ids_of, world_tokenizer, write_folder
from synopsis.artifacts import Layout, read_csv, read_json, write_json
from synopsis.compressors.loading import load
from synopsis.config.experiment import Experiment, load_experiment
from synopsis.engine.decoding import Draws
from synopsis.errors import ArtifactError, DataError, SynopsisError
from synopsis.stages.generate import run as stage
from synopsis.stages.generate.run import COLUMNS, Prompt, decoded, generate, prompts_of
from synopsis.stages.generate.section import Generate, Sampling
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


def test_a_model_that_is_gist_trained_elsewhere_reads_its_own_gist_tokens(experiment: Experiment) -> None:
    """A published checkpoint is an entry of `models:`, which says nothing of a training."""
    model, tokenizer = load(Layout(experiment).model("gist-1-s0"), device="cpu"), world_tokenizer()
    rows = [dict(zip(("instruction", "input", "id"), texts, strict=True)) for texts in ROWS]
    as_model, as_run = (
        prompts_of(rows, model, tokenizer, experiment.subject(run), experiment.generate, "seen")
        for run in ("base", "gist-1-s0")
    )
    assert as_model == as_run and all(prompt.compressed[-1] == GIST for prompt in as_model)


def test_a_published_source_that_was_cut_before_its_gist_token_is_read_whole(experiment: Experiment) -> None:
    subject = experiment.subject("t5-gist-s0")
    training = subject.training.model_copy(update={"tokenization": "published", "max_length": 6})
    subject = subject.model_copy(update={"training": training})
    model, tokenizer = load(Layout(experiment).model("t5-gist-s0"), device="cpu"), world_tokenizer()
    rows = [{"id": size, "instruction": " ".join(["map"] * size), "input": "fox"} for size in (2, 9)]
    one, other = prompts_of(rows, model, tokenizer, subject, experiment.generate, "seen")
    assert one.compressed[-1] == GIST and other.compressed == [] and len(other.ids) == 6
    assert len(decoded(model, tokenizer, [one, other], experiment.generate, "rows")) == 2


@pytest.mark.parametrize("run", ["base", "gist-1-s0", "auto-s0", "t5-gist-s0"])
def test_a_row_draws_the_same_in_every_batch_and_order(experiment: Experiment, run: str) -> None:
    drawn: dict[object, dict[str, str]] = {}
    for seed, size in ((0, 1), (0, 4), (1, 4)):
        sampling = Sampling(temperature=1.3, top_p=0.9, seed=seed)
        generate(changed(experiment, sampling=sampling, batch_size=size), run, "seen")
        drawn[seed, size] = {row["id"]: row["y_pred"] for row in outputs_of(experiment, run)}
    assert (
        read_json(Layout(experiment).generations(run, "seen").with_suffix(".json"), "rouge")["provenance"]["seed"] == 1
    )
    assert drawn[0, 1] == drawn[0, 4] != drawn[1, 4]
    generate(changed(experiment, sampling=Sampling(temperature=1.3, top_p=0.9), max_examples=2), run, "seen")
    assert {row["id"]: row["y_pred"] for row in outputs_of(experiment, run)}.items() <= drawn[0, 1].items()


def test_draws_follow_the_distribution_and_its_nucleus() -> None:
    shares = torch.tensor([0.5, 0.3, 0.15, 0.05])
    generators = [torch.Generator().manual_seed(seed) for seed in range(4000)]
    for top_p, expected in ((1.0, shares), (0.7, torch.tensor([0.625, 0.375, 0, 0]))):
        draws = Draws(generators, 0.5, top_p)(torch.zeros(4000, 1), shares.log().expand(4000, -1) / 2)
        found = torch.bincount(draws.argmax(-1), minlength=4) / 4000
        torch.testing.assert_close(found, expected, atol=0.03, rtol=0)
        assert (found > 0).equal(expected > 0)


def test_draws_go_with_their_rows_where_windows_slide() -> None:
    """There prompts of one length are continued at a time."""
    model = architecture_model("gist", "gemma2", gist_token_id=60, gist_condition="gist")
    prompts = [
        Prompt([5, 6, 60], ids, 3 + len(ids), LIMIT, seed) for seed, ids in enumerate(([7], [8, 9], [10, 11, 12]))
    ]
    section = Generate(instructions="x", splits=["x"], max_new_tokens=LIMIT, sampling=Sampling())
    one, all_three = (
        decoded(model, world_tokenizer(), prompts, section.model_copy(update={"batch_size": size}), "rows")
        for size in (1, 3)
    )
    assert one == all_three and len({tuple(ids) for ids, _ in one}) == 3


def test_a_limit_in_all_counts_the_prompt(experiment: Experiment, capsys: pytest.CaptureFixture[str]) -> None:
    """And each row has its own, whatever the others of the batch may write."""
    sizes = [sum(map(len, parts(row, False))) for row in ROWS]
    most = sorted(sizes)[-2]
    payload = generate(changed(experiment, max_new_tokens=None, max_tokens=most), "base", "seen")
    found = outputs_of(experiment, "base")
    limits = [max(most - size, 0) for size in sizes]
    assert limits.count(0) == 2 == payload["without_room"] and max(limits) > 3
    assert "2 prompts with max_tokens" in capsys.readouterr().err
    for row, limit, texts in zip(found, limits, ROWS, strict=True):
        expected = alone(experiment, "base", texts, limit) if limit else []
        assert row["y_pred"] == world_tokenizer().decode(expected, skip_special_tokens=True).strip()
        assert (row["finish_reason"] == "length") == (len(expected) == limit)
    assert sum(payload["finish_reasons"].values()) == len(ROWS)


def test_no_row_is_batched_beyond_the_positions(experiment: Experiment) -> None:
    """Short prompts may write more than long ones have positions for."""
    model = load(Layout(experiment).model("auto-s0"), device="cpu")
    model.config.max_position_embeddings = 24
    section = experiment.generate.model_copy(update={"max_new_tokens": None, "max_tokens": 24, "context": "full"})
    rows = [{"id": size, "instruction": " ".join(["map"] * size), "input": ""} for size in range(1, 9)]
    prompts = prompts_of(rows, model, world_tokenizer(), experiment.subject("auto-s0"), section, "seen")
    assert all(prompt.start + prompt.limit == 24 for prompt in prompts)
    written = decoded(model, world_tokenizer(), prompts, section, "rows")
    assert [len(ids) <= prompt.limit for (ids, _), prompt in zip(written, prompts, strict=True)] == [True] * 8


def test_batches_halve_where_memory_does_not_suffice(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    generate(experiment, "gist-1-s0", "seen")
    expected, sizes, decode = outputs_of(experiment, "gist-1-s0"), [], stage.decode

    def tight(model: Any, prompts: list[list[int]], *arguments: Any, **options: Any) -> Any:
        sizes.append(len(prompts))
        if len(prompts) > most:
            raise RuntimeError("DefaultCPUAllocator: not enough memory")
        return decode(model, prompts, *arguments, **options)

    monkeypatch.setattr(stage, "decode", tight)
    most = 1
    generate(experiment, "gist-1-s0", "seen")
    assert outputs_of(experiment, "gist-1-s0") == expected and sizes == [5, 2, 1, 1, 1, 1, 1]
    most = 0
    with pytest.raises(SynopsisError, match=r"gist-1-s0 seen: a prompt of .* tokens does not fit in memory"):
        generate(experiment, "gist-1-s0", "seen")
    assert "continuing with 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("run", "rows", "section", "message"),
    [
        ("base", [], {}, "the split 'seen' has no rows"),
        ("gist-1-s0", [("say <GIST>", "", "x")], {}, "row 0 holds the gist token <GIST> as text"),
        ("t5-gist-s0", [("say", "<GIST>", "x")], {}, "column 'input' holds the gist token"),
        (
            "base",
            [("map " * 300, "", "x")],
            {},
            r"row 0 \(304 tokens\) .* need 310 positions; .* has 256",
        ),
        ("auto-s0", [("say", "map " * 300, "x")], {}, r"row 0 .* need 313 positions; the model has 256"),
        ("gist-1-s0", [("say", "", "x")], {"max_new_tokens": None, "max_tokens": 4}, None),
    ],
)
def test_odd_rows(
    experiment: Experiment, run: str, rows: list[tuple[str, str, str]], section: dict[str, Any], message: str | None
) -> None:
    own = experiment.model_copy(update={"name": "odd"})
    layout = Layout(own)
    layout.root.mkdir(exist_ok=True)
    for folder in ("models", "data/tokenizers"):
        (layout.root / folder).parent.mkdir(exist_ok=True)
        if not (layout.root / folder).exists():
            (layout.root / folder).symlink_to(Layout(experiment).root / folder)
    content = [{"id": n, **dict(zip(("instruction", "input", "output"), r, strict=True))} for n, r in enumerate(rows)]
    splits = {"train": [{}], "seen": content}
    write_json(layout.instructions("translations"), "instructions", {"splits": splits}, {})
    if message is None:
        assert generate(changed(own, **section), run, "seen")["rougeL"] == 0
        assert outputs_of(own, run)[0]["y_pred"] == ""
        layout.generations(run, "seen").unlink()
        return
    with pytest.raises(DataError, match=message):
        generate(changed(own, **section), run, "seen")
    assert not layout.generations(run, "seen").exists()


def test_a_split_that_is_not_there_is_named(experiment: Experiment) -> None:
    with pytest.raises(ArtifactError, match="has no split 'human'; found train, seen, unseen"):
        generate(experiment, "base", "human")
