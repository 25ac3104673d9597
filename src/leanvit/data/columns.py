"""Columns that become fields: `?caption=`, `?mask=`, `?objects=` and `?depth=` of tables, parquet, HF sets and shards.

A source says where the cells are, this module what a cell may hold and which field it makes. What is taken without
having been said (the form of boxes, the unit of depth, the order of class names) is in the data set's note.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from leanvit.data.dataset import Dataset, Sample
from leanvit.data.decode import UnreadableImage
from leanvit.data.fields import BOX_FORMS, Boxes, Depths, Field, Masks, Source, Texts
from leanvit.data.labels import sorted_names
from leanvit.data.specs import Spec
from leanvit.data.stream import AnyDataset, Stream
from leanvit.errors import BadInput, nearest, unknown

BOX_NAMES = ("bbox", "bboxes", "boxes")  # what the boxes of objects are called in a record
CATEGORY_NAMES = ("category", "categories", "category_id", "label", "labels")
Opened = TypeVar("Opened", Dataset, Stream)
LOOKS = 8  # samples whose fields are read when a data set is opened
_OBJECTS = (
    '{"bbox": [[…], …], "category": […]}, a list of {"bbox": […], "category": …}, or a list of boxes of 4 numbers each'
)
_PIXELS = ("png", "tif", "tiff", "bmp", "pgm", "npy")  # endings of members that hold a mask or a depth map
_OF_PIXELS = f"the ending of a member without loss, as in NAME.png: {', '.join(_PIXELS)}"
_MEMBERS = {
    "caption": "txt, NAME.txt, json.FIELD or NAME.json",
    "mask": _OF_PIXELS,
    "objects": "json.FIELD or NAME.json",
    "depth": _OF_PIXELS,
}


@dataclass(frozen=True)
class Column:
    """A column that becomes a field: how its cells are held, and the names of classes that the data's record states."""

    column: str
    form: str  # "texts", "encoded", "paths", "numbers", "objects" or "json"
    names: tuple[str, ...] | None = None  # of the categories of objects
    texts: bool = False  # whether categories are, or may be, names


@dataclass(frozen=True)
class Caption:
    """A cell of captions: one text, or several, also as a JSON list. Raises BadInput for one that is missing."""

    def __call__(self, cell: Any) -> list[str]:
        if cell is not None and not isinstance(cell, str | list | tuple):
            raise BadInput(f"{cell!r:.80}; accepted: a text, or a list of texts")
        texts = [text for one in ([cell] if isinstance(cell, str) else cell or ()) for text in _listed_texts(one)]
        if not texts or any(text is None or (isinstance(text, str) and not text.strip()) for text in texts):
            raise BadInput("is missing; accepted: a text, or a list of texts, none of them empty")
        return texts


@dataclass(frozen=True)
class Pixels:
    """A cell of a mask or a depth map: encoded (bytes, or a record with `bytes`), a path, or rows of numbers."""

    folder: Path | None = None  # what relative paths start from; None: paths are not accepted
    below: bool = True  # only paths below the folder: the data may come from elsewhere

    def __call__(self, cell: Any) -> Any:
        if isinstance(cell, Mapping):
            path = None if self.below else cell.get("path")
            cell = cell.get("bytes") or (Path(path) if path else None)
        if cell is None or (isinstance(cell, str | bytes) and not cell):
            raise BadInput("is missing")
        if isinstance(cell, str):
            return self._file(cell)
        return cell if isinstance(cell, bytes | Path) else np.asarray(cell)

    def _file(self, text: str) -> Path:
        path = Path(os.path.normpath(text.replace("\\", "/")))
        if self.folder is None or (self.below and (path.is_absolute() or ".." in path.parts)):
            raise BadInput(f"the path {text!r}; accepted: a path below the folder of the data, or below root=DIR")
        found = self.folder / path
        if not os.path.isfile(found):  # a pipe or a device would be waited for
            raise BadInput(f"there is no file {found}")
        return found


@dataclass(frozen=True)
class Objects:
    """A cell of objects, as values or as JSON: boxes, and a category of each as index or as one of `names`."""

    names: tuple[str, ...] = ()

    def __call__(self, cell: Any) -> dict[str, np.ndarray]:
        boxes, categories = _boxes_and_categories(cell)
        for row, box in enumerate(boxes):
            if not isinstance(box, Sequence) or len(box) != 4 or not all(map(_is_number, box)):
                raise BadInput(f"box {row} is {box!r:.80}; accepted: 4 numbers")
        found = {"boxes": np.array(boxes, dtype=np.float64).reshape(-1, 4)}
        if categories is not None:
            found["labels"] = np.array([self._label(*one) for one in enumerate(categories)], dtype=np.int64)
        return found

    def _label(self, row: int, category: Any) -> int:
        if isinstance(category, str):
            if not self.names:
                raise BadInput(f"the category {category!r} of box {row} is a name; add object_classes=NAME,NAME")
            if category.strip() not in self.names:
                raise BadInput(f"the category {category!r} of box {row} is no class: {nearest(category, self.names)}")
            return self.names.index(category.strip())
        if not isinstance(category, int) or isinstance(category, bool) or category < 0:
            raise BadInput(f"the category of box {row} is {category!r:.80}; accepted: a name, or a whole number from 0")
        return category


@dataclass(frozen=True)
class Member:
    """The content of a member of a shard as the cell of a column: `json.FIELD` is a value of its JSON.

    Called with its bytes, or with what reads them: anything with `read_bytes`.
    """

    parse: Callable[[Any], Any] | None
    kind: str  # "text", "json", or "pixels"
    value: str = ""  # of the JSON object; "": the whole

    def __call__(self, content: Any) -> Any:
        cell = self._cell(content if isinstance(content, bytes) else content.read_bytes())
        return cell if self.parse is None else self.parse(cell)

    def _cell(self, content: bytes) -> Any:
        if self.kind == "pixels":
            return content
        try:
            text = content.decode("utf-8-sig").strip()
        except UnicodeDecodeError:
            raise BadInput("its member is no UTF-8 text") from None
        if self.kind == "text":
            return text
        found = _from_json(text)
        if not self.value:
            return found
        if not isinstance(found, Mapping) or self.value not in found:
            held = ", ".join(map(str, found)) if isinstance(found, Mapping) else f"a {type(found).__name__}"
            raise BadInput(f"its JSON has no {self.value!r} (it has {held:.120})")
        return found[self.value]


# --- fields of a spec -------------------------------------------------------------------------------------------------


def fields_of(
    spec: Spec,
    sources: Mapping[str, Source | None],
    *,
    folder: Path | None = None,
    below: bool = True,
    classes: Sequence[str] = (),
) -> dict[str, Field]:
    """The fields that a spec asks for, by name.

    sources: cells by row, by field; None in a stream, where they come with the samples. folder: what paths start from.
    below: whether they must stay in it. classes: names of the categories of objects (`object_classes`).

    Raises BadInput for options that are not accepted.
    """
    return {name: _field(spec, name, source, folder, below, tuple(classes)) for name, source in sources.items()}


def _field(
    spec: Spec, name: str, source: Source | None, folder: Path | None, below: bool, classes: tuple[str, ...]
) -> Field:
    if name == "caption":
        return Texts(source, parse=Caption())
    if name == "objects":
        return Boxes(source, parse=Objects(classes), classes=classes, form=_box_form(spec))
    pixels = Pixels(folder, below)
    if name == "depth":
        return Depths(source, parse=pixels, scale=_depth_scale(spec))
    ignore = spec.whole("ignore", 255, least=0)
    assert ignore is not None
    if ignore >= 2**63:
        raise BadInput(f"data {spec.text!r}: ignore={ignore}; accepted: up to {2**63 - 1}")
    return Masks(source, parse=pixels, ignore=ignore, classes=_distinct(spec, "mask_classes"))


def check_options(spec: Spec) -> None:
    """Raises BadInput for options of fields that are not accepted, before any data is read."""
    fields_of(spec, dict.fromkeys(spec.columns), classes=_distinct(spec, "object_classes"))


def object_classes(
    spec: Spec, column: Column | None, cells: Callable[[], Iterable[Any]]
) -> tuple[tuple[str, ...], str]:
    """(names of the categories of objects, note): those of the data's own record, those of `object_classes=`, or the
    distinct names in the cells of all splits, sorted; none where categories are numbers without names.

    column: that of the objects, if there is one. cells: read only where they may hold names. Raises BadInput where
    record and option differ, and where some categories are names and others numbers.
    """
    if column is None:
        return (), ""
    stated = column.names
    given = _distinct(spec, "object_classes")
    if stated and given and given != stated:
        raise BadInput(
            f"data {spec.text!r}: object_classes={','.join(given)}, but its record names them {', '.join(stated)}; "
            "leave the option out"
        )
    if given or stated or not column.texts:
        return given or stated or (), ""
    found: set[str] = set()
    numbers = False
    for cell in cells():
        try:
            categories = _boxes_and_categories(cell)[1] or ()
        except BadInput:
            continue  # named when its sample is met
        found |= {one.strip() for one in categories if isinstance(one, str)}
        numbers = numbers or any(_is_number(one) for one in categories)
    if found and numbers:
        raise BadInput(
            f"data {spec.text!r}: some categories of column {spec.columns['objects']!r} are names "
            f"({', '.join(sorted(found)[:3])}), others numbers; accepted: one kind, or object_classes=NAME,NAME"
        )
    try:
        names = tuple(sorted_names(found))
    except BadInput as error:
        raise BadInput(f"data {spec.text!r}, column {spec.columns['objects']!r}: {error}") from None
    shown = ", ".join(names[:8]) + (f", … ({len(names)} in all)" if len(names) > 8 else "")
    note = f"classes of objects are the names in the data, sorted: {shown} (object_classes=NAME,NAME sets the order)"
    return names, note if names else ""


def root_of(spec: Spec, beside: Path, found: Iterable[Column]) -> Path:
    """What paths in columns start from: `root=`, else the data's own folder. Raises BadInput for a root of nothing."""
    if "root" in spec.options and not any(column.form == "paths" for column in found):
        raise BadInput(f"data {spec.text!r}: root= is where paths start from, but no mask or depth column holds paths")
    return spec.folder("root", beside)


def note_of(spec: Spec) -> str:
    """What is taken of the fields without having been said."""
    notes = []
    if "objects" in spec.columns and "boxes" not in spec.options:
        notes.append("boxes of objects are taken as left, top, width, height in pixels (boxes=xyxy where they are not)")
    if "depth" in spec.columns and "depth_scale" not in spec.options:
        notes.append("depth is in the unit that is stored (depth_scale=N multiplies it)")
    return "; ".join(notes)


def with_fields(dataset: Opened, fields: Mapping[str, Field], *notes: str) -> Opened:
    """The data set with its fields, and what is to be said of them."""
    for name, field in fields.items():
        dataset = dataset.with_field(name, field)
    return replace(dataset, note="; ".join(filter(None, (dataset.note, *notes))))


def check_values(dataset: AnyDataset, spec: Spec) -> None:
    """Read the fields of a few samples. Raises BadInput where none can be read (unless bad samples are left out), and
    for boxes that are fractions of the image."""
    if not spec.columns:
        return
    seen, failure = [], None
    for read in _reads(dataset):
        try:
            seen.append(read())
        except UnreadableImage as error:
            failure = failure or error
    if failure is not None and not seen and dataset.on_bad == "error":
        unsaid = "objects" in spec.columns and "boxes" not in spec.options and BOX_FORMS["xywh"] in str(failure)
        mend = " (boxes=xyxy: left, top, right, bottom)" if unsaid else ""
        raise BadInput(f"data {spec.text!r}, {dataset.split}: {failure}{mend}")
    boxes = [sample.fields["objects"]["boxes"] for sample in seen if "objects" in sample.fields]
    largest = max((float(one.max()) for one in boxes if len(one)), default=2.0)
    if largest <= 1:
        raise BadInput(
            f"data {spec.text!r}: boxes of column {spec.columns['objects']!r} reach to {largest:.3g} at most, "
            "as fractions of an image do; accepted: pixels"
        )


def _reads(dataset: AnyDataset) -> Iterator[Callable[[], Sample]]:
    if isinstance(dataset, Dataset):
        for index in np.unique(np.linspace(0, len(dataset) - 1, min(LOOKS, len(dataset))).astype(int)):
            yield partial(dataset.__getitem__, int(index))
    else:
        first = islice((item for part in dataset.parts for item in part), LOOKS)
        yield from (partial(dataset.read, item) for item in first)


def _box_form(spec: Spec) -> str:
    form = spec.options.get("boxes", "xywh")
    if form not in BOX_FORMS:
        raise unknown(f"boxes of data {spec.text!r}", form, BOX_FORMS)
    return form


def _depth_scale(spec: Spec) -> float:
    text = spec.options.get("depth_scale", "1")
    try:
        scale = float(text)
    except ValueError:
        scale = 0.0
    if not (scale > 0 and np.isfinite(scale)):
        raise BadInput(f"data {spec.text!r}: depth_scale={text!r}; accepted: a number above 0")
    return scale


def _distinct(spec: Spec, name: str) -> tuple[str, ...]:
    names = spec.names(name) or ()
    twice = next((one for one in names if names.count(one) > 1), None)
    if twice is not None:
        raise BadInput(f"data {spec.text!r}: {name}={spec.options[name]} names {twice!r} twice; accepted: each once")
    return names


# --- members of shards ------------------------------------------------------------------------------------------------


def fields_of_members(spec: Spec) -> dict[str, tuple[str, Field]]:
    """(ending of the member, field) by name, of webdataset shards: values are the members' bytes, in
    `Encoded.fields`.

    `caption=txt`, `caption=json.FIELD`, `mask=mask.png`, `depth=depth.tif`, `objects=json.FIELD`, `objects=boxes.json`.
    Raises BadInput for endings of members that cannot be such a field, members that are used twice, and other options
    that are not accepted.
    """
    made = fields_of(spec, dict.fromkeys(spec.columns), classes=_distinct(spec, "object_classes"))
    found = {}
    ending, _, value = spec.options.get("label", "").partition(".")
    taken = {(ending, value): "label"}
    for name, given in spec.columns.items():
        ending, kind, value = _member(spec, name, given)
        if (before := taken.setdefault((ending, value), name)) != name:
            raise BadInput(f"data {spec.text!r}: member {given!r} is used twice, for {before}= and {name}=")
        found[name] = (ending, replace(made[name], parse=Member(made[name].parse, kind, value)))
    return found


def _member(spec: Spec, name: str, given: str) -> tuple[str, str, str]:
    """(ending, kind, value of the JSON) of a member."""
    last = given.rpartition(".")[2].lower()
    if name in ("mask", "depth"):
        if last in _PIXELS:
            return given.lower(), "pixels", ""
    elif given.partition(".")[0].lower() == "json":
        return "json", "json", given.partition(".")[2]
    elif last == "json":
        return given.lower(), "json", ""
    elif last == "txt" and name == "caption":
        return given.lower(), "text", ""
    raise BadInput(f"data {spec.text!r}: {name}={given}; accepted: {_MEMBERS[name]}")


# --- cells ------------------------------------------------------------------------------------------------------------


def _listed_texts(cell: Any) -> list[Any]:
    """The texts of a JSON list; what is none as it is."""
    if isinstance(cell, str) and cell.startswith("[") and cell.endswith("]"):
        try:
            found = json.loads(cell)
        except (ValueError, RecursionError):
            return [cell]
        if isinstance(found, list) and all(isinstance(text, str) for text in found):
            return found
    return [cell]


def _boxes_and_categories(cell: Any) -> tuple[list[Any], list[Any] | None]:
    """(boxes, categories, if there are any) of a cell, as they are. Raises BadInput."""
    if isinstance(cell, str) and cell.strip():
        cell = _from_json(cell)
    if isinstance(cell, Mapping):
        boxes, categories = _of_record(cell)
        if not isinstance(boxes, list | tuple) or not isinstance(categories, list | tuple | None):
            raise BadInput(f"objects are {cell!r:.80}; accepted: {_OBJECTS}")
        return list(boxes), categories if categories is None else list(categories)
    if not isinstance(cell, list | tuple):
        raise BadInput(
            "is missing; accepted: an empty list where there is no object"
            if cell is None or cell == ""
            else f"objects are {cell!r:.80}; accepted: {_OBJECTS}"
        )
    if cell and all(isinstance(one, Mapping) for one in cell):
        records = [_of_record(one) for one in cell]
        categories = [category for _, category in records]
        return [box for box, _ in records], None if all(one is None for one in categories) else categories
    return list(cell), None


def _of_record(record: Mapping[str, Any]) -> tuple[Any, Any]:
    boxes = next((name for name in BOX_NAMES if name in record), None)
    if boxes is None:
        raise BadInput(f"objects with {', '.join(map(str, record)) or 'nothing'}; accepted: {_OBJECTS}")
    if record[boxes] is None:
        raise BadInput("is missing; accepted: an empty list where there is no object")
    return record[boxes], next((record[name] for name in CATEGORY_NAMES if name in record), None)


def _from_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{text[:60]!r} is no JSON: {error}") from None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
