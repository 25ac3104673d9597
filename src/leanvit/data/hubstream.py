"""`hf:NAME?streaming`: an HF data set read from its files in passes, nothing downloaded or cached as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from leanvit.data import arrow
from leanvit.data.columns import fields_of, note_of, object_classes, with_fields
from leanvit.data.dataset import NO_FIELDS
from leanvit.data.fields import Field
from leanvit.data.hubtables import columns_of, encoded, field_columns
from leanvit.data.labels import RowLocations
from leanvit.data.specs import Spec
from leanvit.data.splits import Source
from leanvit.data.stream import Encoded, Stream, as_bytes, in_epochs, probe_stream
from leanvit.errors import BadInput


@dataclass(frozen=True)
class HubShard:
    """One shard of a streamed `datasets` split."""

    table: Any  # datasets.IterableDataset of image (not decoded), label and field columns
    shards: int
    index: int
    image: str
    label: str | None  # None: without labels
    classes: tuple[str, ...]
    named: bool  # by the data set's record: then whole numbers are indices
    split: str
    fields: Mapping[str, str] = field(default_factory=dict)  # name of a field -> its column

    @property
    def name(self) -> str:
        return f"{self.split}-{self.index:05d}-of-{self.shards:05d}"

    def __iter__(self) -> Iterator[Encoded]:
        known: dict[tuple[type, object], int | None] = {}
        seen: set[str] = set()
        for row, line in enumerate(self.table.shard(num_shards=self.shards, index=self.index)):
            value, label = line[self.image], None if self.label is None else line[self.label]
            path = value.get("path") if isinstance(value, dict) else None
            encoded = value.get("bytes") if isinstance(value, dict) else value
            if encoded is None and path:
                encoded = as_bytes(Path(path))
            key = str(path) if path and path not in seen else f"{self.name}/{row:08d}"
            seen.add(str(path))
            same = (type(label), label)
            if same not in known:
                known[same] = self._target(label, row, key)
            fields = {name: line[column] for name, column in self.fields.items()} if self.fields else NO_FIELDS
            yield Encoded(encoded or b"", known[same], key, fields=fields)

    def _target(self, label: object, row: int, key: str) -> int | None:
        if self.label is None:
            return None
        locations = RowLocations(self.name, lambda _: f"row {row}, image {key!r}")
        return int(arrow.targets_of([label], self.classes, self.classes if self.named else None, locations)[0])


def streamed_source(spec: Spec, tables: dict[str, Any]) -> Source:
    """The splits of streamed `datasets` tables. Options: `epoch=N`, `resampled`, `buffer=N`, of train.

    Where the data set's record does not say how many images a split has, or what its classes are, the label column is
    read once. Keys are the images' paths; shard and row for images without a path, or with one that came before.
    """
    tables = {split: table if table.features else table._resolve_features() for split, table in tables.items()}
    fields = _fields(spec, tables)
    splits = {split: _columns(spec, split, table) for split, table in tables.items()}
    counts: dict[str, int] = {}
    values: dict[str, list[object]] = {}
    names = arrow.same_names((columns for _, columns in splits.values()), where=f"data {spec.text!r}")
    for split, (table, columns) in splits.items():
        images = getattr((table.info.splits or {}).get(table.split), "num_examples", 0) if table.info.splits else 0
        if columns.label is None:
            counts[split] = images or sum(1 for _ in table)
            continue
        if images and names:
            counts[split] = images
            continue
        values[split] = [line[columns.label] for line in table.select_columns([columns.label])]
        counts[split] = len(values[split])
    locations = {split: RowLocations(f"data {spec.text!r}, {split}", "row {}".format) for split in values}
    classes = arrow.class_names(names, values, locations) if spec.labelled else []
    opened = {
        split: partial(_open, spec, split, table, columns, classes, counts[split], fields)
        for split, (table, columns) in splits.items()
    }
    return Source(spec.text, opened, "HF datasets, streamed")


def _fields(spec: Spec, tables: dict[str, Any]) -> dict[str, Field]:
    """The fields, whose values come with the samples. Raises BadInput where names of categories would have to be
    looked for."""
    columns, root = field_columns(spec, tables)
    objects = columns.get("objects")
    if objects is not None and objects.form == "objects" and objects.texts and "object_classes" not in spec.options:
        raise BadInput(
            f"data {spec.text!r}: the categories of column {objects.column!r} are names, which a stream does not know "
            "before it is read; add object_classes=NAME,NAME"
        )
    classes, _ = object_classes(spec, objects, tuple)
    return fields_of(spec, dict.fromkeys(columns), folder=root, below=False, classes=classes)


def _columns(spec: Spec, split: str, table: Any) -> tuple[Any, arrow.Columns]:
    columns = columns_of(spec, split, table)
    label = [] if columns.label is None else [columns.label]
    return encoded(table, columns.image, *label, *spec.columns.values()), columns


def _open(
    spec: Spec,
    split: str,
    table: Any,
    columns: arrow.Columns,
    classes: list[str],
    held: int,
    fields: Mapping[str, Field],
) -> Stream:
    shards, named = max(1, table.num_shards), columns.names is not None
    parts = tuple(
        HubShard(table, shards, index, columns.image, columns.label, tuple(classes), named, split, spec.columns)
        for index in range(shards)
    )
    if not held:
        raise BadInput(f"data {spec.text!r}, {split}: there is no image in it")
    channels, image_size = probe_stream(parts)
    whole = Stream(
        name=Path(spec.where).name,
        spec=spec.text,
        split=split,
        classes=classes,
        parts=parts,
        length=held,
        channels=channels,
        image_size=image_size,
        note=columns.note,
        labelled=columns.label is not None,
    )
    return in_epochs(with_fields(whole, fields, note_of(spec)), spec)
