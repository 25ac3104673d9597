"""A transformer block, on timm's side, whose branches are scaled and which may end by steps: what LV-ViT and SiT are
built of. A model of timm that holds it runs, opens and closes like any other."""

from __future__ import annotations

from typing import Any, cast

from timm.models.vision_transformer import Block
from torch import Tensor, nn

from leanvit.anatomy.arithmetic.ops import TORCH
from leanvit.anatomy.parts.slimming import TokenSlimming


class ScaledBlock(Block):
    """timm's pre-norm block with x + branch_scale · branch(norm(x)), twice, then token slimming where `after` holds it.

    `prefix`: tokens at the front of the sequence that slimming lets pass.
    """

    def __init__(self, *args: Any, branch_scale: float = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.branch_scale, self.prefix = branch_scale, 0
        self.after = nn.ModuleList()

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        branch = self.attn(self.norm1(x), attn_mask=attn_mask, is_causal=is_causal)
        x = x + self.drop_path1(self.ls1(branch) * self.branch_scale)
        x = x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))) * self.branch_scale)
        for step in self.after:
            x, _ = cast(TokenSlimming, step).slim(TORCH, x, self.prefix)
        return x
