"""From a folder or hub id to a model: the method and class follow from what is in it, never from its name.

    model = load("results/demo/models/autocompressor-s0")
    model = load("princeton-nlp/RMT-2.7b-8k", dtype=torch.bfloat16)         # published checkpoints load as they are
    model = load("adapter-folder", base="Llama-2-7b-hf")                    # LoRA is merged into its base
    model = load("llama-7b-gist-1", base="llama-7b")                        # a weight diff: recovered, and verified

Published configurations say little: `synopsis.compressors.published.names` says what is read from the weights' names
and the tokenizer instead.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    LlamaTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from synopsis.artifacts import PROVENANCE, TOKENIZER_FILES, check_outputs
from synopsis.compressors import adapters
from synopsis.compressors.attention import check_attention
from synopsis.compressors.auto_classes import reason_of
from synopsis.compressors.published import weight_diff
from synopsis.compressors.published.names import SETTINGS, complete, kind_of
from synopsis.compressors.published.weight_files import has_weights, read_weights, refused
from synopsis.compressors.registry import compressor_class
from synopsis.errors import ArtifactError, InputError
from synopsis.progress import say

DOWNLOADED = ("*.json", "*.txt", "*.model", "*.safetensors")
SENTENCEPIECE = ("tokenizer.model", "spiece.model")
"""Tokenizers in the format of the package sentencepiece, as the published checkpoints have them."""
SHOWN = 3
"""Names of keys in a message; their number stands behind."""


@dataclass
class Checkpoint:
    """What is needed to build a model: `weights` are mapped from files, by the names that the class `cls` has.

    folder: where tokenizer and generation settings lie; inputs: the folders that were read; kind: as of `kind_of`;
    verified: what a recovered weight diff agreed with, None where there was nothing to compare.
    """

    name: str
    folder: Path
    inputs: list[Path]
    kind: str | None
    config: Any
    cls: Any
    weights: dict[str, Tensor] = field(repr=False)
    verified: str | None = None


def load(
    path: str | Path,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str = torch.float32,
    base: str | Path | None = None,
    checksum: float | None = None,
    revision: str | None = None,
    **options: Any,
) -> PreTrainedModel:
    """Load a model for evaluation from a folder or hub id; `device` None takes a GPU where there is one.

    base: of a LoRA adapter or a weight diff; an adapter's own is taken where none is given. checksum: the sum of the
    weights that a diff must lead to; those of the released LLaMA-7B diffs are known. revision: of a hub id. What a
    published configuration leaves unsaid may be given: gist_condition (`gist` unless a released diff's sum says it),
    gist_tokens (1), gist_token_id, accumulate_summary (True), max_position_embeddings (OPT's table is extended). Other
    options, such as attn_implementation, go to `from_pretrained`.

    Raises ArtifactError when the folder is missing, incomplete or damaged, or holds weights in a format that could run
    code; when keys are missing, left over or of another shape; when a base does not belong to its diff.
    """
    settings = {name: options.pop(name, None) for name in SETTINGS}
    return build(open_checkpoint(path, base, checksum, revision, **settings), device, dtype, **options)


def open_checkpoint(
    path: str | Path,
    base: str | Path | None = None,
    checksum: float | None = None,
    revision: str | None = None,
    **settings: Any,
) -> Checkpoint:
    """Find out what a folder or hub id holds, without building the model; arguments and errors as of `load`."""
    folder = local_folder(path, revision)
    of_adapter, inputs = adapters.is_adapter(folder), [folder]
    if of_adapter:
        whole = folder if base is None and has_weights(folder) else _base_of_adapter(folder, base)
        inputs += [whole] if whole != folder else []
        weights = adapters.merged(folder, read_weights(whole))
        config = _configuration(path, folder if (folder / "config.json").is_file() else whole)
    else:
        config, weights = _configuration(path, folder), read_weights(folder)
    for name, value in settings.items():
        if value is not None:
            setattr(config, name, value)
    kind, verified = kind_of(config, weights, folder), None
    # An adapter beside its config is no diff, nor is a model of another architecture.
    if not of_adapter and config.model_type == "llama" and weight_diff.is_diff(folder, weights):
        whole = _base_of_diff(folder, base)
        inputs.append(whole)
        weights, verified = _recover(folder, config, weights, whole, checksum)
    elif base is not None and not of_adapter:
        raise InputError(f"{path}: is a whole model, neither a weight diff nor an adapter; load it without base=")
    complete(config, kind, weights, folder)
    return Checkpoint(str(path), folder, inputs, kind, config, _class(path, kind, config), weights, verified)


def build(
    checkpoint: Checkpoint, device: str | torch.device | None, dtype: torch.dtype | str, **options: Any
) -> PreTrainedModel:
    """The model of a checkpoint, in evaluation mode; weights go from their files to where they are used, once."""
    check_attention(options.get("attn_implementation"))
    place = torch.device(device or default_device())
    if place.type != "cpu" and "device_map" not in options:
        options["device_map"] = {"": place}
    try:
        with quiet():
            model, report = checkpoint.cls.from_pretrained(
                None,
                config=checkpoint.config,
                state_dict=checkpoint.weights,
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below with their names
                trust_remote_code=False,
                **options,
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise refused(checkpoint.name, str(error).splitlines()[0]) from error
    _check(checkpoint.name, report)
    model.config.name_or_path = checkpoint.name
    if (checkpoint.folder / "generation_config.json").is_file():
        with quiet(), contextlib.suppress(OSError, ValueError):  # it may be of a version that no longer loads
            model.generation_config = GenerationConfig.from_pretrained(checkpoint.folder)
    return model.eval()


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub id, those that were saved under the name LLaMATokenizer too."""
    folder = Path(path)
    if not folder.is_dir() and (folder.is_absolute() or len(folder.parts) > 2):
        raise ArtifactError(f"{path}: no such folder; the stage that writes it has not run")
    check_outputs(folder / PROVENANCE, TOKENIZER_FILES)
    try:
        named = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("tokenizer_class")
    except (OSError, ValueError, AttributeError):
        named = None
    pieces = [name for name in SENTENCEPIECE if (folder / name).is_file()]
    if pieces and not (folder / "tokenizer.json").is_file() and importlib.util.find_spec("sentencepiece") is None:
        reason = f"its {pieces[0]} is read by the package sentencepiece, which is not installed"
        raise ArtifactError(f"{path}: no tokenizer can be loaded: {reason}")
    reader: Any = LlamaTokenizer if named == "LLaMATokenizer" else AutoTokenizer
    try:
        with quiet():
            return reader.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: no tokenizer can be loaded: {reason_of(error)}") from error


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' bars and reports of loading: what is wrong is raised as an error."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def local_folder(path: str | Path, revision: str | None = None) -> Path:
    """The folder itself, or that of a hub id, downloaded or from the cache; safetensors are preferred."""
    folder = Path(path)
    if folder.is_dir():
        _must_be_whole(folder)
        check_outputs(folder / PROVENANCE)
        return folder
    if folder.exists():
        raise ArtifactError(f"{path}: is a file; expected a model folder")
    if len(folder.parts) > 2 or folder.is_absolute():
        raise ArtifactError(f"{path}: no such folder; the stage that writes it has not run")
    found = _download(str(path), revision, DOWNLOADED)
    if not has_weights(found) and not adapters.is_adapter(found):
        found = _download(str(path), revision, (*DOWNLOADED, "*.bin"))
    _must_be_whole(found)
    return found


def _download(name: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        # Weights of folders inside are those of other formats, or of checkpoints.
        return Path(
            snapshot_download(
                name, revision=revision, allow_patterns=list(patterns), ignore_patterns=["*/*", "training_args.bin"]
            )
        )
    except (OSError, ValueError, HfHubHTTPError, HFValidationError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ArtifactError(f"{name}: is no folder here, and no model that can be fetched: {reason}") from error


def _must_be_whole(folder: Path) -> None:
    if not (folder / "config.json").is_file() and not adapters.is_adapter(folder):
        raise ArtifactError(f"{folder}: has no config.json; it is no model folder, or an incomplete one")


def _configuration(path: str | Path, folder: Path) -> Any:
    try:
        with quiet():
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise refused(path, f"config.json: {reason_of(error)}") from error
    if getattr(config, "auto_map", None):
        say(f"{path}: its own Python code (auto_map) is not run; it is read as transformers' {config.model_type}")
    return config


def _base_of_adapter(folder: Path, base: str | Path | None) -> Path:
    named = base or adapters.base_of(folder)
    if not named:
        raise InputError(f"{folder}: is an adapter and does not name its base; give it with base=")
    beside = folder.parent / Path(named).name
    if base is None and not Path(named).is_dir() and beside.is_dir():
        return beside  # the folder of all models was moved, or this is another working directory
    try:
        return local_folder(named)
    except ArtifactError as error:
        if base is not None:
            raise
        raise ArtifactError(f"{folder}: is an adapter; give the folder of its base with base=. {error}") from None


def _base_of_diff(folder: Path, base: str | Path | None) -> Path:
    if base is None:
        raise InputError(f"{folder}: holds a weight diff, not a model; give the folder of its base with base=")
    return local_folder(base)


def _recover(
    folder: Path, config: Any, diff: dict[str, Tensor], base: Path, checksum: float | None
) -> tuple[dict[str, Tensor], str | None]:
    """The tuned weights of a diff, and what their sum agreed with; a released model's sum says its condition."""
    weights = weight_diff.recover(read_weights(base), diff, config.rope_parameters["rope_theta"])
    weight_diff.correct(folder, weights)
    given = {} if checksum is None else {"checksum": checksum}
    expected = given or weight_diff.read_record(folder) or weight_diff.released_sums(diff, config)
    if not expected:
        say(f"{folder}: recovered, but not verified: no checksum of it is known")
        return weights, None
    agreed = weight_diff.verify(weight_diff.weight_sum(weights, config), expected, folder)
    if agreed in weight_diff.RELEASED:
        config.gist_condition = agreed
    return weights, agreed


def _class(path: str | Path, kind: str | None, config: Any) -> Any:
    if kind is not None:
        return compressor_class(kind, config.model_type)
    if config.is_encoder_decoder:
        mapping = MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
    else:
        mapping = MODEL_FOR_CAUSAL_LM_MAPPING
    if type(config) not in mapping:
        raise refused(path, f"transformers has no language model of the type {config.model_type!r}")
    return mapping[type(config)]


def _check(name: str, report: dict[str, Any]) -> None:
    """ArtifactError when keys are missing, left over, or of another shape."""
    faults = []
    if report["missing_keys"]:
        faults.append(f"the weights lack {_some(report['missing_keys'])}")
    if report["unexpected_keys"]:
        faults.append(f"the model has no place for {_some(report['unexpected_keys'])}")
    shapes = [f"{key} {tuple(found)} for {tuple(wanted)}" for key, found, wanted in report["mismatched_keys"]]
    if shapes:
        faults.append(f"of another shape than config.json says: {_some(shapes)}")
    faults += [str(message).splitlines()[0] for message in report.get("error_msgs", ())]
    if faults:
        raise ArtifactError(f"{name}: {'; '.join(faults)}")


def _some(names: Any) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - SHOWN} more ({len(listed)} in all)" if len(listed) > SHOWN else ""
    return ", ".join(listed[:SHOWN]) + more
