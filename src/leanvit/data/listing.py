"""Images named in a text file: `list:FILE` with lines `path label`, and `.csv`/`.tsv` tables with a header."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from leanvit.data import labels as labelling
from leanvit.data.dataset import Dataset, probe
from leanvit.data.decode import UnreadableImage, decode
from leanvit.data.sources import Source, canonical_split
from leanvit.data.specs import Spec
from leanvit.errors import BadInput, nearest

_IMAGE_COLUMNS = ("image", "path", "file", "filename", "file_name", "filepath", "image_path", "img")
_LABEL_COLUMNS = ("label", "labels", "class", "classes", "target", "category", "tags")


@dataclass(frozen=True)
class Listing:
    """The lines of one split: paths as they are written, and a label or several for each."""

    paths: tuple[str, ...]
    labels: tuple[str, ...] | None  # one text a line
    vectors: np.ndarray | None  # (N, columns) float32, of several 0/1 columns
    names: tuple[str, ...]  # of those columns
    folder: Path  # what relative paths start from
    file: Path

    def take(self, rows: Sequence[int]) -> Listing:
        """Some of the lines."""
        labels = None if self.labels is None else tuple(self.labels[row] for row in rows)
        vectors = None if self.vectors is None else self.vectors[list(rows)]
        return replace(self, paths=tuple(self.paths[row] for row in rows), labels=labels, vectors=vectors)


def listing_source(spec: Spec) -> Source:
    """The splits of a list or table: those of a column `split`, or `val=FILE`, or the one that the file's name says.

    Paths are relative to the file, or to `root=DIR`. Labels are whole numbers (indices) or names. Several labels for
    an image: several 0/1 columns, or one text with `|` or `;` between the labels (`separator=X` for another mark,
    `separator=none` for none). Options of tables: `image=COLUMN`, `label=COLUMN[,COLUMN...]`.

    Raises BadInput that names the file, and the line or column, for what is not understood.
    """
    read = _read_list if spec.kind == "list" else _read_table
    whole = read(spec, spec.path)
    splits: dict[str, Listing] = dict(whole)
    if "val" in spec.options:
        if set(whole) != {"all"}:
            raise BadInput(f"data {spec.text!r}: val= is given, but {spec.path.name} has a column split of its own")
        other = read(spec, _existing(spec, Path(spec.options["val"]).expanduser(), beside=spec.path))
        splits = {"train": whole["all"], "val": next(iter(other.values()))}
    elif set(whole) == {"all"} and canonical_split(spec.path.stem) in ("val", "test"):
        splits = {str(canonical_split(spec.path.stem)): whole["all"]}
    separator = _separator(spec, splits)
    classes = _classes(splits, separator)
    if not classes:
        raise BadInput(f"data {spec.text!r}: {spec.path.name} has no labels")
    opened: dict[str, Callable[[], Dataset]] = {
        split: partial(_open, spec, split, listing, classes, separator) for split, listing in splits.items()
    }
    return Source(spec.text, opened, "list file" if spec.kind == "list" else f"{spec.path.suffix[1:]} table")


@dataclass(frozen=True)
class _Listed:
    folder: Path
    paths: tuple[str, ...]
    keys: tuple[str, ...]

    def encoded(self, row: int) -> Path:
        path = self.folder / self.paths[row]
        if not path.is_file():  # a pipe or a device would be waited for
            raise UnreadableImage.of(self.keys[row], f"cannot be decoded: there is no file {path}")
        return path

    def __getitem__(self, row: int, /) -> Image.Image:
        return decode(self.encoded(row), key=self.keys[row])


def _open(spec: Spec, split: str, listing: Listing, classes: list[str], separator: str | None) -> Dataset:
    where = f"data {spec.text!r}, {listing.file.name}"
    listing, note = _without_repeats(listing, where)
    if not listing.paths:
        raise BadInput(f"{where}: there is no image in it")
    if listing.vectors is not None:
        targets = listing.vectors
    elif separator is not None:
        lists = labelling.split_labels(listing.labels or (), separator)
        targets = labelling.label_vectors(lists, classes, where=where)
    else:
        targets = labelling.class_targets(listing.labels or (), classes, where=where)
    multi_label = targets.ndim == 2
    if multi_label and listing.vectors is None and "separator" not in spec.options:
        note = "; ".join(filter(None, (note, f"labels are split at {separator!r}")))
    paths = tuple(_normal(path) for path in listing.paths)
    images = _Listed(listing.folder, paths, _keys(paths))
    channels, image_size = probe(images, len(listing.paths))
    return Dataset(
        name=spec.path.resolve().stem,
        spec=spec.text,
        split=split,
        classes=classes,
        keys=images.keys,
        targets=targets,
        rows=np.arange(len(listing.paths)),
        images=images,
        channels=channels,
        image_size=image_size,
        note=note,
        multi_label=multi_label,
    )


# --- reading ----------------------------------------------------------------------------------------------------------


def _read_list(spec: Spec, file: Path) -> dict[str, Listing]:
    paths, labels = [], []
    for number, line in enumerate(_text(spec, file).splitlines(), 1):
        if not line.strip():
            continue
        path, label = _cut(line)
        if not path or not label:
            raise BadInput(
                f"data {spec.text!r}, {file.name} line {number}: {line.strip()[:80]!r} is no `path label`; accepted: "
                "a path, a tab or space, and one label (after a tab the label may hold spaces)"
            )
        paths.append(path)
        labels.append(label)
    return {"all": Listing(tuple(paths), tuple(labels), None, (), _folder(spec, file), file)}


def _cut(line: str) -> tuple[str, str]:
    """(path, label): at the last tab, else at the last space."""
    path, _, label = line.strip().rpartition("\t" if "\t" in line else " ")
    return path.strip(), label.strip()


def _read_table(spec: Spec, file: Path) -> dict[str, Listing]:
    delimiter = "\t" if file.suffix.lower() == ".tsv" else ","
    rows = list(csv.reader(_text(spec, file).splitlines(), delimiter=delimiter))
    where = f"data {spec.text!r}, {file.name}"
    header = [name.strip() for name in rows[0]] if rows else []
    if len(set(header)) < len(header) or not header:
        raise BadInput(f"{where}: the first line must name each column once; it is {', '.join(header) or 'empty'}")
    lines = [(number, row) for number, row in enumerate(rows[1:], 2) if row]
    uneven = next(((number, row) for number, row in lines if len(row) != len(header)), None)
    if uneven:
        raise BadInput(f"{where} line {uneven[0]}: {len(uneven[1])} values for {len(header)} columns")
    columns = {name: [row[place].strip() for _, row in lines] for place, name in enumerate(header)}
    image = _column(spec, "image", columns, _IMAGE_COLUMNS, where)
    chosen = _label_columns(spec, columns, image, where)
    if len(chosen) == 1:
        found = Listing(tuple(columns[image]), tuple(columns[chosen[0]]), None, (), _folder(spec, file), file)
    else:
        vectors = np.array([[value == "1" for value in columns[name]] for name in chosen], dtype=np.float32).T
        found = Listing(tuple(columns[image]), None, vectors, tuple(chosen), _folder(spec, file), file)
    empty = next((number for (number, _), path in zip(lines, found.paths, strict=True) if not path), None)
    if empty is not None:
        raise BadInput(f"{where} line {empty}: no path in column {image!r}")
    return _by_split(found, columns.get("split"), where)


def _by_split(listing: Listing, split_column: list[str] | None, where: str) -> dict[str, Listing]:
    if split_column is None:
        return {"all": listing}
    named = [canonical_split(text) for text in split_column]
    if None in named:
        raise BadInput(f"{where}: column split holds {split_column[named.index(None)]!r}; accepted: train, val, test")
    return {
        split: listing.take([row for row, name in enumerate(named) if name == split])
        for split in ("train", "val", "test")
        if split in named
    }


def _label_columns(spec: Spec, columns: dict[str, list[str]], image: str, where: str) -> list[str]:
    """One column of labels, or several of 0 and 1."""
    given = spec.names("label")
    others = [name for name in columns if name not in (image, "split")]
    if given is None:
        named = next((name for name in _LABEL_COLUMNS if name in others), None)
        chosen = [named] if named else [name for name in others if _is_binary(columns[name])]
        if not chosen or (len(chosen) == 1 and named is None):
            raise BadInput(
                f"{where}: no label column; columns: {', '.join(columns)}; accepted: one of "
                f"{', '.join(_LABEL_COLUMNS)}, several columns of 0 and 1, or label=COLUMN[,COLUMN...]"
            )
    else:
        chosen = list(given)
        wrong = next((name for name in chosen if name not in others), None)
        if wrong is not None:
            raise BadInput(f"{where}: label={wrong!r} is no column: {nearest(wrong, others)}")
        odd = next((name for name in chosen if not _is_binary(columns[name])), None)
        if len(chosen) > 1 and odd is not None:
            raise BadInput(f"{where}: column {odd!r} is one of several label columns; accepted: values 0 and 1")
    return chosen


def _column(spec: Spec, role: str, columns: dict[str, list[str]], known: Sequence[str], where: str) -> str:
    given = spec.options.get(role)
    if given is not None and given not in columns:
        raise BadInput(f"{where}: {role}={given!r} is no column: {nearest(given, columns)}")
    found = given or next((name for name in known if name in columns), None)
    if found is None:
        raise BadInput(
            f"{where}: no {role} column; columns: {', '.join(columns)}; accepted: one of {', '.join(known)}, or "
            f"{role}=COLUMN"
        )
    return found


def _is_binary(values: list[str]) -> bool:
    return bool(values) and set(values) <= {"0", "1"}


def _text(spec: Spec, file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        names = [entry.name for entry in file.parent.iterdir()] if file.parent.is_dir() else []
        raise BadInput(f"data {spec.text!r}: {file} does not exist; {nearest(file.name, names)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"data {spec.text!r}: {file.name} is no UTF-8 text file: {error}") from None


def _existing(spec: Spec, path: Path, *, beside: Path) -> Path:
    """A file named by an option: as it is, else beside the list."""
    return path if path.is_file() or path.is_absolute() else beside.parent / path


def _folder(spec: Spec, file: Path) -> Path:
    if "root" not in spec.options:
        return file.parent
    folder = Path(spec.options["root"]).expanduser()
    if not folder.is_dir():
        raise BadInput(f"data {spec.text!r}: root={spec.options['root']!r} is no folder")
    return folder


# --- labels and keys --------------------------------------------------------------------------------------------------


def _separator(spec: Spec, splits: dict[str, Listing]) -> str | None:
    given = spec.options.get("separator")
    if given is not None:
        return None if given == "none" else given
    return labelling.separator_in(label for listing in splits.values() for label in listing.labels or ())


def _classes(splits: dict[str, Listing], separator: str | None) -> list[str]:
    first = next(iter(splits.values()))
    if first.names:
        return list(first.names)
    labels = [label for listing in splits.values() for label in listing.labels or ()]
    if separator is not None:
        return labelling.names_of(name for names in labelling.split_labels(labels, separator) for name in names)
    return labelling.names_of(label for label in labels if label)


def _without_repeats(listing: Listing, where: str) -> tuple[Listing, str]:
    """Each path once. Raises BadInput for one that comes with two labels."""
    first: dict[str, int] = {}
    for row, key in enumerate(_normal(path) for path in listing.paths):
        before = first.setdefault(key, row)
        if before == row:
            continue
        labels, vectors = listing.labels, listing.vectors
        same = labels[before] == labels[row] if labels else bool((vectors[before] == vectors[row]).all())  # type: ignore[index]
        if not same:
            raise BadInput(f"{where}: image {key!r} comes twice, with different labels")
    repeats = len(listing.paths) - len(first)
    return listing.take(list(first.values())), f"{repeats} repeated lines are left out" if repeats else ""


def _normal(path: str) -> str:
    return os.path.normpath(path.replace("\\", "/"))


def _keys(paths: tuple[str, ...]) -> tuple[str, ...]:
    """The paths; below their common folder if all are absolute, so that keys are the same on every machine."""
    if len(paths) > 1 and all(os.path.isabs(path) for path in paths):
        root = os.path.commonpath(paths)
        return tuple(os.path.relpath(path, root) for path in paths)
    return paths
