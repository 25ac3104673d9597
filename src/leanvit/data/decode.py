"""Encoded bytes or files in, 8-bit PIL images out; whatever cannot be decoded is an error that names its key."""

from __future__ import annotations

import struct
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from leanvit.errors import BadInput

_DECODE_ERRORS = (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError)
_GREY_MODES = {"1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N"}


def decode(encoded: bytes | Path, *, key: str) -> Image.Image:
    """Decode one image completely, in its own mode.

    Raises BadInput, naming `key`, when it is missing, truncated, not an image, or absurdly large.
    """
    try:
        with Image.open(encoded if isinstance(encoded, Path) else BytesIO(encoded)) as image:
            image.load()
            return image
    except _DECODE_ERRORS as error:
        raise BadInput(f"image {key!r} cannot be decoded: {error}") from error


def is_grey(image: Image.Image) -> bool:
    """Whether the image's mode holds one channel of intensity."""
    return image.mode in _GREY_MODES


def with_channels(image: Image.Image, channels: int) -> Image.Image:
    """The image as 8-bit grey ("L", `channels` = 1) or "RGB" (3). Alpha is dropped; 16-bit grey keeps its upper byte.

    Raises BadInput for float images, whose range is unknown.
    """
    mode = "L" if channels == 1 else "RGB"
    if image.mode == mode:
        return image
    if image.mode == "F":
        raise BadInput("a float image (mode 'F') has no known range; convert it to 8 or 16 bits first")
    if image.mode.startswith("I"):  # 16-bit PNG and TIFF; PIL's own conversion clips at 255
        values = np.asarray(image).clip(0, 65535).astype(np.uint16)
        image = Image.fromarray((values >> 8).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert(mode)
