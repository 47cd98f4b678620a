"""What an experiment reads: corpora and instructions (see `synopsis.config`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, get_args

from pydantic import Field

from synopsis.config.types import Name, PositiveInt, Problem, Seed, Share, Strict

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

WORLD_VERSION = 5
"""Version of the generated language; results made from another one are made again."""


class WorldCorpus(Strict):
    """Documents of the generated language (see `synopsis.data.world`)."""

    source: Literal["world"]
    documents: PositiveInt = 20_000
    """Training documents; validation and test hold `held_out` each."""
    held_out: PositiveInt = 256
    facts: PositiveInt = 32
    """Statements in a document of the domain `stories`."""
    instruction_share: Share = 0.0
    """Share of training documents that are instruction, input and output triples instead of stories."""
    seed: Seed = 0


class TextDomain(Strict):
    """One domain of a corpus of real text, with a hub source, local files, or both."""

    hub: str | None = None
    """Hub data set id, read when no local copy is named."""
    hub_config: str | None = None
    hub_splits: dict[Literal["train", "validation", "test"], str] = Field(default_factory=dict)
    """Split -> split of the hub data set, the others are not read; empty: all three under their own names."""
    text_column: str = "text"
    files: dict[Literal["train", "validation", "test"], str] = Field(default_factory=dict)
    """Split -> .txt, .json or .jsonl (also .gz, .xz, .zst), .parquet or .arrow file, or a pattern (`train-*.parquet`);
    relative paths start at the data mirror, else right here."""
    tokens_column: str | None = None
    """Column of token ids of a pre-tokenised set, read instead of text; its tokenizer must be that of the models."""
    weight: Annotated[float, Field(ge=0.001, le=1000)] = 1.0
    """How often training draws a sequence of this domain: 2 draws each twice as often as 1 would."""

    def problems(self) -> Iterator[Problem]:
        if not self.hub and not self.files:
            yield Problem((), "no source", "'hub', 'files', or both")
        for key in ("hub_config", "hub_splits"):
            if getattr(self, key) and not self.hub:
                yield Problem((key,), repr(getattr(self, key)), "'hub' beside it")
        if self.tokens_column is not None and "text_column" in self.model_fields_set:
            yield Problem(("text_column",), repr(self.text_column), "one of it and 'tokens_column'")


class TextCorpus(Strict):
    """A corpus of real documents by domain."""

    source: Literal["text"]
    domains: dict[Name, TextDomain] = Field(min_length=1)
    max_documents: dict[Literal["train", "validation", "test"], PositiveInt] = Field(default_factory=dict)
    """At most so many documents of each domain; the first ones of the file or stream are taken."""
    max_characters: PositiveInt | None = None
    """Characters read of each document; what lies beyond is counted in the artifact's report."""

    def problems(self) -> Iterator[Problem]:
        ids = [name for name, domain in self.domains.items() if domain.tokens_column is not None]
        if ids and self.max_characters is not None:
            wanted = f"no limit in characters: the domain {', '.join(ids)} holds token ids"
            yield Problem(("max_characters",), str(self.max_characters), wanted)


Corpus = Annotated[WorldCorpus | TextCorpus, Field(discriminator="source")]


class WorldInstructions(Strict):
    """Instruction, input and output triples of the generated language."""

    source: Literal["world"]
    train: PositiveInt = 4_000
    held_out: PositiveInt = 64
    """Rows of each validation split (`seen`, `unseen`)."""

    @property
    def split_names(self) -> list[str]:
        return ["seen", "unseen"]


class AlpacaPlus(Strict):
    """Alpaca+ (Mu et al. 2023): JSON or JSON-lines rows of instruction, input and output."""

    source: Literal["alpaca_plus"]
    train: str = "alpaca_plus/alpaca_part_of_alpaca_plus_train.jsonl.gz"
    splits: dict[Name, str] = Field(
        default_factory=lambda: {
            "seen": "alpaca_plus/released_validation_seen.json",
            "unseen": "alpaca_plus/released_validation_unseen.json",
            "human": "alpaca_plus/released_validation_human.json",
        }
    )
    """Validation split -> file, relative to the data mirror."""
    max_train: PositiveInt | None = None
    max_held_out: PositiveInt | None = None

    @property
    def split_names(self) -> list[str]:
        return list(self.splits)

    def problems(self) -> Iterator[Problem]:
        if "train" in self.splits:
            wanted = "the training rows in 'train', beside 'splits'"
            yield Problem(("splits", "train"), "a validation split of this name", wanted)


Instructions = Annotated[WorldInstructions | AlpacaPlus, Field(discriminator="source")]
