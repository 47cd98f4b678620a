"""A small experiment as text, and ways to spoil it."""

from __future__ import annotations

from pathlib import Path

from synopsis.config.experiment import load_experiment
from synopsis.errors import ConfigError

TEXT = """\
name: small
training_seeds: [0, 1]
corpora:
  stories: {source: world, facts: 32}
instructions:
  translations: {source: world}
models:
  base:
    architecture: {hidden_size: 32, num_attention_heads: 4, max_position_embeddings: 256}
    pretraining: {corpus: stories, sequence_length: 160, steps: 10, batch_size: 2, learning_rate: 1e-3}
  opt: {hub: facebook/opt-125m, type: opt, max_positions: 2048}
compressors:
  auto:
    method: autocompressor
    base: base
    summary_length: 4
    training: &segments
      corpus: stories
      sequence_length: 120
      substeps: 2
      segments_per_substep: 2
      steps: 10
      batch_size: 2
      learning_rate: 1e-3
  rmt:
    method: rmt
    base: base
    summary_length: 4
    training: {<<: *segments, substeps: 1}
  full:
    method: full_attention
    base: base
    training: {corpus: stories, sequence_length: 160, steps: 10, batch_size: 2, learning_rate: 1e-3}
  gist-1:
    method: gist
    base: base
    condition: gist
    training: &translations
      instructions: translations
      max_length: 64
      steps: 10
      batch_size: 2
      learning_rate: 1e-3
  pos-1:
    method: gist
    base: base
    condition: pos_control
    training: *translations
perplexity:
  corpus: stories
  context_lengths: [0, 30, 90]
  scored_tokens: 30
  tokens_per_step: 30
  runs: [base, auto, rmt, full]
icl:
  datasets: [animals]
  settings:
    zero_shot: {}
    icl_90: {plain_tokens: 90}
    summary_12: {compressed_tokens: [30, 30, 30]}
  runs: [base, auto, rmt]
generate:
  instructions: translations
  splits: [seen, unseen]
  max_new_tokens: 16
  runs: [gist-1, pos-1]
judge:
  judges: [rule]
  pairs: [[gist-1, pos-1]]
benchmark:
  context_lengths: [64, 192]
  new_tokens: [16]
  runs: [auto, gist-1]
needle:
  lengths: [30, 90]
  tokens_per_step: 30
  filler: ["old fox eats plums"]
  needle: "guest Mira holds {key}"
  question: guest Mira holds
  keys: [lantern, compass]
  choices: 2
  runs: [base, auto]
"""

TASK = """\
source: {world: eats}
template: "{text} {answer}"
input_fields: [text]
options: [plums, seeds]
"""

JUDGE = """\
kind: reference
"""


def write(folder: Path, text: str | bytes = TEXT, task: str = TASK, judge: str = JUDGE) -> Path:
    """An experiment file with its task `animals` and its judge `rule`."""
    for name, content in (("tasks/animals.yaml", task), ("judges/rule.yaml", judge)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    path = folder / "e.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def spoilt(*edits: tuple[str, str], text: str = TEXT) -> str:
    """The text with each first occurrence replaced."""
    for old, new in edits:
        assert old in text, old
        text = text.replace(old, new, 1)
    return text


def faults(*paths: Path, **overrides: object) -> list[str]:
    """Every fault as it is reported, below the folder of the first file; none when the experiment is sound."""
    changes = {key.replace("__", "."): value for key, value in overrides.items()}
    try:
        load_experiment(*paths, overrides=changes)
    except ConfigError as error:
        found = [str(fault).replace(f"{paths[0].parent}/", "") for fault in error.faults]
        assert str(error).count("\n") == len(found)
        return found
    return []
