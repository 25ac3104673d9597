"""Data that is read in passes, not by row: tar shards, and HF data sets that are streamed.

The contract is weaker than `Dataset`'s in one point: the order of an epoch follows from (seed, epoch) and the shards,
their order and sizes, so the same images cut into other shards come in another order. The rest holds: order and
augmentation do not depend on workers or processes, and a resumed run sees exactly the batches that were left.

Each process goes through the samples in order, and the workers decode them. So any number of workers goes with any
number of shards: none is read twice, none is left out, and no worker idles for want of a shard. Of shards with an
index, only the places of samples go that way: what is not decoded (the share of another process, what a resume leaves
out) is not read.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from leanvit.data import keyed
from leanvit.data.classes import Matched
from leanvit.data.dataset import NO_FIELDS, Dataset, Sample, as_sample_image, new_name, require_labels
from leanvit.data.decode import MAX_PIXELS, BadImage, UnreadableImage, decode, is_grey
from leanvit.data.depth import PixelRange
from leanvit.data.fields import LABEL, Field
from leanvit.data.label_kinds import KINDS, ONE, Labelled
from leanvit.data.specs import Spec
from leanvit.data.stored import Stored
from leanvit.errors import BadInput
from leanvit.knobs import Count, check

BUFFER = 1000  # samples among which the next one is drawn
_BLOCK = 1024  # samples that are numbered, or made of their numbers, at a time


class Encoded(NamedTuple):
    """One sample as it lies in the stream; `visit` counts how often an epoch has come to its shard before.

    encoded: the image, or the place that it is read from where it is decoded (`as_bytes`).
    fields: values as they lie there, by the names of `Stream.fields`.
    """

    encoded: bytes | Stored
    target: int | np.ndarray | None
    key: str
    visit: int = 0
    fields: Mapping[str, Any] = NO_FIELDS


class Part(Protocol):
    """A piece of a stream that is read from front to back: a shard. Travels to other processes."""

    @property
    def name(self) -> str: ...

    def __iter__(self) -> Iterator[Encoded]: ...


@runtime_checkable
class PlacedPart(Part, Protocol):
    """A part whose samples are reached by their numbers, and read by whoever decodes them."""

    def __len__(self) -> int: ...

    def at(self, samples: np.ndarray) -> list[Encoded]: ...


@dataclass(frozen=True)
class Pass:
    """The samples of a pass or an epoch, in order, as `items` that `made` turns into samples, several at a time.

    Of parts with places they are numbers: what is left out of them costs nothing. Else they are samples.
    """

    items: Iterator[Any]
    made: Callable[[list[Any]], list[Encoded]]
    several: int

    def __iter__(self) -> Iterator[Encoded]:
        while items := list(islice(self.items, self.several)):
            yield from self.made(items)


@dataclass(frozen=True, eq=False, repr=False)
class Stream(Labelled):
    """An iterable set of images. `len` is the number of samples in an epoch.

    Exact (`resampled` false): an epoch is one pass over all shards, in an order of (seed, epoch) while training, the
    stored order otherwise. Resampled: shards are drawn with replacement until `len` samples have come.
    """

    name: str
    spec: str
    split: str
    classes: list[str]
    parts: tuple[Part, ...]
    length: int
    channels: int  # 1 (grey), 3, or 4 where they are declared
    image_size: tuple[int, int]  # typical (h, w)
    kind: str = ONE  # what labels say of an image: "one" class, or "several"
    resampled: bool = False
    buffer: int = BUFFER
    mirror: bool = True
    note: str = ""
    on_bad: str = "error"
    max_pixels: int = MAX_PIXELS
    pixel_range: PixelRange | None = None  # see `Dataset`
    bad: list[BadImage] = field(default_factory=list)
    left_out: Mapping[str, int] = field(default_factory=dict)  # reason -> how many members are no sample
    matched: Matched | None = None  # where targets are outputs of a model: which of the shards' classes is which
    labelled: bool = True  # whether its samples have classes; else `classes` is empty and targets are None
    fields: Mapping[str, Field] = field(default_factory=dict)  # what samples have beside image, class and key

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Sample]:
        """The samples in the stored order, decoded; with `on_bad="skip"` without those that cannot be read."""
        for item in self.pass_over():
            try:
                sample = self.read(item)
            except UnreadableImage as error:
                if self.on_bad == "error":
                    raise
                self.bad.append(BadImage(error.key, str(error)))
                continue
            yield sample

    def __repr__(self) -> str:
        height, width = self.image_size
        shape = f"{height}x{width}x{self.channels}"
        how = "drawn from" if self.resampled else "in"
        labels = f"{len(self.classes)} classes" if self.labelled else "no labels"
        fields = "".join(f", {name}" for name in self.fields)
        return (
            f"Stream({self.spec!r}, {self.split!r}: {len(self)} images {shape} {how} {len(self.parts)} shards, "
            f"{labels}{fields})"
        )

    @property
    def label_kind(self) -> str:
        """As of `Dataset`."""
        return self.kind if self.labelled else ""

    @property
    def field_names(self) -> tuple[str, ...]:
        """As of `Dataset`."""
        return (*((LABEL,) if self.labelled else ()), *self.fields)

    def with_field(self, name: str, added: Field) -> Stream:
        """The same samples with one more field, whose values are found by key, or come with the samples.

        added: a source with `keys`; without a source, parts give values of this name (`Encoded.fields`). Raises
        BadInput for a name that is taken, and for a source without keys.
        """
        if added.rows is not None or (added.source is not None and added.keys is None):
            raise BadInput(f"field {name!r}: a stream has no rows; accepted: keys=, the sample that each value is of")
        return replace(self, fields={**self.fields, new_name(name, added, self.fields): added})

    def without_labels(self) -> Stream:
        """The same samples without their classes."""
        return replace(self, classes=[], labelled=False, kind=ONE, matched=None)

    def read(self, item: Encoded) -> Sample:
        """Decode one sample. Raises UnreadableImage."""
        image = decode(as_bytes(item.encoded), key=item.key, max_pixels=self.max_pixels, plain_bands=self.channels == 4)
        image = as_sample_image(image, self.channels, key=item.key, pixel_range=self.pixel_range)
        if not self.fields:
            return Sample(image, item.target, item.key)
        key, size, given = item.key, (image.height, image.width), item.fields
        found = {name: one.read(name, key, size, given=given.get(name)) for name, one in self.fields.items()}
        return Sample.of(image, item.target, key, found)

    def pass_over(self) -> Iterator[Encoded]:
        """`len` samples in the stored order. Raises BadInput where the shards hold fewer, unless they are resampled:
        then all come once."""
        return iter(self.passing(fewer=self.resampled))

    def epoch(self, *, seed: int, epoch: int) -> Iterator[Encoded]:
        """`len` samples in the training order of (seed, epoch): shards shuffled, then samples within a buffer."""
        return iter(self.passing((seed, epoch)))

    def passing(self, drawn: tuple[int, int] | None = None, *, fewer: bool = False) -> Pass:
        """`epoch` of (seed, epoch), or `pass_over` for None, as what its samples are made of.

        fewer: whether less than `len` samples may come.
        """
        parts = self._in_stored_order() if drawn is None else self._in_training_order(*drawn)
        placed = [part for part in self.parts if isinstance(part, PlacedPart)]
        if len(placed) == len(self.parts):
            endless = self.resampled and drawn is not None
            items: Iterator[Any] = itertools.count() if endless else iter(range(sum(map(len, placed))))
            several = _BLOCK
            made: Callable[[list[Any]], list[Encoded]] = _Places(parts).at
        else:
            items = (item._replace(visit=visit) if visit else item for part, visit in parts for item in part)
            several, made = 1, list
        if drawn is not None:
            items = _shuffled(items, self.buffer, *drawn, several)
        return Pass(self._counted(items, fewer), lambda items: self._with_targets(made(items)), several)

    def onto(self, matched: Matched, classes: Sequence[str]) -> Stream:
        """The same samples with a model's outputs as their classes, which `classes` names: targets are outputs."""
        return replace(require_labels(self, "the classes of a model"), classes=list(classes), matched=matched)

    def limited(self, count: int, *, seed: int = 0) -> Stream:
        """The first `count` samples in the stored order (whatever the seed), as a stream of one shard."""
        check("limit", count, Count)
        if count >= len(self):
            return self
        placed = all(isinstance(part, PlacedPart) for part in self.parts)
        return replace(self, parts=((_FirstPlaced if placed else _First)(self.parts, count),), length=count)

    def cached(self, *, max_bytes: int = 0) -> Stream:
        """The stream itself: it is not kept in memory."""
        return self

    def readable(self) -> Stream:
        """The stream itself: bad images are met, and left out, while it is read."""
        return self

    def _in_stored_order(self) -> Iterator[tuple[Part, int]]:
        """(part, how often it came before)."""
        return ((part, 0) for part in self.parts)

    def _in_training_order(self, seed: int, epoch: int) -> Iterator[tuple[Part, int]]:
        visits = dict.fromkeys(range(len(self.parts)), 0)
        for number in self._order_of_parts(seed, epoch):
            visit, visits[number] = visits[number], visits[number] + 1
            yield self.parts[number], visit

    def _order_of_parts(self, seed: int, epoch: int) -> Iterator[int]:
        if self.resampled:
            draw = keyed.numpy("shards", seed, epoch)
            while True:
                yield int(draw.integers(len(self.parts)))
        value = keyed.ranks(keyed.hashes([part.name for part in self.parts]), "shards", seed, epoch)
        yield from (int(number) for number in np.argsort(value, kind="stable"))

    def _counted(self, items: Iterator[Any], fewer: bool) -> Iterator[Any]:
        count = 0
        for item in islice(items, self.length):
            count += 1
            yield item
        if count < self.length and not fewer:
            raise BadInput(f"data {self.spec!r}, {self.split}: an epoch of {self.length} ended after {count} samples")

    def _with_targets(self, items: list[Encoded]) -> list[Encoded]:
        """The samples with the targets of this stream."""
        if not self.labelled:
            return [item if item.target is None else item._replace(target=None) for item in items]
        matched, kind = self.matched, KINDS[self.kind]
        if matched is None:
            return items
        return [item._replace(target=kind.target(kind.onto(item.target, matched))) for item in items]


AnyDataset = Dataset | Stream


@dataclass(frozen=True)
class _First:
    """The first samples of several parts, as one."""

    parts: tuple[Any, ...]
    count: int
    name: str = "first"

    def __iter__(self) -> Iterator[Encoded]:
        return islice((item for part in self.parts for item in part), self.count)


class _FirstPlaced(_First):
    def __len__(self) -> int:
        return min(self.count, sum(map(len, self.parts)))  # of shards that are drawn again, all may be fewer

    def at(self, samples: np.ndarray) -> list[Encoded]:
        return _Places((part, 0) for part in self.parts).at(samples)


class _Places:
    """Samples by their numbers in a pass, 0, 1, ...: those of its first part, then those of the next, and so on."""

    def __init__(self, parts: Iterator[tuple[Any, int]]) -> None:
        self._parts = parts  # (part, how often it came before)
        self._met: list[tuple[Any, int]] = []
        self._begins = [0]  # of each part that was met the number of its first sample, and of the next one

    def at(self, items: Sequence[int] | np.ndarray) -> list[Encoded]:
        numbers = np.asarray(items, dtype=np.int64)
        while self._begins[-1] <= numbers.max(initial=-1):
            self._met.append(next(self._parts))
            self._begins.append(self._begins[-1] + len(self._met[-1][0]))
        found: list[Any] = [None] * len(numbers)
        owners = np.searchsorted(self._begins, numbers, side="right") - 1
        for owner in np.unique(owners).tolist():
            (part, visit), rows = self._met[owner], np.flatnonzero(owners == owner)
            for row, item in zip(rows.tolist(), part.at(numbers[rows] - self._begins[owner]), strict=True):
                found[row] = item._replace(visit=visit) if visit else item
        return found


def in_blocks(part: PlacedPart) -> Iterator[Encoded]:
    """The samples of a part with places, in order."""
    for first in range(0, len(part), _BLOCK):
        yield from part.at(np.arange(first, min(first + _BLOCK, len(part))))


def checked_epoch(spec: str, epoch: int | None, held: int, *, resampled: bool) -> int:
    """The length of an epoch: `epoch`, else all that is held. Raises BadInput for more than an exact pass gives."""
    if epoch is not None and epoch > held and not resampled:
        raise BadInput(
            f"data {spec!r}: epoch={epoch}, but a pass has {held} samples: give at most that, or resampled as well"
        )
    return held if epoch is None else epoch


def in_epochs(whole: Stream, spec: Spec) -> Stream:
    """A split as it is read: val and test in full and in the stored order, others by the spec's epoch options."""
    if whole.split in ("val", "test"):
        return whole
    resampled = spec.on("resampled")
    length = checked_epoch(spec.text, spec.whole("epoch"), whole.length, resampled=resampled)
    return replace(whole, length=length, resampled=resampled, buffer=spec.whole("buffer", BUFFER) or BUFFER)


def probe_stream(parts: Sequence[Part], *, looks: int = 8) -> tuple[int, tuple[int, int]]:
    """(channels, (h, w)) of the first samples, as `dataset.probe` of rows. Raises if none can be decoded."""
    seen, failure = [], None
    for item in islice((item for part in parts for item in part), looks):
        try:
            seen.append(decode(as_bytes(item.encoded), key=item.key))
        except UnreadableImage as error:
            failure = error
    if not seen:
        raise failure or BadInput("there is no image to look at")
    height, width = (int(np.median(sides)) for sides in zip(*((i.height, i.width) for i in seen), strict=True))
    return (1 if all(map(is_grey, seen)) else 3), (height, width)


def as_bytes(encoded: bytes | Path | Stored) -> bytes:
    """The bytes of an encoded image, read where it is a file or lies in one. Raises BadInput as `Stored.read_bytes`."""
    return encoded if isinstance(encoded, bytes) else encoded.read_bytes()


def _shuffled(items: Iterator[Any], size: int, seed: int, epoch: int, ahead: int) -> Iterator[Any]:
    """Each next item is drawn among `size`; `ahead` items are taken at a time, which changes nothing but the speed."""
    draw = keyed.numpy("buffer", seed, epoch)
    held = list(islice(items, size))
    while block := list(islice(items, ahead)):
        for place, item in zip(draw.integers(len(held), size=len(block)).tolist(), block, strict=True):
            yield held[place]
            held[place] = item
    yield from (held[place] for place in draw.permutation(len(held)).tolist())
