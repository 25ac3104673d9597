"""Pictures of more than 8 bits: which range of their values is black to white, and the 8-bit image that this gives.

A file does not say it: a 16-bit PNG may hold 8, 12 or 16 bits. So the range is decided once for a data set
(`data/declared.py`) or stated (`?range=LOW-HIGH`), and a value outside of it is an error, never clipped.
"""

from __future__ import annotations

import re

import numpy as np
from PIL import Image

from leanvit.errors import BadInput

PixelRange = tuple[float, float]  # (value that becomes 0, value that becomes 255)
UPPER_BYTE = "leanvit upper byte"  # in `image.info`: a 16-bit colour picture, of which Pillow gives the upper byte only
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_CHUNK = 2**22  # values converted at once: a picture takes little more memory than it has


def parse_range(text: str, *, where: str) -> PixelRange:
    """`0-4095`, `-1024-3071`, `0-1.5` -> (low, high). Raises BadInput unless two finite numbers, the first smaller."""
    found = re.fullmatch(f"({_NUMBER})-({_NUMBER})", text.strip())
    if found:
        low, high = float(found[1]), float(found[2])
        if low < high and np.isfinite([low, high]).all():
            return low, high
    raise BadInput(f"{where}: range={text!r}; accepted: LOW-HIGH, the values of black and white, as in range=0-4095")


def range_text(given: PixelRange) -> str:
    """The inverse of `parse_range`: `0-4095`."""
    return "-".join(number_text(value) for value in given)


def number_text(value: float) -> str:
    """4095 for 4095.0, else as short as it is exact; nan and inf for these."""
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def is_deep(image: Image.Image) -> bool:
    """Whether the values of the image have more than 8 bits, or had them in the file."""
    return image.mode == "F" or image.mode.startswith("I") or UPPER_BYTE in image.info


def extent(image: Image.Image) -> PixelRange:
    """(smallest, largest) value of a deep image; of 16-bit colour as far as the upper byte shows."""
    values = np.asarray(image)
    scale = 257 if UPPER_BYTE in image.info else 1
    return float(values.min()) * scale, float(values.max()) * scale


def eight_bits(image: Image.Image, pixel_range: PixelRange | None) -> Image.Image:
    """A deep image as 8 bits: low to high becomes 0 to 255, linearly and rounded.

    Raises BadInput where the range is not known, a value lies outside of it (or is no number), or 16-bit colour, of
    which there is the upper byte only, has another range than 0-65535.
    """
    low, high = extent(image)
    if pixel_range is None:
        kind = "a float" if image.mode == "F" else "an integer"
        raise BadInput(
            f"{kind} image (mode {image.mode!r}, more than 8 bits) with values {number_text(low)} to "
            f"{number_text(high)} has no known range; accepted: range=LOW-HIGH of the data (as in ?range=0-4095), "
            "or pixel_range of Preprocess"
        )
    if UPPER_BYTE in image.info:
        if pixel_range != (0, 65535):
            raise BadInput(
                "a 16-bit colour image is read by its upper byte, which is right for range=0-65535 only, not for "
                f"range={range_text(pixel_range)}: convert such images to 8 bits"
            )
        image = image.copy()
        del image.info[UPPER_BYTE]
        return image
    if not pixel_range[0] <= low <= high <= pixel_range[1]:  # also where one is not a number
        raise BadInput(
            f"its values, {number_text(low)} to {number_text(high)}, are outside of range="
            f"{range_text(pixel_range)}: give the data another range (?range=LOW-HIGH)"
        )
    values = np.ascontiguousarray(np.asarray(image))
    pixels = np.empty(values.shape, dtype=np.uint8)
    flat, target = values.reshape(-1), pixels.reshape(-1)
    for start in range(0, len(flat), _CHUNK):
        scaled = (flat[start : start + _CHUNK].astype(np.float64) - pixel_range[0]) * 255
        target[start : start + _CHUNK] = np.rint(scaled / (pixel_range[1] - pixel_range[0]))
    return Image.fromarray(pixels)


def smallest_range(low: float, high: float, *, floats: bool) -> PixelRange | None:
    """The range that values from `low` to `high` are taken to have; None where that would be a guess.

    Integers: 8, 10, 12, 14 or 16 bits, the fewest that hold the largest. Floats: 0 to 1, or else 0 to 255.
    """
    ends = (1.0, 255.0) if floats else tuple(float(2**bits - 1) for bits in (8, 10, 12, 14, 16))
    if not 0 <= low <= high:
        return None
    return next(((0.0, end) for end in ends if high <= end), None)
