"""Encoded bytes or files in, 8-bit PIL images out; whatever cannot be decoded is an error that names its key."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from leanvit.errors import BadInput

EXTENSIONS = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}  # of image files
MAX_PIXELS = 178_956_970  # Pillow's own limit against decompression bombs: half a gigabyte as RGB
WORKING_PIXELS = 2**24  # 4096 x 4096: larger images are halved until they are no larger ...
_SHORT_SIDE = 1024  # ... or until halving would leave less than this many pixels on the short side
_ORIENTATION = 0x0112  # EXIF tag
_GREY_MODES = {"1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N"}


class UnreadableImage(BadInput):
    """An image that cannot be decoded or turned into 8 bits; `key` is its key. `on_bad="skip"` passes over these."""

    key: str

    @staticmethod
    def of(key: str, reason: str) -> UnreadableImage:
        """The error whose text starts with `image '<key>'`."""
        error = UnreadableImage(f"image {key!r} {reason}")
        error.key = key  # not an argument of the constructor: the error is pickled on its way out of a worker
        return error


class BadImage(NamedTuple):
    """An image that was left out, and why."""

    key: str
    reason: str


@dataclass(frozen=True)
class Header:
    """What the first bytes of an encoded image say."""

    format: str  # Pillow's name: "JPEG", "PNG", ...
    mode: str  # Pillow's mode: "RGB", "L", "CMYK", "P", "I;16", ...
    size: tuple[int, int]  # (width, height) as stored
    frames: int
    rotated: bool  # an EXIF orientation other than upright


def decode(encoded: bytes | Path, *, key: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode the first frame of one image completely, upright, in its own mode.

    EXIF orientation is applied. Images of more than `WORKING_PIXELS` come at a half, quarter or eighth of their size
    (JPEG already in its decoder), whatever the model's input, so that a result does not depend on who asks.

    Raises UnreadableImage, naming `key`, when it is missing, truncated, not an image, or has more than `max_pixels`.
    """
    try:
        with _opened(encoded, max_pixels) as image:
            kind, factor = image.format, _factor(image.size)
            if factor > 1 and kind == "JPEG":
                width, height = image.size
                image.draft(None, (width // factor, height // factor))
            image.load()
        image = image if _factor(image.size) == 1 else image.reduce(_factor(image.size))
        if kind == "JPEG" and not {"exif", "xmp"} & image.info.keys():
            return image  # most images, quicker
        return ImageOps.exif_transpose(image) if image.getexif().get(_ORIENTATION, 1) != 1 else image
    except Exception as error:  # decoders raise every kind; whichever it is, the bytes are no readable image
        raise UnreadableImage.of(key, f"cannot be decoded: {error or type(error).__name__}") from error


def header(encoded: bytes | Path, *, key: str, max_pixels: int = MAX_PIXELS) -> Header:
    """Format, mode, size, frames and orientation, without decoding the pixels. Raises UnreadableImage."""
    try:
        with _opened(encoded, max_pixels) as image:
            rotated = image.getexif().get(_ORIENTATION, 1) != 1
            return Header(image.format or "?", image.mode, image.size, getattr(image, "n_frames", 1), rotated)
    except Exception as error:
        raise UnreadableImage.of(key, f"cannot be decoded: {error or type(error).__name__}") from error


def is_grey(image: Image.Image) -> bool:
    """Whether the image's mode holds one channel of intensity."""
    return image.mode in _GREY_MODES


def with_channels(image: Image.Image, channels: int) -> Image.Image:
    """The image as 8-bit grey ("L", `channels` = 1) or "RGB" (3). Alpha is dropped; 16-bit grey keeps its upper byte.

    Raises BadInput for float images and for integers beyond 16 bits, whose range is unknown.
    """
    mode = "L" if channels == 1 else "RGB"
    if image.mode == mode:
        return image
    if image.mode == "F":
        raise BadInput("a float image (mode 'F') has no known range; convert it to 8 or 16 bits first")
    if image.mode.startswith("I"):  # 16-bit PNG and TIFF; PIL's own conversion clips at 255
        image = Image.fromarray(_upper_byte(np.asarray(image)))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert(mode)


def _opened(encoded: bytes | Path, max_pixels: int) -> Image.Image:
    """The image with its header read. Raises ValueError beyond `max_pixels`."""
    source = encoded if isinstance(encoded, Path) else BytesIO(encoded)
    limit = Image.MAX_IMAGE_PIXELS
    if max_pixels > MAX_PIXELS:
        Image.MAX_IMAGE_PIXELS = None  # the user asked for more than Pillow allows
    try:
        image = Image.open(source)
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    width, height = image.size
    if width * height > max_pixels:
        image.close()
        raise ValueError(f"{width}x{height} pixels are more than max_pixels={max_pixels}")
    return image


def _factor(size: tuple[int, int]) -> int:
    """1, 2, 4 or 8: by how much an image of that size is reduced."""
    width, height = size
    factor = 1
    while factor < 8 and width * height > WORKING_PIXELS * factor**2 and min(size) >= 2 * factor * _SHORT_SIDE:
        factor *= 2
    return factor


def _upper_byte(values: np.ndarray) -> np.ndarray:
    if values.size and not 0 <= values.min() <= values.max() <= 65535:
        raise BadInput(f"an integer image with values {values.min()} to {values.max()} has no known range")
    return (values.astype(np.uint16) >> 8).astype(np.uint8)
