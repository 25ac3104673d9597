"""Members of tar shards that are read where they are decoded: by their place, without what lies between."""

from __future__ import annotations

import os
import tarfile
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from leanvit.data.tars import ending_of, key_of, normal_name
from leanvit.errors import BadInput

INDEX = ".index"  # follows the name of a shard
MOST_OPEN = 64  # shards that a process keeps open


def index_path(shard: Path) -> Path:
    """The file beside a shard that holds its index."""
    return shard.with_name(shard.name + INDEX)


@dataclass(frozen=True)
class ShardFile:
    """A shard as it was when it was indexed. Travels to other processes."""

    path: Path
    size: int
    mtime_ns: int

    @staticmethod
    def of(path: Path) -> ShardFile:
        stat = path.stat()
        return ShardFile(path, stat.st_size, stat.st_mtime_ns)

    def read(self, offset: int, count: int) -> bytes:
        """Raises BadInput where the shard is no longer there, or no longer what it was."""
        try:
            descriptor = _opened(self).descriptor
            stat = os.fstat(descriptor)
            content = os.pread(descriptor, count, offset)
        except OSError as error:
            raise BadInput(f"shard {self.path} cannot be read: {error.strerror or error}") from None
        if (stat.st_size, stat.st_mtime_ns) != (self.size, self.mtime_ns) or len(content) < count:
            raise BadInput(
                f"shard {self.path} was changed while it was in use; it must stay as it is: open the data again"
            )
        return content


class Stored(NamedTuple):
    """The place of a member in its shard."""

    file: ShardFile
    header: int  # byte at which its header begins
    data: int  # byte at which its content begins
    size: int
    key: str
    ending: str

    def read_bytes(self) -> bytes:
        """The content. Raises BadInput where another member lies there, or the shard has changed."""
        ahead = self.data - self.header
        content = self.file.read(self.header, ahead + self.size)
        if _member_of(content[:ahead]) != (self.key, self.ending, self.size, ahead):
            raise BadInput(
                f"shard {self.file.path}: at byte {self.header} there is no member {self.key}.{self.ending} of "
                f"{self.size} bytes, which its index places there; delete {index_path(self.file.path)}, and it is made "
                "anew"
            )
        return content[ahead:]


class _Open:
    """A file that is open until nobody uses it: what `MOST_OPEN` puts out may still be read in another thread."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)


@lru_cache(maxsize=MOST_OPEN)
def _opened(file: ShardFile) -> _Open:
    return _Open(os.open(file.path, os.O_RDONLY))


def _member_of(headers: bytes) -> tuple[str, str, int, int] | None:
    """(key, ending, size, length of the headers) of the regular file that headers announce; None for anything else."""
    try:
        found = tarfile.TarFile(fileobj=BytesIO(headers)).firstmember  # type: ignore[attr-defined]
    except (tarfile.TarError, ValueError, OverflowError):
        return None
    if found is None or not found.isreg():
        return None
    name = normal_name(found.name)
    return key_of(name), ending_of(name), found.size, found.offset_data
