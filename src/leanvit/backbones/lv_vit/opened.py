"""LV-ViT and SiT opened: a plain vision transformer behind a stem of several convolutions (arXiv 2104.10858)."""

from __future__ import annotations

from typing import Any

from timm.layers import PatchEmbed
from torch import nn

from leanvit.anatomy.adapters import plain_vit
from leanvit.anatomy.adapters.parts import check_untouched, only
from leanvit.anatomy.families.vit import OpenViT
from leanvit.anatomy.state import State
from leanvit.backbones.lv_vit.model import ConvStem, LVViT
from leanvit.errors import Refused

SUPPORTED = "LV-ViT and SiT of leanvit (lvvit_*, sit_*)"

close_family = plain_vit.close_family


class OpenLVViT(OpenViT):
    """LV-ViT: convolutions with batch norm between, then blocks of the plain family whose branches are scaled.

    `patch_embed.layers()` gives (number, convolution, norm) in their order; a patch embedding of one convolution has
    none and runs as in the plain family.
    """

    family = "lv_vit"

    def embed(self, images: Any, state: State) -> tuple[Any, State]:
        if not hasattr(self.patch_embed, "layers"):
            return super().embed(images, state)
        ops, at, x = state.ops, "patch_embed", images
        for i, conv, norm in self.patch_embed.layers():
            if i > 1:
                x = ops.act(f"{at}.act{i}", self.patch_embed.act, x)
            x = ops.norm(f"{at}.bn{i}", norm, ops.conv(f"{at}.conv{i}", conv, x))
        x = ops.rearrange(f"{at}.flatten", x, lambda t: t.flatten(2).transpose(1, 2))
        return self._with_positions(x, state)

    def make(self) -> dict[str, Any]:
        return super().make() | {f"{block.name}.branch_scale": block.branch_scale for block in self.blocks}

    def input_size(self) -> tuple[int, int, int]:
        if not hasattr(self.patch_embed, "layers"):
            return super().input_size()
        return (self.patch_embed.in_chans, *self.patch_embed.img_size)

    def probe_size(self) -> tuple[int, int, int]:
        return super().probe_size() if not hasattr(self.patch_embed, "layers") else self.input_size()


def understands(model: nn.Module) -> bool:
    return type(model) is LVViT


def open_family(model: Any) -> OpenLVViT:
    """Build the opened model around the children of an LV-ViT. Raises `Refused`, naming what is not understood."""
    only("the model", dict(model.named_children()), plain_vit.CHILDREN)
    only("the model", dict(model.named_parameters(recurse=False)), {*plain_vit.TOKENS, "pos_embed"})
    if type(model.patch_embed) not in (PatchEmbed, ConvStem):
        raise Refused(f"patch_embed is a {type(model.patch_embed).__name__}; supported: ConvStem, PatchEmbed")
    check_untouched(model)
    extras = {key: getattr(model, key) for key in plain_vit.EXTRAS}
    opened: OpenLVViT = plain_vit.open_as(OpenLVViT, model, extras=extras)
    return opened
