"""From a PIL image to a model's input: what timm's data configuration says, as plain data with a fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import nn
from torchvision import transforms

from leanvit.data.augment import Augment, ShiftFlip, without_posterize_limit_
from leanvit.data.decode import with_channels
from leanvit.errors import BadInput, is_number, nearest, unknown

SMALL_SIDE = 64  # up to this many pixels an image is small: cropped with padding, never zoomed into
_INTERPOLATIONS = ("bicubic", "bilinear", "nearest", "box", "hamming", "lanczos")
_CROP_MODES = ("center", "squash", "border")


@dataclass(frozen=True)
class Preprocess:
    """Resize, crop and normalise, in timm's terms. Raises BadInput for a field that is not what is accepted."""

    input_size: tuple[int, int, int]  # (C, H, W); C is 1 or 3
    mean: tuple[float, ...]  # C values, of pixels in [0, 1]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop_pct: float = 1.0  # the crop's side over the resized side
    crop_mode: str = "center"

    def __post_init__(self) -> None:
        for name, convert in (("input_size", int), ("mean", float), ("std", float)):
            object.__setattr__(self, name, _numbers(name, getattr(self, name), convert))
        if len(self.input_size) != 3 or self.input_size[0] not in (1, 3) or min(self.input_size) < 1:
            raise BadInput(
                f"Preprocess.input_size={self.input_size}: accepted: (channels, height, width), 1 or 3 channels"
            )
        for name in ("mean", "std"):
            if len(getattr(self, name)) != self.input_size[0]:
                raise BadInput(
                    f"Preprocess.{name}={getattr(self, name)}: accepted: {self.input_size[0]} values, one a channel"
                )
        if min(self.std) <= 0:
            raise BadInput(f"Preprocess.std={self.std}: accepted: values > 0")
        if not is_number(self.crop_pct, above=0):
            raise BadInput(f"Preprocess.crop_pct={self.crop_pct!r}: accepted: a number > 0")
        object.__setattr__(self, "crop_pct", float(self.crop_pct))
        if self.interpolation not in _INTERPOLATIONS:
            raise unknown("Preprocess.interpolation", str(self.interpolation), _INTERPOLATIONS)
        if self.crop_mode not in _CROP_MODES:
            raise unknown("Preprocess.crop_mode", str(self.crop_mode), _CROP_MODES)

    @staticmethod
    def of(model: nn.Module) -> Preprocess:
        """What the model expects: what it says itself (`model.preprocess`, of a loaded run), else timm's data
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

    def eval_transform(self) -> Callable[[Image.Image], torch.Tensor]:
        """PIL image -> (C, H, W) float32, normalised: timm's evaluation transform after conversion to C channels."""
        to_channels = partial(with_channels, channels=self.input_size[0])
        return _composed(to_channels, create_transform(**self._timm(), crop_pct=self.crop_pct))

    def u8_transform(self, augment: Augment | str | None = None) -> Callable[[Image.Image], np.ndarray]:
        """PIL image -> (H, W, C) uint8 after resize and crop: what an artefact takes.

        `normalize` of it equals `eval_transform` bit for bit. With `augment` it is augmented, erasing excepted.
        """
        chosen = Augment.of(augment)
        to_channels = partial(with_channels, channels=self.input_size[0])
        if chosen is None:
            return _composed(to_channels, self._framed(self.crop_pct), _pixels)
        crop, colour, _ = create_transform(**self._timm(), is_training=True, separate=True, **chosen.timm())
        kind = chosen.crop
        if kind == "auto":
            kind = "pad" if max(self.input_size[1:]) <= SMALL_SIDE else "resized"
        if kind != "resized":
            moved = ShiftFlip(chosen.padding if kind == "pad" else 0.0, chosen.hflip)
            crop = _composed(self._framed(1.0), moved)
        return _composed(to_channels, crop, without_posterize_limit_(colour), _pixels)

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
        return _composed(self.u8_transform(chosen), self.normalize, *chosen.erasing())

    def fingerprint(self) -> str:
        """16 hex digits that change with any field: what a teacher's and an artefact's preprocessing are matched by."""
        text = json.dumps(self.to_json(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values (a dict)."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Preprocess:
        """The inverse of `to_json`; raises BadInput for unknown or missing fields, by name, and for wrong values."""
        if not isinstance(data, Mapping):
            raise BadInput(f"preprocess is a {type(data).__name__}; accepted: a JSON object")
        known = [field.name for field in fields(Preprocess)]
        for name in data:
            if name not in known:
                raise BadInput(f"preprocess: unknown field {name!r}: {nearest(str(name), known)}")
        missing = [name for name in known if name not in data]
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

    def _framed(self, crop_pct: float) -> transforms.Compose:
        """timm's resize and crop of evaluation, as PIL steps."""
        evaluated = create_transform(**self._timm(), crop_pct=crop_pct, normalize=False)
        framed = transforms.Compose(evaluated.transforms[:-1])  # without the conversion to a tensor
        height, width = self.input_size[1:]
        return transforms.Compose([_UnlessSize((width, height), framed)]) if crop_pct == 1.0 else framed


@dataclass(frozen=True)
class _UnlessSize:
    """Skips steps that would be the identity: images that have the input's size already, at `crop_pct` 1."""

    size: tuple[int, int]  # (W, H)
    steps: transforms.Compose

    def __call__(self, image: Image.Image) -> Image.Image:
        return image if image.size == self.size else self.steps(image)


def input_size_of(model: nn.Module) -> tuple[int, int] | None:
    """(H, W) that this instance was built for; None if neither its patch embedding nor it says (convolutional nets)."""
    size = getattr(_stem(model), "img_size", None) or getattr(model, "img_size", None)
    if size is None:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


def channels_of(model: nn.Module) -> int | None:
    """Input channels of the first convolution, the patch embedding's if there is one; None where neither says."""
    stem = _stem(model)
    if hasattr(stem, "in_chans"):
        return int(stem.in_chans)
    for root in (stem, model):
        convolutions = root.modules() if isinstance(root, nn.Module) else ()
        for module in convolutions:
            if isinstance(module, nn.Conv2d):
                return module.in_channels
    return None


def _stem(model: nn.Module) -> Any:
    """The module that makes the tokens; None in convolutional nets."""
    return getattr(model, "patch_embed", None) or getattr(model, "tokens_to_token", None)


def _composed(*steps: Callable[[Any], Any]) -> transforms.Compose:
    flat: list[Any] = []
    for step in steps:
        flat += step.transforms if isinstance(step, transforms.Compose) else [step]
    return transforms.Compose(flat)


def _pixels(image: Image.Image) -> np.ndarray:
    pixels = np.array(image)  # a copy: torch warns about read-only memory
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _per_channel(values: Any, channels: int) -> tuple[float, ...]:
    values = tuple(float(v) for v in values)
    return values if len(values) == channels else (sum(values) / len(values),) * channels


def _numbers(name: str, values: Any, convert: Callable[[Any], Any]) -> tuple[Any, ...]:
    plain = isinstance(values, list | tuple) and all(
        isinstance(v, int | float) and not isinstance(v, bool) and convert(v) == v for v in values
    )
    if not plain:
        raise BadInput(f"Preprocess.{name}={values!r}: accepted: a list of {convert.__name__} values")
    return tuple(convert(v) for v in values)
