"""What identifies a data set: rows by all keys and labels, streams by their parts and first samples."""

from __future__ import annotations

import io
import time
from dataclasses import dataclass, replace

import numpy as np
import pytest
from PIL import Image

from leanvit.data import open_dataset
from leanvit.data.dataset import Dataset
from leanvit.data.identity import LOOKS, changes, identity
from leanvit.data.stream import Encoded, Stream


@dataclass(frozen=True)
class Shard:
    name: str
    first: int
    shade: int = 0
    label: int = 0

    def __iter__(self):
        for i in range(self.first, self.first + 6):
            file = io.BytesIO()
            Image.new("L", (4, 4), i + self.shade).save(file, "PNG")
            yield Encoded(file.getvalue(), (i + self.label) % 2, f"{i}.png")


def stream(*parts: Shard, **more) -> Stream:
    return Stream("made", "made", "train", ["a", "b"], parts, 6 * len(parts), 1, (4, 4), **more)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (stream(Shard("x", 0), Shard("y", 6)), []),
        (stream(Shard("x", 0), Shard("z", 6)), ["data: its shards changed"]),
        (stream(Shard("x", 0, shade=1), Shard("y", 6)), ["data: the pixels changed of '0.png'"]),
        (stream(Shard("x", 0, label=1), Shard("y", 6)), ["data: the pixels changed of '0.png'"]),
        (replace(stream(Shard("x", 0), Shard("y", 6)), length=11), ["data.images was 12 and is now 11"]),
        (replace(stream(Shard("x", 0), Shard("y", 6)), classes=["b", "a"]), ["data: its classes"]),
    ],
)
def test_a_stream_is_known_by_its_shards_and_first_samples(other, says) -> None:
    found = changes(identity(stream(Shard("x", 0), Shard("y", 6))), identity(other))
    assert len(found) == len(says) and all(text.startswith(said) for text, said in zip(found, says, strict=True))


def test_it_is_the_same_decoded_or_not_and_where_an_image_cannot_be_read() -> None:
    digits = open_dataset("digits", "train", limit=40)
    payload = identity(digits)
    assert payload == identity(digits.cached()) and len(payload["pixels"]) == LOOKS
    assert changes(payload, payload) == [] and changes(None, payload) == []
    old = {key: payload[key] for key in ("spec", "split", "images", "samples")}
    moved = replace(digits, targets=np.roll(digits.targets, 1))
    assert changes(old, payload) == [] and changes(old, identity(moved)) == ["data: its keys or labels changed"]
    assert changes(payload, identity(moved)) == ["data: its labels changed"]


def test_many_images_take_no_time() -> None:
    count = 300_000
    pixels = np.zeros((8, 8), dtype=np.uint8)

    class Images:
        def __getitem__(self, row: int) -> Image.Image:
            return Image.fromarray(pixels)

    keys = tuple(f"class/{i:07d}.jpg" for i in range(count))
    labels, rows = np.zeros(count, dtype=np.int64), np.arange(count)
    whole = Dataset("made", "made", "train", ["a"], keys, labels, rows, Images(), 1, (8, 8))
    begun = time.process_time()
    identity(whole)
    assert time.process_time() - begun < 1
