"""What a transform did to the shape of an image, as plain data: what fields of the image are moved by, too."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from PIL import Image

MIN_BOX = 1.0  # pixels: a box that is narrower, lower or smaller than this after its move is removed, as by torchvision


@dataclass(frozen=True)
class Resize:
    """To height x width pixels."""

    height: int
    width: int


@dataclass(frozen=True)
class Crop:
    """A window of height x width pixels; what of it lies outside the image is padding, `fill` in pictures."""

    top: int
    left: int
    height: int
    width: int
    fill: tuple[int, ...] = ()  # a value for each channel; () is black


@dataclass(frozen=True)
class Mirror:
    """Left becomes right."""


Move = Resize | Crop | Mirror


@dataclass(frozen=True)
class Geometry:
    """The moves of one image, in their order."""

    size: tuple[int, int]  # (H, W) before
    moves: tuple[Move, ...]

    @cached_property
    def pixels(self) -> tuple[np.ndarray, np.ndarray]:
        """For each row (h,) and column (w,) of the moved image, int64, the one that it comes from; -1: padding.

        Resizing takes the nearest pixel: that under the centre of the new one, as Pillow's nearest.
        """
        rows, columns = (np.arange(side) for side in self.size)
        for move in self.moves:
            if isinstance(move, Resize):
                rows, columns = rows[nearest(len(rows), move.height)], columns[nearest(len(columns), move.width)]
            elif isinstance(move, Crop):
                rows = _window(rows, move.top, move.height)
                columns = _window(columns, move.left, move.width)
            else:
                columns = columns[::-1]
        return rows, columns

    def gathered(self, values: np.ndarray, *, outside: float) -> np.ndarray:
        """(..., H, W) -> (..., h, w) of the same type: each the value of the nearest pixel, `outside` in padding."""
        rows, columns = self.pixels
        found = values[..., np.maximum(rows, 0)[:, None], np.maximum(columns, 0)]
        found[..., rows < 0, :] = outside
        found[..., columns < 0] = outside
        return found

    def boxed(self, boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(n, 4) float32 xyxy -> (the moved boxes that are left, (n,) bool which those are), through torchvision's v2.

        Boxes are cut off at the borders of the moved image; one of less than `MIN_BOX` pixels a side is removed.
        """
        from torchvision import tv_tensors
        from torchvision.transforms.v2 import functional as moving

        held = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=self.size)  # type: ignore[call-overload]
        for move in self.moves:
            if isinstance(move, Resize):
                held = moving.resize(held, [move.height, move.width])
            elif isinstance(move, Crop):
                held = moving.crop(held, move.top, move.left, move.height, move.width)
            else:
                held = moving.horizontal_flip(held)
        held = moving.clamp_bounding_boxes(held)
        left, kept = moving.sanitize_bounding_boxes(held, min_size=MIN_BOX, min_area=MIN_BOX)
        return left.as_subclass(torch.Tensor), kept

    def pictured(self, image: Image.Image, interpolation: Image.Resampling) -> Image.Image:
        """Another picture of the same size, moved alike."""
        for move in self.moves:
            if isinstance(move, Resize):
                image = image.resize((move.width, move.height), interpolation)
            elif isinstance(move, Crop):
                image = _cropped(image, move)
            else:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return image


def nearest(side: int, wanted: int) -> np.ndarray:
    """(wanted,) int64: of `side` pixels in a line, those under the centres of `wanted` ones."""
    return ((2 * np.arange(wanted) + 1) * side) // (2 * wanted)


def _window(line: np.ndarray, start: int, length: int) -> np.ndarray:
    at = np.arange(start, start + length)
    inside = (at >= 0) & (at < len(line))
    return np.where(inside, line[np.clip(at, 0, len(line) - 1)], -1)


def _cropped(image: Image.Image, move: Crop) -> Image.Image:
    if not move.fill:  # Pillow fills what lies outside with black
        return image.crop((move.left, move.top, move.left + move.width, move.top + move.height))
    fill = move.fill if len(image.getbands()) > 1 else move.fill[0]
    sheet = Image.new(image.mode, (move.width, move.height), fill)
    sheet.paste(image, (-move.left, -move.top))
    return sheet
