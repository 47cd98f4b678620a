"""Where rows come from: local copies of data sets, or the Hugging Face hub.

A *mirror* is a folder of local copies. When one is named, by the environment variable SYNOPSIS_DATA or by `data_mirror`
of the experiment, its files are used and nothing is fetched, so that a run is the same with and without a network:

    source = find_source(experiment, ["icl/cb/train.jsonl"], split="train", hub="aps/super_glue", hub_config="cb")
    for row in source.rows():
        ...

Every fault is a DataError that names the file and the line, or what was to be fetched and how to name a local copy.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from synopsis.config.experiment import Experiment
from synopsis.data.row_files import Row, is_text, read_rows, streamed_rows
from synopsis.errors import DataError

MIRROR_VARIABLE = "SYNOPSIS_DATA"
HUB_SECONDS = 10.0


class FetchError(DataError):
    """The hub did not give what was asked for; what it gave before is sound."""


def mirror(experiment: Experiment) -> Path | None:
    """The folder of local copies, or None when none is named; DataError when it is named and does not exist."""
    from_environment = os.environ.get(MIRROR_VARIABLE)
    named = from_environment or experiment.data_mirror
    if not named:
        return None
    folder = Path(named).expanduser()
    if not folder.is_dir():
        origin = f"the environment variable {MIRROR_VARIABLE}" if from_environment else "data_mirror of the experiment"
        raise DataError(f"{folder}: no such folder; {origin} should name the folder with local copies of the data sets")
    return folder


def hub_revision(kind: Literal["dataset", "model"], name: str, wanted: str, remedy: str) -> str:
    """The commit that a hub repository stands at; DataError when it cannot be reached within seconds.

    Asked once before anything is fetched: without a network the libraries that fetch would try again for minutes.
    `wanted` and `remedy` complete the message: what was to be fetched, and how to name a local copy instead.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        return HfApi().repo_info(name, repo_type=kind, timeout=HUB_SECONDS).sha or "main"
    except GatedRepoError:
        reason = "its owner gives access on request: accept the conditions on its page and log in with `hf auth login`"
    except RepositoryNotFoundError:
        reason = "the hub has no repository of this name that you may read"
    except Exception as error:  # every other failure, of whatever library, means that the hub did not answer
        reason = f"the hub cannot be reached ({_short(error)})"
    raise FetchError(f"cannot fetch {wanted}: {reason}. {remedy}")


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


@dataclass(frozen=True)
class Source:
    """The rows of one split: local `files`, one after the other, or, without any, a split of the hub data set `hub`."""

    split: str
    files: tuple[Path, ...] = ()
    hub: str | None = None
    hub_config: str | None = None
    revision: str | None = None
    remedy: str = ""

    def __str__(self) -> str:
        if not self.files:
            config = f", configuration {self.hub_config!r}" if self.hub_config else ""
            return f"hub data set '{self.hub}'{config}, split '{self.split}'"
        return str(self.files[0]) if len(self.files) == 1 else f"{self.files[0]} to {self.files[-1].name}"

    @property
    def file(self) -> Path | None:
        """The local file, for what is one file; None for a hub data set."""
        return self.files[0] if self.files else None

    @property
    def is_text(self) -> bool:
        """Whether each file is one document, without columns."""
        return bool(self.files) and all(map(is_text, self.files))

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[Row]:
        """Stream the rows; `columns` as of `streamed_rows`. FetchError names what could not be fetched."""
        if self.files:
            yield from chain.from_iterable(read_rows(file, columns) for file in self.files)
            return
        place: Any = self.hub, self.hub_config
        try:
            yield from streamed_rows(*place, split=self.split, revision=self.revision, columns=columns)
        except Exception as error:  # unknown configurations and splits, unreadable formats, a network that breaks off
            raise FetchError(f"cannot fetch {self}: {_short(error)}. {self.remedy}") from error

    def record(self) -> dict[str, str | None]:
        """What provenance says of a source; the hashes of files stand among its inputs."""
        if self.files:
            return {"file": str(self)}
        return {"hub": self.hub, "hub_config": self.hub_config, "split": self.split, "revision": self.revision}


def find_source(
    experiment: Experiment, files: Sequence[str], split: str, hub: str | None = None, hub_config: str | None = None
) -> Source:
    """The first of `files` that exists, else the hub data set.

    A name may be a pattern (`pile/train-*.parquet`): its files are read in the order of their names. Relative names
    start at the mirror, else at the working directory. A mirror that lacks the file is a fault even when a hub data
    set is named: what a run reads must not depend on a file being forgotten. DataError otherwise too, when there is
    neither a file nor a hub data set, and when the hub cannot be reached.
    """
    folder = mirror(experiment)
    places = [(folder or Path()) / Path(file).expanduser() for file in files]
    for place in places:
        if found := _matches(place):
            return Source(split, files=found)
    fetched = Source(split, hub=hub, hub_config=hub_config)
    remedy = "No local file is configured for it."
    if files:
        choice = " or ".join(files)
        remedy = f"Put a copy at {choice} below a folder and name that folder with {MIRROR_VARIABLE} or data_mirror."
    if hub is None or (places and (folder is not None or any(place.is_absolute() for place in places))):
        instead = f" Without {MIRROR_VARIABLE} and data_mirror, {fetched} is read." if hub else ""
        missing = " or ".join(map(str, places)) if places else f"split '{split}'"
        raise DataError(f"{missing}: no such file. {remedy}{instead}")
    return replace(fetched, revision=hub_revision("dataset", hub, str(fetched), remedy), remedy=remedy)


def _matches(place: Path) -> tuple[Path, ...]:
    if place.is_dir():
        raise DataError(f"{place}: a folder; name its files, for instance {place}/*.parquet")
    if place.is_file():
        return (place,)
    return tuple(path for path in map(Path, sorted(glob.glob(str(place)))) if path.is_file())
