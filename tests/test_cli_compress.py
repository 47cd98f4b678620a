"""`synopsis compress`, `generate --context` and `convert`: what they write and print, and what they refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from compressor_models import architecture_model, configuration, summary_model
from model_folders import FIELDS, GIST_FIELDS, WORDS, ids_of, world_tokenizer, write_folder
from published_checkpoints import CHECKPOINTS
from synopsis.artifacts import read_json
from synopsis.compressors import CompressedContext, load
from t5_models import START, t5_model
from torch import Tensor
from transformers import LlamaForCausalLM

GIST = GIST_FIELDS["gist_token_id"]
STORY = "old fox eats seeds shy owl visits caves young wolf wears blue calm hare eats corn"
STORY_IDS = ids_of(STORY)  # 16
Call = Callable[..., tuple[int, str, str]]
Models = SimpleNamespace


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Folders of small models. `summary` has 20 positions and gives 3 vectors for each segment."""
    root = tmp_path_factory.mktemp("models")
    small = {**FIELDS, "max_position_embeddings": 20}
    made = {
        "summary": summary_model(**small),
        "stranger": summary_model(seed=1, **small),
        "rmt": summary_model(accumulate_summary=False, **small),
        "opt": architecture_model("summary", "opt", summary_length=3, **small),
        "full": summary_model(**{**FIELDS, "summary_length": 0}),
        "gist": architecture_model("gist", "llama", gist_tokens=2, **GIST_FIELDS),
        "neg_control": architecture_model("gist", "llama", gist_condition="neg_control", **GIST_FIELDS),
        "t5": t5_model(vocab_size=len(WORDS) + 1, gist_token_id=GIST, eos_token_id=2),
        "plain": LlamaForCausalLM(configuration(**FIELDS)),
    }
    return SimpleNamespace(**{name: write_folder(model, root / name) for name, model in made.items()}, root=root)


def seen(ids: list[int]) -> str:
    """What is printed of the tokens that a model writes: up to the end of text, without special tokens."""
    ids = ids[: ids.index(2)] if 2 in ids else ids
    return str(world_tokenizer().decode(ids, skip_special_tokens=True)).strip()


# ------------------------------------------------------------------------------------------------------------- compress


def test_a_text_becomes_the_vectors_of_its_segments(models: Models, call: Call, tmp_path: Path) -> None:
    out = tmp_path / "new" / "context.safetensors"
    code, printed, _ = call("compress", models.summary, STORY, "--out", out, "--segment-length", 7)
    assert code == 0
    model, context = load(models.summary, "cpu"), CompressedContext.load(out)
    with torch.no_grad():
        whole = model(torch.tensor([STORY_IDS]), segment_lengths=[7, 7, 2], output_softprompt=True).softprompt
    torch.testing.assert_close(context.summary_vectors, whole, atol=1e-5, rtol=1e-5)
    assert context.source_tokens.tolist() == [16] and context.length == 9
    # 2 layers x keys and values x 4 heads x 8 numbers of 4 bytes; a vector has 32 numbers, and two counters stand by.
    assert printed.splitlines() == [
        "16 tokens in 3 segments -> 9 vectors, 1.8 tokens each",
        f"{16 * 512} bytes in a cache of all tokens -> {9 * 128 + 16} bytes (7.0 to 1); {9 * 512} bytes in a cache "
        "when used",
        f"written to {out}",
    ]


@pytest.mark.parametrize(
    ("name", "segments"),
    [("summary", [17, 14, 11, 3]), ("rmt", [17, 14, 14]), ("opt", [20, 20, 5]), ("stranger", [17, 14, 11, 3])],
)
def test_segments_fill_the_positions(
    name: str, segments: list[int], models: Models, call: Call, tmp_path: Path
) -> None:
    text, out = " ".join((STORY.split() * 3)[:45]), tmp_path / "context"
    code, printed, _ = call("compress", getattr(models, name), text, "-o", out, "--json")
    found = json.loads(printed.splitlines()[-1])
    assert code == 0 and found["segments"] == segments and found["tokens"] == 45
    vectors = 3 if name == "rmt" else 3 * len(segments)
    assert found["vectors"] == vectors == CompressedContext.load(out).length
    assert found["tokens_per_vector"] == 45 / vectors
    assert found["bytes_before"] == 45 * 512 and found["bytes_in_use"] == vectors * 512
    assert found["bytes_after"] == CompressedContext.load(out).nbytes
    assert found["bytes_ratio"] == found["bytes_before"] / found["bytes_after"]
    with torch.no_grad():
        ids, model = torch.tensor([(STORY_IDS * 3)[:45]]), load(getattr(models, name), "cpu")
        whole = model(ids, segment_lengths=segments, output_softprompt=True).softprompt
    torch.testing.assert_close(CompressedContext.load(out).summary_vectors, whole, atol=1e-5, rtol=1e-5)


INSTRUCTION = "Say these in Noric"
COMPRESSED = ids_of(f"Instruction: {INSTRUCTION} |")


@pytest.mark.parametrize(("name", "count"), [("gist", 2), ("gist", 3), ("t5", 1), ("neg_control", 1)])
def test_an_instruction_is_compressed_as_in_training(
    name: str, count: int, models: Models, call: Call, tmp_path: Path
) -> None:
    out, more = tmp_path / "context", ["--tokens", count] if count == 3 else []
    code, printed, _ = call("compress", getattr(models, name), INSTRUCTION, "-o", out, "--json", *more)
    found, context = json.loads(printed.splitlines()[-1]), CompressedContext.load(out)
    assert code == 0 and found["tokens"] == len(COMPRESSED) + count
    expected = load(getattr(models, name), "cpu").compress(torch.tensor([COMPRESSED + [GIST] * count]))
    assert context.next_position.tolist() == expected.next_position.tolist() == [len(COMPRESSED) + count]
    for kept, right in zip((*context.keys, *context.values), (*expected.keys, *expected.values), strict=True):
        torch.testing.assert_close(kept, right)
    # Two key and value heads of the Llamas; T5 has four, and outputs of its encoder.
    of_a_token = 2 * 2 * 4 * 8 * 4 + 32 * 4 if name == "t5" else 2 * 2 * 2 * 8 * 4
    vectors = 0 if name == "neg_control" else count
    assert found["vectors"] == vectors and found["bytes_before"] == found["tokens"] * of_a_token
    assert found["tokens_per_vector"] == (found["tokens"] / vectors if vectors else None)


def test_ways_to_give_a_text(models: Models, call: Call, tmp_path: Path) -> None:
    (tmp_path / "story.txt").write_text(STORY)
    for given in ([STORY], ["--file", tmp_path / "story.txt"], ["-"], ["--file", "-"]):
        words = ["compress", models.summary, *given, "-o", tmp_path / "context"]
        code, printed, _ = call(*words, stdin=STORY if "-" in given else "")
        assert code == 0 and printed.startswith("16 tokens -> 3 vectors")


def test_contexts_in_half_precision(models: Models, call: Call, tmp_path: Path) -> None:
    out = tmp_path / "context"
    code, printed, _ = call("compress", models.summary, STORY, "-o", out, "--dtype", "bfloat16")
    vectors = CompressedContext.load(out).summary_vectors
    assert code == 0 and vectors is not None and vectors.dtype == torch.bfloat16
    assert f"\n{16 * 256} bytes in a cache of all tokens -> {3 * 64 + 16} bytes" in printed
    for dtype in ("bfloat16", "float32"):
        words = ("generate", "--model", models.summary, "--context", out, "calm bear eats", "--dtype", dtype)
        assert call(*words)[0] == 0


# ------------------------------------------------------------------------------------------------------------- generate


def greedy(model: Any, ids: list[int], count: int, **options: Any) -> list[int]:
    """New tokens by plain forward passes over everything, the last segment growing."""
    lengths = options.get("segment_lengths")
    new: list[int] = []
    with torch.no_grad():
        for _ in range(count):
            given = {"segment_lengths": [*lengths, len(ids) + len(new) - sum(lengths)]} if lengths else {}
            new.append(int(model(torch.tensor([ids + new]), **given).logits[0, -1].argmax()))
    return new


QUESTIONS = ["calm bear eats", "proud deer", "old fox visits hills"]


def test_answers_after_a_text(models: Models, call: Call, tmp_path: Path) -> None:
    out = tmp_path / "context"
    assert call("compress", models.summary, STORY, "-o", out, "--segment-length", 8)[0] == 0
    (tmp_path / "last.txt").write_text(QUESTIONS[2])
    words = ["generate", "--model", models.summary, "--context", out, "--max-new-tokens", 4]
    code, printed, _ = call(*words, QUESTIONS[0], "-", "--file", tmp_path / "last.txt", stdin=QUESTIONS[1])
    model = load(models.summary, "cpu")
    ids = [ids_of(question) for question in QUESTIONS]
    answers = [seen(greedy(model, STORY_IDS + row, 4, segment_lengths=[8, 8])) for row in ids]
    assert code == 0 and any(answers)
    expected = [line for pair in zip(QUESTIONS, answers, strict=True) for line in (f"> {pair[0]}", pair[1])]
    assert printed == "\n".join(expected) + "\n"
    # Each one alone, and as JSON.
    for question, answer in zip(QUESTIONS, answers, strict=True):
        assert call(*words, question)[:2] == (0, answer + "\n")
    found = json.loads(call(*words, *QUESTIONS, "--json")[1])["answers"]
    assert [row["answer"] for row in found] == answers
    assert [row["question"] for row in found] == QUESTIONS and [row["prompt_tokens"] for row in found] == [3, 2, 4]
    without = [seen(greedy(model, row, 4)) for row in ids]
    plainly = json.loads(call(*words[:3], "--max-new-tokens", 4, *QUESTIONS, "--json")[1])["answers"]
    assert [row["answer"] for row in plainly] == without and without != answers


REST = ids_of("| Input: fox owl | Output:")


@pytest.mark.parametrize("name", ["gist", "neg_control"])
def test_answers_after_an_instruction(name: str, models: Models, call: Call, tmp_path: Path) -> None:
    out, model = tmp_path / "context", load(getattr(models, name), "cpu")
    words = ["generate", "--model", getattr(models, name), "--max-new-tokens", 5]
    assert call("compress", getattr(models, name), INSTRUCTION, "-o", out)[0] == 0
    whole = COMPRESSED + [GIST] * model.config.gist_tokens  # in one pass, under the mask of the condition
    with_input, without = seen(greedy(model, whole + REST, 5)), seen(greedy(model, whole + ids_of("| Output:"), 5))
    assert call(*words, "--context", out, "fox owl")[:2] == (0, with_input + "\n")
    assert call(*words, "--context", out)[:2] == (0, without + "\n")
    assert call(*words, INSTRUCTION)[:2] == (0, without + "\n")  # the instruction is the question
    assert with_input != without


def test_answers_of_a_t5(models: Models, call: Call, tmp_path: Path) -> None:
    out, model = tmp_path / "context", load(models.t5, "cpu")
    assert call("compress", models.t5, INSTRUCTION, "-o", out)[0] == 0

    def decoded(ids: list[int]) -> str:
        new = [START]
        with torch.no_grad():
            for _ in range(5):
                logits: Tensor = model(torch.tensor([ids]), decoder_input_ids=torch.tensor([new])).logits
                new.append(int(logits[0, -1].argmax()))
        return seen(new[1:])

    whole = [*COMPRESSED, GIST]
    answers = [decoded([*whole, *rest, 2]) for rest in (ids_of("| Input: fox owl"), ids_of("| Input: deer"), [])]
    words = ["generate", "--model", models.t5, "--max-new-tokens", 5]
    found = json.loads(call(*words, "--context", out, "fox owl", "deer", "--json")[1])["answers"]
    assert [row["answer"] for row in found] == answers[:2] and len(set(answers)) > 1
    assert call(*words, "--context", out)[:2] == (0, answers[2] + "\n")
    assert call(*words, INSTRUCTION)[:2] == (0, answers[2] + "\n")


@pytest.mark.parametrize("name", ["plain", "full"])
def test_a_model_that_does_not_compress_answers_too(name: str, models: Models, call: Call) -> None:
    words = ["generate", "--model", getattr(models, name), "--max-new-tokens", 4]
    expected = seen(greedy(load(getattr(models, name), "cpu"), ids_of(QUESTIONS[0]), 4))
    assert call(*words, QUESTIONS[0])[:2] == (0, expected + "\n")


def test_an_answer_is_as_long_as_there_are_positions(models: Models, call: Call, tmp_path: Path) -> None:
    """20 positions: 9 vectors, 3 words, and the last new word need not be read."""
    out = tmp_path / "context"
    call("compress", models.summary, STORY, "-o", out, "--segment-length", 7)
    words = ["generate", "--model", models.summary, "--context", out, QUESTIONS[0], "--json"]
    longest = json.loads(call(*words, "--max-new-tokens", 9)[1])
    assert json.loads(call(*words)[1]) == longest
    code, printed, error = call(*words, "--max-new-tokens", 10)
    assert (code, printed) == (2, "")
    assert "9 positions of the context, 3 tokens of the longest question and 10 new ones exceed the 20" in error


# ------------------------------------------------------------------------------------------------ compress with --input


def test_an_instruction_and_its_input_in_one_step(models: Models, call: Call, tmp_path: Path) -> None:
    words = ["compress", models.gist, INSTRUCTION, "--input", "fox owl", "--max-new-tokens", 5]
    model, whole = load(models.gist, "cpu"), [*COMPRESSED, GIST, GIST]
    plain = LlamaForCausalLM.from_pretrained(models.gist).eval()  # sees the instruction
    answers = [seen(greedy(one, whole + REST, 5)) for one in (model, plain)]
    code, printed, _ = call(*words)
    assert code == 0 and answers[0] != answers[1]
    lines = printed.splitlines()
    assert lines[0].startswith(f"{len(whole)} tokens -> 2 vectors")
    assert "\n".join(lines[2:4]) == f"compressed: {world_tokenizer().decode(whole)}"
    assert lines[4:] == [
        "input: fox owl",
        f"with compression: {answers[0]}",
        f"without compression: {answers[1]}",
    ]
    found = json.loads(call(*words, "--json", "--out", tmp_path / "context")[1])
    assert [found["with_compression"], found["without_compression"]] == answers and found["vectors"] == 2
    assert found["out"] == str(tmp_path / "context") and CompressedContext.load(tmp_path / "context").length == 2


def test_a_text_and_its_question_in_one_step(models: Models, call: Call) -> None:
    words = ["compress", models.summary, STORY, "--input", "calm bear", "--segment-length", 8, "--max-new-tokens", 3]
    model, ids = load(models.summary, "cpu"), STORY_IDS + ids_of("calm bear")
    with_, without = seen(greedy(model, ids, 3, segment_lengths=[8, 8])), seen(greedy(model, ids, 3))
    code, printed, _ = call(*words)
    assert code == 0 and with_ != without
    assert printed.splitlines()[2:] == [
        f"compressed: {STORY}",
        "input: calm bear",
        f"with compression: {with_}",
        f"without compression: {without}",
    ]
    # 48 tokens and two more do not fit into 20 positions without compression.
    longer = call("compress", models.rmt, " ".join([STORY] * 3), "--input", "calm bear", "--max-new-tokens", 3)[1]
    assert "exceed the 20 positions of this model" in longer.splitlines()[-1]
    assert longer.splitlines()[2].startswith(f"compressed: {STORY} ") and " ... " in longer.splitlines()[2]


@pytest.mark.parametrize("name", ["t5", "neg_control"])
def test_without_compression_nothing_is_hidden(name: str, models: Models, call: Call) -> None:
    folder = getattr(models, name)
    found = json.loads(call("compress", folder, INSTRUCTION, "--input", "fox owl", "--max-new-tokens", 5, "--json")[1])
    shown = load(folder, "cpu", gist_condition="pos_control")
    if name == "t5":
        ids = torch.tensor([[*COMPRESSED, GIST, *ids_of("| Input: fox owl"), 2]])
        expected = seen(shown.generate(ids, max_new_tokens=5, do_sample=False)[0, 1:].tolist())
    else:
        expected = seen(greedy(shown, [*COMPRESSED, GIST, *REST], 5))
    assert found["without_compression"] == expected != found["with_compression"]


# -------------------------------------------------------------------------------------------------------------- convert


def test_convert_writes_a_folder_of_ours(call: Call, tmp_path: Path) -> None:
    CHECKPOINTS["gist-Llama"].write(tmp_path / "published", "bin")
    words = ["convert", tmp_path / "published", tmp_path / "ours", "--set", "gist_condition=pos_control", "--json"]
    code, printed, _ = call(*words)
    found = json.loads(printed.splitlines()[-1])
    assert code == 0 and (found["form"], found["compressor"], found["architecture"]) == ("synopsis", "gist", "llama")
    assert load(tmp_path / "ours", "cpu").config.gist_condition == "pos_control"
    assert read_json(tmp_path / "ours" / "provenance.json", "model")["form"] == "synopsis"
    back = ["convert", tmp_path / "ours", tmp_path / "back", "--to", "published", "--format", "safetensors"]
    code, printed, _ = call(*back)
    assert code == 0 and "form: published\n" in printed and (tmp_path / "back" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{summary}", "{root}/new", "--to", "paper"], "to='paper': there is no such form"),
        (["{summary}", "{root}/new", "--set", "cake=1"], "there is no setting cake"),
        (["{summary}", "{root}/new", "--set", "cake"], "--set cake: expected KEY=VALUE"),
        (["{summary}", "{gist}"], "is there already"),
        (["{root}/none", "{root}/new"], "{root}/none: no such folder"),
        (["{summary}", "{root}/new", "--base", "{plain}"], "is a whole model"),
        (["{summary}", "{root}/new", "--checksum", "many"], "--checksum"),
        (["{summary}"], "Missing argument"),
    ],
)
def test_convert_refuses(words: list[str], message: str, models: Models, call: Call) -> None:
    code, printed, error = call("convert", *(word.format(**vars(models)) for word in words))
    assert (code, printed) == (2, "") and message.format(**vars(models)) in error
    assert not (models.root / "new").exists()


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{root}/none", "fox"], "{root}/none: no such folder"),
        (["{root}", "fox"], "{root}: has no config.json"),
        (["{plain}", "fox"], "{plain}: LlamaForCausalLM cannot compress; expected an AutoCompressor"),
        (["{full}", "fox"], "{full}: this model has no summary tokens (summary_length is 0)"),
        (["{summary}"], "the text: expected an argument, --file FILE, or - for standard input; found none"),
        (["{summary}", "fox", "--file", "story.txt"], "found both an argument and --file"),
        (["{summary}", ""], "the text: is empty"),
        (["{summary}", " \n"], "the text: is empty"),
        (["{summary}", "-"], "standard input: is empty"),
        (["{summary}", "--file", "{root}/none.txt"], "{root}/none.txt: cannot be read: No such file"),
        (["{summary}", "--file", "{root}"], "{root}: cannot be read: Is a directory"),
        (["{summary}", LONG := "fox " * 60, "--segment-length", "18"], "a segment of 18 tokens after 0 soft-prompt"),
        (["{summary}", LONG], "the text has 60 tokens, and this model reads 57 of them: their 18 summary vectors"),
        (["{summary}", "fox", "--segment-length", "0"], "--segment-length"),
        (
            ["{summary}", "fox", "--tokens", "3"],
            "takes no number of gist tokens (found 3): this model compresses texts",
        ),
        (["{gist}", "fox", "--segment-length", "3"], "takes no segment length (found 3)"),
        (["{gist}", "fox", "--tokens", "1"], "was trained with 2 gist tokens; 1 would not do"),
        (["{gist}", "fox <GIST> owl"], "the text holds the gist token <GIST> itself"),
        (["{gist}", "fox " * 260], "264 positions; this model has 256"),
        (["{summary}", "fox", "--dtype", "float8"], "dtype 'float8': expected one of float32, bfloat16, float16"),
        (["{summary}", "fox", "--base", "{plain}"], "is a whole model, neither a weight diff nor an adapter"),
        (["{summary}", "fox", "--out", "{root}"], "{root}: is a folder; expected the name of a file"),
        (["{summary}", "fox", "--max-new-tokens", "3"], "--max-new-tokens goes with --input"),
        (["{summary}", "fox", "--json"], "compress: expected --out FILE, --input TEXT, or both"),
        (["{summary}", "fox", "--input", " "], "a question is empty"),
    ],
)
def test_compress_refuses(words: list[str], message: str, models: Models, call: Call, tmp_path: Path) -> None:
    out = tmp_path / "context"
    given = [word.format(**vars(models)) for word in words]
    code, printed, error = call("compress", *given, *([] if {"--out", "--json"} & {*words} else ["--out", out]))
    assert (code, printed) == (2, "") and message.format(**vars(models)) in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "{summary}", "--context", "{context}"], "there is no question to answer"),
        (["--model", "{gist}"], "there is no question to answer"),
        (["--model", "{summary}", "--context", "{context}", "fox", " "], "a question is empty"),
        (["--model", "{summary}", "--context", "{root}/none", "fox"], "{root}/none: no such file"),
        (["--model", "{summary}", "--context", "{summary}/config.json", "fox"], "not a readable safetensors file"),
        (
            ["--model", "{summary}", "--context", "{summary}/model.safetensors", "fox"],
            "format 'pt'; expected 'synopsis",
        ),
        (
            ["--model", "{stranger}", "--context", "{context}", "fox"],
            "{context}: {stranger} cannot read it: the context was made by another model",
        ),
        (["--model", "{gist}", "--context", "{context}", "fox"], "{context}: {gist} cannot read it: the context was"),
        (
            ["--model", "{plain}", "--context", "{context}", "fox"],
            "{context}: {plain} cannot read it: LlamaForCausalLM",
        ),
        (
            ["--model", "{summary}", "--context", "{rows}", "fox", "owl"],
            "the context has 3 rows; there are 2 questions",
        ),
        (["--model", "{gist}", "fox <GIST>"], "holds the gist token <GIST> itself"),
        (["--model", "{summary}", "fox " * 21], "21 tokens of the longest question and 1 new ones exceed the 20"),
        (["--model", "{root}/none", "fox"], "{root}/none: no such folder"),
        (["--model", "{summary}", "fox", "--max-new-tokens", "0"], "--max-new-tokens"),
        (["--model", "{summary}", "--file", "{root}/none.txt"], "{root}/none.txt: cannot be read"),
        (["fox"], "expected --config FILE RUN SPLIT, or --model MODEL with questions"),
        (["--model", "{summary}", "fox", "--set", "a=1"], "expected --config FILE RUN SPLIT, or --model MODEL"),
        (["--config", "none.yaml", "gist-1-s0"], "expected RUN and SPLIT alone; found gist-1-s0"),
        (["--config", "none.yaml"], "expected RUN and SPLIT alone; found nothing"),
        (["--config", "none.yaml", "--model", "m", "a", "b"], "expected RUN and SPLIT alone; found --model a b"),
        (["--config", "none.yaml", "gist-1-s0", "seen"], "none.yaml: (top level): found no such file"),
    ],
)
def test_generate_refuses(words: list[str], message: str, models: Models, call: Call, tmp_path: Path) -> None:
    places = {**vars(models), "context": tmp_path / "context", "rows": tmp_path / "rows"}
    model = load(models.summary, "cpu")
    model.compress(torch.tensor([STORY_IDS])).save(places["context"])
    model.compress(torch.tensor([STORY_IDS] * 3)).save(places["rows"])
    code, printed, error = call("generate", *(word.format(**places) for word in words))
    assert (code, printed) == (2, "") and message.format(**places) in error


def test_what_is_there_stays_when_compressing_fails(models: Models, call: Call, tmp_path: Path) -> None:
    out = tmp_path / "context"
    out.write_bytes(b"former")
    assert call("compress", models.summary, LONG, "-o", out)[0] == 2
    code, _, error = call("compress", models.summary, "-", "--out", out, stdin=b"fox\xff")
    assert code == 2 and "standard input: is no UTF-8 text (byte 3)" in error
    assert out.read_bytes() == b"former" and list(tmp_path.iterdir()) == [out]
