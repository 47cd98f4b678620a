"""DeepSpeed files that fit a run, and those that contradict it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from synopsis.config.training import LanguageModelTraining, SegmentTraining
from synopsis.errors import InputError
from synopsis.training import stage
from synopsis.training.sharding import check_deepspeed, sharding
from training_runs import LLAMA
from transformers import TrainingArguments
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

FILES = sorted((Path(__file__).parents[2] / "config" / "deepspeed").glob("*.json"))
LANGUAGE: dict[str, Any] = {"corpus": "c", "sequence_length": 8, "steps": 10, "batch_size": 4, "learning_rate": 1e-4}


def checked(training: LanguageModelTraining, folder: Path) -> dict[str, Any]:
    """The settings as transformers fills them in, without the process group that its TrainingArguments would start."""
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed (the extra 'scale')")
    arguments: TrainingArguments = stage._arguments(training, folder, 0, {})
    settings = HfTrainerDeepSpeedConfig(sharding(training)["deepspeed"])
    settings.trainer_config_process(arguments)
    arguments.hf_deepspeed_config = settings
    check_deepspeed(arguments, SimpleNamespace(config=LLAMA), training.deepspeed)
    return settings.config


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_files_that_ship_fit_every_run(path: Path, dtype: str, tmp_path: Path) -> None:
    fields = {"dtype": dtype, "gradient_accumulation": 3, "weight_decay": 0.1, "adam_beta2": 0.95}
    settings = checked(LanguageModelTraining(**LANGUAGE, **fields, deepspeed=str(path)), tmp_path)
    assert settings["zero_optimization"]["stage"] in (2, 3)
    assert (settings["gradient_accumulation_steps"], settings["bf16"]["enabled"]) == (3, dtype == "bfloat16")


@pytest.mark.parametrize(
    ("content", "faults"),
    [
        (
            {"train_micro_batch_size_per_gpu": 8, "train_batch_size": 12, "gradient_accumulation_steps": 2},
            ["train_micro_batch_size_per_gpu=8 ", "gradient_accumulation_steps=2 ", "train_batch_size=12 "],
        ),
        ({"optimizer": {"params": {"lr": 1e-3}}}, ["optimizer.params.lr=0.001 vs hf learning_rate=0.0001"]),
        ({"bf16": {"enabled": True}}, ["bf16.enabled=True "]),
        ({"fp16": {"enabled": True}}, ["fp16.enabled=True "]),
        ({"gradient_clipping": 0.5}, ["gradient_clipping=0.5 "]),
        ({"scheduler": {"params": {"total_num_steps": 11}}}, ["scheduler.params.total_num_steps=11 "]),
    ],
)
def test_every_key_that_contradicts_the_run_is_named(content: Any, faults: list[str], tmp_path: Path) -> None:
    path = tmp_path / "spread.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError) as raised:
        checked(LanguageModelTraining(**LANGUAGE, deepspeed=str(path)), tmp_path)
    assert str(raised.value).startswith(f"{path}: ") and str(raised.value).count(" vs hf ") == len(faults)
    for fault in faults:
        assert f"ds {fault}" in str(raised.value)


def test_a_file_may_say_the_same_as_the_run_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "spread.json"
    path.write_text(json.dumps({"train_batch_size": 4, "bf16": {"enabled": False}, "scheduler": {"params": {}}}))
    settings = checked(LanguageModelTraining(**LANGUAGE, deepspeed=str(path)), tmp_path)
    assert settings["gradient_clipping"] == 1.0, "without the key DeepSpeed would not clip"


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"optimizer": 1}', "\ud800".encode("utf-8", "surrogatepass")])
def test_a_file_that_is_no_settings(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "spread.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"spread.json: (cannot be read|expected a JSON object)"):
        sharding(LanguageModelTraining(**LANGUAGE, deepspeed=str(path)))


def test_a_file_is_found_beside_the_experiment(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed (the extra 'scale')")
    (tmp_path / "spread.json").write_text('{"zero_optimization": {"stage": 3}}')
    training = LanguageModelTraining(**LANGUAGE, deepspeed="spread.json")
    zero = sharding(training, [tmp_path / "experiment.yaml"])["deepspeed"]["zero_optimization"]
    assert zero["stage3_gather_16bit_weights_on_model_save"], "without it a run could not write its model"
    with pytest.raises(InputError, match=r"training.deepspeed: there is no file spread.json"):
        sharding(training)


def test_a_batch_that_the_processes_cannot_share_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(InputError, match="sequences_per_step 16: found 3 processes of batch_size 4"):
        sharding(LanguageModelTraining(**LANGUAGE, sequences_per_step=16))


@pytest.mark.parametrize(("segments", "unused"), [(2, False), (1, True)])
def test_copies_in_each_process_look_for_unused_weights_only_where_there_are_some(segments: int, unused: bool) -> None:
    training = SegmentTraining(**LANGUAGE, substeps=2, segments_per_substep=segments)
    assert sharding(training) == {"ddp_find_unused_parameters": unused}
