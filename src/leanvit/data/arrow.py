"""Tables of images in the layout of HF `datasets`: an image column (struct of bytes and path) and a class label.

Shared by local parquet files and by `datasets` names. Needs pyarrow (extra `data`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from leanvit.data import labels as labelling
from leanvit.data.labels import RowLocations
from leanvit.errors import BadInput, MissingExtra

if TYPE_CHECKING:
    import pyarrow as pa

_IMAGE_NAMES = ("image", "img", "pixel_values", "jpg", "png")
_LABEL_NAMES = ("label", "labels", "target", "class", "cls", "fine_label")


def require(package: str) -> Any:
    """Import an optional package of the extra `data`; raises MissingExtra with the pip command."""
    from importlib import import_module

    try:
        return import_module(package)
    except ImportError as error:
        raise MissingExtra(
            f"reading this data needs {package!r}, which is not installed: pip install 'leanvit[data]'"
        ) from error


@dataclass(frozen=True)
class Columns:
    """Which columns hold image and label, the class names if the schema has them, and what was guessed."""

    image: str
    label: str | None  # None: the images are read without labels
    names: tuple[str, ...] | None
    note: str = ""


def find_columns(schema: pa.Schema, *, where: str, labelled: bool = True) -> Columns:
    """The image and label columns, by the features of HF `datasets` in the schema if present, by name and type if not.

    labelled: whether a label column is looked for, too. Raises BadInput, listing the columns, when one is missing or of
    a type that holds no encoded images or labels.
    """
    features = _features(schema)
    images = [name for name in _of_feature(features, "Image", "image") if name in schema.names]
    labels = [name for name in _of_feature(features, "ClassLabel", "label") if name in schema.names]
    images = images or _images_by_type(schema)
    if not labelled:
        if not images:
            raise BadInput(_no_column(schema, where, "image", _IMAGE_NAMES))
        _require_images(schema, images[0], where)
        return Columns(images[0], None, None, _of_several("images", images))
    labels = labels or [name for name in _LABEL_NAMES if name in schema.names]
    for role, found, known in (("image", images, _IMAGE_NAMES), ("class label", labels, _LABEL_NAMES)):
        if not found:
            mend = "" if role == "image" else "; ?labels=none opens the images without labels"
            raise BadInput(f"{_no_column(schema, where, role, known)}{mend}")
    _require_images(schema, images[0], where)
    _require_labels(schema, labels[0], where)
    names = features.get(labels[0], {}).get("names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        names = []
    labelling.check_count(len(names), where)
    notes = [note for note in (_of_several("images", images), _of_several("labels", labels)) if note]
    distinct = labelling.distinct_names(names)
    if distinct != names:
        new = ", ".join(repr(name) for name, old in zip(distinct, names, strict=True) if name != old)
        notes.append(f"names of classes that are blank or come twice get their index: {new[:120]}")
    return Columns(images[0], labels[0], tuple(distinct) or None, "; ".join(notes))


def _no_column(schema: pa.Schema, where: str, role: str, known: Sequence[str]) -> str:
    return f"{where}: no {role} column; columns: {', '.join(schema.names)}; accepted: one of {', '.join(known)}"


def _of_several(what: str, found: Sequence[str]) -> str:
    """The note on a column that was taken where there are others; empty where there are none."""
    return f"{what} are those of column {found[0]!r}, not of {', '.join(found[1:])}" if len(found) > 1 else ""


def same_names(columns: Iterable[Columns], *, where: str) -> tuple[str, ...] | None:
    """The class names that the schemas state. Raises BadInput where two of them differ."""
    stated = {column.names for column in columns}
    if len(stated) > 1:
        raise BadInput(f"{where}: its files or splits state different names of classes: an index would mean two things")
    return next(iter(stated), None)


def class_names(
    names: tuple[str, ...] | None, values: Mapping[str, Sequence[object]], locations: Mapping[str, RowLocations]
) -> list[str]:
    """Names from the schema, else the distinct labels of all splits (`labels.names_of`)."""
    if names:
        return list(names)
    return labelling.names_of(
        (labelling.texts_of(values[split], locations[split]), locations[split]) for split in values
    )


def targets_of(
    values: Sequence[object], classes: Sequence[str], names: tuple[str, ...] | None, locations: RowLocations
) -> np.ndarray:
    """(N,) int64 class indices. Raises BadInput, naming the row, for a missing label or one outside the classes.

    names: those of the schema, if any: then whole numbers are indices; else they are names of classes themselves.
    """
    if names:
        return labelling.named_targets(values, classes, locations)
    return labelling.class_targets(labelling.texts_of(values, locations), classes, locations)


def keys_of(paths: list[str | None] | None, count: int, *, split: str) -> tuple[tuple[str, ...], str]:
    """(keys, note): the images' paths, below their common folder if absolute; `<split>/<row>` if not all and unique."""
    if paths is not None and all(paths) and len(set(paths)) == count:
        given = [str(path).replace("\\", "/") for path in paths]
        if count > 1 and all(os.path.isabs(path) for path in given):
            root = os.path.commonpath(given)
            given = [os.path.relpath(path, root) for path in given]
        return tuple(given), ""
    keys = tuple(f"{split}/{row:08d}" for row in range(count))
    return keys, "keys are row numbers: the images have no unique paths"


def image_paths(column: pa.ChunkedArray) -> list[str | None] | None:
    """The `path` field of an image column; None if it has no such field."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_struct(column.type) or column.type.get_field_index("path") < 0:
        return None
    return pc.struct_field(column, "path").to_pylist()


def _features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    text = (schema.metadata or {}).get(b"huggingface")
    try:
        features = json.loads(text)["info"]["features"] if text else {}
    except (ValueError, KeyError, TypeError):
        return {}  # foreign metadata: fall back on names and types
    items = features.items() if isinstance(features, dict) else ()
    return {name: feature for name, feature in items if isinstance(feature, dict)}


def _of_feature(features: dict[str, dict[str, Any]], kind: str, prefer: str) -> list[str]:
    """The columns of a kind of feature, the preferred name first."""
    of_kind = [name for name, feature in features.items() if feature.get("_type") == kind]
    return sorted(of_kind, key=lambda name: name != prefer)


def _images_by_type(schema: pa.Schema) -> list[str]:
    """Structs with bytes; else columns of bytes with a known name; else one of such a name, which is refused later."""
    import pyarrow as pa

    structs = [f.name for f in schema if pa.types.is_struct(f.type) and f.type.get_field_index("bytes") >= 0]
    named = [name for name in _IMAGE_NAMES if name in schema.names]
    return structs or [name for name in named if _is_bytes(schema.field(name).type)] or named[:1]


def _require_images(schema: pa.Schema, column: str, where: str) -> None:
    """Raises BadInput unless a column holds encoded images: bytes, or a struct with `bytes`."""
    import pyarrow as pa

    whole = kind = schema.field(column).type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not _is_bytes(kind):
        paths = "; paths of files are read from a .csv table" if _is_text(kind) else ""
        raise BadInput(
            f"{where}: image column {column!r} is of type {whole}; accepted: the encoded files, as binary or as a "
            f"struct with the field bytes{paths}"
        )


def _require_labels(schema: pa.Schema, column: str, where: str) -> None:
    import pyarrow as pa

    kind = schema.field(column).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    checks = (pa.types.is_integer, pa.types.is_boolean, pa.types.is_floating, pa.types.is_decimal, pa.types.is_null)
    if not _is_text(kind) and not any(check(kind) for check in checks):
        raise BadInput(
            f"{where}: label column {column!r} is of type {kind}; accepted: one text or whole number for each image"
        )


def _is_bytes(kind: Any) -> bool:
    import pyarrow as pa

    checks = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary)
    return any(check(kind) for check in checks)


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return any(check(kind) for check in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))
