"""Small pictures inside JSON and HTML: base64 of PNG for few pixels or drawings, of JPEG for photos."""

from __future__ import annotations

import base64
import io
from typing import Any

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


def data_uri(text: str) -> str:
    """What an `src` takes, from `encoded`'s text; of anything else a PNG that does not show."""
    kind = next((kind for start, kind in _STARTS.items() if text.startswith(start)), "image/png")
    return f"data:{kind};base64,{text}"
