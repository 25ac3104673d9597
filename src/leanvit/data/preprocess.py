"""From a PIL image to a model's input: timm's data configuration, as plain data with a fingerprint."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, Le
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import nn
from torchvision import transforms

from leanvit.data.augment import Augment, ShiftFlip, without_posterize_limit_
from leanvit.data.decode import CHANNELS, with_channels
from leanvit.data.depth import PixelRange
from leanvit.errors import BadInput, nearest, unknown
from leanvit.knobs import Choice, Count, Positive, Rule, Words, check_fields

MAX_CHANNELS = 64  # of a model's input; pictures give 1, 3 or 4
MAX_RESIZED = 2**26  # pixels of an image after resizing, before the crop: what is narrower is refused
SETTINGS = ("mean", "std", "crop_pct", "interpolation")  # that may be given for a timm name
SMALL_SIDE = 64  # up to this many pixels an image is small: cropped with padding, never zoomed into
_INTERPOLATIONS = ("bicubic", "bilinear", "nearest", "box", "hamming", "lanczos")
_CROP_MODES = ("center", "squash", "border")


_InputSize = Annotated[
    tuple[Annotated[int, Ge(1), Le(MAX_CHANNELS)], Count, Count],
    Words(f"(channels, height, width), 1 to {MAX_CHANNELS} channels"),
]

_Range = Annotated[PixelRange, Rule(lambda ends: ends[0] < ends[1]), Words("(low, high) with low < high")]


@dataclass(frozen=True)
class Preprocess:
    """Resize, crop and normalise, in timm's terms. Raises BadInput for a field that is not what is accepted."""

    input_size: _InputSize  # (C, H, W); images of 1, 3 or 4 channels can be read
    mean: tuple[float, ...]  # C values, of pixels in [0, 1]
    std: tuple[Positive, ...]
    interpolation: Annotated[str, Choice(_INTERPOLATIONS)] = "bicubic"
    crop_pct: Positive = 1.0  # the crop's side over the resized side
    crop_mode: Annotated[str, Choice(_CROP_MODES)] = "center"
    pixel_range: _Range | None = None  # values of black and white of images with more than 8 bits

    def __post_init__(self) -> None:
        check_fields(self, "Preprocess.")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != self.input_size[0]:
                raise BadInput(f"Preprocess.{name} is {values}; accepted: {self.input_size[0]} values, one a channel")
        for name in ("mean", "std", "pixel_range"):  # floats, so that equal settings have one fingerprint
            values = getattr(self, name)
            object.__setattr__(self, name, values and tuple(map(float, values)))
        object.__setattr__(self, "crop_pct", float(self.crop_pct))
        height, width = self.input_size[1:]
        if self.crop_pct < 1 and height * width > _most_resized(self) * self.crop_pct**2:
            raise BadInput(
                f"Preprocess.crop_pct is {self.crop_pct}: images would be resized to {height / self.crop_pct:.0f}x"
                f"{width / self.crop_pct:.0f} pixels to crop {height}x{width} of them; accepted: larger ones"
            )

    @staticmethod
    def of(model: nn.Module) -> Preprocess:
        """What the model expects: its own `model.preprocess` (of a loaded run), else timm's data
        configuration, with the size and channels of the instance itself.

        A small input (at most 64 pixels) that is not the configuration's own takes the whole image (`crop_pct` 1): the
        configuration's crop was chosen for photographs at full size. For another number of channels than the
        configuration's, mean and standard deviation are its averages, as timm's loader does.
        """
        stated = getattr(model, "preprocess", None)
        if isinstance(stated, Preprocess):
            return stated
        config = resolve_model_data_config(model)
        configured = tuple(int(n) for n in config["input_size"])
        channels = channels_of(model) or configured[0]
        height, width = input_size_of(model) or configured[1:]
        resized = (height, width) != configured[1:] and max(height, width) <= SMALL_SIDE
        return Preprocess(
            input_size=(channels, height, width),
            mean=_per_channel(config["mean"], channels),
            std=_per_channel(config["std"], channels),
            interpolation=config["interpolation"],
            crop_pct=1.0 if resized else config["crop_pct"],
            crop_mode=config["crop_mode"],
        )

    def with_settings(self, settings: Mapping[str, Any] | None) -> Preprocess:
        """With own `SETTINGS` in the place of the model's configuration; None values are left out.

        Raises BadInput for another name, and for a value that is not accepted (as many means as channels, ...).
        """
        given = {name: value for name, value in (settings or {}).items() if value is not None}
        for name in given:
            if name not in SETTINGS:
                raise unknown("preprocessing", name, SETTINGS)
        return replace(self, **given)

    def eval_transform(self) -> Callable[[Image.Image], torch.Tensor]:
        """PIL image -> (C, H, W) float32, normalised: timm's evaluation transform after conversion to C channels."""
        timms = create_transform(**self._timm(), crop_pct=self.crop_pct)
        return transforms.Compose(list(_flat(*self._first_steps(), timms)))

    def u8_transform(self, augment: Augment | str | None = None) -> Callable[[Image.Image], np.ndarray]:
        """PIL image -> (H, W, C) uint8 after resize and crop: what an artefact takes.

        `normalize` of it equals `eval_transform` bit for bit. With `augment` it is augmented, erasing excepted.

        Raises BadInput for augmentation that needs grey or RGB where there are four channels, and for more than four.
        The transform raises it for an image that cannot be converted, or has too many pixels once it is resized.
        """
        return transforms.Compose(list(self.steps(augment)))

    def steps(self, augment: Augment | str | None = None) -> tuple[Callable[[Any], Any], ...]:
        """What `u8_transform` does, step by step. Raises BadInput as it does."""
        chosen = Augment.of(augment)
        if chosen is None:
            return _flat(*self._first_steps(), self._framed(self.crop_pct), as_pixels)
        chosen.check_channels(self.input_size[0])
        crop, colour, _ = create_transform(**self._timm(), is_training=True, separate=True, **chosen.timm())
        kind = chosen.crop
        if kind == "auto":
            kind = "pad" if max(self.input_size[1:]) <= SMALL_SIDE else "resized"
        if kind != "resized":
            moved = ShiftFlip(chosen.padding if kind == "pad" else 0.0, chosen.hflip)
            crop = transforms.Compose([self._framed(1.0), moved])
        return _flat(*self._first_steps(), crop, without_posterize_limit_(colour), as_pixels)

    def normalize(self, pixels: torch.Tensor | np.ndarray) -> torch.Tensor:
        """(..., H, W, C) uint8 -> (..., C, H, W) float32: (value / 255 - mean) / std, in timm's order of operations."""
        planes = torch.as_tensor(pixels).movedim(-1, -3).contiguous()
        mean, std = (torch.tensor(values, dtype=torch.float32)[:, None, None] for values in (self.mean, self.std))
        return planes.float().div_(255).sub_(mean).div_(std)

    def train_transform(self, augment: Augment | str | None) -> Callable[[Image.Image], torch.Tensor]:
        """PIL image -> (C, H, W) float32, augmented and normalised; draws from the global generators.

        None is `eval_transform`. Run it inside `keyed.global_rng` for draws that depend on the sample alone.
        """
        chosen = Augment.of(augment)
        if chosen is None:
            return self.eval_transform()
        return transforms.Compose(list(_flat(*self.steps(chosen), self.normalize, *chosen.erasing())))

    def fingerprint(self) -> str:
        """16 hex digits that change with any field but `pixel_range`, which comes before: what is done to 8-bit images.

        A teacher's and an artefact's preprocessing are matched by it.
        """
        text = json.dumps(replace(self, pixel_range=None).to_json(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values (a dict); `pixel_range` only where there is one."""
        found = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}
        return found if self.pixel_range is not None else {k: v for k, v in found.items() if k != "pixel_range"}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Preprocess:
        """The inverse of `to_json`; raises BadInput for unknown or missing fields, by name, and for wrong values."""
        if not isinstance(data, Mapping):
            raise BadInput(f"preprocess is a {type(data).__name__}; accepted: a JSON object")
        known = [field.name for field in fields(Preprocess)]
        for name in data:
            if name not in known:
                raise BadInput(f"preprocess: unknown field {name!r}: {nearest(str(name), known)}")
        missing = [name for name in known if name not in data and name != "pixel_range"]
        if missing:
            raise BadInput(f"preprocess: missing field(s) {', '.join(missing)}")
        return Preprocess(**data)

    def _timm(self) -> dict[str, Any]:
        return {
            "input_size": self.input_size,
            "mean": self.mean,
            "std": self.std,
            "interpolation": self.interpolation,
            "crop_mode": self.crop_mode,
        }

    def _first_steps(self) -> tuple[Callable[[Image.Image], Image.Image], ...]:
        """To 8 bits and C channels, and the check of the size that comes next."""
        channels = self.input_size[0]
        if channels not in CHANNELS:
            raise BadInput(
                f"the model takes {channels} channels; accepted: {', '.join(map(str, CHANNELS))}, as images have"
            )
        return partial(with_channels, channels=channels, pixel_range=self.pixel_range), Bounded(self)

    def _framed(self, crop_pct: float) -> transforms.Compose:
        """timm's resize and crop of evaluation, as PIL steps."""
        evaluated = create_transform(**self._timm(), crop_pct=crop_pct, normalize=False)
        framed = transforms.Compose(evaluated.transforms[:-1])  # without the conversion to a tensor
        height, width = self.input_size[1:]
        return transforms.Compose([UnlessSize((width, height), framed)]) if crop_pct == 1.0 else framed


@dataclass(frozen=True)
class Bounded:
    """Passes images on whose size after resizing is bounded. Raises BadInput for others: strips, a pixel wide.

    The bound is that of evaluation, whatever the augmentation, so that training and evaluation take the same images.
    """

    preprocess: Preprocess

    def __call__(self, image: Image.Image) -> Image.Image:
        own, mode = self.preprocess, self.preprocess.crop_mode
        wanted = [math.floor(side / own.crop_pct) for side in own.input_size[1:]]
        ratios = [side / want for side, want in zip((image.height, image.width), wanted, strict=True)]
        ratio = min(ratios) if mode == "center" else max(ratios)
        if mode == "center" and image.width * image.height > _most_resized(own) * ratio**2:
            width, height = image.width / ratio, image.height / ratio
            raise BadInput(
                f"it has {image.width}x{image.height} pixels and would be resized to {width:.0f}x{height:.0f}, more "
                f"than {_most_resized(own)} pixels, of which {own.input_size[2]}x{own.input_size[1]} are taken"
            )
        if mode == "border" and min(image.size) < ratio / 2:
            raise BadInput(f"it has {image.width}x{image.height} pixels, too narrow to be shown whole")
        return image


@dataclass(frozen=True)
class UnlessSize:
    """Skips steps that would be the identity: images that have the input's size already, at `crop_pct` 1."""

    size: tuple[int, int]  # (W, H)
    steps: transforms.Compose

    def __call__(self, image: Image.Image) -> Image.Image:
        return image if image.size == self.size else self.steps(image)


def own_settings(
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    crop_pct: float | None = None,
    interpolation: str | None = None,
) -> dict[str, Any]:
    """What of `SETTINGS` is given, checked as far as that goes without a model: `with_settings` does the rest.

    Raises BadInput for a value that no model takes, and for means and deviations of different numbers of channels.
    """
    values: dict[str, Any] = {"mean": mean, "std": std, "crop_pct": crop_pct, "interpolation": interpolation}
    given = {name: value for name, value in values.items() if value is not None}
    several = next((given[name] for name in ("mean", "std") if name in given), (0.5,))
    channels = len(several) if isinstance(several, list | tuple) else 1
    checked: dict[str, Any] = {"mean": (0.5,) * channels, "std": (0.5,) * channels, **given}
    Preprocess((channels, SMALL_SIDE, SMALL_SIDE), **checked)
    return given


def input_size_of(model: nn.Module) -> tuple[int, int] | None:
    """(H, W) that this instance was built for; None if neither its patch embedding nor it says (convolutional nets)."""
    model = entered(model)
    size = getattr(_stem(model), "img_size", None) or getattr(model, "img_size", None)
    if size is None:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


def channels_of(model: nn.Module) -> int | None:
    """Input channels of the first convolution, the patch embedding's if there is one; None where neither says."""
    model = entered(model)
    stem = _stem(model)
    if hasattr(stem, "in_chans"):
        return int(stem.in_chans)
    for root in (stem, model):
        convolutions = root.modules() if isinstance(root, nn.Module) else ()
        for module in convolutions:
            if isinstance(module, nn.Conv2d):
                return module.in_channels
    return None


def entered(model: nn.Module) -> nn.Module:
    """The part that images enter of a model of parts (`anatomy.composite`); any other model itself."""
    part = getattr(model, "main_part", None)
    return part if isinstance(part, nn.Module) else model


def _stem(model: nn.Module) -> Any:
    """The module that makes the tokens; None in convolutional nets."""
    return getattr(model, "patch_embed", None) or getattr(model, "tokens_to_token", None)


def _flat(*steps: Callable[[Any], Any]) -> tuple[Callable[[Any], Any], ...]:
    """Without compositions among them."""
    nested = (_flat(*step.transforms) if isinstance(step, transforms.Compose) else (step,) for step in steps)
    return tuple(step for part in nested for step in part)


def _most_resized(preprocess: Preprocess) -> int:
    """The most pixels of a resized image: `MAX_RESIZED`, more for inputs that are that large themselves."""
    return max(MAX_RESIZED, 4 * preprocess.input_size[1] * preprocess.input_size[2])


def as_pixels(image: Image.Image) -> np.ndarray:
    """(H, W, C) uint8 of a picture."""
    pixels = np.array(image)  # a copy: torch warns about read-only memory
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _per_channel(values: Any, channels: int) -> tuple[float, ...]:
    values = tuple(float(v) for v in values)
    return values if len(values) == channels else (sum(values) / len(values),) * channels
