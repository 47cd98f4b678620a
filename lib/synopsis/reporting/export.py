"""Tables and figures of a report in a folder for a LaTeX paper, with the hashes of the results that they show.

    synopsis export results/demo --to paper
    synopsis export --check paper

In the paper: `\\input{tables/icl}` (with the package booktabs) and `\\includegraphics{figures/icl}`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from synopsis.artifacts import Provenance, atomic_file, check_outputs, file_hash, read_json, write_json
from synopsis.errors import ArtifactError, InputError, SynopsisError
from synopsis.progress import say

MANIFEST = "manifest.json"
PARTS = ("tables/*.tex", "figures/*.pdf")
COMPILERS = {"tectonic": [], "latexmk": ["-pdf", "-interaction=nonstopmode", "-halt-on-error"]}
INCLUDED = re.compile(r"\\(input|includegraphics)(?:\[[^]]*\])?\{([^}]+)\}")
SUFFIXES = {"input": ".tex", "includegraphics": ".pdf"}


def export(results: Path, folder: Path) -> list[str]:
    """Copy the LaTeX tables and PDF figures of a finished report into `folder`, with a manifest; return their names.

    Raises ArtifactError where the report is missing, damaged or older than the results, and InputError for a file in
    `folder` that was not exported, or was edited since.
    """
    record = results / "report.provenance.json"
    check_outputs(record, PARTS)
    report, scored = (
        read_json(results / f"{kind}.provenance.json", kind)["provenance"] for kind in ("report", "scores")
    )
    hashes = {name: written["sha256"] for name, written in report["outputs"].items()}
    names = [name for name in hashes if any(Path(name).match(part) for part in PARTS)]
    ((scores, digest),) = report["inputs"].items()
    # Not the parquet file, which also holds when it was written.
    sources = {"scores.csv": scored["outputs"]["scores.csv"]["sha256"]}
    sources |= {os.path.relpath(path, Path(scores).parent): found for path, found in scored["inputs"].items() if found}
    if faults := _changed({results / name: found for name, found in {**sources, Path(scores).name: digest}.items()}):
        raise ArtifactError("\n".join([f"{results}: the report is not of these results; make it again:", *faults]))
    exported = _exported(folder)
    for name in names:
        if file_hash(folder / name) not in (None, hashes[name], exported.get(name)):
            raise InputError(f"{folder / name}: was not exported, or was edited since; move it away and export again")
    for name in names:
        with atomic_file(folder / name) as temporary:
            shutil.copyfile(results / name, temporary)
    for name in set(exported) - set(names):
        if file_hash(folder / name) == exported[name]:
            (folder / name).unlink()
    payload = {"results": os.path.relpath(results.resolve(), folder.resolve()), "sources": sources}
    provenance = Provenance(config=report["config"], inputs=[record]).record()
    write_json(folder / MANIFEST, "export", payload, provenance, [folder / name for name in names])
    say(f"{folder}: {len(names)} tables and figures of {results}")
    return names


def check_export(folder: Path) -> None:
    """SynopsisError that names each exported file, and each result behind it, that is missing or has changed since."""
    manifest, exported = read_json(folder / MANIFEST, "export"), _exported(folder)
    results = Path(os.path.relpath((folder.resolve() / manifest["results"]).resolve()))
    expected = {folder / name: digest for name, digest in exported.items()}
    expected |= {results / name: digest for name, digest in {**exported, **manifest["sources"]}.items()}
    if faults := _changed(expected):
        raise SynopsisError("\n".join([f"{folder}: not what {results} holds now:", *faults]))
    say(f"{folder}: {len(exported)} tables and figures are those of {results}, and its {len(expected)} files unchanged")


def build(source: Path, folder: Path) -> None:
    """Typeset a copy of a paper in an export's folder, with tectonic or latexmk.

    Without either, only that each file that it includes is there. InputError names the file that is not, or says what
    the compiler said last.
    """
    if not source.is_file():
        raise InputError(f"{source}: no such file; expected a LaTeX file")
    text = re.sub(r"(?<!\\)%.*", "", source.read_text(encoding="utf-8", errors="replace"))
    for command, name in INCLUDED.findall(text):
        if not any((folder / f"{name}{end}").is_file() for end in ("", SUFFIXES[command])):
            raise InputError(f"{source}: \\{command}{{{name}}}: no such file in {folder}")
    if source.resolve() != (folder / source.name).resolve():
        with atomic_file(folder / source.name) as temporary:
            shutil.copyfile(source, temporary)
    compiler = next(filter(shutil.which, COMPILERS), None)
    if compiler is None:
        say(f"{source}: every file that it includes is in {folder}; neither tectonic nor latexmk is here to typeset it")
        return
    done = subprocess.run([compiler, *COMPILERS[compiler], source.name], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"{source}: {compiler} fails:\n{(done.stdout + done.stderr)[-2000:]}")
    say(f"{folder / source.with_suffix('.pdf').name}: typeset by {compiler}")


def _exported(folder: Path) -> dict[str, str]:
    """Name -> hash of what was exported to a folder before."""
    if not (folder / MANIFEST).exists():
        return {}
    outputs = read_json(folder / MANIFEST, "export")["provenance"].get("outputs", {})
    return {name: written["sha256"] for name, written in outputs.items()}


def _changed(expected: dict[Path, str]) -> list[str]:
    """A line for each file that is missing or has another hash."""
    found = {path: file_hash(path) for path in expected}
    return [
        f"  {path}: {'is missing' if found[path] is None else 'has changed'}"
        for path in expected
        if found[path] != expected[path]
    ]
