"""Images named in a text file: `list:FILE` with lines `path label`, and `.csv`/`.tsv` tables with a header."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from leanvit.data import labels as labelling
from leanvit.data.columns import Column, check_options, fields_of, note_of, object_classes, with_fields
from leanvit.data.dataset import Dataset, probe
from leanvit.data.decode import EXTENSIONS, UnreadableImage, decode
from leanvit.data.labels import RowLocations
from leanvit.data.specs import Spec
from leanvit.data.splits import Source, canonical_split
from leanvit.data.tables import chosen_columns, is_uncertain, read_table, read_text, truth
from leanvit.errors import BadInput

_UNCERTAIN = ("error", "negative", "positive", "skip")


@dataclass(frozen=True)
class Listing:
    """The lines of one split: paths as they are written, and what stands in the label column (or several) of each."""

    paths: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...]  # by row: one text, or one of each of `names`; nothing without labels
    names: tuple[str, ...]  # of several 0/1 columns; else empty
    lines: tuple[int, ...]  # of the file
    folder: Path  # what relative paths start from
    file: Path
    notes: tuple[str, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)
    fields: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # cells by row, by name of the field

    def take(self, rows: Sequence[int]) -> Listing:
        """Some of the rows."""
        return replace(
            self,
            paths=tuple(self.paths[row] for row in rows),
            labels=tuple(self.labels[row] for row in rows),
            lines=tuple(self.lines[row] for row in rows),
            fields={name: tuple(cells[row] for row in rows) for name, cells in self.fields.items()},
        )

    def without(self, rows: Sequence[int], reason: str) -> Listing:
        """All but some rows, which are counted as left out."""
        if not rows:
            return self
        gone = set(rows)
        kept = self.take([row for row in range(len(self.paths)) if row not in gone])
        return replace(kept, left_out={**self.left_out, reason: len(rows)})

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """The first label column."""
        return tuple(cells[0] for cells in self.labels)

    def locations(self, spec: Spec) -> RowLocations:
        """Where the rows stand."""
        return RowLocations(f"data {spec.text!r}, {self.file.name}", lambda row: f"line {self.lines[row]}")


def listing_source(spec: Spec) -> Source:
    """The splits of a list or table: those of a column `split`, or `val=FILE`, or the one that the file's name says.

    Paths are relative to the file, or to `root=DIR`; a path without the ending of an image is that of the only image
    of that name. Several labels for an image: several 0/1 columns, or one text with `|` or `;` between the labels
    (`separator=X` for another mark, `separator=space`, `separator=none` for none). Options of tables: `image=COLUMN`,
    `label=COLUMN[,COLUMN...]`, and `uncertain=error|negative|positive|skip` for blanks, -1 and nan in 0/1 columns
    (skip: also for lines without a label). Columns may become fields, see `columns`: paths in them start where those of
    images do, and an image of several lines has the captions of all.

    Raises BadInput that names the file, and the line or column, for what is not understood.
    """
    check_options(spec)
    policy = spec.options.get("uncertain", "error")
    if policy not in _UNCERTAIN:
        raise BadInput(f"data {spec.text!r}: uncertain={policy!r}; accepted: {', '.join(_UNCERTAIN)}")
    splits = _splits(spec)
    several = next(iter(splits.values())).names
    separator = None if several or not spec.labelled else _separator(spec, splits)
    if policy == "skip":
        splits = {split: _certain(listing) for split, listing in splits.items()}
    elif policy != "error" and not several:
        raise BadInput(f"data {spec.text!r}: uncertain={policy} is for several columns of 0 and 1")
    if several and spec.options.get("separator", "none") != "none":
        raise BadInput(f"data {spec.text!r}: separator= is for one column of labels; taken: {', '.join(several)}")
    empty = next((listing for listing in splits.values() if not listing.paths), None)
    if empty is not None:
        raise BadInput(f"data {spec.text!r}, {empty.file.name}: there is no image in it")
    classes, targets = _targets(spec, splits, separator, policy) if spec.labelled else ([], {})
    if not classes and spec.labelled:
        raise BadInput(f"data {spec.text!r}: {spec.path.name} has no labels; ?labels=none opens the images without")
    splits = _noted_where_shared(splits)
    objects = Column(spec.columns["objects"], "json", texts=True) if "objects" in spec.columns else None
    cells = (listing.fields["objects"] for listing in splits.values())
    named = object_classes(spec, objects, lambda: chain(*cells))
    opened: dict[str, Callable[[], Dataset]] = {
        split: partial(_open, spec, split, listing, classes, targets.get(split), separator, named)
        for split, listing in splits.items()
    }
    return Source(spec.text, opened, "list file" if spec.kind == "list" else f"{spec.path.suffix[1:]} table")


@dataclass(frozen=True)
class _Listed:
    folder: Path
    paths: tuple[str, ...]
    keys: tuple[str, ...]

    def encoded(self, row: int) -> Path:
        path = self.folder / self.paths[row]
        if not os.path.isfile(path):  # a pipe or a device would be waited for
            raise UnreadableImage.of(self.keys[row], f"cannot be decoded: there is no file {path}")
        return path

    def __getitem__(self, row: int, /) -> Image.Image:
        return decode(self.encoded(row), key=self.keys[row])


@dataclass(frozen=True)
class _Cells:
    """The cells of a column that is a field, by row; of captions the list of them where an image has several lines."""

    file: str
    column: str
    cells: tuple[Any, ...]
    lines: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, row: int, /) -> Any:
        return self.cells[row]

    def located(self, row: int) -> str:
        return f"column {self.column!r}, {self.file} line {self.lines[row]}"


def _by_image(
    fields: Mapping[str, tuple[str, ...]], paths: Sequence[str], locations: RowLocations
) -> tuple[dict[str, tuple[Any, ...]], int]:
    """(by field, the cells of each image in the order in which it comes first; how many lines are further captions).

    Raises BadInput for an image of two lines that differ in a field other than its captions.
    """
    rows: dict[str, list[int]] = {}
    for row, path in enumerate(paths):
        rows.setdefault(path, []).append(row)
    for name in fields.keys() - {"caption"}:
        for first, *more in rows.values():
            other = next((row for row in more if fields[name][row] != fields[name][first]), None)
            if other is not None:
                raise BadInput(
                    f"{locations(other)}: image {paths[other]!r} comes twice, with different {name}: it is in "
                    f"{locations.of(first)}, too; accepted: one line with all of it"
                )
    found: dict[str, tuple[Any, ...]] = {
        name: tuple(cells[held[0]] for held in rows.values()) for name, cells in fields.items()
    }
    if "caption" not in fields or len(rows) == len(paths):
        return found, 0
    captions = [list(dict.fromkeys(fields["caption"][row] for row in held)) for held in rows.values()]
    found["caption"] = tuple(texts[0] if len(texts) == 1 else texts for texts in captions)
    return found, sum(len(texts) - 1 for texts in captions)


def _open(
    spec: Spec,
    split: str,
    listing: Listing,
    classes: list[str],
    targets: np.ndarray | None,
    separator: str | None,
    objects: tuple[tuple[str, ...], str],
) -> Dataset:
    locations = listing.locations(spec)
    notes = [*listing.notes]
    if separator is not None and "separator" not in spec.options:
        notes.append(f"labels are split at {separator!r}")
    elif targets is not None and separator is None and not listing.names and "separator" not in spec.options:
        notes.append(labelling.hint(listing.texts))
    if listing.names and targets is not None and (targets.sum(axis=1) == 1).all():
        notes.append("every image has exactly one of the labels; they are trained as independent ones")
    given = [_normal(path) for path in listing.paths]
    found, completed = _with_endings(listing.folder, given, locations)
    notes.append(f"{completed} paths have no ending: the image of that name is taken" if completed else "")
    labels = np.zeros(len(found)) if targets is None else targets
    kept = labelling.without_repeats(found, labels, locations)
    cells, gathered = _by_image(listing.fields, found, locations)
    notes.append(f"{gathered} lines are further captions of an image" if gathered else "")
    repeated = len(found) - len(kept) - gathered
    left_out = {**listing.left_out, **({"repeated lines": repeated} if repeated else {})}
    paths = tuple(found[row] for row in kept)
    images = _Listed(listing.folder, paths, _keys(paths))
    channels, image_size = probe(images, len(paths))
    lines = tuple(listing.lines[row] for row in kept)
    columns = {name: _Cells(listing.file.name, spec.columns[name], held, lines) for name, held in cells.items()}
    fields = fields_of(spec, columns, folder=listing.folder, below=False, classes=objects[0])
    dataset = Dataset(
        name=spec.path.resolve().stem,
        spec=spec.text,
        split=split,
        classes=classes,
        keys=images.keys,
        targets=None if targets is None else targets[kept],
        rows=np.arange(len(paths)),
        images=images,
        channels=channels,
        image_size=image_size,
        note="; ".join(filter(None, notes)),
        left_out=left_out,
    )
    return with_fields(dataset, fields, note_of(spec), objects[1])


# --- reading ----------------------------------------------------------------------------------------------------------


def _splits(spec: Spec) -> dict[str, Listing]:
    read = _read_list if spec.kind == "list" else _read_table
    whole = read(spec, spec.path)
    if "val" in spec.options:
        if set(whole) != {"all"}:
            raise BadInput(f"data {spec.text!r}: val= is given, but {spec.path.name} has a column split of its own")
        other = read(spec, _existing(spec, Path(spec.options["val"]).expanduser(), beside=spec.path))
        if set(other) != {"all"}:
            raise BadInput(f"data {spec.text!r}: {spec.options['val']} has a column split of its own")
        splits = {"train": whole["all"], "val": other["all"]}
        train, val = splits["train"].names, splits["val"].names
        if set(train) != set(val):
            raise BadInput(
                f"data {spec.text!r}: {spec.path.name} has the label columns {', '.join(train) or '(one)'}, "
                f"{spec.options['val']} has {', '.join(val) or '(one)'}; accepted: the same, or label=COLUMN,COLUMN"
            )
        order = [val.index(name) for name in train]
        if train != val:  # the same columns in another order
            cells = tuple(tuple(row[place] for place in order) for row in splits["val"].labels)
            splits["val"] = replace(splits["val"], labels=cells, names=train)
        return splits
    if set(whole) == {"all"} and canonical_split(spec.path.stem) in ("val", "test"):
        return {str(canonical_split(spec.path.stem)): whole["all"]}
    return whole


def _read_list(spec: Spec, file: Path) -> dict[str, Listing]:
    paths, labels, lines = [], [], []
    for number, line in enumerate(io.StringIO(read_text(spec, file), newline=None), 1):
        if not line.strip():
            continue
        path, label = _cut(line.strip()) if spec.labelled else (_unquoted(line.strip()), "none")
        if not path or not label or path.count('"') % 2 or label.count('"') % 2 or _is_longer(path):
            raise BadInput(
                f"data {spec.text!r}, {file.name} line {number}: {line.strip()[:80]!r} is no `path label`; accepted: "
                "a path, a tab or space, and one label (after a tab the label may hold spaces; either may stand in "
                "quotation marks); ?labels=none takes a path a line, without labels"
            )
        paths.append(path)
        labels.append((label,) if spec.labelled else ())
        lines.append(number)
    return {"all": Listing(tuple(paths), tuple(labels), (), tuple(lines), spec.folder("root", file.parent), file)}


def _cut(line: str) -> tuple[str, str]:
    """(path, label): at the tab, at the end of a quoted path, else at the last space; without quotation marks."""
    quoted = re.fullmatch(r'("[^"]+")\s+(.+)', line)
    if "\t" in line:
        path, _, label = line.rpartition("\t")
    elif quoted:
        path, label = quoted.groups()
    else:
        unspaced = re.fullmatch(r'(.*?)\s+("[^"]+"|[^\s"]+)', line)
        path, label = unspaced.groups() if unspaced else (line, "")
    return _unquoted(path.strip()), _unquoted(label.strip())


def _unquoted(text: str) -> str:
    inside = re.fullmatch(r'"\s*([^"]*?)\s*"', text)
    return inside[1] if inside else text


def _is_longer(path: str) -> bool:
    """Whether an image's name ends before the path does: then part of the label is in it."""
    if Path(path).suffix.lower() in EXTENSIONS:
        return False
    return any(Path(part).suffix.lower() in EXTENSIONS for part in path.split()[:-1]) or "\t" in path


def _read_table(spec: Spec, file: Path) -> dict[str, Listing]:
    table, chosen = chosen_columns(spec, read_table(spec, file))
    columns, split = table.columns, chosen.split
    given = [columns[name] for name in chosen.labels]
    labels = tuple(zip(*given, strict=True)) if given else ((),) * len(table.lines)
    names = chosen.labels if len(chosen.labels) > 1 else ()
    fields = {name: columns[column] for name, column in chosen.fields.items()}
    folder = spec.folder("root", file.parent)
    found = Listing(columns[chosen.image], labels, names, table.lines, folder, file, table.notes, fields=fields)
    if split is None:
        return {"all": found}
    named = [canonical_split(text) for text in columns[split]]
    if None in named:
        row = named.index(None)
        raise BadInput(
            f"{table.where} line {table.lines[row]}: column {split} holds {columns[split][row]!r}; accepted: train, "
            "val, test"
        )
    return {
        str(one): found.take([row for row, name in enumerate(named) if name == one])
        for one in ("train", "val", "test")
        if one in named
    }


def _existing(spec: Spec, path: Path, *, beside: Path) -> Path:
    """A file named by an option: as it is, else beside the list."""
    return path if path.is_file() or path.is_absolute() else beside.parent / path


# --- labels -----------------------------------------------------------------------------------------------------------


def _separator(spec: Spec, splits: dict[str, Listing]) -> str | None:
    given = spec.options.get("separator")
    if given is not None:
        return {"none": None, "space": " "}.get(given, given)
    return labelling.separator_in(label for listing in splits.values() for label in listing.texts)


def _certain(listing: Listing) -> Listing:
    """The lines without a blank, -1 or nan among their labels."""
    rows = [row for row, cells in enumerate(listing.labels) if any(map(is_uncertain, cells))]
    return listing.without(rows, "lines with an uncertain label" if listing.names else "lines without a label")


def _targets(
    spec: Spec, splits: dict[str, Listing], separator: str | None, policy: str
) -> tuple[list[str], dict[str, np.ndarray]]:
    """(classes, targets of each split): classes are over all splits."""
    locations = {split: listing.locations(spec) for split, listing in splits.items()}
    first = next(iter(splits.values()))
    if first.names:
        return list(first.names), {
            split: _vectors(listing, locations[split], policy) for split, listing in splits.items()
        }
    if separator is not None:
        lists = {
            split: labelling.split_labels(listing.texts, separator, locations[split])
            for split, listing in splits.items()
        }
        classes = labelling.names_of((lists[split], locations[split]) for split in splits)
        return classes, {split: labelling.label_vectors(lists[split], classes, locations[split]) for split in splits}
    texts = {split: labelling.texts_of(listing.texts, locations[split]) for split, listing in splits.items()}
    classes = labelling.names_of((texts[split], locations[split]) for split in splits)
    return classes, {split: labelling.class_targets(texts[split], classes, locations[split]) for split in splits}


def _vectors(listing: Listing, locations: RowLocations, policy: str) -> np.ndarray:
    """(N, columns) float32 of 0/1 columns; what is uncertain by the policy."""
    vectors = np.zeros((len(listing.paths), len(listing.names)), dtype=np.float32)
    for row, cells in enumerate(listing.labels):
        for column, cell in enumerate(cells):
            flag = _flag(cell, listing.names[column], locations, row)
            if flag is None and policy == "error":
                what = f"holds {cell!r}" if cell else "is blank"
                raise BadInput(
                    f"{locations(row)}: column {listing.names[column]!r} {what}; accepted: 0 and 1, or "
                    "uncertain=negative, positive or skip, which defines blanks, -1 and nan"
                )
            vectors[row, column] = policy == "positive" if flag is None else flag
    return vectors


def _flag(cell: str, name: str, locations: RowLocations, row: int) -> bool | None:
    try:
        return truth(cell)
    except ValueError:  # `val=FILE` may hold what the first file does not
        raise BadInput(f"{locations(row)}: column {name!r} holds {cell[:40]!r}; accepted: values 0 and 1") from None


# --- paths ------------------------------------------------------------------------------------------------------------


def _with_endings(folder: Path, paths: list[str], locations: RowLocations) -> tuple[list[str], int]:
    """(paths, how many were completed): one without the ending of an image becomes the only image of that name.

    Raises BadInput where there are several of them.
    """
    listed: dict[Path, dict[str, list[str]]] = {}
    found, completed = [], 0
    for row, path in enumerate(paths):
        if os.path.splitext(path)[1].lower() in EXTENSIONS or os.path.isfile(folder / path):
            found.append(path)
            continue
        parent = (folder / path).parent
        if parent not in listed:
            listed[parent] = _by_stem(parent)
        held = listed[parent].get(Path(path).name, [])
        if len(held) > 1:
            raise BadInput(f"{locations(row)}: {path!r} has no ending, and there are {', '.join(sorted(held))}")
        found.append(os.path.join(os.path.dirname(path), held[0]) if held else path)
        completed += bool(held)
    return found, completed


def _by_stem(folder: Path) -> dict[str, list[str]]:
    """The names of a folder's images by what comes before their ending."""
    stems: dict[str, list[str]] = {}
    for name in _names_in(folder):
        stem, ending = os.path.splitext(name)
        if ending.lower() in EXTENSIONS:
            stems.setdefault(stem, []).append(name)
    return stems


def _names_in(folder: Path) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            yield from (entry.name for entry in entries)
    except OSError:
        return


def _normal(path: str) -> str:
    return os.path.normpath(path.replace("\\", "/"))


def _noted_where_shared(splits: dict[str, Listing]) -> dict[str, Listing]:
    """With a note on each split that shares images with the training split, where accuracy is not of unseen images."""
    train = splits.get("train")
    if train is None or len(splits) < 2:
        return splits
    learned = {os.path.join(train.folder, _normal(path)) for path in train.paths}
    noted = {}
    for split, listing in splits.items():
        shared = sum(os.path.join(listing.folder, _normal(path)) in learned for path in listing.paths)
        note = f"{shared} of its images are in train, too" if shared and split != "train" else ""
        noted[split] = replace(listing, notes=(*listing.notes, note))
    return noted


def _keys(paths: tuple[str, ...]) -> tuple[str, ...]:
    """The paths; below their common folder if all are absolute, so that keys are the same on every machine."""
    if len(paths) > 1 and all(os.path.isabs(path) for path in paths):
        root = os.path.commonpath(paths)
        return tuple(os.path.relpath(path, root) for path in paths)
    return paths
