"""What a look at a data set found: as values, as JSON, as tables and lines for a person."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from leanvit.data import BadImage
from leanvit.data.label_kinds import KINDS
from leanvit.verbs.field_contents import FieldFound, shown

_SHOWN = 30  # classes with a bar
_BAR = 40  # characters


@dataclass(frozen=True)
class SplitFound:
    """What one split holds. Counts of formats, modes and sizes are of the `read` images."""

    split: str
    images: int
    note: str
    left_out: dict[str, int]  # reason -> how many files or lines of the source are no sample
    counted: int  # images that `per_class` counts: all, of a stream those that were read
    per_class: dict[str, int]  # images a class
    unlabelled: int  # multi-label images without any class
    read: int
    formats: dict[str, int]
    modes: dict[str, int]
    widths: tuple[int, int, int]  # smallest, median, largest; as stored
    heights: tuple[int, int, int]
    rotated: int  # turned upright by their EXIF orientation
    animated: int  # only the first frame is used
    constant: int  # all pixels are equal
    bad: tuple[BadImage, ...]
    duplicates: tuple[tuple[str, str], ...]  # keys of images with equal content
    fields: dict[str, FieldFound] = field(default_factory=dict)  # what the fields of the images that were read hold

    @property
    def without(self) -> tuple[str, ...]:
        """Classes without an image (of a stream: among those that were read)."""
        return tuple(name for name, count in self.per_class.items() if not count)

    @property
    def imbalance(self) -> float | None:
        """Images of the largest class over those of the smallest that has any."""
        counts = [count for count in self.per_class.values() if count]
        return max(counts) / min(counts) if counts else None


@dataclass(frozen=True)
class Leak:
    """Images of val whose content is among the training images, too."""

    compared_train: int
    compared_val: int
    pairs: tuple[tuple[str, str], ...]  # (key in train, key in val)


@dataclass(frozen=True)
class Looked:
    """What a look at a data set found."""

    spec: str
    form: str
    classes: tuple[str, ...]
    label_kind: str  # "one" class an image, "several"; "": without labels
    channels: int
    splits: tuple[SplitFound, ...]
    leak: Leak | None
    fit: str | None = None  # of the model that was given: "fits", or why not
    grid: Path | None = None
    sampled: bool = field(default=True)

    @property
    def labelled(self) -> bool:
        """Whether its images have labels."""
        return bool(self.label_kind)

    def to_json(self) -> dict[str, Any]:
        """JSON data; bad images as key and reason."""
        found = asdict(self)
        for row, split in zip(found["splits"], self.splits, strict=True):
            row["imbalance"] = split.imbalance
            row["classes_without_images"] = list(split.without)
            row["bad"] = [one._asdict() for one in split.bad]
        return {**found, "labelled": self.labelled, "grid": None if self.grid is None else str(self.grid)}

    def shown(self) -> Iterator[Any]:
        """Rich tables and lines for a person."""
        labels = f"{len(self.classes)} classes, {KINDS[self.label_kind].words}" if self.labelled else "without labels"
        form = self.form.removesuffix(" without labels")
        colour = {1: "grey", 3: "colour"}.get(self.channels, f"{self.channels} channels")
        yield Text(f"{self.spec}: {form}, {colour}, {labels}", style="bold")
        yield _split_table(self.splits)
        if self.labelled:
            yield _class_table(self)
        yield from shown({split.split: split.fields for split in self.splits})
        for split in self.splits:
            yield from _findings(split, sampled=self.sampled)
        if self.leak is not None:
            yield Text(_leak_text(self.leak), style="red" if self.leak.pairs else "")
        if self.fit is not None:
            yield Text(f"model: {self.fit}")
        if self.grid is not None:
            yield Text(f"pictures: {self.grid}")


def _split_table(splits: Iterable[SplitFound]) -> Table:
    table = Table("split", "images", "read", "width", "height", "format", "mode", "cannot be read")
    for split in splits:
        sizes = [_range(*side) for side in (split.widths, split.heights)]
        kinds = [", ".join(f"{name} {count}" for name, count in d.items()) for d in (split.formats, split.modes)]
        cells = [split.split, str(split.images), str(split.read), *sizes, *kinds, str(len(split.bad))]
        table.add_row(*map(Text, cells))
    return table


def _range(low: int, middle: int, high: int) -> str:
    """Smallest, median and largest; one number where all images have it."""
    return str(low) if low == high else f"{low} … {middle} … {high}"


def _class_table(looked: Looked) -> Table:
    """The classes with a bar each, of the first split; the largest and smallest where there are many."""
    first = looked.splits[0]
    ranked = sorted(first.per_class.items(), key=lambda item: -item[1])
    most = max(first.per_class.values(), default=0) or 1
    shown = list(first.per_class.items())
    if len(ranked) > _SHOWN:
        shown = [*ranked[: _SHOWN // 2], ("…", -1), *ranked[-_SHOWN // 2 :]]
    table = Table("class", *(split.split for split in looked.splits), "")
    for name, count in shown:
        if count < 0:
            table.add_row(name, *("" for _ in looked.splits), Text(f"{len(ranked) - _SHOWN} more"))
            continue
        counts = [str(split.per_class.get(name, 0)) for split in looked.splits]
        table.add_row(Text(name), *counts, Text("█" * round(_BAR * count / most) or "▏"[:count], style="cyan"))
    return table


def _findings(split: SplitFound, *, sampled: bool) -> Iterator[Text]:
    if split.imbalance is not None and len(split.per_class) > 1:
        counted = "" if split.counted == split.images else f" (of the first {split.counted})"
        if split.imbalance == 1:
            yield Text(f"{split.split}: every class has the same number of images{counted}")
        else:
            times = f"{split.imbalance:.3g} times the images of the smallest{counted}"
            yield Text(f"{split.split}: the largest class has {times}")
    of = f"of {split.read} that were read" if sampled and split.read < split.images else "of all"
    if split.note:
        yield Text(f"{split.split}: {split.note}")
    if split.split == "all" and len(split.per_class) > 1 and max(split.per_class.values()) == 1:
        yield Text(f"{split.split}: at most one image a class: too few to learn from")
    if split.left_out:
        reasons = ", ".join(f"{count} {reason}" for reason, count in split.left_out.items())
        yield Text(f"{split.split}: left out: {reasons}", style="yellow")
    facts = [
        (split.rotated, "are turned upright by their EXIF orientation"),
        (split.animated, "have several frames: the first is used"),
        (split.constant, "are constant: all pixels are equal"),
        (len(split.duplicates), "have the content of another one"),
        (len(split.bad), "cannot be read (leave them out: --on-bad skip)"),
    ]
    for number, what in facts:
        if number:
            yield Text(f"{split.split}: {number} images {what} ({of})", style="yellow")
    if split.unlabelled:
        yield Text(f"{split.split}: {split.unlabelled} images carry no class", style="yellow")
    for bad in split.bad[:20]:
        yield Text(f"  {bad.reason}")
    for one, other in split.duplicates[:10]:
        yield Text(f"  {one} = {other}")
    without = split.without
    if without and len(without) < len(split.per_class) and repr(without[0]) not in split.note:
        some = ", ".join(without[:10]) + (", …" if len(without) > 10 else "")
        yield Text(f"{split.split}: {len(without)} classes without an image ({some})")


def _leak_text(leak: Leak) -> str:
    compared = f"{leak.compared_val} images of val compared with {leak.compared_train} of train"
    if not leak.pairs:
        return f"no leak found: {compared}"
    lines = [f"  {train} = {val}" for train, val in leak.pairs[:10]]
    return "\n".join([f"{len(leak.pairs)} images are in train and in val ({compared})", *lines])
