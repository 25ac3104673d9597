"""A picture of a data set: a few images of each class, with its name, their masks and boxes drawn over them."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from leanvit.data import AnyDataset, Boxes, Dataset, Field, Masks, Sample, UnreadableImage, keyed
from leanvit.data.label_kinds import KINDS
from leanvit.files import write_atomic
from leanvit.runs.thumbnails import colour

COLUMNS = 8  # images of a class
ROWS = 24  # classes; of more, evenly spread ones are shown
_STREAMED = 2000  # samples of a stream that are looked through for images of each class
_TILE, _GAP, _NAME, _HEAD = 112, 6, 190, 34  # pixels
_PAPER, _INK, _FRAME = (250, 250, 250), (30, 30, 30), (225, 225, 225)


def write_grid(path: Path, dataset: AnyDataset, *, seed: int = 0) -> None:
    """Write a PNG: a row a class (up to `ROWS`), `COLUMNS` images chosen by the seed, whole, none stretched.

    Of data without labels, one row. Classes of masks and boxes have a colour each; pixels of a mask that count for
    nothing are as they were.

    Images that cannot be read are passed over. Raises LeanvitError where the file cannot be written.
    """
    names, rows = _rows(dataset if dataset.labelled else _as_one_class(dataset), seed)
    columns = max(4, *map(len, rows))  # room for the title
    width = _NAME + columns * (_TILE + _GAP) + _GAP
    sheet = Image.new("RGB", (width, _HEAD + len(rows) * (_TILE + _GAP) + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    shown = f"{len(rows)} of {len(dataset.classes)} classes" if len(rows) < len(dataset.classes) else "every class"
    shown = shown if dataset.labelled else "without labels"
    draw.text(
        (_GAP + 4, 9),
        f"{dataset.name}, {dataset.split}: {len(dataset)} images, {shown}",
        _INK,
        ImageFont.load_default(15),
    )
    for line, (name, images) in enumerate(zip(names, rows, strict=True)):
        top = _HEAD + line * (_TILE + _GAP)
        _write_name(draw, name, top)
        for column, image in enumerate(images):
            _place(sheet, image, (_NAME + column * (_TILE + _GAP), top))
    stream = io.BytesIO()
    sheet.save(stream, "PNG")
    write_atomic(path, stream.getvalue())


def _as_one_class(dataset: AnyDataset) -> AnyDataset:
    if isinstance(dataset, Dataset):
        return replace(dataset, classes=[""], targets=np.zeros(len(dataset), dtype=np.int64))
    return replace(dataset, classes=[""])


def _rows(dataset: AnyDataset, seed: int) -> tuple[list[str], list[list[Image.Image]]]:
    count = len(dataset.classes)
    chosen = np.unique(np.linspace(0, count - 1, min(ROWS, count)).round().astype(int)).tolist()
    if isinstance(dataset, Dataset):
        rows = [list(_of_class(dataset, target, seed)) for target in chosen]
    else:
        found: dict[int, list[Image.Image]] = {target: [] for target in chosen}
        for number, item in enumerate(dataset.pass_over()):
            carried = [0] if item.target is None else KINDS[dataset.label_kind].carried(item.target)
            wanted = [target for target in carried if target in found and len(found[target]) < COLUMNS]
            if number >= _STREAMED:
                break
            for target in wanted:
                try:
                    found[target].append(_drawn_over(dataset.read(item), dataset.fields))
                except UnreadableImage:
                    break
        rows = [found[target] for target in chosen]
    return [dataset.classes[target] for target in chosen], rows


def _of_class(dataset: Dataset, target: int, seed: int) -> Iterator[Image.Image]:
    targets: Any = dataset.targets
    indices = np.flatnonzero(KINDS[dataset.label_kind].carries(targets, target))
    value = keyed.ranks(dataset.key_hashes[indices], "grid", seed)
    taken = 0
    for index in indices[np.argsort(value, kind="stable")]:
        if taken == COLUMNS:
            return
        try:
            image = _drawn_over(dataset[int(index)], dataset.fields)
        except UnreadableImage:
            continue
        taken += 1
        yield image


def _drawn_over(sample: Sample, fields: Mapping[str, Field]) -> Image.Image:
    """The image of a sample with its masks and boxes."""
    image = sample.image
    for name, kind in fields.items():
        value = sample.fields[name]
        if isinstance(kind, Masks) and value.ndim == 2:
            image = _masked(image.convert("RGB"), value, kind.ignore)
        elif isinstance(kind, Boxes):
            image = _boxed(image.convert("RGB"), value["boxes"].tolist(), value["labels"].tolist())
    return image


def _masked(image: Image.Image, mask: np.ndarray, ignore: int) -> Image.Image:
    values, place = np.unique(mask, return_inverse=True)
    colours = np.array([ImageColor.getrgb(colour(int(value))) for value in values], dtype=np.uint8)[
        place.reshape(mask.shape)
    ]
    blended = Image.blend(image, Image.fromarray(colours), 0.5)
    blended.paste(image, mask=Image.fromarray(mask == ignore))
    return blended


def _boxed(image: Image.Image, boxes: list[list[float]], labels: list[int]) -> Image.Image:
    drawn = image.copy()
    draw = ImageDraw.Draw(drawn)
    width = max(1, round(2 * max(image.size) / _TILE))  # two pixels of a tile
    for (left, top, right, bottom), label in zip(boxes, labels, strict=True):
        draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=colour(label), width=width)
    return drawn


def _write_name(draw: ImageDraw.ImageDraw, name: str, top: int) -> None:
    """The class's name beside its row, cut at the column's width."""
    font = ImageFont.load_default(15)
    text = name
    while draw.textlength(text, font) > _NAME - 22 and len(text) > 1:
        text = text[:-2] + "…"
    draw.text((_GAP + 4, top + _TILE // 2 - 9), text, _INK, font)


def _place(sheet: Image.Image, image: Image.Image, at: tuple[int, int]) -> None:
    """The whole image in a square tile: large ones shrunk smoothly, small ones enlarged by whole pixels."""
    image = image.convert("RGB")
    scale = min(_TILE / image.width, _TILE / image.height)
    if scale >= 2:
        scale = int(scale)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    method = Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS
    ImageDraw.Draw(sheet).rectangle((*at, at[0] + _TILE - 1, at[1] + _TILE - 1), fill=_FRAME)
    sheet.paste(image.resize(size, method), (at[0] + (_TILE - size[0]) // 2, at[1] + (_TILE - size[1]) // 2))
