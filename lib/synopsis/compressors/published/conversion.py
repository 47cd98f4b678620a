"""Published checkpoints as folders of ours, and ours as the published code reads them.

    convert("princeton-nlp/AutoCompressor-Llama-2-7b-6k", "models/autocompressor-7b")
    convert("jayelm/llama-7b-gist-1", "models/gist-7b", base="llama-7b")            # the diff is recovered and verified
    convert("models/gist-7b", "gist-7b-diff", to="published", base="llama-7b")      # and made again

Values and their precision stay as they are, to the bit, there and back.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synopsis.artifacts import PROVENANCE, TOKENIZER_FILES, Provenance, atomic_directory, write_json
from synopsis.compressors import adapters
from synopsis.compressors.loading import Checkpoint, build, local_folder, open_checkpoint, quiet
from synopsis.compressors.published import weight_diff
from synopsis.compressors.published.names import CLASSES, SETTINGS, PublishedClass
from synopsis.compressors.published.weight_files import read_weights
from synopsis.errors import InputError
from synopsis.progress import say

FORMS = ("synopsis", "published")
FILE_FORMATS = {"safetensors": "model{suffix}.safetensors", "bin": "pytorch_model{suffix}.bin"}
SHARD_SIZE = "5GB"
TEXTS = (*TOKENIZER_FILES, "generation_config.json")
NOT_PUBLISHED = ("dtype", "rope_parameters", "scale_decoder_outputs", "_name_or_path", "id2label", "label2id")
"""Fields of a configuration that are written under another name, or not at all."""


@dataclass(frozen=True)
class Converted:
    """What was written.

    form: `synopsis`, `published` or `weight diff`; compressor: `summary`, `gist`, or None for a plain model; verified:
    as in `Checkpoint`.
    """

    source: str
    destination: str
    form: str
    compressor: str | None
    architecture: str
    dtype: str
    tensors: int
    parameters: int
    verified: str | None


def convert(
    source: str | Path,
    destination: str | Path,
    to: str = "synopsis",
    base: str | Path | None = None,
    checksum: float | None = None,
    revision: str | None = None,
    file_format: str = "bin",
    **settings: Any,
) -> Converted:
    """Write the model of `source` (a folder or hub id) to the folder `destination`, whole or not at all.

    to: `synopsis` for a folder of ours (see `synopsis.compressors.auto_classes`), `published` for one that the
    published code reads (AutoCompressor on OPT or Llama; gist on Llama or T5). base: of a source that is a weight diff
    or an adapter; with `to="published"` and a source that is a whole gist Llama, write a weight diff against it.
    checksum, revision and settings (gist_condition, gist_tokens, ...): as of `load`. file_format: of published folders,
    `bin` (what the published code wrote) or `safetensors`; ours are always safetensors. Tokenizer and generation
    settings are copied as they are; provenance.json says where the weights come from.

    Raises InputError when there is no such form, or something is at `destination`; ArtifactError as `load` does.
    """
    _check_request(source, Path(destination), to, file_format, settings)
    provenance = Provenance(config="")
    say(f"converting {source} to {destination}")
    against = None
    if to == "published" and base is not None and not _is_part(local_folder(source, revision)):
        against, base = local_folder(base), None
    checkpoint = open_checkpoint(source, base, checksum, revision, **settings)
    provenance.inputs = [*checkpoint.inputs, *([against] if against else [])]
    dtype = _lossless(checkpoint.weights)
    model = build(checkpoint, "cpu", dtype)
    with atomic_directory(destination) as folder:
        _copy_texts(checkpoint.folder, folder)
        if to == "synopsis":
            form = to
            with quiet():
                model.save_pretrained(folder, max_shard_size=SHARD_SIZE)
        else:
            form = _write_published(model, checkpoint, folder, file_format, against)
        precision = str(dtype).removeprefix("torch.")
        parameters = sum(parameter.numel() for parameter in model.parameters())
        found = (form, checkpoint.kind, model.config.model_type, precision, len(checkpoint.weights), parameters)
        result = Converted(str(source), str(destination), *found, checkpoint.verified)
        configuration = (folder / "config.json").read_bytes()
        provenance.config, provenance.dtype = hashlib.sha256(configuration).hexdigest(), precision
        write_json(folder / PROVENANCE, "model", asdict(result), provenance.record(), [folder])
    say(f"{destination}: {result.form}, {result.tensors} tensors, {result.parameters / 1e6:.1f} M parameters")
    return result


def _check_request(source: str | Path, destination: Path, to: str, file_format: str, settings: dict[str, Any]) -> None:
    if to not in FORMS:
        raise InputError(f"to={to!r}: there is no such form; expected {' or '.join(FORMS)}")
    if file_format not in FILE_FORMATS:
        raise InputError(f"file_format={file_format!r}: expected {' or '.join(FILE_FORMATS)}")
    unknown = sorted(set(settings) - set(SETTINGS))
    if unknown:
        raise InputError(f"there is no setting {', '.join(unknown)}; expected {', '.join(SETTINGS)}")
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise InputError(f"{destination}: is there already; remove it, or give another destination for {source}")


def _is_part(folder: Path) -> bool:
    """Whether the folder is a diff or an adapter, and no model without its base."""
    return adapters.is_adapter(folder) or weight_diff.is_diff(folder, read_weights(folder))


def _lossless(weights: Mapping[str, Tensor]) -> torch.dtype:
    """The one precision of the weights, or float32, which holds all the others."""
    found = {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()}
    return found.pop() if len(found) == 1 else torch.float32


def _write_published(model: Any, checkpoint: Checkpoint, folder: Path, file_format: str, base: Path | None) -> str:
    named = _published_class(checkpoint)
    weights = model.state_dict() if named.architecture == "t5" else _untied(model)
    if (named.kind, named.architecture) == ("gist", "llama"):
        weights = weight_diff.with_frequencies(weights, model.config)
    elif base is not None:
        raise InputError(f"{checkpoint.name}: only gist models on Llama are published as weight diffs; leave base out")
    configuration = json.dumps(_published_configuration(model.config, named), indent=2, sort_keys=True)
    (folder / "config.json").write_text(configuration + "\n", encoding="utf-8")
    if base is not None:
        start, tuned = read_weights(base), weights
        weights = weight_diff.make_diff(start, tuned)
        weight_diff.write_record(folder, start, weights, tuned, model.config)
    _write_weights(weights, folder, file_format)
    return "published" if base is None else "weight diff"


def _published_class(checkpoint: Checkpoint) -> PublishedClass:
    kind, architecture = checkpoint.kind or "summary", checkpoint.config.model_type  # full attention is length 0
    for known in CLASSES:
        if (known.kind, known.architecture) == (kind, architecture):
            return known
    supported = ", ".join(f"{known.kind} on {known.architecture}" for known in CLASSES)
    raise InputError(f"{checkpoint.name}: the published code has no {kind} model on {architecture}, only {supported}")


def _published_configuration(config: Any, named: PublishedClass) -> dict[str, Any]:
    """The configuration in the words of 2023; fields that the published code does not know do no harm to it."""
    # All of them: what is a default today need not have been one then.
    written = {key: value for key, value in config.to_dict().items() if key not in NOT_PUBLISHED and value is not None}
    written |= {"architectures": [named.names[0]], "transformers_version": named.transformers}
    written["torch_dtype"] = str(config.dtype or torch.float32).removeprefix("torch.")
    rotary = dict(getattr(config, "rope_parameters", None) or {})
    if rotary:
        scaling = rotary.pop("rope_type", "default")
        written["rope_theta"] = rotary.pop("rope_theta", 10000.0)
        rotary.pop("type", None)
        if scaling not in ("default", "linear", "dynamic"):
            raise InputError(f"the published code knows no rotary positions of the type {scaling!r}")
        written["rope_scaling"] = None if scaling == "default" else {"type": scaling, "factor": rotary["factor"]}
    if named.architecture == "t5":  # today's T5Config calls every T5 tied, and keeps what was said here there
        written["tie_word_embeddings"] = config.scale_decoder_outputs
    if named.kind == "summary":
        written["summary_length"] = getattr(config, "summary_length", 0)
        written["accumulate_summary"] = getattr(config, "accumulate_summary", True)
        written["segment_gradient_checkpointing"] = getattr(config, "segment_gradient_checkpointing", False)
    return written


def _untied(model: Any) -> dict[str, Tensor]:
    """The state without the second name of a tensor that has two, as both codes save it."""
    state = model.state_dict()
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    return {name: tensor for name, tensor in state.items() if name not in tied}


def _write_weights(weights: Mapping[str, Tensor], folder: Path, file_format: str) -> None:
    """In shards of 5 GB with their index, or one file."""
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    single = FILE_FORMATS[file_format].format(suffix="")
    tensors = {name: tensor.contiguous() for name, tensor in weights.items()}
    split = split_torch_state_dict_into_shards(
        tensors, filename_pattern=FILE_FORMATS[file_format], max_shard_size=SHARD_SIZE
    )
    for file, names in split.filename_to_tensors.items():
        # Cloned, so that a view does not take the whole of what it is a part of with it.
        shard = {name: tensors[name].clone() for name in names}
        if file_format == "safetensors":
            save_file(shard, folder / file, metadata={"format": "pt"})
        else:
            torch.save(shard, folder / file)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / f"{single}.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _copy_texts(source: Path, folder: Path) -> None:
    """Tokenizer and generation settings, as they are: reading a tokenizer with another class could change it."""
    files = {file for pattern in TEXTS for file in source.glob(pattern)}
    for file in sorted(files):
        if file.is_file():
            shutil.copyfile(file, folder / file.name)
