"""A plain vision transformer behind a stem of several convolutions (LV-ViT, arXiv 2104.10858)."""

from __future__ import annotations

from typing import Any

from leanvit.anatomy.families.vit import OpenViT
from leanvit.anatomy.state import State


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

    def width_refusal(self) -> str:
        return "its stem is several convolutions with batch norm"

    def make(self) -> dict[str, Any]:
        return super().make() | {f"{block.name}.branch_scale": block.branch_scale for block in self.blocks}

    def input_size(self) -> tuple[int, int, int]:
        if not hasattr(self.patch_embed, "layers"):
            return super().input_size()
        return (self.patch_embed.in_chans, *self.patch_embed.img_size)

    def probe_size(self) -> tuple[int, int, int]:
        return super().probe_size() if not hasattr(self.patch_embed, "layers") else self.input_size()
