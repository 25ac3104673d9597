"""Tar shards made on the spot."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from leanvit.data import shard_index
from leanvit.data.stored import index_path
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


def rewrite_index(shard: Path, change: Callable[[dict[str, Any], dict[str, Any]], object]) -> None:
    """Change the columns of a shard's index, or what it says of the shard, and seal it again."""
    import pyarrow as pa

    batch, said = shard_index._content(index_path(shard))
    columns, about = {name: batch.column(name) for name in batch.schema.names}, asdict(said)
    change(columns, about)
    batch = pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))
    index_path(shard).write_bytes(shard_index._as_file(batch, shard_index._About(**about)))


def exchange(one: int, other: int) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    """A change by which two members lie at one another's places."""

    def change(columns: dict[str, Any], about: dict[str, Any]) -> None:
        import pyarrow as pa

        for name in ("header", "data", "size"):
            values = columns[name].to_numpy().copy()
            values[[one, other]] = values[[other, one]]
            columns[name] = pa.array(values)

    return change
