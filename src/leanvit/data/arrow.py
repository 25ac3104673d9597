"""Tables of images in the layout of HF `datasets`: an image column (struct of bytes and path) and a class label.

Shared by local parquet files and by `datasets` names. Needs pyarrow (extra `data`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from leanvit.data import labels as labelling
from leanvit.data.columns import BOX_NAMES, CATEGORY_NAMES, Column
from leanvit.data.labels import RowLocations
from leanvit.errors import BadInput, MissingExtra, nearest

if TYPE_CHECKING:
    import pyarrow as pa

_IMAGE_NAMES = ("image", "img", "pixel_values", "jpg", "png")
_LABEL_NAMES = ("label", "labels", "target", "class", "cls", "fine_label")
_PIXELS = "encoded pictures (binary, or a struct with the field bytes), paths of files, or lists of rows of"
_ACCEPTED = {  # what a column may hold that becomes a field
    "caption": "a text, or a list of texts",
    "mask": f"{_PIXELS} whole numbers",
    "objects": "a struct of bbox (lists of 4 numbers) and category (whole numbers or texts), a list of such structs, a "
    "list of boxes, or JSON text",
    "depth": f"{_PIXELS} numbers",
}


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


def field_columns(schema: pa.Schema, wanted: Mapping[str, str], *, where: str) -> dict[str, Column]:
    """The columns that become fields, by field. Raises BadInput for one that there is not, or of another type."""
    features = _features(schema)
    found = {}
    for name, column in wanted.items():
        if column not in schema.names:
            raise BadInput(f"{where}: {name}={column!r} is no column: {nearest(column, schema.names)}")
        kind = schema.field(column).type
        form = _form(name, _plain_type(kind))
        if form is None:
            raise BadInput(f"{where}: {name} column {column!r} is of type {kind}; accepted: {_ACCEPTED[name]}")
        names = tuple(labelling.distinct_names(_category_names(features.get(column)))) or None
        found[name] = Column(column, form, names, form == "json" or _has_texts(_plain_type(kind)))
    return found


def one_form(columns: Iterable[Mapping[str, Column]], *, where: str) -> dict[str, Column]:
    """The columns of fields that several files or splits have alike. Raises BadInput where they differ."""
    every = list(columns)
    for name in every[0]:
        if len({one[name] for one in every}) > 1:
            forms = ", ".join(sorted({one[name].form for one in every}))
            raise BadInput(
                f"{where}: its files or splits hold column {every[0][name].column!r} in different types ({forms}), or "
                "state different names of classes"
            )
    return dict(every[0])


def find_columns(schema: pa.Schema, *, where: str, labelled: bool = True, taken: Collection[str] = ()) -> Columns:
    """The image and label columns, by the features of HF `datasets` in the schema if present, by name and type if not.

    labelled: whether a label column is looked for, too. taken: columns that are fields, and neither of both. Raises
    BadInput, listing the columns, when one is missing or of a type that holds no encoded images or labels.
    """
    for name in filter(schema.names.__contains__, taken):
        schema = schema.remove(schema.get_field_index(name))
    features = _features(schema)
    images = [name for name in _of_feature(features, "Image", "image") if name in schema.names]
    labels = [name for name in _of_feature(features, "ClassLabel", "label") if name in schema.names]
    images = images or _images_by_type(schema)
    if not labelled:
        if not images:
            raise BadInput(_no_column(schema, where, "image", _IMAGE_NAMES, taken))
        _require_images(schema, images[0], where)
        return Columns(images[0], None, None, _of_several("images", images))
    labels = labels or [name for name in _LABEL_NAMES if name in schema.names]
    for role, found, known in (("image", images, _IMAGE_NAMES), ("class label", labels, _LABEL_NAMES)):
        if not found:
            mend = "" if role == "image" else "; ?labels=none opens the images without labels"
            raise BadInput(f"{_no_column(schema, where, role, known, taken)}{mend}")
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


def _no_column(schema: pa.Schema, where: str, role: str, known: Sequence[str], taken: Collection[str]) -> str:
    others = f"columns beside those of fields ({', '.join(taken)})" if taken else "columns"
    return f"{where}: no {role} column; {others}: {', '.join(schema.names)}; accepted: one of {', '.join(known)}"


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
    of_lists = ((name, {"feature": one[0]} if isinstance(one, list) and one else one) for name, one in items)
    return {name: feature for name, feature in of_lists if isinstance(feature, dict)}


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


# --- columns that become fields ---------------------------------------------------------------------------------------


def _form(name: str, kind: Any) -> str | None:
    """How the cells of a field's column are held; None for a type that the field cannot be."""
    import pyarrow as pa

    if name == "caption":
        return "texts" if _is_text(kind) or _is_text(_element(kind)) else None
    if name == "objects":
        if _is_text(kind):
            return "json"
        return "objects" if _is_boxes(kind) or _is_objects(kind) or _is_objects(_element(kind)) else None
    held = kind.field("bytes").type if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind
    if _is_bytes(held):
        return "encoded"
    if _is_text(kind):
        return "paths"
    pixel = _element(_element(kind))
    return "numbers" if pa.types.is_integer(pixel) or (name == "depth" and _is_number(pixel)) else None


def _plain_type(kind: Any) -> Any:
    """The type of the values of a dictionary, or of what an extension type is stored as."""
    import pyarrow as pa

    if isinstance(kind, pa.BaseExtensionType):
        return _plain_type(kind.storage_type)
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _element(kind: Any) -> Any:
    """The type of a list's elements; null for what is no list."""
    import pyarrow as pa

    return kind.value_type if _is_list(kind) else pa.null()


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    return any(check(kind) for check in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))


def _is_number(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _is_boxes(kind: Any) -> bool:
    return _is_number(_element(_element(kind)))


def _is_objects(kind: Any) -> bool:
    """Whether a struct holds boxes, or one box, and categories, if it has any, of texts or whole numbers."""
    import pyarrow as pa

    boxes = _member(kind, BOX_NAMES)
    category = _category(kind)
    known = category is None or _is_text(category) or pa.types.is_integer(category) or pa.types.is_null(category)
    return boxes is not None and (_is_boxes(boxes) or _is_number(_element(boxes))) and bool(known)


def _has_texts(kind: Any) -> bool:
    """Whether the categories of objects are texts."""
    category = _category(kind) or _category(_element(kind))
    return category is not None and _is_text(category)


def _category(kind: Any) -> Any:
    """The type of one category in a struct; None where there is none."""
    held = _member(kind, CATEGORY_NAMES)
    return None if held is None else _plain_type(_element(held) if _is_list(held) else held)


def _member(kind: Any, names: Sequence[str]) -> Any:
    """The type of the first of the named fields that a struct has."""
    import pyarrow as pa

    if not pa.types.is_struct(kind):
        return None
    return next((kind.field(name).type for name in names if kind.get_field_index(name) >= 0), None)


def _category_names(feature: Any) -> list[str]:
    """The names of a `ClassLabel` among the features of objects, below any lists."""
    if not isinstance(feature, dict):
        return []
    found = next((feature[name] for name in CATEGORY_NAMES if name in feature), None)
    while isinstance(found, dict) and "feature" in found:
        found = found["feature"]
    if isinstance(found, dict) and found.get("_type") == "ClassLabel":
        names = found.get("names")
        return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else []
    return _category_names(feature.get("feature"))
