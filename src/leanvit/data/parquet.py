"""Local parquet files in the layout of HF `datasets`, read with pyarrow: one file, or a folder of `<split>.parquet`.

A split may be several shards (`train-00000-of-00004.parquet`). The encoded images of a row group stay in memory once
it was touched; what does not fit in memory is opened as `hf:FOLDER`, which maps it from disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from leanvit.data import arrow
from leanvit.data.columns import Column, check_options, fields_of, note_of, object_classes, root_of, with_fields
from leanvit.data.dataset import Dataset, probe
from leanvit.data.decode import UnreadableImage, decode
from leanvit.data.labels import RowLocations
from leanvit.data.specs import Spec
from leanvit.data.splits import Source, canonical_split
from leanvit.errors import BadInput


def parquet_source(parsed: Spec, path: Path) -> Source:
    """The splits of a parquet file or folder. A single file is val or test if its name says so, else one unnamed split.

    Columns may become fields, see `columns`; paths in them are below the file's folder, or below `root=DIR`.

    Raises MissingExtra without pyarrow, BadInput for files that are not parquet, lack an image or label column or one
    that is asked for as a field, or hold a label outside the classes.
    """
    arrow.require("pyarrow")
    check_options(parsed)
    spec = parsed.text
    files, unread = _files_by_split(spec, path)
    left_out = {"parquet files whose names hold no split": unread} if unread else {}
    tables = {split: _Table.of(parsed, paths) for split, paths in files.items()}
    names = arrow.same_names((table.columns for table in tables.values()), where=f"data {spec!r}")
    locations = {split: table.locations(spec, split) for split, table in tables.items()}
    labels = {split: table.labels for split, table in tables.items()}
    classes = arrow.class_names(names, labels, locations) if parsed.labelled else []
    fields = _Fields.of(parsed, tables)
    name = path.resolve().parent.name if path.is_file() and canonical_split(path.stem) else path.resolve().stem
    opened: dict[str, Callable[[], Dataset]] = {
        split: partial(_open, spec, name, split, table, classes, left_out, fields) for split, table in tables.items()
    }
    return Source(spec, opened, "parquet")


@dataclass(frozen=True)
class _Table:
    """What is read at once of the files of one split: all but the images."""

    files: tuple[Path, ...]
    columns: arrow.Columns
    fields: dict[str, Column]
    labels: list[object]  # none where they are not read
    paths: list[str | None] | None
    group_rows: tuple[tuple[Path, int, int], ...]  # (file, row group, rows in it)

    @staticmethod
    def of(parsed: Spec, files: tuple[Path, ...]) -> _Table:
        spec, taken = parsed.text, parsed.columns
        labels: list[object] = []
        paths: list[str | None] | None = []
        groups: list[tuple[Path, int, int]] = []
        every: list[arrow.Columns] = []
        fields: list[dict[str, Column]] = []
        for file in files:
            where = f"data {spec!r}, {file.name}"
            with _reading(where):
                parquet = _opened(file)
                schema = parquet.schema_arrow
                columns = arrow.find_columns(schema, where=where, labelled=parsed.labelled, taken=taken.values())
                fields.append(arrow.field_columns(schema, taken, where=where))
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
        return _Table(files, every[0], arrow.one_form(fields, where=f"data {spec!r}"), labels, paths, tuple(groups))

    def __len__(self) -> int:
        return sum(rows for _, _, rows in self.group_rows)

    def keys(self, split: str) -> tuple[tuple[str, ...], str]:
        return arrow.keys_of(self.paths, len(self), split=split)

    def locations(self, spec: str, split: str) -> RowLocations:
        return RowLocations(
            f"data {spec!r},", lambda row: f"{_located(self.group_rows, row)}, image {self.keys(split)[0][row]!r}"
        )


@dataclass(frozen=True)
class _Cells:
    """The cells of a column by row; a row group is read when one of its rows is first asked for."""

    column: str
    groups: tuple[tuple[Path, int, int], ...]
    loaded: dict[int, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(rows for _, _, rows in self.groups)

    def __getitem__(self, row: int, /) -> Any:
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        file, number, rows = self.groups[group]
        with _reading(f"{file.name}, row group {number}"):
            if group not in self.loaded:
                column = _opened(file).read_row_group(number, columns=[self.column]).column(self.column)
                if len(column) != rows:
                    raise OSError(f"{len(column)} of {rows} rows")
                self.loaded[group] = column
            return self.loaded[group][row - int(self._starts[group])].as_py()

    def located(self, row: int) -> str:
        return f"column {self.column!r}, {_located(self.groups, row)}"

    def all(self) -> Iterator[Any]:
        """Every cell, a row group at a time; none stays in memory."""
        for file, number, _ in self.groups:
            with _reading(f"{file.name}, row group {number}"):
                yield from _opened(file).read_row_group(number, columns=[self.column]).column(self.column).to_pylist()

    @cached_property
    def _starts(self) -> np.ndarray:
        """(groups,) first row of each group."""
        rows = np.array([rows for _, _, rows in self.groups], dtype=np.int64)
        return np.cumsum(rows) - rows


@dataclass(frozen=True)
class _Images:
    """Images by row."""

    cells: _Cells
    keys: tuple[str, ...]

    def __getitem__(self, row: int, /) -> Image.Image:
        return decode(self.encoded(row), key=self.keys[row])

    def encoded(self, row: int) -> bytes:
        value = self.cells[row]
        encoded = value.get("bytes") if isinstance(value, dict) else value
        if encoded is None:  # a path alone is not followed: the file may come from elsewhere
            raise UnreadableImage.of(self.keys[row], f"has no bytes in {_located(self.cells.groups, row)}")
        return encoded


@dataclass(frozen=True)
class _Fields:
    """What the fields of all splits have in common."""

    spec: Spec
    folder: Path  # what paths start from
    columns: dict[str, Column]
    classes: tuple[str, ...]  # of objects
    note: str

    @staticmethod
    def of(spec: Spec, tables: Mapping[str, _Table]) -> _Fields:
        """Raises BadInput where the splits differ, and for a root= that is no folder, or that no path starts from."""
        found = arrow.one_form((table.fields for table in tables.values()), where=f"data {spec.text!r}")
        folder = root_of(spec, next(iter(tables.values())).files[0].parent, found.values())
        cells = (_Cells(spec.columns["objects"], table.group_rows).all() for table in tables.values())
        return _Fields(spec, folder, found, *object_classes(spec, found.get("objects"), lambda: chain(*cells)))

    def added(self, dataset: Dataset, groups: tuple[tuple[Path, int, int], ...]) -> Dataset:
        """The data set with the fields."""
        cells = {name: _Cells(column.column, groups) for name, column in self.columns.items()}
        fields = fields_of(self.spec, cells, folder=self.folder, classes=self.classes)
        return with_fields(dataset, fields, note_of(self.spec), self.note)


def _located(groups: tuple[tuple[Path, int, int], ...], row: int) -> str:
    """Where a row of a split lies: file, and row in it."""
    before = 0
    for file, number, rows in groups:
        before = before if number else 0
        if row < rows:
            return f"{file.name} row {before + row}"
        before, row = before + rows, row - rows
    return f"row {row}"


def _open(
    spec: str,
    name: str,
    split: str,
    table: _Table,
    classes: list[str],
    left_out: Mapping[str, int],
    fields: _Fields,
) -> Dataset:
    count = len(table)
    keys, note = table.keys(split)
    targets = None
    if table.columns.label is not None:
        targets = arrow.targets_of(table.labels, classes, table.columns.names, table.locations(spec, split))
    images = _Images(_Cells(table.columns.image, table.group_rows), keys)
    channels, image_size = probe(images, count) if count else (3, (0, 0))
    dataset = Dataset(
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
    return fields.added(dataset, table.group_rows)


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
