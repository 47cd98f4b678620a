"""The append-only store of judgements: JSON lines, each on disk before the next question's answer is taken.

Judgements cost money and time, so nothing is ever overwritten: a judgement that holds no longer (another prompt,
other outputs, an error that was retried) is superseded by a later line, and a killed run loses only the answers that
were on their way.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from synopsis.artifacts import atomic_file, report_full_disk
from synopsis.errors import ArtifactError
from synopsis.progress import say
from synopsis.stages.judge.records import Judgement


class JudgementStore:
    """Read once when opened, then appended to; use it as a context manager."""

    def __init__(self, path: Path):
        self.path = path
        self._stream: Any = None

    def __enter__(self) -> JudgementStore:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with report_full_disk(self.path):
            judgements = self._read()
            # Unbuffered: after a failed write nothing is left over that closing would try to write again.
            self._stream = self.path.open("ab", buffering=0)
        self._latest = {judgement.key: judgement for judgement in judgements}
        return self

    def __exit__(self, *error: object) -> None:
        if self._stream is not None:
            self._stream.close()

    def find(self, id: str, order: str, judge_hash: str, prompt_hash: str) -> Judgement | None:
        """The latest judgement of exactly this question by exactly this judge, whatever its state."""
        return self._latest.get((id, order, judge_hash, prompt_hash))

    def append(self, judgement: Judgement) -> None:
        """Add a line and wait until it is on disk."""
        assert self._stream is not None, "the store is not open"
        with report_full_disk(self.path):
            line = json.dumps(judgement.model_dump()).encode() + b"\n"
            while line:
                line = line[self._stream.write(line) :]
            os.fsync(self._stream.fileno())
        self._latest[judgement.key] = judgement

    def _read(self) -> list[Judgement]:
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ArtifactError(f"{self.path}: cannot be read: {error}") from None
        *lines, tail = content.split(b"\n")
        judgements = []
        for number, line in enumerate(lines, start=1):
            try:
                judgements.append(Judgement.model_validate_json(line))
            except ValueError:
                if number < len(lines) or tail:
                    again = "Delete that line: its judgement is asked again, the others are kept."
                    raise ArtifactError(f"{self.path}: line {number} is no judgement. {again}") from None
                # After a power cut the last block of a file may be of the right length and hold nothing.
                lines, tail = lines[:-1], line
        if tail:
            say(f"{self.path}: warning: the last line is truncated (a run was killed); it is dropped and asked again")
            with atomic_file(self.path) as temporary:
                temporary.write_bytes(b"".join(line + b"\n" for line in lines))
        return judgements
