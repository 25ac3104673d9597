"""PiT as the small-data line of work has it: what differs from timm's class, and what timm's class lacks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from timm.models._features import feature_take_indices
from timm.models._manipulate import checkpoint
from timm.models.pit import PoolingVisionTransformer
from torch import Tensor, nn


class MaskedPiT(PoolingVisionTransformer):
    """timm's PiT with a position of the class token, and a second, pointwise convolution behind each pooling one.

    The masks are in the attentions of its blocks (`hosts.pit`).
    """

    OPENS = "leanvit.anatomy.adapters.hybrid"

    def __init__(self, **arguments: Any) -> None:
        """`arguments`: those of timm's class."""
        super().__init__(**arguments)
        self.cls_pos = nn.Parameter(torch.zeros_like(self.cls_token))
        self.grad_checkpointing = False
        for stage in cast("Iterable[Any]", self.transformers):
            if stage.pool is not None:
                width = stage.pool.conv.out_channels
                stage.pool.conv = nn.Sequential(stage.pool.conv, nn.Conv2d(width, width, kernel_size=1))
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = 1e-5

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the class token (B, 1, D) after the final norm."""
        return self.norm(self._stages(x, lambda i, tokens: None))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Maps (B, C, h, w) of some stages, and the class token unless `intermediates_only`; as timm's."""
        assert output_fmt == "NCHW", "Output shape must be NCHW."
        take, last = feature_take_indices(len(self.transformers), indices)
        maps: dict[int, Tensor] = {}
        token = self._stages(x, maps.__setitem__, stop=last + 1 if stop_early else None)
        taken = [maps[i] for i in take]
        if intermediates_only:
            return taken
        return (self.norm(token) if len(maps) == len(self.transformers) else token), taken

    def _stages(self, x: Tensor, tell: Callable[[int, Tensor], None], stop: int | None = None) -> Tensor:
        x = self.pos_drop(self.patch_embed(x) + self.pos_embed)
        token = self.pos_drop(self.cls_token + self.cls_pos).expand(x.shape[0], -1, -1)
        for i, stage in enumerate(self.transformers[:stop]):
            again = self.grad_checkpointing and self.training and torch.is_grad_enabled()
            x, token = checkpoint(stage, (x, token)) if again else stage((x, token))
            tell(i, x)
        return token

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        return {"pos_embed", "cls_token", "cls_pos"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layer groups for layer-wise learning rates: the stem, then each block (`coarse`: each stage)."""
        fine = [(r"^transformers\.(\d+)\.pool", (0,)), (r"^transformers\.(\d+)\.blocks\.(\d+)", None)]
        layers = [(r"^transformers\.(\d+)", None)] if coarse else fine
        return {"stem": r"^cls_token|cls_pos|pos_embed|patch_embed", "blocks": [*layers, (r"^norm", (99999,))]}
