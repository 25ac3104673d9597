"""LV-ViT: a vision transformer made to train well by labels for its tokens (arXiv 2104.10858, NeurIPS 2021).

A plain vision transformer behind a stem of four 3x3 convolutions of stride 2 (six in the large one), whose branches
are divided by 2 (by 3) and whose q, k, v have no biases. With `stage_blocks`, token slimming modules lie between the
blocks: so SiT's models are built (`leanvit.tokens.sit`), whose teachers these are. Importing this module registers the
models with timm; `leanvit` does so whenever one is named. There are no pretrained weights to download: checkpoints of
SiT's authors, students and teachers, load by their own names.

    timm.create_model("lvvit_small", pretrained=True, pretrained_cfg_overlay={"file": "lvvit_small.pth"})

What a checkpoint holds besides is left out: the head of token labelling, which SiT never uses (published parameter
counts hold its 1000 · (C + 1)), distillation tokens, and the reverse modules of the training. Checkpoints of LV-ViT's
own authors have another stem and are refused. Under autocast, attention runs in the precision of the rest; the
original keeps q, k, v in float32.
"""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg

from leanvit.backbones.lv_vit.model import LVViT
from leanvit.backbones.lv_vit.official import checkpoint_filter_fn
from leanvit.models.registration import pretrained_cfg, register

__all__ = ["LVViT", "checkpoint_filter_fn"]


def _cfg(size: int = 224) -> dict[str, Any]:
    return pretrained_cfg(
        input_size=(3, size, size),
        crop_pct=0.875,
        fixed_input_size=True,
        first_conv="patch_embed.conv1",
        origin_url="https://github.com/Sense-X/SiT",
        license="apache-2.0",
        paper_ids="arXiv:2111.12624",
        paper_name="Self-slimmed Vision Transformer",
    )


default_cfgs = {
    **{f"lvvit_{size}": _cfg() for size in ("tiny", "small", "medium")},
    "lvvit_large": _cfg(288),
}


def _create(base: str, pretrained: bool, kwargs: dict[str, Any], **given: Any) -> LVViT:
    """`variant` in kwargs: the name that the model is known by, of a paper that builds on this one; else `base`."""
    every = {**given, **kwargs}
    levels = 3 if every.get("stage_blocks") is None else 1
    model: LVViT = build_model_with_cfg(
        LVViT,
        every.pop("variant", base),
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": levels, "feature_cls": "getter"},
        **every,
    )
    return model


@register
def lvvit_tiny(pretrained: bool = False, **kwargs: Any) -> LVViT:
    """LV-ViT-T: 320 channels, 15.37 M parameters, 3.46 GMACs at 224x224."""
    return _create("lvvit_tiny", pretrained, kwargs, embed_dim=320, depth=14, num_heads=5)


@register
def lvvit_small(pretrained: bool = False, **kwargs: Any) -> LVViT:
    """LV-ViT-S: 384 channels, 24.98 M parameters, 5.53 GMACs at 224x224."""
    return _create("lvvit_small", pretrained, kwargs, embed_dim=384, depth=16, num_heads=6)


@register
def lvvit_medium(pretrained: bool = False, **kwargs: Any) -> LVViT:
    """LV-ViT-M: 512 channels, 54.69 M parameters, 11.84 GMACs at 224x224."""
    return _create("lvvit_medium", pretrained, kwargs, embed_dim=512, depth=20, num_heads=8)


@register
def lvvit_large(pretrained: bool = False, **kwargs: Any) -> LVViT:
    """LV-ViT-L: 768 channels, 146.40 M parameters, 55.97 GMACs at 288x288."""
    sizes = {"embed_dim": 768, "depth": 24, "num_heads": 12, "img_size": 288, "stem": "6c", "skip_lam": 3.0}
    return _create("lvvit_large", pretrained, kwargs, **sizes)
