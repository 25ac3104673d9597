"""LITv2: attention in two groups of heads, near in windows and far on a pooled grid (arXiv 2205.13213, NeurIPS 2022).

`HiLoAttention` (`leanvit.models.hilo`) is its layer, `LITv2` its backbone: two stages of MLPs with a depthwise
convolution, two with HiLo, and between stages a 2x2 convolution that looks at displaced points. Inside, maps are
(B, H, W, C): linears read them as they lie, and a convolution sees the same memory as channels-last.

Deformable merging needs no compiled extension: kernel and stride are both 2, so every place of the map is read by one
kernel position, once. The map is first drawn anew at the displaced points, then convolved as usual.

Importing this module registers the models with timm; `leanvit` does so whenever one is named. There are no weights
here; those of the paper's repository load (`checkpoint_filter_fn`).
"""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg

from leanvit.backbones.litv2.model import LITv2
from leanvit.backbones.litv2.official import checkpoint_filter_fn
from leanvit.models.registration import pretrained_cfg, register

__all__ = ["LITv2", "checkpoint_filter_fn"]

_PAPER = {
    "license": "apache-2.0",
    "origin_url": "https://github.com/ziplab/LITv2",
    "paper_name": "Fast Vision Transformers with HiLo Attention",
    "paper_ids": "arXiv:2205.13213",
}
default_cfgs = {
    **{f"litv2_{size}": pretrained_cfg(pool_size=(7, 7), **_PAPER) for size in ("small", "medium", "base")},
    "litv2_base_384": pretrained_cfg(input_size=(3, 384, 384), pool_size=(12, 12), crop_pct=1.0, **_PAPER),
}


def _create(variant: str, pretrained: bool, **kwargs: Any) -> LITv2:
    model: LITv2 = build_model_with_cfg(
        LITv2,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
        **kwargs,
    )
    return model


@register
def litv2_small(pretrained: bool = False, **kwargs: Any) -> LITv2:
    """LITv2-S: 27.84 M parameters, 3.73 GMACs at 224x224."""
    sizes = {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)}
    return _create("litv2_small", pretrained, **{**sizes, **kwargs})


@register
def litv2_medium(pretrained: bool = False, **kwargs: Any) -> LITv2:
    """LITv2-M: 48.83 M parameters, 7.48 GMACs at 224x224."""
    sizes = {"embed_dim": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24)}
    return _create("litv2_medium", pretrained, **{**sizes, **kwargs})


@register
def litv2_base(pretrained: bool = False, **kwargs: Any) -> LITv2:
    """LITv2-B: 86.52 M parameters, 13.19 GMACs at 224x224."""
    sizes = {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)}
    return _create("litv2_base", pretrained, **{**sizes, **kwargs})


@register
def litv2_base_384(pretrained: bool = False, **kwargs: Any) -> LITv2:
    """LITv2-B at 384x384: 86.52 M parameters, 39.7 GMACs."""
    sizes = {"img_size": 384, "embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)}
    return _create("litv2_base_384", pretrained, **{**sizes, **kwargs})
