"""Files with one byte changed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

BITS = (0x01, 0x10, 0x80, 0xFF)


def flips(path: Path, places: int) -> Iterator[int]:
    """Give a place at a time, spread over the file, while its byte is changed; at the end the file is whole again."""
    whole = path.read_bytes()
    for number, place in enumerate(range(0, len(whole), -(-len(whole) // places))):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ BITS[number % len(BITS)]]) + whole[place + 1 :])
        yield place
    path.write_bytes(whole)
