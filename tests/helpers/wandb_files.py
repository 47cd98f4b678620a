"""What lies in wandb's offline files: a log of LevelDB whose entries are protobuf records."""

from __future__ import annotations

import functools
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BLOCK, FIRST, WHOLE, LAST = 32768, 7, 1, 4


@dataclass
class Part:
    """What one job left: the run it belongs to, its settings, and the rows that it logged, by step."""

    run: Any = None
    config: dict[str, Any] = field(default_factory=dict)
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)

    def column(self, name: str) -> dict[int, Any]:
        return {step: row[name] for step, row in self.rows.items() if name in row}


def parts(folder: Path) -> list[Part]:
    """The parts below a folder, oldest first."""
    found = [_part(path) for path in folder.rglob("*.wandb")]
    return sorted(found, key=lambda part: part.run.start_time.ToNanoseconds())


def _part(path: Path) -> Part:
    part = Part()
    for record in _records(path.read_bytes()):
        if record.HasField("run"):
            part.run = part.run or record.run
            part.config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif record.HasField("history"):
            row = part.rows.setdefault(record.history.step.num, {})
            for item in record.history.item:
                *keys, last = item.nested_key or [item.key]
                functools.reduce(lambda inner, key: inner.setdefault(key, {}), keys, row)[last] = json.loads(
                    item.value_json
                )
    return part


def _records(data: bytes) -> Iterator[Any]:
    from wandb.proto.wandb_internal_pb2 import Record

    place, entry = FIRST, b""
    while place + 7 <= len(data):
        if BLOCK - place % BLOCK < 7:  # no header fits there
            place += BLOCK - place % BLOCK
        _, length, kind = struct.unpack_from("<IHB", data, place)
        place += 7 + length
        entry += data[place - length : place]
        if kind in (WHOLE, LAST):
            yield Record.FromString(entry)
            entry = b""
