"""ReViT: a vision transformer with the widths that NViT's pruning leads to (arXiv 2110.04869, section 4.3).

Few heads and narrow q and k, a wide MLP in the middle, many heads at both ends: one rule from the embedding width. The
family is DeiT's distilled one: a class and a distillation token, two heads. Importing this module registers the models
with timm; `leanvit` does so whenever one is named. There are no pretrained weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from timm.models import build_model_with_cfg
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import init_weights_vit_timm
from torch import nn

from leanvit.anatomy.parts.wide import WideAttention
from leanvit.errors import BadInput, is_whole
from leanvit.models.registration import pretrained_cfg, register

DEPTH = 12
HEAD_WIDTH = 64  # of v, and of the model that was pruned: the attention scale stays 64 ** -0.5
default_cfgs = {
    name: pretrained_cfg(fixed_input_size=True, classifier=("head", "head_dist"))
    for name in ("revit_tiny", "revit_small")
}


@dataclass(frozen=True)
class BlockWidths:
    """Widths of one block."""

    heads: int
    qk: int
    v: int
    mlp: int


def widths(embed: int) -> tuple[BlockWidths, ...]:
    """The rule, for an embedding of `embed` channels. Raises `BadInput` where it gives no heads or no q/k dims."""
    if not is_whole(embed, least=100):
        raise BadInput(f"embed_dim is {embed!r}; accepted: a whole number, 100 or more (the rule gives no heads below)")
    r, s = round(0.005 * embed), round(0.05 * embed / 8)
    heads = [10, *[2 * r] * 2, *[4 * r] * 6, *[2 * r] * 2, 10]
    ends = [16 * s, 8 * s, 8 * s]
    qk = [*ends, *[16 * s] * 6, *reversed(ends)]
    mlp = [*[3 * embed] * 3, *[6 * embed] * 6, *[3 * embed] * 3]
    return tuple(BlockWidths(h, q, HEAD_WIDTH, m) for h, q, m in zip(heads, qk, mlp, strict=True))


def _revit(embed_dim: int, **kwargs: Any) -> VisionTransformerDistilled:
    rule = widths(embed_dim)
    model = VisionTransformerDistilled(embed_dim=embed_dim, depth=DEPTH, num_heads=1, mlp_ratio=1.0, **kwargs)
    for block, width in zip(model.blocks, rule, strict=True):
        old: Any = block.attn
        block.attn = WideAttention(
            embed_dim,
            heads=width.heads,
            qk_dim=width.qk,
            v_dim=width.v,
            scale=HEAD_WIDTH**-0.5,
            qkv_bias=old.qkv.bias is not None,
            attn_drop=old.attn_drop.p,
            proj_drop=old.proj_drop.p,
        )
        mlp: Any = block.mlp
        mlp.fc1, mlp.fc2 = nn.Linear(embed_dim, width.mlp), nn.Linear(width.mlp, embed_dim)
        for part in (block.attn, mlp):
            part.apply(init_weights_vit_timm)
    return model


def _create(variant: str, pretrained: bool, kwargs: dict[str, Any], *, embed: int) -> VisionTransformerDistilled:
    given = {"embed_dim": embed, "patch_size": 16, **kwargs}
    features = {"out_indices": 3, "feature_cls": "getter"}  # as timm's: the last three blocks
    model: VisionTransformerDistilled = build_model_with_cfg(_revit, variant, pretrained, feature_cfg=features, **given)
    return model


@register
def revit_tiny(pretrained: bool = False, **kwargs: Any) -> VisionTransformerDistilled:
    """ReViT-T: 176 channels, 5.34 M parameters, 1.14 GMACs at 224x224."""
    return _create("revit_tiny", pretrained, kwargs, embed=176)


@register
def revit_small(pretrained: bool = False, **kwargs: Any) -> VisionTransformerDistilled:
    """ReViT-S: 384 channels, 23.12 M parameters, 4.71 GMACs at 224x224."""
    return _create("revit_small", pretrained, kwargs, embed=384)
