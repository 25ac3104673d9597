"""Tables of images in the layout of HF `datasets`: an image column (struct of bytes and path) and a class label.

Shared by local parquet files and by `datasets` names. Needs pyarrow (extra `data`).
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

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
    """Which columns hold image and label, and the class names if the schema has them."""

    image: str
    label: str
    names: tuple[str, ...] | None


def find_columns(schema: pa.Schema, *, where: str) -> Columns:
    """The image and label columns, by the features of HF `datasets` in the schema if present, by name and type if not.

    Raises BadInput, listing the columns, when either is missing.
    """
    features = _features(schema)
    image = _first_feature(features, "Image", prefer="image") or _image_by_type(schema)
    label = _first_feature(features, "ClassLabel", prefer="label") or _label_by_name(schema)
    for role, column in (("image", image), ("class label", label)):
        if column is None or column not in schema.names:
            raise BadInput(f"{where}: no {role} column; columns: {', '.join(schema.names)}")
    assert image is not None and label is not None
    names = features.get(label, {}).get("names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        names = []
    return Columns(image, label, tuple(names) or None)


def class_names(columns: Columns, labels: list[pa.ChunkedArray]) -> list[str]:
    """Names from the schema; else the sorted strings; else the integers from 0 to the largest, over all splits."""
    if columns.names:
        return list(columns.names)
    values = np.concatenate([label.drop_null().to_numpy() for label in labels])
    if values.dtype.kind in "OUS":
        return sorted({str(value) for value in values})
    return [str(value) for value in range(int(values.max(initial=-1)) + 1)]


def targets_of(labels: pa.ChunkedArray, classes: list[str], keys: tuple[str, ...], *, where: str) -> np.ndarray:
    """(N,) int64 class indices. Raises BadInput, naming the key, for a missing label or one outside the classes."""
    index = {name: position for position, name in enumerate(classes)}
    values = labels.to_pylist()
    targets = [index.get(value, -1) if isinstance(value, str) else value for value in values]
    for key, value, target in zip(keys, values, targets, strict=True):
        if not isinstance(target, int) or isinstance(target, bool) or not 0 <= target < len(classes):
            raise BadInput(f"{where}: image {key!r} has label {value!r}; accepted: 0 to {len(classes) - 1}")
    return np.array(targets, dtype=np.int64)


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


def _first_feature(features: dict[str, dict[str, Any]], kind: str, *, prefer: str) -> str | None:
    of_kind = [name for name, feature in features.items() if feature.get("_type") == kind]
    return prefer if prefer in of_kind else next(iter(of_kind), None)


def _image_by_type(schema: pa.Schema) -> str | None:
    import pyarrow as pa

    for field in schema:
        if pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
            return field.name
    binary = [f.name for f in schema if pa.types.is_binary(f.type) or pa.types.is_large_binary(f.type)]
    return next((name for name in _IMAGE_NAMES if name in binary), None)


def _label_by_name(schema: pa.Schema) -> str | None:
    import pyarrow as pa

    def is_label(kind: Any) -> bool:
        return pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)

    return next((n for n in _LABEL_NAMES if n in schema.names and is_label(schema.field(n).type)), None)
