"""Training augmentation as plain data, with two presets; `Preprocess.train_transform` builds it through timm."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import AugmentOp, posterize
from timm.data.random_erasing import RandomErasing
from torchvision import transforms

from leanvit.errors import BadInput, unknown
from leanvit.knobs import Choice, Fraction, NonNegative, Positive, Rule, Words, check_fields

CROPS = ("auto", "pad", "resized", "none")
_Range = Annotated[
    tuple[Positive, Positive],
    Rule(lambda ends: ends[0] <= ends[1]),
    Words("(low, high) with 0 < low <= high"),
]


def _is_policy(policy: str) -> bool:
    try:
        create_transform(32, is_training=True, auto_augment=policy)
    except (AssertionError, AttributeError, KeyError, ValueError, TypeError):
        return False
    return True


_Policy = Annotated[
    str,
    Rule(_is_policy),
    Words("a policy of timm, such as 'rand-m9-mstd0.5-inc1', 'augmix-m5', 'original', '3a'"),
]


@dataclass(frozen=True)
class Augment:
    """What is drawn anew for each image and epoch. Raises BadInput for a field outside its range.

    `Augment.of("light")`: random crop and flip. `Augment.of("randaug")`: also RandAugment m9-mstd0.5-inc1 and random
    erasing 0.25, the settings of DeiT (arXiv 2012.12877, table 9).
    """

    # "pad" then crop; random "resized" crop; "none"; "auto" pads inputs of at most 64 pixels
    crop: Annotated[str, Choice(CROPS)] = "auto"
    padding: Fraction = 0.125  # for crop "pad": share of the side, 4 pixels at 32x32
    scale: _Range = (0.35, 1.0)  # for crop "resized": share of the area
    ratio: _Range = (3 / 4, 4 / 3)  # for crop "resized": aspect
    hflip: Fraction = 0.5  # probability
    color_jitter: NonNegative = 0.0  # strength of brightness, contrast and saturation
    auto_augment: _Policy | None = None  # timm's policy text
    erase: Fraction = 0.0  # probability of erasing a rectangle with noise

    def __post_init__(self) -> None:
        check_fields(self, "Augment.")

    @staticmethod
    def of(augment: Augment | str | None) -> Augment | None:
        """The preset of that name, or what was given; None is no augmentation. Raises BadInput for unknown names."""
        if augment is None or isinstance(augment, Augment):
            return augment
        if not isinstance(augment, str) or augment not in PRESETS:
            raise unknown("augment", augment, PRESETS)
        return PRESETS[augment]

    def check_channels(self, channels: int) -> None:
        """Raise BadInput, by name, for what timm draws on grey or RGB images only, where there are more channels."""
        for name in ("auto_augment", "color_jitter") if channels > 3 else ():
            if getattr(self, name):
                raise BadInput(
                    f"Augment.{name}={getattr(self, name)!r} changes colours: for images of 1 or 3 channels, these "
                    f"have {channels}; accepted: augment 'light', or others without auto_augment and color_jitter"
                )

    def timm(self) -> dict[str, Any]:
        """The arguments of `timm.data.create_transform` that stand for this augmentation, crop kind excepted."""
        return {
            "scale": self.scale,
            "ratio": self.ratio,
            "hflip": self.hflip,
            "color_jitter": self.color_jitter or None,
            "auto_augment": self.auto_augment,
        }

    def erasing(self) -> tuple[RandomErasing, ...]:
        """The step that erases a rectangle of a normalised (C, H, W) tensor with Gaussian noise, if there is one."""
        return (RandomErasing(self.erase, mode="pixel", device="cpu"),) if self.erase else ()


@dataclass(frozen=True)
class ShiftFlip:
    """Pad with black, crop at random to the old size, mirror with probability `hflip`; python's generator decides."""

    padding: float  # share of the side
    hflip: float

    def __call__(self, image: Image.Image) -> Image.Image:
        return self.moved(image, *self.drawn(image.size))

    def drawn(self, size: tuple[int, int]) -> tuple[int, int, bool]:
        """(left, top, whether it is mirrored) for an image of `size` (w, h)."""
        across, down = round(size[0] * self.padding), round(size[1] * self.padding)
        left = top = 0
        if across or down:
            left, top = random.randint(-across, across), random.randint(-down, down)
        return left, top, bool(self.hflip and random.random() < self.hflip)

    @staticmethod
    def moved(image: Image.Image, left: int, top: int, flips: bool) -> Image.Image:
        """The window of the image's own size that begins at (left, top), mirrored or not."""
        if left or top:
            width, height = image.size
            image = image.crop((left, top, left + width, top + height))  # PIL fills what lies outside with black
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flips else image


def without_posterize_limit_(policy: transforms.Compose) -> transforms.Compose:
    """Let timm's policies keep 0 bits, in place: a black image.

    At full magnitude timm's increasing posterize keeps 0 bits; Pillow 13 refuses that, older ones give black.
    """
    for step in policy.transforms:
        for op in _ops(step):
            if op.aug_fn is posterize:
                op.aug_fn = _posterize
    return policy


def _ops(step: Any) -> Iterator[AugmentOp]:
    if isinstance(step, AugmentOp):
        yield step
    nested = step if isinstance(step, list | tuple) else [getattr(step, name, ()) for name in ("ops", "policy")]
    for part in nested:
        yield from _ops(part)


def _posterize(image: Image.Image, bits_to_keep: int, **_: Any) -> Image.Image:
    if bits_to_keep < 1:
        return Image.new(image.mode, image.size)
    return posterize(image, bits_to_keep)


PRESETS = {
    "light": Augment(),
    "randaug": Augment(scale=(0.08, 1.0), auto_augment="rand-m9-mstd0.5-inc1", erase=0.25),
}
