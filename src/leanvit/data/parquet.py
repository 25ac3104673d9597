"""Local parquet files in the layout of HF `datasets`, read with pyarrow: one file, or a folder of `<split>.parquet`.

A split may be several shards (`train-00000-of-00004.parquet`). The encoded images of a row group stay in memory once
it was touched; what does not fit in memory is opened as `hf:FOLDER`, which maps it from disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from leanvit.data import arrow
from leanvit.data.dataset import Dataset, probe
from leanvit.data.decode import UnreadableImage, decode
from leanvit.data.labels import RowLocations
from leanvit.data.specs import Spec
from leanvit.data.splits import Source, canonical_split
from leanvit.errors import BadInput


def parquet_source(parsed: Spec, path: Path) -> Source:
    """The splits of a parquet file or folder. A single file is val or test if its name says so, else one unnamed split.

    Raises MissingExtra without pyarrow, BadInput for files that are not parquet, lack an image or label column, or
    hold a label outside the classes.
    """
    arrow.require("pyarrow")
    spec = parsed.text
    files, unread = _files_by_split(spec, path)
    left_out = {"parquet files whose names hold no split": unread} if unread else {}
    tables = {split: _Table.of(spec, paths, labelled=parsed.labelled) for split, paths in files.items()}
    names = arrow.same_names((table.columns for table in tables.values()), where=f"data {spec!r}")
    locations = {split: table.locations(spec, split) for split, table in tables.items()}
    labels = {split: table.labels for split, table in tables.items()}
    classes = arrow.class_names(names, labels, locations) if parsed.labelled else []
    name = path.resolve().parent.name if path.is_file() and canonical_split(path.stem) else path.resolve().stem
    opened: dict[str, Callable[[], Dataset]] = {
        split: partial(_open, spec, name, split, table, classes, left_out) for split, table in tables.items()
    }
    return Source(spec, opened, "parquet")


@dataclass(frozen=True)
class _Table:
    """What is read at once of the files of one split: all but the images."""

    files: tuple[Path, ...]
    columns: arrow.Columns
    labels: list[object]  # none where they are not read
    paths: list[str | None] | None
    group_rows: tuple[tuple[Path, int, int], ...]  # (file, row group, rows in it)

    @staticmethod
    def of(spec: str, files: tuple[Path, ...], *, labelled: bool) -> _Table:
        labels: list[object] = []
        paths: list[str | None] | None = []
        groups: list[tuple[Path, int, int]] = []
        every: list[arrow.Columns] = []
        for file in files:
            where = f"data {spec!r}, {file.name}"
            with _reading(where):
                parquet = _opened(file)
                columns = arrow.find_columns(parquet.schema_arrow, where=where, labelled=labelled)
                leaves = {parquet.schema.column(i).path for i in range(len(parquet.schema))}
                has_path = f"{columns.image}.path" in leaves
                label = [] if columns.label is None else [columns.label]
                table = parquet.read(columns=[*label, f"{columns.image}.path"] if has_path else label)
                values = table.column(label[0]).to_pylist() if label else []
                rows = len(values) if label else parquet.metadata.num_rows
                found = arrow.image_paths(table.column(columns.image)) if has_path else None
                held = [(file, g, parquet.metadata.row_group(g).num_rows) for g in range(parquet.num_row_groups)]
                if sum(count for _, _, count in held) != rows:
                    raise OSError("its row groups hold other numbers of rows than its header states")
            every.append(columns)
            labels += values
            paths = None if paths is None or found is None else paths + found
            groups += held
        if len({(one.image, one.label) for one in every}) > 1:
            names = ", ".join(file.name for file in files[:5])
            raise BadInput(f"data {spec!r}: {names} have their images or labels in different columns")
        arrow.same_names(every, where=f"data {spec!r}")
        return _Table(files, every[0], labels, paths, tuple(groups))

    def __len__(self) -> int:
        return sum(rows for _, _, rows in self.group_rows)

    def keys(self, split: str) -> tuple[tuple[str, ...], str]:
        return arrow.keys_of(self.paths, len(self), split=split)

    def locations(self, spec: str, split: str) -> RowLocations:
        return RowLocations(
            f"data {spec!r},", lambda row: f"{_located(self.group_rows, row)}, image {self.keys(split)[0][row]!r}"
        )


@dataclass(frozen=True)
class _RowGroups:
    """Images by row; a row group is read when one of its rows is first asked for."""

    column: str
    groups: tuple[tuple[Path, int, int], ...]
    keys: tuple[str, ...]
    starts: np.ndarray  # (groups,) first row of each group
    loaded: dict[int, Any] = field(default_factory=dict)

    def __getitem__(self, row: int, /) -> Image.Image:
        return decode(self.encoded(row), key=self.keys[row])

    def encoded(self, row: int) -> bytes:
        group = int(np.searchsorted(self.starts, row, side="right")) - 1
        file, number, rows = self.groups[group]
        with _reading(f"{file.name}, row group {number}"):
            if group not in self.loaded:
                column = _opened(file).read_row_group(number, columns=[self.column]).column(self.column)
                if len(column) != rows:
                    raise OSError(f"{len(column)} of {rows} rows")
                self.loaded[group] = column
            value = self.loaded[group][row - int(self.starts[group])].as_py()
        encoded = value.get("bytes") if isinstance(value, dict) else value
        if encoded is None:  # a path alone is not followed: the file may come from elsewhere
            raise UnreadableImage.of(self.keys[row], f"has no bytes in {_located(self.groups, row)}")
        return encoded


def _located(groups: tuple[tuple[Path, int, int], ...], row: int) -> str:
    """Where a row of a split lies: file, and row in it."""
    before = 0
    for file, number, rows in groups:
        before = before if number else 0
        if row < rows:
            return f"{file.name} row {before + row}"
        before, row = before + rows, row - rows
    return f"row {row}"


def _open(spec: str, name: str, split: str, table: _Table, classes: list[str], left_out: Mapping[str, int]) -> Dataset:
    count = len(table)
    keys, note = table.keys(split)
    targets = None
    if table.columns.label is not None:
        targets = arrow.targets_of(table.labels, classes, table.columns.names, table.locations(spec, split))
    rows = np.array([rows for _, _, rows in table.group_rows], dtype=np.int64)
    images = _RowGroups(table.columns.image, table.group_rows, keys, np.cumsum(rows) - rows)
    channels, image_size = probe(images, count) if count else (3, (0, 0))
    return Dataset(
        name=name,
        spec=spec,
        split=split,
        classes=classes,
        keys=keys,
        targets=targets,
        rows=np.arange(count),
        images=images,
        channels=channels,
        image_size=image_size,
        note="; ".join(filter(None, (table.columns.note, note))),
        left_out=left_out,
    )


def _files_by_split(spec: str, path: Path) -> tuple[dict[str, tuple[Path, ...]], int]:
    """(files of each split, how many of a folder's files belong to none)."""
    if path.is_file():
        split = canonical_split(path.stem)
        return {split if split in ("val", "test") else "all": (path,)}, 0
    files = sorted(path.glob("*.parquet")) or sorted(path.glob("data/*.parquet"))
    found: dict[str, tuple[Path, ...]] = {}
    for file in files:
        split = canonical_split(file.stem)
        if split is not None:
            found[split] = (*found.get(split, ()), file)
    if not found and len(files) == 1:
        return {"all": (files[0],)}, 0
    if not found:
        names = ", ".join(file.name for file in files[:10])
        raise BadInput(f"data {spec!r}: none of its files names a split (train, val or test): {names}")
    return found, len(files) - sum(map(len, found.values()))


def _opened(file: Path) -> Any:
    import pyarrow.parquet as pq

    return pq.ParquetFile(file)


@contextmanager
def _reading(where: str) -> Iterator[None]:
    """What a damaged file makes pyarrow raise, as BadInput."""
    import pyarrow as pa

    try:
        yield
    except BadInput:
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{where}: not a readable parquet file: {error}") from error
