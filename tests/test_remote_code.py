"""No way in runs the Python code of a model folder, whatever is answered on standard input."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
import synopsis
import torch
from compressor_models import architecture_model
from model_folders import GIST_FIELDS, write_folder
from safetensors.torch import save_file
from synopsis.errors import InputError

LIBRARY = Path(synopsis.__file__).parent
NOT_RUN = "it needs Python code of its own (auto_map), which was not run: Synopsis runs no code of model folders"
AUTO_MAP = {
    "AutoConfig": "own.Config",
    "AutoModelForCausalLM": "own.Model",
    "AutoTokenizer": ["own.Words", "own.Words"],
}
SMALL = {"vocab_size": 2, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
CODE = """
from pathlib import Path
from transformers import LlamaConfig as Config, LlamaForCausalLM as Model, PreTrainedTokenizerFast as Words
Path({marker!r}).touch()
"""
WAYS = {
    "generate": ["generate", "--model", "{folder}", "fox"],
    "compress": ["compress", "{folder}", "fox", "--out", "{root}/context"],
    "compress with an input": ["compress", "{folder}", "fox", "--input", "owl"],
    "convert": ["convert", "{folder}", "{root}/new"],
    "prepare": ["prepare", "--config", "{root}/experiment.yaml", "model", "base"],
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose classes are its own."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "own.py").write_text(CODE.format(marker=str(tmp_path / "it-ran")))
    (folder / "config.json").write_text(json.dumps({**SMALL, "model_type": "own", "auto_map": AUTO_MAP}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Words", "auto_map": AUTO_MAP}))
    save_file({"lm_head.weight": torch.zeros(2, 2)}, folder / "model.safetensors", metadata={"format": "pt"})
    models = {"base": {"path": str(folder), "type": "llama"}}
    experiment = {"name": "test", "results": str(tmp_path / "results"), "models": models}
    (tmp_path / "experiment.yaml").write_text(json.dumps(experiment))
    return folder


@pytest.mark.parametrize("way", WAYS)
def test_commands_run_no_code_of_a_folder(way: str, folder: Path, call: Any) -> None:
    """Also where a user would answer yes to everything."""
    words = [word.format(folder=folder, root=folder.parent) for word in WAYS[way]]
    code, printed, error = call(*words, stdin="y\n" * 20)
    assert (code, printed) == (2, "")
    assert error.splitlines()[-1].startswith("synopsis: ") and error.endswith(f"{NOT_RUN}\n")
    assert str(folder) in error.splitlines()[-1] and error.count("synopsis: ") == 1
    assert not (folder.parent / "it-ran").exists()


@pytest.mark.parametrize("door", [synopsis.load, synopsis.load_tokenizer])
def test_the_library_runs_no_code_of_a_folder(door: Any, folder: Path) -> None:
    with pytest.raises(InputError) as caught:
        door(folder)
    assert str(caught.value).startswith(f"{folder}: ") and str(caught.value).endswith(NOT_RUN)
    assert not (folder.parent / "it-ran").exists()


@pytest.mark.parametrize("model_type", ["llama", "synopsis"])
def test_known_architectures_need_no_code(
    model_type: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Many folders on the hub still have code that transformers no longer needs."""
    model = architecture_model("gist", "llama", **GIST_FIELDS)
    write_folder(model, folder)
    values = json.loads((folder / "config.json").read_text())
    if model_type == "llama":
        values |= {"model_type": "llama"}
    (folder / "config.json").write_text(json.dumps({**values, "auto_map": AUTO_MAP}))
    ids = torch.tensor([[3, 4, GIST_FIELDS["gist_token_id"], 5, 6]])
    with torch.no_grad():
        assert torch.equal(synopsis.load(folder, "cpu")(ids).logits, model(ids).logits)
    synopsis.load_tokenizer(folder)
    assert "its own Python code (auto_map) is not run; it is read as transformers' llama" in capsys.readouterr().err
    assert not (tmp_path / "it-ran").exists()


def test_every_call_of_transformers_forbids_code() -> None:
    """GenerationConfig is left out: it reads numbers, and takes no such argument."""
    calls = [
        (f"{file.relative_to(LIBRARY)}:{call.lineno}", call)
        for file in LIBRARY.rglob("*.py")
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr in ("from_pretrained", "from_config")
        and ast.unparse(call.func.value) != "GenerationConfig"
    ]
    assert calls
    allowed = [
        place
        for place, call in calls
        if not any(word.arg == "trust_remote_code" and ast.unparse(word.value) == "False" for word in call.keywords)
    ]
    assert allowed == []
