"""What is decided once for a data set: its number of channels (`?channels=`), its range of values (`?range=`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from leanvit.data.dataset import Dataset
from leanvit.data.decode import CHANNELS, UnreadableImage, decode, header_is_deep
from leanvit.data.depth import UPPER_BYTE, PixelRange, extent, number_text, parse_range, range_text, smallest_range
from leanvit.data.specs import Spec
from leanvit.data.splits import Source
from leanvit.data.stream import AnyDataset, as_bytes
from leanvit.errors import BadInput

LOOKS = 8  # images of a split whose headers are looked at
DEEP_LOOKS = 64  # images whose values are looked at, where some of those have more than 8 bits


def as_declared(dataset: AnyDataset, source: Source, spec: Spec) -> AnyDataset:
    """A split with the channels and the range of values that hold for its whole source.

    Channels: `channels=` of the spec, else as they were found. Range, of pictures with more than 8 bits: `range=` of
    the spec, else as the values of 64 images of the source's training split have it, which `note` says; the same for
    every split.

    Raises BadInput for options that are not accepted, and where the values leave the range open.
    """
    channels = spec.whole("channels")
    if channels is not None:
        if channels not in CHANNELS:
            accepted = ", ".join(map(str, CHANNELS))
            raise BadInput(f"data {spec.text!r}: channels={channels}; accepted: {accepted}: pictures have no more")
        dataset = replace(dataset, channels=channels)
    stated = spec.options.get("range")
    chosen = None if stated is None else parse_range(stated, where=f"data {spec.text!r}")
    deep = _some_deep(dataset)
    if chosen is not None:
        unused = "" if deep else f"range={stated} is not used: the images looked at have 8 bits"
        return replace(dataset, pixel_range=chosen, note=_joined(dataset.note, unused))
    if not deep:
        return dataset
    found = _values(replace(_evidence(source), max_pixels=dataset.max_pixels)) or _values(dataset)
    if found is None:  # their headers were read, their pixels cannot be: each says so when it is met
        return dataset
    chosen = found.range(f"data {spec.text!r}")
    decided = replace(dataset, pixel_range=chosen)
    own = unlike_range(decided) if len(source.splits) > 1 else ""
    return replace(decided, note=_joined(dataset.note, found.text(chosen), own))


def unlike_range(dataset: AnyDataset) -> str:
    """In one line, that the images of a data set look like ones of fewer bits than its range has; empty otherwise.

    Read so, they come out dark. Values beyond the range need no word: they are refused.
    """
    if dataset.pixel_range is None or not _some_deep(dataset):
        return ""
    found = _values(dataset)
    likely = None if found is None else found.likely
    if found is None or likely is None or likely[1] >= dataset.pixel_range[1]:
        return ""
    read_as = range_text(dataset.pixel_range)
    return (
        f"{found.values} look like {range_text(likely)}, but are read as {read_as}, the range of the training: they "
        "come out dark if that is not meant"
    )


@dataclass(frozen=True)
class _Values:
    """The values of the deep images among those that were looked at."""

    modes: tuple[str, ...]
    low: float
    high: float
    upper_byte: bool  # 16-bit colour, of which Pillow gives the upper byte
    deep: int
    looked: int

    def range(self, where: str) -> PixelRange:
        found = self.likely
        if found is None or (self.upper_byte and found != (0, 65535)):
            more = "; 16-bit colour is read by its upper byte: convert it to 8 bits, or pass range=0-65535"
            raise BadInput(
                f"{where}: {self.kind}, {self.values}: which values are black and white is not known; accepted: "
                f"?range=LOW-HIGH, as in ?range=0-4095{more if self.upper_byte else ''}"
            )
        return found

    @property
    def likely(self) -> PixelRange | None:
        """The smallest range that holds them; None where that would be a guess."""
        floats = self.modes == ("F",)
        mixed = "F" in self.modes and not floats
        return None if mixed else smallest_range(self.low, self.high, floats=floats)

    @property
    def kind(self) -> str:
        bits = "float" if "F" in self.modes else "16-bit"
        return f"{bits} pictures (mode {', '.join(self.modes)})"

    @property
    def values(self) -> str:
        some = f"{self.deep} of {self.looked}" if self.deep < self.looked else str(self.looked)
        return f"values {number_text(self.low)} to {number_text(self.high)} in the {some} looked at"

    def text(self, chosen: PixelRange) -> str:
        bits = "" if "F" in self.modes else f" ({int(chosen[1]).bit_length()} bits)"
        return f"{self.kind}: {range_text(chosen)}{bits} taken as range, {self.values}; ?range=LOW-HIGH for another"


def _evidence(source: Source) -> AnyDataset:
    """The split that decides for all of them: the training split, or the only one."""
    held = source.splits
    return (held.get("train") or held.get("all") or next(iter(held.values())))()


def _encoded(dataset: AnyDataset, count: int) -> Iterator[tuple[str, bytes | Path]]:
    """(key, encoded image) of evenly spread images; of a stream, of the first."""
    if not isinstance(dataset, Dataset):
        items = (item for part in dataset.parts for item in part)
        yield from ((item.key, as_bytes(item.encoded)) for item in islice(items, count))
        return
    for index in np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int)):
        try:
            encoded = dataset.encoded(int(index))
        except UnreadableImage:
            continue  # it is named when it is met
        if encoded is None:  # pixels, of 8 bits
            return
        yield dataset.keys[int(index)], encoded


def _some_deep(dataset: AnyDataset) -> bool:
    return any(header_is_deep(encoded, max_pixels=dataset.max_pixels) for _, encoded in _encoded(dataset, LOOKS))


def _values(dataset: AnyDataset) -> _Values | None:
    """Of the deep images among those that are looked at; None where there is none."""
    modes, extents, looked, upper_byte = set(), [], 0, False
    for key, encoded in _encoded(dataset, DEEP_LOOKS):
        looked += 1
        if not header_is_deep(encoded, max_pixels=dataset.max_pixels):
            continue
        try:
            image = decode(encoded, key=key, max_pixels=dataset.max_pixels)
        except UnreadableImage:
            continue
        modes.add("I;16" if image.mode.startswith("I;16") else image.mode)
        extents.append(extent(image))
        upper_byte = upper_byte or UPPER_BYTE in image.info
    if not extents:
        return None
    lows, highs = zip(*extents, strict=True)
    low, high = float(np.min(lows)), float(np.max(highs))  # not a number where one of them is not
    return _Values(tuple(sorted(modes)), low, high, upper_byte, len(extents), looked)


def _joined(*notes: str) -> str:
    return "; ".join(filter(None, notes))
