"""Training runs of seconds: an experiment on a model with random weights, its artifacts already prepared."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import Dataset, DatasetDict, Features, List, Value
from model_folders import WORDS, world_tokenizer
from synopsis.artifacts import Layout, write_json
from synopsis.compressors import load
from synopsis.config.experiment import Experiment, load_experiment
from synopsis.training import stage
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, LlamaConfig, OPTConfig, T5Config

LENGTH = 24
SEGMENTS: dict[str, Any] = {
    "corpus": "stories",
    "sequence_length": LENGTH,
    "steps": 4,
    "batch_size": 2,
    "learning_rate": 1e-2,
    "log_every": 1,
    "checkpoint_every": 2,
}
TRANSLATIONS: dict[str, Any] = {
    "instructions": "translations",
    "max_length": 32,
    "max_target_length": 8,
    "steps": 4,
    "batch_size": 4,
    "learning_rate": 1e-2,
    "log_every": 1,
    "checkpoint_every": 2,
}
SHARED: dict[str, Any] = {"vocab_size": len(WORDS), "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0}
LLAMA = LlamaConfig(
    **SHARED,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=48,
    tie_word_embeddings=False,
)
OPT = OPTConfig(
    **SHARED,
    hidden_size=16,
    word_embed_proj_dim=16,
    ffn_dim=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=24,
    dropout=0.0,
)
T5 = T5Config(
    **SHARED,
    d_model=16,
    d_kv=8,
    d_ff=24,
    num_layers=2,
    num_heads=2,
    dropout_rate=0.0,
    decoder_start_token_id=0,
    feed_forward_proj="gated-gelu",
    tie_word_embeddings=False,
)


def autocompressor(**training: Any) -> dict[str, Any]:
    fields = {key: training.pop(key) for key in ("summary_length", "max_positions", "method") if key in training}
    return {
        "method": "autocompressor",
        "base": "base",
        "summary_length": 3,
        **fields,
        "training": {**SEGMENTS, **training},
    }


def gist(condition: str = "gist", gist_tokens: int = 1, **training: Any) -> dict[str, Any]:
    settings = {"condition": condition, "gist_tokens": gist_tokens, "training": {**TRANSLATIONS, **training}}
    return {"method": "gist", "base": "base", **settings}


def experiment(folder: Path, compressor: Mapping[str, Any], config: Any = LLAMA, **sections: Any) -> Experiment:
    """An experiment `runs` with one compressor `it`, so one run `it-s0`, everything that it reads in its place."""
    domain = {"files": {split: "none.txt" for split in ("train", "validation", "test")}}
    text = {
        "name": "runs",
        "results": str(folder / "results"),
        "corpora": {"stories": {"source": "text", "domains": {"stories": domain}}},
        "instructions": {"translations": {"source": "alpaca_plus", "splits": {"seen": "none.json"}}},
        "models": {"base": {"path": "none", "type": config.model_type}},
        "compressors": {"it": dict(compressor)},
        **sections,
    }
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(text))
    found = load_experiment(path)
    layout = Layout(found)
    if not layout.model("base").exists():
        _write_artifacts(layout, config)
    return found


def _write_artifacts(layout: Layout, config: Any) -> None:
    torch.manual_seed(0)
    auto: Any = AutoModelForSeq2SeqLM if config.model_type == "t5" else AutoModelForCausalLM
    model = auto.from_config(config)
    if config.model_type == "t5":  # as of v1.1 and Flan; transformers ties them all
        model.lm_head = torch.nn.Linear(config.d_model, config.vocab_size, bias=False)
    model.save_pretrained(layout.model("base"))
    world_tokenizer(gist=False).save_pretrained(layout.model("base"))
    columns = {"input_ids": List(Value("int32")), "domain": Value("string"), "bytes": Value("int64")}
    features = Features({**columns, "id": Value("string")})
    splits = ("train", "validation", "test")
    corpus = DatasetDict({split: Dataset.from_list(documents(split), features=features) for split in splits})
    corpus.save_to_disk(layout.corpus("stories", "base"))
    found = {"train": rows("train", 12), "seen": rows("seen", 5)}
    write_json(layout.instructions("translations"), "instructions", {"splits": found}, {})


def documents(split: str) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(len(split))
    ids = torch.randint(3, len(WORDS), (3, 2 * LENGTH + 5), generator=generator)
    return [
        {"input_ids": row.tolist(), "domain": "stories", "bytes": 1, "id": f"{split}-{index}"}
        for index, row in enumerate(ids)
    ]


def rows(split: str, count: int) -> list[dict[str, str]]:
    """Rows of words that the tokenizer knows, some without an input."""
    generator = torch.Generator().manual_seed(len(split))

    def words(number: int) -> str:
        return " ".join(WORDS[index] for index in torch.randint(5, len(WORDS), (number,), generator=generator))

    return [
        {"id": f"{split}-{index}", "instruction": words(3), "input": words(index % 3), "output": words(1 + index % 3)}
        for index in range(count)
    ]


def trained(folder: Path, compressor: dict[str, Any], config: Any = LLAMA, **sections: Any) -> Any:
    """The model of a whole run."""
    folder.mkdir(exist_ok=True)
    found = experiment(folder, compressor, config, **sections)
    stage.train(found, "it-s0")
    return load(Layout(found).model("it-s0"))


def metrics(folder: Path) -> list[dict[str, float]]:
    clock = ("runtime", "per_second")
    rows = read_metrics(folder / "results" / "runs" / "models" / "it-s0" / "metrics.jsonl")
    return [{key: value for key, value in row.items() if not any(word in key for word in clock)} for row in rows]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
