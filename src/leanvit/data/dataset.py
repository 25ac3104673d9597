"""The sample contract: (image, target, key), with a key that is stable across epochs, machines and formats."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image

from leanvit.data import keyed
from leanvit.data.decode import is_grey, with_channels
from leanvit.errors import BadInput


class Sample(NamedTuple):
    """One example: an 8-bit "L" or "RGB" image, its class index, and its key (unique within the split)."""

    image: Image.Image
    target: int
    key: str


class Images(Protocol):
    """Random access to decoded images by row; raises BadInput naming the key of an image that cannot be decoded."""

    def __getitem__(self, row: int, /) -> Image.Image: ...


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """A map-style set of images with one class each; `ds[i]` is a `Sample`. Immutable: every verb returns a new one."""

    name: str
    spec: str  # what opens it again
    split: str  # "train", "val", or "all"
    classes: list[str]
    keys: tuple[str, ...]
    targets: np.ndarray  # (N,) int64
    rows: np.ndarray  # (N,) int64, row of each sample in `images`
    images: Images
    channels: int  # 1 (grey) or 3
    image_size: tuple[int, int]  # typical (h, w)
    mirror: bool = True  # whether a mirrored image keeps its class (not so for digits)
    note: str = ""  # how the split came about, when it is not what the source calls it

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Sample:
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return Sample(self._image(index), int(self.targets[index]), self.keys[index])

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        height, width = self.image_size
        shape = f"{height}x{width}x{self.channels}"
        return f"Dataset({self.spec!r}, {self.split!r}: {len(self)} images {shape}, {len(self.classes)} classes)"

    @cached_property
    def key_hashes(self) -> np.ndarray:
        """(N,) uint64 stable hashes of the keys: what keyed orders and splits are made of."""
        return keyed.hashes(self.keys)

    def take(self, indices: Sequence[int] | np.ndarray) -> Dataset:
        """The samples at `indices`, in that order."""
        chosen = np.asarray(indices, dtype=np.int64)
        keys = tuple(self.keys[i] for i in chosen)
        return replace(self, keys=keys, targets=self.targets[chosen], rows=self.rows[chosen])

    def limited(self, count: int, *, seed: int = 0) -> Dataset:
        """A subset of `count` samples, as even over the classes as they allow, chosen by (seed, key), order kept.

        Raises BadInput for `count` < 1.
        """
        if count < 1:
            raise BadInput(f"limit={count}: accepted: a number of samples >= 1")
        if count >= len(self):
            return self
        value = keyed.ranks(self.key_hashes, "limit", seed)
        rank = rank_within(self.targets, value)
        chosen = np.lexsort((value, rank))[:count]  # the first of every class, then the second of every class, ...
        return self.take(np.sort(chosen))

    def cached(self, *, max_bytes: int = 2**31) -> Dataset:
        """The same data set, decoded once into memory; as it is if that takes more than `max_bytes` (an estimate)."""
        height, width = self.image_size
        if height * width * self.channels * len(self) > max_bytes or isinstance(self.images, _Decoded):
            return self
        pixels = [np.asarray(self._image(index)) for index in range(len(self))]
        return replace(self, images=_Decoded(pixels), rows=np.arange(len(self)))

    def _image(self, index: int) -> Image.Image:
        image = self.images[int(self.rows[index])]
        try:
            return with_channels(image, self.channels)
        except BadInput as error:
            raise BadInput(f"image {self.keys[index]!r}: {error}") from None


@dataclass(frozen=True)
class _Decoded:
    pixels: list[np.ndarray]  # uint8, (H, W) or (H, W, 3)

    def __getitem__(self, row: int, /) -> Image.Image:
        return Image.fromarray(self.pixels[row])


def rank_within(groups: np.ndarray, value: np.ndarray) -> np.ndarray:
    """(N,) rank, from 0, of each element among those of its group when sorted by `value`."""
    order = np.lexsort((value, groups))
    grouped = groups[order]
    first = np.r_[True, grouped[1:] != grouped[:-1]]
    starts = np.maximum.accumulate(np.where(first, np.arange(len(groups)), 0))
    rank = np.empty(len(groups), dtype=np.int64)
    rank[order] = np.arange(len(groups)) - starts
    return rank


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
