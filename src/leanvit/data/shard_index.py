"""The index of a tar shard: where each member lies, and the texts of its labels; kept in a file beside the shard.

    train-000.tar.index    a JSON line of `_HEAD` bytes (what it is, format, sha256 of the rest), then an Arrow stream

A row for each member of a sample, samples and their members in the order of the tar. An index is used where it is whole
and was made of the shard as it is (by size and time of change, and later than that). Any other is made anew. It may
come from anyone: its numbers are checked against the shard, and what is read by it must begin with the member's header.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from leanvit.data import tars
from leanvit.data.arrow import require
from leanvit.data.progress import current
from leanvit.data.stored import ShardFile, Stored, index_path
from leanvit.errors import BadInput, CheckpointError, LeanvitError
from leanvit.files import read_strict, write_atomic

FORMAT = 1
KIND = "leanvit shard index"
TEXT_BYTES = 4096  # a longer label is read from its shard
_HEAD = 256  # bytes; a multiple of 64 keeps what follows aligned
_HEADERS = 2**20  # bytes that the headers of one member may take
_STEP = 20_000_000  # nanoseconds, more than the steps of a file system's clock
_SAID = 1000  # members between two words of progress


class _Unfit(Exception):
    """Why an index is not used; empty where there is none."""


@dataclass(frozen=True)
class _Head:
    kind: str
    format: int
    sha256: str


@dataclass(frozen=True)
class _About:
    """What an index says of its shard. `seekable`: its members lie in one piece at their places, not compressed."""

    size: int
    mtime_ns: int
    seekable: bool
    left_out: dict[str, int]


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """The samples of a shard, 0 to N - 1, and their members, rows 0 to M - 1 in the order of the samples."""

    file: ShardFile
    seekable: bool
    left_out: Mapping[str, int]  # reason -> how many members are no sample
    batch: Any  # pyarrow.RecordBatch of the members, see `_schema`

    @property
    def path(self) -> Path:
        return self.file.path

    def __len__(self) -> int:
        return len(self._column("key").dictionary)

    @property
    def keys(self) -> Any:
        """pyarrow array (N,) of the bytes of the keys; see `name_of`."""
        return self._column("key").dictionary

    def key(self, sample: int) -> str:
        return name_of(self.keys[sample].as_py())

    @cached_property
    def endings(self) -> tuple[str, ...]:
        """The endings of members, in lower case."""
        return tuple(map(name_of, self._column("ending").dictionary.to_pylist()))

    @property
    def samples(self) -> np.ndarray:
        """(M,) int32: the sample that each member is of, ascending."""
        return self._numbers(self._column("key").indices)

    def rows(self, endings: Collection[str]) -> np.ndarray:
        """(K,) int64: the members with one of these endings."""
        wanted = [code for code, ending in enumerate(self.endings) if ending in endings]
        return np.flatnonzero(np.isin(self._numbers(self._column("ending").indices), wanted))

    def members(self, ending: str) -> np.ndarray:
        """(N,) int64: the member of each sample that has this ending, -1 for none.

        Raises BadInput, naming shard and sample, where a sample has two.
        """
        rows = self.rows([ending])
        owners = self.samples[rows]
        if (twice := np.flatnonzero(owners[1:] == owners[:-1])).size:
            raise BadInput(
                f"shard {self.path.name}: sample {self.key(int(owners[twice[0]]))!r} has two {ending} members"
            )
        found = np.full(len(self), -1, dtype=np.int64)
        found[owners] = rows
        return found

    def images(self, *, besides: Collection[str] = ()) -> np.ndarray:
        """(N,) int64: the image of each sample, the first one where it has several, none with the endings `besides`.

        Raises BadInput for a sample that has no other image.
        """
        rows = self.rows({*tars.IMAGES} - {*besides})
        owners, first = np.unique(self.samples[rows], return_index=True)
        if besides and len(owners) < len(self):
            lone = self.key(int(np.setdiff1d(np.arange(len(self)), owners)[0]))
            raise BadInput(f"shard {self.path.name}: sample {lone!r} has no image beside {', '.join(besides)}")
        return rows[first]

    def apart(self, endings: Collection[str]) -> int | None:
        """The first sample whose members of these endings do not lie side by side among all of these; None for none."""
        rows = self.rows(endings)
        owners = self.samples[rows][np.argsort(self._numbers(self._column("header"))[rows], kind="stable")]
        begins = owners[np.flatnonzero(np.diff(owners, prepend=-1))]
        again = np.flatnonzero(np.bincount(begins, minlength=1) > 1)
        return int(again[0]) if again.size else None

    def stored(self, rows: np.ndarray) -> list[Stored]:
        """The places of members."""
        names = list(map(name_of, self._column("key").take(rows).to_pylist()))
        endings = [self.endings[code] for code in self._numbers(self._column("ending").indices)[rows]]
        places = (self._numbers(self._column(name))[rows].tolist() for name in ("header", "data", "size"))
        return [Stored(self.file, *place) for place in zip(*places, names, endings, strict=True)]

    def texts(self, rows: np.ndarray) -> Any:
        """pyarrow array (K,) of the contents of labels; null for one that is too long to stand in the index."""
        return self._column("text").take(rows)

    def sizes(self, rows: np.ndarray) -> np.ndarray:
        """(K,) int64 bytes."""
        return self._numbers(self._column("size"))[rows]

    def _column(self, name: str) -> Any:
        return self.batch.column(name)

    @staticmethod
    def _numbers(column: Any) -> np.ndarray:
        return column.to_numpy(zero_copy_only=True)


def name_of(encoded: bytes) -> str:
    """A key or ending as text; names of files need not be UTF-8."""
    return encoded.decode("utf-8", "surrogateescape")


@dataclass
class Indexes:
    """The indexes of shards: those that lie beside them, and what is made where there is none that fits."""

    unfit: dict[Path, str] = field(default_factory=dict)  # shard -> why its index was made anew
    unkept: str = ""  # why an index could not be written
    _known: dict[Path, ShardIndex] = field(default_factory=dict)
    _said: bool = False

    def of(self, path: Path) -> ShardIndex:
        """The index of one shard. Raises BadInput as `tars.members`."""
        return self.of_all([path])[0]

    def of_all(self, paths: Sequence[Path]) -> list[ShardIndex]:
        """The indexes of shards; what must be made is made with progress, and written shard by shard."""
        missing = [path for path in paths if path not in self._known and not self._loads(path)]
        if missing:
            self._make(missing)
        return [self._known[path] for path in paths]

    @property
    def note(self) -> str:
        """What whoever opens the shards must know; empty where there is nothing."""
        notes = []
        if self.unfit:
            shard, reason = next(iter(self.unfit.items()))
            more = f", and {len(self.unfit) - 1} more" if len(self.unfit) > 1 else ""
            notes.append(f"indexes were made anew: {index_path(shard).name} {reason}{more}")
        if self.unkept:
            notes.append(f"no index can be kept beside the shards ({self.unkept}): each opening reads through them")
        return "; ".join(notes)

    def _loads(self, path: Path) -> bool:
        try:
            self._known[path] = _loaded(path)
        except _Unfit as error:
            if str(error):
                self.unfit[path] = str(error)
            return False
        return True

    def _make(self, paths: Sequence[Path]) -> None:
        sizes = [path.stat().st_size for path in paths]
        if not self._said:
            kept = f"each index is kept beside its shard, the first is {index_path(paths[0])}"
            current().log(f"data: indexing shards; {'; '.join(filter(None, (kept, self.note)))}")
        self._said = True
        with current().meter("indexing, MiB", max(1, sum(sizes) >> 20)) as done:
            before = 0
            for path, size in zip(paths, sizes, strict=True):
                self._known[path] = self._made(path, _counter(done, before))
                before += size
                done(max(1, before >> 20))

    def _made(self, path: Path, passed: Callable[[int], object]) -> ShardIndex:
        file, batch, about = _read_through(path, passed)
        try:
            write_atomic(index_path(path), _as_file(batch, about))
        except LeanvitError as error:
            self.unkept = str((error.__cause__ and getattr(error.__cause__, "strerror", None)) or error)
        return ShardIndex(file, about.seekable, about.left_out, batch)


def _counter(done: Callable[[int], None], before: int) -> Callable[[int], object]:
    """Hears of each member of a shard, and says a few of them."""
    count = 0

    def passed(offset: int) -> None:
        nonlocal count
        count += 1
        if count % _SAID == 0:
            done(max(1, (before + offset) >> 20))

    return passed


# --- making -----------------------------------------------------------------------------------------------------------


def _read_through(
    path: Path, passed: Callable[[int], object], *, whole_texts: bool = False
) -> tuple[ShardFile, Any, _About]:
    """The members of a shard. Raises BadInput as `tars.members`."""
    with tars.damage(path):
        file, compressed = _at_rest(path), tars.is_compressed(path)
    left_out: Counter[str] = Counter()
    rows, sparse = _Rows(), False
    # What cannot be read at its place is not read again for a label.
    text_bytes = tars.LABEL_BYTES if whole_texts or compressed else TEXT_BYTES
    for member in tars.members(path, left_out, text_bytes=text_bytes, passed=passed):
        sparse = sparse or member.sparse
        rows.add(member)
    if sparse and not whole_texts:
        return _read_through(path, passed, whole_texts=True)
    if not path.exists() or ShardFile.of(path) != file:
        raise BadInput(f"shard {path.name} was changed while it was indexed; open the data again when it is complete")
    left_out["samples without an image"] += rows.without_image
    return file, rows.batch(), _About(file.size, file.mtime_ns, not compressed and not sparse, dict(+left_out))


def _at_rest(path: Path) -> ShardFile:
    """The shard, once a later change would show in its time of change, which moves in steps."""
    file = ShardFile.of(path)
    if 0 <= time.time_ns() - file.mtime_ns < _STEP:
        time.sleep(_STEP / 1e9)
    return ShardFile.of(path)


class _Rows:
    """Members as they come, in columns of numbers."""

    def __init__(self) -> None:
        self._keys: dict[str, int] = {}  # numbered as they come, with or without an image
        self._endings: dict[str, int] = {}
        self._begins, self._has_image = array("q"), bytearray()  # of each key: its first image or label, or -1
        self._columns = {name: array("q") for name in ("key", "ending", "header", "data", "size")}
        self._texts: list[bytes | None] = []

    def add(self, member: tars.Member) -> None:
        key = self._keys.setdefault(member.key, len(self._keys))
        if key == len(self._begins):
            self._begins.append(-1)
            self._has_image.append(False)
        if member.ending in tars.SAMPLED and self._begins[key] < 0:
            self._begins[key] = len(self._texts)
        self._has_image[key] |= member.ending in tars.IMAGES
        ending = self._endings.setdefault(member.ending, len(self._endings))
        values = (key, ending, member.header, member.data, member.size)
        for column, value in zip(self._columns.values(), values, strict=True):
            column.append(value)
        self._texts.append(member.text)

    @property
    def without_image(self) -> int:
        return len(self._keys) - sum(self._has_image)

    def batch(self) -> Any:
        """The members of samples with an image; a sample stands where its first image or label does."""
        pa = require("pyarrow")
        given = {name: np.frombuffer(column, dtype=np.int64) for name, column in self._columns.items()}
        kept = np.flatnonzero(np.frombuffer(self._has_image, dtype=np.uint8))
        kept = kept[np.argsort(np.frombuffer(self._begins, dtype=np.int64)[kept])]
        sample = np.full(len(self._keys), -1, dtype=np.int64)
        sample[kept] = np.arange(len(kept))
        of_member = sample[given["key"]]
        rows = np.flatnonzero(of_member >= 0)
        rows = rows[np.argsort(of_member[rows], kind="stable")]
        names = list(self._keys)
        endings = list(self._endings)
        used, codes = np.unique(given["ending"][rows], return_inverse=True)
        columns = [
            _coded(of_member[rows], [names[key] for key in kept]),
            _coded(codes, [endings[code] for code in used]),
            *(pa.array(given[name][rows]) for name in ("header", "data", "size")),
            pa.array([self._texts[row] for row in rows], type=pa.large_binary()),
        ]
        return pa.RecordBatch.from_arrays(columns, schema=_schema())


def _coded(codes: np.ndarray, names: Iterable[str]) -> Any:
    pa = require("pyarrow")
    encoded = pa.array([name.encode("utf-8", "surrogateescape") for name in names], type=pa.large_binary())
    return pa.DictionaryArray.from_arrays(pa.array(codes, type=pa.int32()), encoded)


def _schema() -> Any:
    pa = require("pyarrow")
    name = pa.dictionary(pa.int32(), pa.large_binary())
    numbers = [(column, pa.int64()) for column in ("header", "data", "size")]
    return pa.schema([("key", name), ("ending", name), *numbers, ("text", pa.large_binary())])


def _as_file(batch: Any, about: _About) -> bytes:
    pa = require("pyarrow")
    sink = pa.BufferOutputStream()
    batch = batch.replace_schema_metadata({"leanvit": json.dumps(asdict(about))})
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    content = sink.getvalue().to_pybytes()
    head = json.dumps(asdict(_Head(KIND, FORMAT, hashlib.sha256(content).hexdigest())))
    return head.ljust(_HEAD - 1).encode() + b"\n" + content


# --- reading ----------------------------------------------------------------------------------------------------------


def _loaded(path: Path) -> ShardIndex:
    """The index beside a shard. Raises _Unfit."""
    beside, file = index_path(path), ShardFile.of(path)
    if not os.path.isfile(beside):
        raise _Unfit
    try:
        batch, about = _content(beside)
    except PermissionError as error:
        raise _Unfit(f"cannot be read ({error.strerror})") from error
    except (OSError, CheckpointError, require("pyarrow").ArrowException) as error:
        raise _Unfit("is damaged") from error
    if (about.size, about.mtime_ns) != (file.size, file.mtime_ns) or beside.stat().st_mtime_ns <= file.mtime_ns:
        ahead = file.mtime_ns > time.time_ns()
        raise _Unfit(
            "is no newer than its shard, whose time of change lies in the future"
            if ahead
            else "was made before its shard was changed"
        )
    index = ShardIndex(file, about.seekable, about.left_out, batch)
    if not _is_sound(index):
        raise _Unfit("does not fit its shard")
    return index


def _content(beside: Path) -> tuple[Any, _About]:
    """The members of an index, in memory that is mapped to the file, and what it says of its shard.

    Raises _Unfit, CheckpointError, and what pyarrow does.
    """
    pa = require("pyarrow")
    with beside.open("rb") as file:  # read, not mapped: what is not looked up later takes no memory
        file.seek(_HEAD)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    with pa.memory_map(os.fsencode(beside)) as mapped:  # names of files need not be UTF-8
        content = mapped.read_buffer()
    head = read_strict(_Head, content.slice(0, _HEAD).to_pybytes(), beside.name)
    if head.kind == KIND and head.format > FORMAT:
        raise _Unfit(f"has format {head.format}, and this leanvit reads up to {FORMAT}")
    if head.kind != KIND or head.format != FORMAT or head.sha256 != digest:
        raise _Unfit("is damaged")
    try:
        batch = pa.ipc.open_stream(content.slice(_HEAD)).read_next_batch()
    except StopIteration:
        raise _Unfit("is damaged") from None
    about = read_strict(_About, (batch.schema.metadata or {}).get(b"leanvit", b""), beside.name)
    if not batch.schema.equals(_schema()):
        raise _Unfit("is damaged")
    batch.validate(full=True)  # no number in it leads out of its memory
    return batch, about


def _is_sound(index: ShardIndex) -> bool:
    """Whether all numbers can be those of the shard: what is read by them is checked again by the tar's headers."""
    columns = [index.batch.column(name) for name in ("key", "ending", "header", "data", "size")]
    if any(column.null_count for column in (*columns, columns[0].dictionary, columns[1].dictionary)):
        return False
    numbered = index.samples
    steps = np.diff(numbered, prepend=-1, append=len(index))  # each sample has members, and they lie together
    if not ((steps == 0) | (steps == 1)).all() or len(index.images()) != len(index):
        return False
    if any(map(tars.is_pickle, index.endings)):
        return False
    return not index.seekable or _lies_in(index, *map(index._numbers, columns[2:]))


def _lies_in(index: ShardIndex, header: np.ndarray, data: np.ndarray, size: np.ndarray) -> bool:
    """Whether members can lie at these places of the shard."""
    end, ahead = index.file.size, data - header
    in_file = (header >= 0) & (header <= end) & (data <= end) & (size >= 0) & (size <= end - data)
    in_blocks = (header % 512 == 0) & (ahead % 512 == 0) & (ahead >= 512) & (ahead <= _HEADERS)
    read = index.rows(tars.SAMPLED)
    return bool((in_file & in_blocks).all() and (size[read] <= tars.MEMBER_BYTES).all())
