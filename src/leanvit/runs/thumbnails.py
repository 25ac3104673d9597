"""Small pictures inside JSON and HTML: base64 of PNG for few pixels or drawings, of JPEG for photos."""

from __future__ import annotations

import base64
import colorsys
import io
from typing import Any

import numpy as np

PALETTE = 255  # colours of classes; the last entry of a PNG's 256 is that of what counts for nothing
NOT_COUNTED = "#808080"
GOLDEN_RATIO = 0.618034  # of the hue circle between neighbours, so that they never look alike
EXACT_SIDE = 64  # pixels; up to here PNG is small, and JPEG's blocks would show
QUALITY = 82
_STARTS = {"/9j/": "image/jpeg", "iVBORw0K": "image/png"}  # base64 of the formats' first bytes


def encoded(image: Any, *, side: int) -> str:
    """A PIL image, its longer side at most `side` pixels, as base64 text."""
    from PIL import Image

    small = image.convert("L") if image.mode == "L" else image.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if max(small.size) <= EXACT_SIDE:
        small.save(buffer, format="PNG", optimize=True)
    else:
        small.save(buffer, format="JPEG", quality=QUALITY, optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def encoded_pixels(pixels: Any, *, side: int) -> str:
    """(H, W, C) uint8 as `encoded` gives it."""
    from PIL import Image

    values = np.asarray(pixels)
    image = Image.fromarray(values[..., 0] if values.ndim == 3 and values.shape[-1] == 1 else values)
    return encoded(image, side=side)


def colour(number: int) -> str:
    """The colour of a class in a map, `#rrggbb`: bright, apart in hue and lightness from its neighbours'."""
    hue, lightness = number * GOLDEN_RATIO % 1, (0.5, 0.68, 0.36)[number % 3]
    return "#" + "".join(f"{round(255 * part):02x}" for part in colorsys.hls_to_rgb(hue, lightness, 0.75))


def encoded_map(classes: np.ndarray, *, known: int, side: int) -> str:
    """A map (h, w) of classes as a PNG of `colour`s, its longer side at most `side` pixels, as base64 text.

    known: how many classes there are; other values, which count for nothing, are grey.
    """
    from PIL import Image

    values = np.asarray(classes).astype(np.int64)
    counted = (values >= 0) & (values < known)
    image = Image.fromarray(np.where(counted, values % PALETTE, PALETTE).astype(np.uint8), mode="P")
    every = "".join(colour(number)[1:] for number in range(PALETTE)) + NOT_COUNTED[1:]
    image.putpalette(bytes.fromhex(every))
    scale = side / max(image.size)
    if scale < 1:
        image = image.resize([max(1, round(scale * n)) for n in image.size], Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def data_uri(text: str) -> str:
    """What an `src` takes, from `encoded`'s text; of anything else a PNG that does not show."""
    kind = next((kind for start, kind in _STARTS.items() if text.startswith(start)), "image/png")
    return f"data:{kind};base64,{text}"
