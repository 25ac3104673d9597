"""Adapter for leanvit's own LV-ViT and SiT (`lvvit_*`, `sit_*`): their classes are known by name, as floors go."""

from __future__ import annotations

from typing import Any

from timm.layers import PatchEmbed
from torch import nn

from leanvit.anatomy.adapters import plain_vit
from leanvit.anatomy.adapters.parts import check_untouched, only
from leanvit.backbones.lv_vit.opened import OpenLVViT
from leanvit.errors import Refused

SUPPORTED = "LV-ViT and SiT of leanvit (lvvit_*, sit_*)"

_HOME = "leanvit.backbones.lv_vit"

close_family = plain_vit.close_family


def understands(model: nn.Module) -> bool:
    return _is(model, "LVViT")


def open_family(model: Any) -> OpenLVViT:
    """Build the opened model around the children of an LV-ViT. Raises `Refused`, naming what is not understood."""
    only("the model", dict(model.named_children()), plain_vit.CHILDREN)
    only("the model", dict(model.named_parameters(recurse=False)), {*plain_vit.TOKENS, "pos_embed"})
    if type(model.patch_embed) is not PatchEmbed and not _is(model.patch_embed, "ConvStem"):
        raise Refused(f"patch_embed is a {type(model.patch_embed).__name__}; supported: ConvStem, PatchEmbed")
    check_untouched(model)
    extras = {key: getattr(model, key) for key in plain_vit.EXTRAS}
    opened: OpenLVViT = plain_vit.open_as(OpenLVViT, model, extras=extras)
    return opened


def _is(part: nn.Module, name: str) -> bool:
    return f"{type(part).__module__}.{type(part).__name__}" == f"{_HOME}.{name}"
