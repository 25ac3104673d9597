"""ReViT: a DeiT with the widths that NViT's pruning leads to (section 4.3), a rule from the embedding width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import init_weights_vit_timm
from torch import nn

from leanvit.anatomy.parts.wide import WideAttention
from leanvit.knobs import check

DEPTH = 12
HEAD_WIDTH = 64  # of v, and of the model that was pruned: the attention scale stays 64 ** -0.5


@dataclass(frozen=True)
class BlockWidths:
    """Widths of one block."""

    heads: int
    qk: int
    v: int
    mlp: int


def widths(embed: int) -> tuple[BlockWidths, ...]:
    """The rule, for an embedding of `embed` channels. Raises `BadInput` where it gives no heads or no q/k dims."""
    check("embed_dim", embed, Annotated[int, Ge(100)])
    r, s = round(0.005 * embed), round(0.05 * embed / 8)
    heads = [10, *[2 * r] * 2, *[4 * r] * 6, *[2 * r] * 2, 10]
    ends = [16 * s, 8 * s, 8 * s]
    qk = [*ends, *[16 * s] * 6, *reversed(ends)]
    mlp = [*[3 * embed] * 3, *[6 * embed] * 6, *[3 * embed] * 3]
    return tuple(BlockWidths(h, q, HEAD_WIDTH, m) for h, q, m in zip(heads, qk, mlp, strict=True))


def build_revit(embed_dim: int, **kwargs: Any) -> VisionTransformerDistilled:
    """The model, for an embedding of `embed_dim` channels; `kwargs` of timm's class but depth, heads and MLP ratio."""
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
