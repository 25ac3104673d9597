"""One transform for an image and its fields: the steps of `Preprocess`, with a record of what they do to its shape.

The image's pixels and the draws are those of the transform without fields, bit for bit: a step is either run as it is
and its effect read off, or its own draw is made and applied as it does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.transforms import CenterCropOrPad, RandomResizedCropAndInterpolation, ResizeKeepRatio
from torchvision import transforms
from torchvision.transforms import functional

from leanvit.data.augment import Augment, ShiftFlip
from leanvit.data.geometry import Crop, Geometry, Mirror, Move, Resize
from leanvit.data.preprocess import Bounded, Preprocess, UnlessSize, as_pixels
from leanvit.errors import BadInput

_PIXELWISE = (partial, Bounded, transforms.ColorJitter)  # steps that leave every pixel where it is


@dataclass(frozen=True)
class JointTransform:
    """PIL image -> ((H, W, C) uint8 as `u8_transform` gives it, its `Geometry`)."""

    steps: tuple[Callable[[Any], Any], ...]

    @staticmethod
    def of(preprocess: Preprocess, augment: Augment | None) -> JointTransform:
        """The transform of `preprocess.u8_transform(augment)`. Raises BadInput for a step whose moves are not known."""
        steps = preprocess.steps(augment)
        nested = [inner for step in steps if isinstance(step, UnlessSize) for inner in step.steps.transforms]
        for step in (*steps, *nested):
            if step is not as_pixels and type(step) not in (*_PIXELWISE, *_MOVES):
                raise BadInput(f"{type(step).__name__} changes an image in ways that its fields cannot follow")
        return JointTransform(steps)

    def __call__(self, image: Image.Image) -> tuple[np.ndarray, Geometry]:
        pixels, moves = _run(self.steps, image)
        return pixels, Geometry((image.height, image.width), moves)


def _run(steps: Iterable[Callable[[Any], Any]], image: Any) -> tuple[Any, tuple[Move, ...]]:
    moves: list[Move] = []
    for step in steps:
        take = _MOVES.get(type(step))
        if take is None:
            image = step(image)
        else:
            image, done = take(step, image)
            moves += done
    return image, tuple(moves)


def _unless_size(step: UnlessSize, image: Image.Image) -> tuple[Image.Image, tuple[Move, ...]]:
    return (image, ()) if image.size == step.size else _run(step.steps.transforms, image)


def _resize(step: Callable[[Any], Any], image: Image.Image) -> tuple[Image.Image, tuple[Move, ...]]:
    image = step(image)
    return image, (Resize(image.height, image.width),)


def _centre(step: Any, image: Image.Image) -> tuple[Image.Image, tuple[Move, ...]]:
    (height, width), fill = step.size, getattr(step, "fill", None) or ()
    top, left = _start(image.height, height), _start(image.width, width)
    return step(image), (Crop(top, left, height, width, tuple(fill)),)


def _start(side: int, wanted: int) -> int:
    """Where a window in the middle begins, by torchvision's rounding."""
    return -((wanted - side) // 2) if wanted > side else round((side - wanted) / 2.0)


def _resized_crop(step: RandomResizedCropAndInterpolation, image: Image.Image) -> tuple[Image.Image, tuple[Move, ...]]:
    box = step.get_params(image, step.scale, step.ratio)
    image = functional.resized_crop(image, *box, step.size, step.interpolation)
    return image, (Crop(*box), Resize(*step.size))


def _flip(step: transforms.RandomHorizontalFlip, image: Image.Image) -> tuple[Image.Image, tuple[Move, ...]]:
    if torch.rand(1) < step.p:
        return functional.hflip(image), (Mirror(),)
    return image, ()


def _shift_flip(step: ShiftFlip, image: Image.Image) -> tuple[Image.Image, tuple[Move, ...]]:
    left, top, flips = step.drawn(image.size)
    moves: list[Move] = [Crop(top, left, image.height, image.width)] if left or top else []
    return step.moved(image, left, top, flips), (*moves, Mirror()) if flips else tuple(moves)


_MOVES: dict[type, Callable[..., tuple[Image.Image, tuple[Move, ...]]]] = {
    UnlessSize: _unless_size,
    transforms.Resize: _resize,
    ResizeKeepRatio: _resize,
    transforms.CenterCrop: _centre,
    CenterCropOrPad: _centre,
    RandomResizedCropAndInterpolation: _resized_crop,
    transforms.RandomHorizontalFlip: _flip,
    ShiftFlip: _shift_flip,
}
