"""What the tests of text corpora share: a tokenizer of bytes, files of documents, and an experiment that reads them."""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

from synopsis.artifacts import Layout
from synopsis.config.experiment import Experiment

END = "<end>"
SPLITS = ("train", "validation", "test")


def make_tokenizer(folder: Path) -> Any:
    """A tokenizer of bytes: one token a byte, and one special token, 256."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, bos_token=END)
    fast.save_pretrained(folder)
    return fast


def experiment(tmp_path: Path, domains: dict[str, Any], mirror: Path | None = None, **settings: Any) -> Experiment:
    """An experiment with the corpus `texts`, and the prepared tokenizer of its model `base`."""
    made = Experiment(**plain_experiment(tmp_path, domains, mirror, **settings))
    make_tokenizer(Layout(made).tokenizer("base"))
    return made


def plain_experiment(
    tmp_path: Path, domains: dict[str, Any], mirror: Path | None = None, **settings: Any
) -> dict[str, Any]:
    return {
        "name": "test",
        "results": str(tmp_path / "results"),
        "models": {"base": {"path": "nowhere"}},
        "data_mirror": str(mirror or tmp_path),
        "corpora": {"texts": {"source": "text", "domains": domains, **settings}},
    }


def domain(tmp_path: Path, name: str, **texts: list[Any]) -> dict[str, Any]:
    """A domain whose splits are compressed JSON lines."""
    for split, documents in texts.items():
        lines = "".join(json.dumps({"text": text}) + "\n" for text in documents)
        (tmp_path / f"{name}.{split}.jsonl.xz").write_bytes(lzma.compress(lines.encode()))
    return {"files": {split: f"{name}.{split}.jsonl.xz" for split in texts}}
