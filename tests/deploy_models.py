"""Small models, their preprocessing and images, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import timm
import torch
from PIL import Image
from torch import Tensor

from leanvit.anatomy import OpenViT, open_model
from leanvit.data import Preprocess
from leanvit.quantize.int8 import Int8

PREPROCESS = Preprocess(
    input_size=(3, 32, 32), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3), interpolation="bicubic", crop_pct=0.9
)
LABELS = tuple(f"class {i}" for i in range(7))


class Noise:
    """What `Int8.learn` asks of data."""

    def images(self, count: int) -> Iterator[Tensor]:
        yield torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def small(**kwargs: object) -> OpenViT:
    """A 2-block vision transformer, 32x32, 7 classes, logits of order 1."""
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2, "num_classes": 7}
    model = timm.create_model("vit_tiny_patch16_224", **{**sizes, **kwargs}).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2) if p.dim() > 1 else p.add_(0.1 * torch.randn_like(p))
    return open_model(model)


def small_int8(method: Int8 | None = None) -> OpenViT:
    model, method = small(), method or Int8(images=16)
    structure = method.learn(model, Noise())  # type: ignore[arg-type]
    method.shape(model, structure)
    method.fold(model, structure, {})
    return model


def photos(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(5)
    return [Image.fromarray(rng.integers(0, 256, (40 + 3 * i, 52, 3), dtype=np.uint8)) for i in range(count)]
