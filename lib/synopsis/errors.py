"""Errors that a user can correct. The command line prints their text alone, without a traceback.

``InputError`` (exit code 2) means that something given to Synopsis is wrong: a configuration, a data file,
an artifact of an earlier stage. ``Interrupted`` carries the exit code of a run that was stopped.
"""

from __future__ import annotations

from dataclasses import dataclass


class SynopsisError(Exception):
    """An error whose text is written for the person who runs Synopsis."""

    exit_code = 1


class InputError(SynopsisError):
    """Something given to Synopsis is missing, malformed or contradictory."""

    exit_code = 2


class DataError(InputError):
    """A data file or data set is missing, empty or not of the expected form."""


class ArtifactError(InputError):
    """A file that an earlier stage should have written is missing, truncated or of another version."""


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a configuration file.

    ``file``: the file to edit; ``key``: dotted path of the key, as in the YAML; ``found``: what stood there;
    ``expected``: what is allowed; ``line``: 1-based line in the file, None where it is not known.
    """

    file: str
    key: str
    found: str
    expected: str
    line: int | None = None

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.key or '(top level)'}: found {self.found}; expected {self.expected}"


class ConfigError(InputError):
    """Every fault of a configuration at once."""

    def __init__(self, faults: list[Fault]):
        self.faults = faults
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        super().__init__("\n".join([f"the configuration has {count}:", *(f"  {fault}" for fault in faults)]))


class Interrupted(SynopsisError):
    """A run was stopped and saved its work; ``exit_code`` is 128 + the signal's number."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.exit_code = 128 + signal_number
