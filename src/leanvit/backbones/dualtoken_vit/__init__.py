"""DualToken-ViT: a light backbone that fuses local tokens with position-aware global ones (arXiv 2309.12424, SDM 2024).

In every block a convolution makes local tokens; attention on a shrunk map of them gathers what is global, which updates
7x7 global tokens that travel through all stages, place by place; attention hands these to the local tokens again.

**A reconstruction**: there is no official code and there are no weights. What the paper states is kept: three stages,
ConvNeXt block as local encoder, step-wise shrinking, 7x7 global tokens summed with the gathered map by fixed weights
and then an MLP ("normal", or "mix" with a layer across tokens), broadcast by attention, bi-dimensional attention behind
the feed-forward layer. Stem, merging and that attention are LightViT's official ones (`lightvit.py`). Chosen by
us, so that parameters and MACs come out as published: `conv_ratio` 2, `fuse_alpha` 0.5, `g_mlp`'s sizes and the order
in "mix", no neck (`neck_dim`), the depthwise convolutions of `step_wise`, averages to 7x7 where steps do not lead
there, where residual sums stand, that drop path spares global tokens, and for tiny `dims`, `depths` and `num_heads`. No
checkpoint of the authors' would fit.

Importing this module registers the models with timm; `leanvit` does so whenever one is named.
"""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg

from leanvit.backbones.dualtoken_vit.model import DualTokenViT
from leanvit.models.registration import pretrained_cfg, register

__all__ = ["DualTokenViT"]

default_cfgs = {
    name: pretrained_cfg(
        pool_size=(7, 7), first_conv="patch_embed.stem.0", paper_ids="arXiv:2309.12424", crop_pct=0.875
    )
    for name in ("dualtoken_vit_tiny_mix", "dualtoken_vit_small_mix", "dualtoken_vit_small")
}


def _create(variant: str, pretrained: bool, kwargs: dict[str, Any], **published: Any) -> DualTokenViT:
    model: DualTokenViT = build_model_with_cfg(
        DualTokenViT,
        variant,
        pretrained,
        feature_cfg={"out_indices": (0, 1, 2), "feature_cls": "getter"},
        **{**published, **kwargs},
    )
    return model


@register
def dualtoken_vit_tiny_mix(pretrained: bool = False, **kwargs: Any) -> DualTokenViT:
    """DualToken-ViT-T (mix), reconstructed: 5.86 M parameters, 0.53 GMACs at 224x224 (published: 5.8 M, 0.5 G)."""
    return _create("dualtoken_vit_tiny_mix", pretrained, kwargs, dims=(48, 96, 192), depths=(2, 6, 5))


@register
def dualtoken_vit_small_mix(pretrained: bool = False, **kwargs: Any) -> DualTokenViT:
    """DualToken-ViT-S (mix), reconstructed: 11.7 M parameters, 0.99 GMACs at 224x224 (published: 11.4 M, 1.0 G)."""
    return _create("dualtoken_vit_small_mix", pretrained, kwargs)


@register
def dualtoken_vit_small(pretrained: bool = False, **kwargs: Any) -> DualTokenViT:
    """DualToken-ViT-S, reconstructed: 12.2 M parameters, 1.01 GMACs at 224x224 (published: 11.9 M, 1.1 G)."""
    return _create("dualtoken_vit_small", pretrained, kwargs, g_mlp="normal")
