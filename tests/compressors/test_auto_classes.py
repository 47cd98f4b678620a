"""transformers' Auto classes give our classes for our folders after `import synopsis`, and refuse them without it."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import synopsis
import torch
from compressor_models import architecture_model, configuration, summary_model
from model_folders import GIST_FIELDS, WORDS, ids_of, write_folder
from published_checkpoints import CHECKPOINTS
from synopsis.compressors import load
from synopsis.compressors.auto_classes import MODEL_TYPE
from t5_models import t5_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    LlamaForCausalLM,
)

GIST = GIST_FIELDS["gist_token_id"]
PROMPT = "Instruction: Say these in Noric \n <GIST> \n Input: fox owl \n Output:"
IDS = torch.tensor([[*ids_of("Instruction: Say these in Noric |"), GIST, *ids_of("| Input: fox owl | Output:")]])
MADE: dict[str, Any] = {
    "gist": lambda: architecture_model("gist", "llama", **GIST_FIELDS),
    "neg_control": lambda: architecture_model("gist", "llama", gist_condition="neg_control", **GIST_FIELDS),
    "gist on qwen3": lambda: architecture_model("gist", "qwen3", **GIST_FIELDS),
    "gist on an architecture that is not in our tests": lambda: architecture_model("gist", "olmo", **GIST_FIELDS),
    "summary": lambda: summary_model(vocab_size=len(WORDS) + 1),
    "rmt": lambda: summary_model(vocab_size=len(WORDS) + 1, accumulate_summary=False),
    "full attention": lambda: summary_model(vocab_size=len(WORDS) + 1, summary_length=0),
    "opt": lambda: architecture_model("summary", "opt", vocab_size=len(WORDS) + 1, summary_length=3),
    "t5": lambda: t5_model(vocab_size=len(WORDS) + 1, gist_token_id=GIST, eos_token_id=2),
}


@pytest.mark.parametrize("name", MADE)
def test_auto_classes_give_our_models(name: str, tmp_path: Path) -> None:
    made = MADE[name]()
    made.save_pretrained(tmp_path / "m")
    auto: Any = AutoModelForSeq2SeqLM if name == "t5" else AutoModelForCausalLM
    model = auto.from_pretrained(tmp_path / "m")
    assert type(model) is type(made)
    # What transformers and peft look up by it must find the architecture.
    assert model.config.model_type == made.config.model_type in ("llama", "qwen3", "olmo", "opt", "t5")
    options: dict[str, Any] = {"decoder_input_ids": IDS[:, :3]} if name == "t5" else {}
    with torch.no_grad():
        expected = made(IDS, **options).logits
        assert torch.equal(model(IDS, **options).logits, expected)
    # Written again they are the same, and so they are for `load`.
    model.save_pretrained(tmp_path / "again")
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "again", "cpu")(IDS, **options).logits, expected)
    configs = [json.loads((tmp_path / folder / "config.json").read_text()) for folder in ("m", "again")]
    assert configs[0] == configs[1] and configs[0]["model_type"] == MODEL_TYPE
    assert type(auto.from_config(model.config)) is type(made)
    assert type(pickle.loads(pickle.dumps(model.config))) is type(model.config)


USE = """
import sys
import {first}
if {first!r} == "synopsis":
    assert not {{"torch", "transformers"}} & set(sys.modules)
from transformers import AutoModelForCausalLM, pipeline
AutoModelForCausalLM.register  # imports it
import {second}
import torch
model = AutoModelForCausalLM.from_pretrained({folder!r})
print(type(model).__name__)
print(model(torch.tensor({ids})).logits[0, -1].tolist())
say = pipeline("text-generation", model={folder!r})
answer = say({prompt!r}, max_new_tokens=4, do_sample=False, return_full_text=False)[0]["generated_text"]
print(type(say.model).__name__, repr(answer))
"""


def in_a_process(folder: Path, first: str, second: str) -> tuple[list[str], str]:
    """What transformers gives in another process, which imports the two in this order: lines, and the error."""
    script = USE.format(first=first, second=second, folder=str(folder), ids=IDS.tolist(), prompt=PROMPT)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    return done.stdout.splitlines(), done.stderr


@pytest.mark.parametrize(("first", "second"), [("synopsis", "transformers"), ("transformers", "synopsis")])
def test_the_order_of_imports_does_not_matter(first: str, second: str, tmp_path: Path) -> None:
    model, folder = architecture_model("gist", "llama", **GIST_FIELDS), tmp_path / "m"
    write_folder(model, folder)
    lines, error = in_a_process(folder, first, second)
    assert len(lines) == 3, error
    assert "not supported" not in error
    assert lines[0] == "GistLlamaForCausalLM"
    with torch.no_grad():
        expected = model(IDS).logits[0, -1]
    torch.testing.assert_close(torch.tensor(json.loads(lines[1])), expected, atol=1e-5, rtol=1e-5)
    plain = LlamaForCausalLM.from_pretrained(folder)(IDS).logits[0, -1]
    assert (plain - expected).abs().max() > 0.1, "the mask makes a difference"
    new = model.generate(IDS, max_new_tokens=4, do_sample=False)[0, IDS.shape[1] :]
    tokenizer = synopsis.load_tokenizer(folder)
    assert lines[2] == f"GistLlamaForCausalLM {tokenizer.decode(new, skip_special_tokens=True)!r}"


def test_without_synopsis_a_folder_is_refused(tmp_path: Path) -> None:
    write_folder(architecture_model("gist", "llama", **GIST_FIELDS), tmp_path / "m")
    lines, error = in_a_process(tmp_path / "m", "transformers", "torch")
    assert lines == [] and "import synopsis first" in error


def test_plain_use_of_the_weights(tmp_path: Path) -> None:
    """Asked for by its class, the plain model of the architecture has the same weights."""
    model = architecture_model("gist", "llama", **GIST_FIELDS)
    model.save_pretrained(tmp_path / "m")
    plain = LlamaForCausalLM.from_pretrained(tmp_path / "m")
    own = model.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in plain.state_dict().items())
    plain.save_pretrained(tmp_path / "plain")
    assert json.loads((tmp_path / "plain" / "config.json").read_text())["model_type"] == "llama"


@pytest.mark.parametrize("name", ["gist", "summary", "t5"])
def test_folders_of_the_version_before_load(name: str, tmp_path: Path) -> None:
    """Their config.json has the model type of the architecture."""
    made, file = MADE[name](), tmp_path / "m" / "config.json"
    made.save_pretrained(tmp_path / "m")
    values = json.loads(file.read_text())
    del values["compressor_kind"]
    values["model_type"] = values.pop("base_model_type")
    file.write_text(json.dumps(values))
    model = load(tmp_path / "m", "cpu")
    assert type(model) is type(made) and model.fingerprint() == made.fingerprint()
    model.save_pretrained(tmp_path / "new")
    assert json.loads((tmp_path / "new" / "config.json").read_text())["model_type"] == MODEL_TYPE


def test_a_configuration_of_the_caller_stays_as_it_is() -> None:
    config = configuration(**GIST_FIELDS)
    assert type(synopsis.GistLlamaForCausalLM(config).config) is not type(config)
    assert type(AutoModelForCausalLM.from_config(config)) is LlamaForCausalLM


def test_a_folder_with_half_of_our_fields_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": MODEL_TYPE, "base_model_type": "llama"}))
    with pytest.raises(ValueError, match=r"expected base_model_type, and compressor_kind as one of .*gist, summary"):
        AutoConfig.from_pretrained(tmp_path)


# ---------------------------------------------------------------------------------------------- the published interface


def test_the_names_of_the_published_code() -> None:
    assert synopsis.AutoCompressorModel is synopsis.OPTAutoCompressorModel
    for name in ("LlamaAutoCompressorModel", "GistLlamaForCausalLM", "GistT5ForConditionalGeneration"):
        assert getattr(synopsis, name).__name__ == name
    for name in ("NoSuchForCausalLM", "nothing"):
        with pytest.raises(AttributeError, match=name):
            getattr(synopsis, name)


@pytest.mark.parametrize(
    ("checkpoint", "name"),
    [
        ("AutoCompressor-Llama", "LlamaAutoCompressorModel"),
        ("AutoCompressor-OPT", "AutoCompressorModel"),
        ("RMT-OPT", "AutoCompressorModel"),
        ("FullAttention-OPT", "OPTAutoCompressorModel"),
    ],
)
def test_published_checkpoints_load_by_their_class(
    checkpoint: str, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As in the example of the published README: by the class, compress, and go on from the summary vectors."""
    CHECKPOINTS[checkpoint].write(tmp_path / "m", "bin")
    model = getattr(synopsis, name).from_pretrained(tmp_path / "m", torch_dtype=torch.float32).eval()
    expected, ids = load(tmp_path / "m", "cpu"), torch.tensor([[5, 9, 33, 7, 20, 41]])
    assert "You are using a model of type" not in caplog.text
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": 3}
    if model.config.summary_length:
        vectors = model(ids, output_softprompt=True).softprompt
        assert torch.equal(vectors, expected(ids, output_softprompt=True).softprompt)
        assert torch.equal(
            model.generate(ids, softprompt=vectors, **options), expected.generate(ids, softprompt=vectors, **options)
        )
    assert torch.equal(model.generate(ids, **options), expected.generate(ids, **options))
