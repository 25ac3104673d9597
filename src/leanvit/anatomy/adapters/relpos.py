"""Adapter for timm's vision transformers with relative position biases: `vit_relpos_*`, `vit_srelpos_*`, `beit_*`."""

from __future__ import annotations

from typing import Any

from timm.layers import RelPosBias, RelPosMlp
from timm.models.beit import Beit, RelativePositionBias
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import nn

from leanvit.anatomy.adapters import plain_vit
from leanvit.anatomy.families.eva import OpenRelViT
from leanvit.errors import Refused

SUPPORTED = "vision transformers with relative position biases of timm (vit_relpos_*, vit_srelpos_*, beit_*, beitv2_*)"

_BIASES = ("shared_rel_pos", "rel_pos_bias")
_CHILDREN = {"patch_embed", "pos_drop", *_BIASES, "blocks", "norm", "fc_norm", "head_drop", "head"}
_SHARED = (RelPosBias, RelPosMlp, RelativePositionBias)

close_family = plain_vit.close_family


def understands(model: nn.Module) -> bool:
    return type(model) in (VisionTransformerRelPos, Beit)


def open_family(model: Any) -> OpenRelViT:
    """Build the opened model around the children of a timm one. Raises `Refused`, naming what is not understood."""
    plain_vit.check_model(model, children=_CHILDREN)
    extras: dict[str, nn.Module | None] = {
        "pos_drop": getattr(model, "pos_drop", nn.Identity()),
        "patch_drop": nn.Identity(),
        "norm_pre": nn.Identity(),
    }
    for key in _BIASES:
        if not hasattr(model, key):
            continue
        shared = getattr(model, key)
        if shared is not None and type(shared) not in _SHARED:
            raise Refused(f"{key} is a {type(shared).__name__}; supported: {', '.join(k.__name__ for k in _SHARED)}")
        extras[key] = shared
    opened: OpenRelViT = plain_vit.open_as(OpenRelViT, model, extras=extras)
    return opened
