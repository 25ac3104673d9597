"""Small pictures and image folders made on the spot."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image


def picture(seed: int, size: tuple[int, int] = (24, 20), mode: str = "RGB") -> Image.Image:
    """A smooth random picture of `size` (w, h)."""
    noise = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).convert(mode)


def png(image: Image.Image) -> bytes:
    stream = BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def write_folder(root: Path, counts: dict[str, int], *, seed: int = 0, mode: str = "RGB") -> Path:
    """`root/<class>/<number>.png`, `counts` images a class."""
    for label, count in counts.items():
        (root / label).mkdir(parents=True)
        for number in range(count):
            picture(seed + number + 100 * len(label), mode=mode).save(root / label / f"{number:03d}.png")
    return root
