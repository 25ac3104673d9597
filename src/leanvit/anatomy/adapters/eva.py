"""Adapter for timm's `Eva`: rotary positions, q, k and v apart, sub-norms, SwiGLU, post-norm, attention pooling.

`eva_*`, `eva02_*`, `vit_*_rope_*`, `vit_*_dinov3*`, `vit_pe_*`. Read from timm 1.0.31.
"""

from __future__ import annotations

from typing import Any

from timm.layers import PatchDropoutWithIndices, pos_embed_sincos
from timm.models.eva import Eva
from torch import nn

from leanvit.anatomy.adapters import plain_vit
from leanvit.anatomy.families.eva import OpenEva
from leanvit.anatomy.parts.positions import Rotary
from leanvit.errors import Refused

SUPPORTED = "rotary vision transformers of timm (eva_*, eva02_*, vit_*_rope_*, vit_*_dinov3*, vit_pe_*)"

_TABLES = (
    pos_embed_sincos.RotaryEmbeddingCat,
    pos_embed_sincos.RotaryEmbeddingMixed,
    pos_embed_sincos.RotaryEmbeddingDinoV3,
    pos_embed_sincos.RotaryEmbeddingMRope,
)
_EXTRAS = ("pos_drop", "patch_drop", "rope", "norm_pre")
_CHILDREN = {"patch_embed", *_EXTRAS, "blocks", "norm", "attn_pool", "fc_norm", "head_drop", "head"}

close_family = plain_vit.close_family


def understands(model: nn.Module) -> bool:
    return type(model) is Eva


def open_family(model: Any) -> OpenEva:
    """Build the opened model around the children of a timm one. Raises `Refused`, naming what is not understood."""
    plain_vit.check_model(model, children=_CHILDREN, tokens=("cls_token", "reg_token"))
    if model.rope is not None and type(model.rope) not in _TABLES:
        raise Refused(f"rope is a {type(model.rope).__name__}; supported: {', '.join(k.__name__ for k in _TABLES)}")
    if model.patch_drop is not None and type(model.patch_drop) is not PatchDropoutWithIndices:
        raise Refused(f"patch_drop is a {type(model.patch_drop).__name__}; supported: PatchDropoutWithIndices")
    mixed = getattr(model, "rope_mixed", False)

    def rotary(i: int) -> Rotary | None:
        if model.rope is None:
            return None
        return Rotary(half=getattr(model.blocks[i].attn, "rotate_half", False), row=i if mixed else None)

    extras = {
        "pos_drop": model.pos_drop,
        "patch_drop": model.patch_drop or nn.Identity(),
        "norm_pre": model.norm_pre,
        "rope": model.rope,
    }
    opened: OpenEva = plain_vit.open_as(OpenEva, model, extras=extras, rotary=rotary)
    return opened
