"""Tar shards made on the spot."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from pictures import picture, png


def write_shard(path: Path, members: dict[str, bytes]) -> Path:
    """A tar of these members, in this order."""
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def numbered(numbers: range, *, classes: int = 3) -> dict[str, bytes]:
    """`<number>.png` and `<number>.cls` of each number; the class is the number modulo `classes`."""
    members = {}
    for number in numbers:
        members |= {f"{number:04d}.png": png(picture(number)), f"{number:04d}.cls": str(number % classes).encode()}
    return members


def write_shards(folder: Path, name: str, count: int, size: int) -> str:
    """`count` shards of `size` samples; returns their pattern."""
    for shard in range(count):
        write_shard(folder / f"{name}-{shard}.tar", numbered(range(shard * size, (shard + 1) * size)))
    return f"{folder}/{name}-{{0..{count - 1}}}.tar"
