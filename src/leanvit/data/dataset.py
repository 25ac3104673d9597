"""The sample contract: (image, target, key), with a key that is stable across epochs, machines and formats, and fields
by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

from leanvit.data import keyed
from leanvit.data.classes import Matched
from leanvit.data.decode import MAX_PIXELS, BadImage, UnreadableImage, decode, is_grey, with_channels
from leanvit.data.depth import PixelRange
from leanvit.data.fields import LABEL, RESERVED, Field
from leanvit.data.label_kinds import KINDS, Labelled, kind_of, rank_within
from leanvit.errors import BadInput, nearest
from leanvit.knobs import Count, check

NO_FIELDS: Mapping[str, Any] = {}  # of sets that have none: one for all their samples and batches


class _Labelled(NamedTuple):
    image: Image.Image
    target: int | np.ndarray | None
    key: str


class Sample(_Labelled):
    """One example: an 8-bit "L", "RGB" or "RGBX" image, its class index, and its key (unique within the split).

    In a multi-label set the target is a (classes,) float32 vector of 0 and 1, in one without labels None. `fields` has
    the values of the set's fields, by name. It unpacks into three: `image, target, key = dataset[5]`.
    """

    fields: Mapping[str, Any] = NO_FIELDS

    @staticmethod
    def of(image: Image.Image, target: int | np.ndarray | None, key: str, fields: Mapping[str, Any]) -> Sample:
        """A sample with fields."""
        sample = Sample(image, target, key)
        sample.fields = fields
        return sample


class Images(Protocol):
    """Random access to decoded images by row; raises UnreadableImage naming the key of one that cannot be decoded.

    Images that lie somewhere encoded also have `encoded(row) -> bytes | Path`.
    """

    def __getitem__(self, row: int, /) -> Image.Image: ...


@dataclass(frozen=True, eq=False, repr=False)
class Dataset(Labelled):
    """A map-style set of images; `ds[i]` is a `Sample`. Immutable: every verb returns a new one.

    Each image has one class, in a multi-label set any number of them, or there are no labels: then `classes` is empty
    and `targets` None. Further fields of its samples are in `fields`, see `with_field`.
    """

    name: str
    spec: str  # what opens it again
    split: str  # "train", "val", or "all"
    classes: list[str]
    keys: tuple[str, ...]
    targets: np.ndarray | None  # (N,) int64; multi-label: (N, classes) float32 of 0 and 1; None: without labels
    rows: np.ndarray  # (N,) int64, row of each sample in `images`
    images: Images
    channels: int  # 1 (grey), 3, or 4 where they are declared
    image_size: tuple[int, int]  # typical (h, w)
    mirror: bool = True  # whether a mirrored image keeps its class (not so for digits)
    note: str = ""  # how the split came about, when it is not what the source calls it
    on_bad: str = "error"  # or "skip": what loaders do with an image that cannot be read
    max_pixels: int = MAX_PIXELS  # an image with more cannot be read
    pixel_range: PixelRange | None = None  # values of black and white of images with more than 8 bits
    bad: list[BadImage] = field(default_factory=list)  # what was left out so far, by this set and those made from it
    left_out: Mapping[str, int] = field(default_factory=dict)  # reason -> how many files or lines are no sample
    fields: Mapping[str, Field] = field(default_factory=dict)  # by name, with row numbers of their own

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Sample:
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        target: Any = None
        if self.targets is not None:
            target = KINDS[self.label_kind].target(self.targets[index])
        image, key = self._image(index), self.keys[index]
        if not self.fields:
            return Sample(image, target, key)
        size, row = (image.height, image.width), index % len(self)
        found = {name: one.read(name, key, size, index=row) for name, one in self.fields.items()}
        return Sample.of(image, target, key, found)

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        height, width = self.image_size
        shape = f"{height}x{width}x{self.channels}"
        labels = f"{len(self.classes)} classes" if self.labelled else "no labels"
        fields = "".join(f", {name}" for name in self.fields)
        return f"Dataset({self.spec!r}, {self.split!r}: {len(self)} images {shape}, {labels}{fields})"

    @property
    def labelled(self) -> bool:
        """Whether its samples have classes."""
        return self.targets is not None

    @property
    def label_kind(self) -> str:
        """What labels say of an image: "one" class, "several", or "" where there are none."""
        return "" if self.targets is None else kind_of(self.targets)

    @property
    def field_names(self) -> tuple[str, ...]:
        """What its samples have beside image and key: "label" where there are labels, and the names of its fields."""
        return (*((LABEL,) if self.labelled else ()), *self.fields)

    def with_field(self, name: str, added: Field) -> Dataset:
        """The same samples with one more field: `dataset.with_field("mask", Masks(masks))`.

        added: its source has a value for each sample, in their order, or says by `keys` which is whose. Raises BadInput
        for a name that is taken, and for samples without a value.
        """
        return replace(
            self, fields={**self.fields, new_name(name, added, self.fields): added.of_samples(name, self.keys)}
        )

    def without_labels(self) -> Dataset:
        """The same samples without their classes."""
        return replace(self, classes=[], targets=None)

    @cached_property
    def key_hashes(self) -> np.ndarray:
        """(N,) uint64 stable hashes of the keys: what keyed orders and splits are made of."""
        return keyed.hashes(self.keys)

    def take(self, indices: Sequence[int] | np.ndarray) -> Dataset:
        """The samples at `indices`, in that order."""
        chosen = np.asarray(indices, dtype=np.int64)
        keys = tuple(self.keys[i] for i in chosen)
        targets = None if self.targets is None else self.targets[chosen]
        fields = {name: one.take(chosen) for name, one in self.fields.items()}
        return replace(self, keys=keys, targets=targets, rows=self.rows[chosen], fields=fields)

    def limited(self, count: int, *, seed: int = 0) -> Dataset:
        """A subset of `count` samples, as even over the classes as they allow, chosen by (seed, key), order kept.

        Raises BadInput for `count` < 1.
        """
        check("limit", count, Count)
        if count >= len(self):
            return self
        value = keyed.ranks(self.key_hashes, "limit", seed)
        rank = rank_within(self._groups, value)
        chosen = np.lexsort((value, rank))[:count]  # the first of every class, then the second of every class, ...
        return self.take(np.sort(chosen))

    def only_classes(self, classes: Sequence[str | int]) -> Dataset:
        """The images of some classes, given by name or index, which become the classes 0, 1, ... in the given order.

        A multi-label image stays if it carries one of them. Raises BadInput for a class that there is not (with the
        nearest names), one that comes twice, when no image is left, or in a set without labels.
        """
        labels = require_labels(self, "classes=").targets
        wanted = [self._class(given) for given in classes]
        twice = next((index for index in wanted if wanted.count(index) > 1), None)
        if twice is not None or not wanted:
            what = f"{self.classes[twice]!r} comes twice" if twice is not None else "is empty"
            raise BadInput(f"classes={','.join(map(str, classes))}: {what}; accepted: distinct classes")
        names = [self.classes[index] for index in wanted]
        targets, kept = KINDS[self.label_kind].chosen(labels, wanted, len(self.classes))
        if not kept.any():
            raise BadInput(f"data {self.spec!r}, {self.split}: no image has one of the classes {', '.join(names)}")
        return replace(self, classes=names, targets=targets).take(np.flatnonzero(kept))

    def onto(self, matched: Matched, classes: Sequence[str]) -> Dataset:
        """The same images with a model's outputs as their classes, which `classes` names: targets are outputs."""
        labels = require_labels(self, "the classes of a model").targets
        return replace(self, classes=list(classes), targets=KINDS[self.label_kind].onto(labels, matched))

    def few_shot(self, shots: int, *, seed: int = 0) -> Dataset:
        """`shots` images of each class (all of a smaller one), chosen by (seed, key), order kept.

        In a multi-label set: for every class, `shots` of the images that carry it; an image may serve several classes.
        Raises BadInput for `shots` < 1, and in a set without labels.
        """
        check("shots", shots, Count)
        labels = require_labels(self, "shots=").targets
        value = keyed.ranks(self.key_hashes, "shots", seed)
        return self.take(KINDS[self.label_kind].first_of_each(labels, value, shots))

    def cached(self, *, max_bytes: int = 2**31) -> Dataset:
        """The same data set, decoded once into memory; as it is if that takes more than `max_bytes` (an estimate).

        With `on_bad="skip"`, without the images that cannot be read.
        """
        height, width = self.image_size
        if height * width * self.channels * len(self) > max_bytes or isinstance(self.images, _Decoded):
            return self
        pixels: list[np.ndarray] = []
        kept = self._read_all(lambda image: pixels.append(np.asarray(image)))
        return replace(self.take(kept), images=_Decoded(pixels), rows=np.arange(len(pixels)))

    def readable(self) -> Dataset:
        """The set without the images that cannot be read, which are added to `bad`: every image is decoded once.

        With `on_bad="error"` the first of them raises UnreadableImage.
        """
        kept = self._read_all(lambda image: None)
        return self if len(kept) == len(self) else self.take(kept)

    def encoded(self, index: int) -> bytes | Path | None:
        """The image as it is stored: bytes, or the file; None where it is not stored encoded."""
        encoded = getattr(self.images, "encoded", None)
        return None if encoded is None else encoded(int(self.rows[index]))

    @property
    def _groups(self) -> np.ndarray:
        if self.targets is None:
            return np.zeros(len(self), dtype=np.int64)
        return KINDS[self.label_kind].groups(self.targets)

    def _class(self, given: str | int) -> int:
        if isinstance(given, str) and given in self.classes:
            return self.classes.index(given)
        gaps = all(map(str.isdecimal, self.classes)) and self.classes != [str(i) for i in range(len(self.classes))]
        named = isinstance(given, str) and gaps  # "0" among the classes 3, 5 and 7 is no index, but a mistake
        if isinstance(given, int) or (given.isdecimal() and len(given) < 10 and not named):
            if 0 <= int(given) < len(self.classes):
                return int(given)
            raise BadInput(f"classes: {given!r} is no class of data {self.spec!r}: 0 to {len(self.classes) - 1}")
        raise BadInput(f"classes: {given!r} is no class of data {self.spec!r}: {nearest(given, self.classes)}")

    def _read_all(self, take: Callable[[Image.Image], object]) -> np.ndarray:
        """Decode every image in order, and read its fields; returns the indices of those that could be.

        Raises BadInput if none can.
        """
        kept = []
        for index in range(len(self)):
            try:
                take(self[index].image if self.fields else self._image(index))
            except UnreadableImage as error:
                if self.on_bad == "error":
                    raise
                self.bad.append(BadImage(error.key, str(error)))
            else:
                kept.append(index)
        if not kept:
            raise BadInput(f"data {self.spec!r}, {self.split}: none of its {len(self)} images can be read")
        return np.array(kept, dtype=np.int64)

    def _image(self, index: int) -> Image.Image:
        key = self.keys[index]
        encoded = self.encoded(index)
        if encoded is None:
            image = self.images[int(self.rows[index])]
        else:
            image = decode(encoded, key=key, max_pixels=self.max_pixels, plain_bands=self.channels == 4)
        return as_sample_image(image, self.channels, key=key, pixel_range=self.pixel_range)


def require_labels(dataset: Any, what: str, *, instead: str = "") -> Any:
    """The data set itself. Raises BadInput, saying what needs labels, for one that has none.

    instead: what else is accepted, in words.
    """
    if getattr(dataset, "labelled", True):
        return dataset
    raise BadInput(
        f"{what} needs labels, but data {dataset.spec!r} has none; accepted: images with classes, as in class "
        f"folders, tables and lists{instead and f'; {instead}'}"
    )


def new_name(name: str, added: object, taken: Mapping[str, object]) -> str:
    """The name of a field that is added. Raises BadInput for one that is taken, or a value that is no `Field`."""
    if not isinstance(added, Field):
        raise BadInput(f"field {name!r} is a {type(added).__name__}; accepted: a Field, as in Masks(masks)")
    if not isinstance(name, str) or not name.isidentifier() or name in RESERVED or name in taken:
        used = ", ".join((*RESERVED, *taken))
        raise BadInput(f"field name {name!r}; accepted: a name of letters, digits and _, and none of {used}")
    return name


@dataclass(frozen=True)
class _Decoded:
    pixels: list[np.ndarray]  # uint8, (H, W), or (H, W, 3 or 4)

    def __getitem__(self, row: int, /) -> Image.Image:
        return Image.fromarray(self.pixels[row])


def as_sample_image(
    image: Image.Image, channels: int, *, key: str, pixel_range: PixelRange | None = None
) -> Image.Image:
    """`with_channels`, its refusal as UnreadableImage."""
    try:
        return with_channels(image, channels, pixel_range)
    except BadInput as error:
        raise UnreadableImage.of(key, f"is not accepted: {error}") from None


def probe(images: Images, count: int, *, looks: int = 8) -> tuple[int, tuple[int, int]]:
    """(channels, (h, w)): grey only if all of a few evenly spread images are, and their median size.

    Images that cannot be decoded are passed over; raises BadInput if none of those looked at can.
    """
    seen, failure = [], None
    for row in np.unique(np.linspace(0, count - 1, min(looks, count)).astype(int)):
        try:
            seen.append(images[int(row)])
        except BadInput as error:
            failure = error
    if not seen:
        raise failure or BadInput("there is no image to look at")
    height, width = (int(np.median([size])) for size in zip(*((i.height, i.width) for i in seen), strict=True))
    return (1 if all(is_grey(image) for image in seen) else 3), (height, width)
