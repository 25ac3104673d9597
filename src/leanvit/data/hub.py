"""`hf:NAME[:CONFIG]`: a data set by its name on the HF hub, or a local folder, opened by the `datasets` library.

Images stay in the memory-mapped cache of `datasets`; none of its decoding or shuffling is used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from leanvit.data import arrow
from leanvit.data.columns import Column, check_options, fields_of, note_of, object_classes, with_fields
from leanvit.data.dataset import Dataset, probe
from leanvit.data.decode import UnreadableImage, decode
from leanvit.data.hubtables import columns_of, encoded, field_columns
from leanvit.data.labels import RowLocations
from leanvit.data.specs import Spec
from leanvit.data.splits import Source, canonical_split
from leanvit.errors import BadInput


def hub_source(parsed: Spec) -> Source:
    """The splits of a `datasets` name or folder (also one written by `save_to_disk`).

    Columns may become fields, see `columns`; those of paths take `root=DIR`.

    Raises MissingExtra without `datasets`, BadInput when the name cannot be loaded or is not image classification.
    """
    check_options(parsed)
    library = arrow.require("datasets")
    spec, streaming = parsed.text, parsed.on("streaming")
    if not streaming and (given := {"epoch", "resampled", "buffer"} & set(parsed.options)):
        raise BadInput(f"data {spec!r}: {', '.join(sorted(given))} is for streaming: add it, or leave that out")
    loaded = _load(library, spec, parsed.where, streaming=streaming)
    tables = _by_split(spec, dict(loaded) if isinstance(loaded, dict) else {"all": loaded})
    if streaming:
        from leanvit.data.hubstream import streamed_source

        return streamed_source(parsed, tables)
    columns = {split: columns_of(parsed, split, table) for split, table in tables.items()}
    fields = _Fields.of(parsed, tables)
    names = arrow.same_names(columns.values(), where=f"data {spec!r}")
    labels = {
        split: [] if (label := columns[split].label) is None else _arrow_column(table, label).to_pylist()
        for split, table in tables.items()
    }
    locations = {split: RowLocations(f"data {spec!r}, {split}", "row {}".format) for split in tables}
    classes = arrow.class_names(names, labels, locations) if parsed.labelled else []
    opened: dict[str, Callable[[], Dataset]] = {
        split: partial(_open, spec, parsed.where, split, table, columns[split], labels[split], classes, fields)
        for split, table in tables.items()
    }
    return Source(spec, opened, "HF datasets")


@dataclass(frozen=True)
class _Fields:
    """What the fields of all splits have in common."""

    spec: Spec
    columns: dict[str, Column]
    root: Path | None
    classes: tuple[str, ...]  # of objects
    note: str

    @staticmethod
    def of(spec: Spec, tables: dict[str, Any]) -> _Fields:
        columns, root = field_columns(spec, tables)
        cells = (_arrow_column(table, spec.columns["objects"]).to_pylist() for table in tables.values())
        return _Fields(spec, columns, root, *object_classes(spec, columns.get("objects"), lambda: chain(*cells)))

    def added(self, dataset: Dataset, table: Any) -> Dataset:
        """The data set with the fields."""
        cells = {name: _Cells(encoded(table, one.column), one.column) for name, one in self.columns.items()}
        fields = fields_of(self.spec, cells, folder=self.root, below=False, classes=self.classes)
        return with_fields(dataset, fields, note_of(self.spec), self.note)


@dataclass(frozen=True)
class _Cells:
    """The cells of a column that is a field, by row."""

    table: Any  # datasets.Dataset of the column alone, not decoded
    column: str

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, row: int, /) -> Any:
        return self.table[row][self.column]

    def located(self, row: int) -> str:
        return f"column {self.column!r}, row {row}"


@dataclass(frozen=True)
class _Rows:
    table: Any  # datasets.Dataset of the image column alone, not decoded
    column: str
    keys: tuple[str, ...]

    def __getitem__(self, row: int, /) -> Image.Image:
        return decode(self.encoded(row), key=self.keys[row])

    def encoded(self, row: int) -> bytes | Path:
        value = self.table[row][self.column]
        encoded = value.get("bytes") if isinstance(value, dict) else value
        if encoded is None and isinstance(value, dict) and value.get("path"):
            encoded = Path(value["path"])
        if encoded is None:
            raise UnreadableImage.of(self.keys[row], f"has neither bytes nor a path (row {row})")
        return encoded


def _load(library: Any, spec: str, reference: str, *, streaming: bool) -> Any:
    folder = Path(reference).expanduser()
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            stored = library.load_from_disk(str(folder))
            return _as_streams(stored) if streaming else stored
        if folder.is_dir():
            return library.load_dataset(str(folder), streaming=streaming)
        name, _, config = reference.partition(":")
        return library.load_dataset(name, config or None, streaming=streaming)
    except Exception as error:  # datasets, hub client and network raise many kinds; all mean that it cannot be had
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise BadInput(f"data {spec!r} cannot be loaded by datasets: {reason[0]}") from error


def _as_streams(stored: Any) -> Any:
    if isinstance(stored, dict):
        return {split: table.to_iterable_dataset() for split, table in stored.items()}
    return stored.to_iterable_dataset()


def _by_split(spec: str, loaded: dict[str, Any]) -> dict[str, Any]:
    named: dict[str, str] = {}
    for name in loaded:
        split = canonical_split(name)
        if split in named:
            raise BadInput(f"data {spec!r} holds two {split} splits: {named[split]} and {name}")
        if split is not None:
            named[split] = name
    if named:
        return {split: loaded[name] for split, name in named.items()}
    if len(loaded) == 1:
        return {"all": next(iter(loaded.values()))}
    raise BadInput(f"data {spec!r}: none of its splits is train, val or test: {', '.join(sorted(loaded))}")


def _arrow_column(table: Any, column: str) -> Any:
    return table.select_columns([column]).with_format("arrow")[:].column(column)


def _open(
    spec: str,
    where: str,
    split: str,
    table: Any,
    columns: arrow.Columns,
    labels: list[object],
    classes: list[str],
    fields: _Fields,
) -> Dataset:
    images_only = encoded(table, columns.image)
    paths = arrow.image_paths(_arrow_column(images_only, columns.image))
    keys, note = arrow.keys_of(paths, len(table), split=split)
    locations = RowLocations(f"data {spec!r}, {split}", lambda row: f"row {row}, image {keys[row]!r}")
    images = _Rows(images_only, columns.image, keys)
    channels, image_size = probe(images, len(table)) if len(table) else (3, (0, 0))
    targets = None if columns.label is None else arrow.targets_of(labels, classes, columns.names, locations)
    dataset = Dataset(
        name=Path(where).name,
        spec=spec,
        split=split,
        classes=classes,
        keys=keys,
        targets=targets,
        rows=np.arange(len(table)),
        images=images,
        channels=channels,
        image_size=image_size,
        note="; ".join(filter(None, (columns.note, note))),
    )
    return fields.added(dataset, table)
