"""A data set of 4 easy classes and a transformer of two thousand weights: a step takes milliseconds."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer

from leanvit.data import Dataset, Preprocess, keyed

CLASSES = ["left", "right", "top", "bottom"]


def _picture(target: int, key: str) -> Image.Image:
    """8x8 grey noise with one brighter half, which is the class."""
    pixels = keyed.numpy("tests", key).integers(0, 120, size=(8, 8))
    half = [np.s_[:, :4], np.s_[:, 4:], np.s_[:4], np.s_[4:]][target]
    pixels[half] += 60
    return Image.fromarray(pixels.astype(np.uint8))


def make_data(count: int, *, split: str = "train", classes: list[str] | None = None) -> Dataset:
    """`count` images, classes in turn, keys `<split>/<number>`."""
    keys = tuple(f"{split}/{number}" for number in range(count))
    targets = np.arange(count) % len(CLASSES)
    return Dataset(
        name="halves",
        spec="halves",
        split=split,
        classes=classes or CLASSES,
        keys=keys,
        targets=targets.astype(np.int64),
        rows=np.arange(count),
        images=[_picture(int(target), key) for target, key in zip(targets, keys, strict=True)],
        channels=1,
        image_size=(8, 8),
        mirror=False,
    )


def make_model(seed: int = 0, **kwargs: object) -> VisionTransformer:
    """Plain timm ViT, 8x8 grey images, 4 classes; initialised from `seed`."""
    torch.manual_seed(seed)
    shape = {"img_size": 8, "patch_size": 4, "in_chans": 1, "num_classes": 4, "embed_dim": 16, "depth": 2}
    return VisionTransformer(**{**shape, "num_heads": 2, "mlp_ratio": 2.0, **kwargs})


def make_preprocess(mean: float = 0.4) -> Preprocess:
    return Preprocess(
        input_size=(1, 8, 8), mean=(mean,), std=(0.25,), interpolation="bicubic", crop_pct=1.0, crop_mode="center"
    )
