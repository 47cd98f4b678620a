"""Whether the files of an experiment are still what the stages wrote, by the hashes in their provenance.

synopsis verify results/demo
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from synopsis.artifacts import PROVENANCE, Output, outputs_of, read_document, recorded
from synopsis.errors import ArtifactError, InputError
from synopsis.progress import track

LEFT_OUT = ("logs", "checkpoints")
"""Folders of what is still being written; checkpoints have hashes of their own."""


@dataclass(frozen=True)
class Verified:
    """faults: a line for each file that has changed or is missing; unknown: files that nothing has a hash of."""

    checked: int
    faults: list[str]
    unknown: list[Path]


def verify(folder: Path) -> Verified:
    """Check every file below a folder, of any size; InputError when it is no folder."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected one of results, such as results/demo")
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not _left_out(path.relative_to(folder))]
    faults: dict[Path, str] = {}
    listed: dict[Path, Output] = {}
    whole = set()
    # Records of folders first: what they list need not be parsed.
    for path in sorted(files, key=lambda path: path.name != PROVENANCE):
        if path.suffix != ".json" or path in listed:
            continue
        try:
            document = read_document(path)
        except ArtifactError as error:
            faults[path] = str(error)
            continue
        if "sha256" in recorded(document):
            whole.add(path)
        listed |= {output.path: output for output in outputs_of(path, document)}
    for path, output in track(sorted(listed.items()), "verify", unit="files"):
        fault = output.fault()
        if fault is not None:
            faults[path] = fault
    known = whole | set(listed) | set(faults)
    unknown = [path for path in files if path not in known]
    return Verified(len(known), [faults[path] for path in sorted(faults)], unknown)


def _left_out(path: Path) -> bool:
    return path.parts[0] in LEFT_OUT or any(part.startswith(".") for part in path.parts)
