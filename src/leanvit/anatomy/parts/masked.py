"""Attentions on timm's side whose scores a mask multiplies (`anatomy/parts/masks.py`).

A model of timm that holds them runs, opens and closes like any other. The fused kernel cannot multiply scores, so
both take the explicit path.
"""

from __future__ import annotations

from typing import Any

from timm.layers import register_notrace_module
from timm.models.swin_transformer import WindowAttention as TimmWindowAttention
from torch import Tensor

from leanvit.anatomy.parts.masks import ScoreMask
from leanvit.anatomy.parts.wide import WideAttention
from leanvit.errors import BadInput


class MaskedAttention(WideAttention):
    """Self-attention of (B, N, C), the first `num_prefix` tokens without a position in the mask's grid."""

    def __init__(self, dim: int, *, mask: ScoreMask, num_prefix: int = 0, **widths: Any) -> None:
        """`widths`: those of `WideAttention`."""
        super().__init__(dim, **widths)
        self.mask, self.num_prefix = mask, num_prefix
        self.fused_attn = False

    def scored(self, scores: Tensor) -> Tensor:
        return masked(scores, self.mask, self.num_prefix)


@register_notrace_module
class MaskedWindowAttention(TimmWindowAttention):
    """Swin's attention in windows, its scores masked before relative positions and the shift mask are added."""

    def __init__(self, *, mask: ScoreMask, **arguments: Any) -> None:
        """`arguments`: those of timm's class."""
        super().__init__(**arguments)
        self.mask = mask
        self.fused_attn = False  # type: ignore[misc]

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B windows, N, C); `mask` (windows, N, N) is that of the shift, added."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        scores = masked(q * self.scale @ k.transpose(-2, -1), self.mask)
        scores = scores + self._get_rel_pos_bias()
        if mask is not None:
            windows = mask.shape[0]
            scores = (scores.unflatten(0, (-1, windows)) + mask.unsqueeze(1)).flatten(0, 1)
        x = self.attn_drop(self.softmax(scores)) @ v
        return self.proj_drop(self.proj(x.transpose(1, 2).flatten(2)))

    def set_window_size(self, window_size: tuple[int, int]) -> None:
        """timm's; the mask goes along. Raises `BadInput` for a mask that is tied to its window."""
        if hasattr(self, "mask"):
            self.mask.regrid((window_size[0], window_size[1]))
        super().set_window_size(window_size)


def masked(scores: Tensor, mask: ScoreMask, prefix: int = 0) -> Tensor:
    """Scores (B, H, N, N) times the mask of its own grid. Raises `BadInput` for another number of tokens."""
    rows, columns = mask.grid
    tokens = scores.shape[-1]
    if tokens != prefix + rows * columns:
        raise BadInput(
            f"{tokens} tokens enter an attention whose mask is of {prefix} prefix tokens and {rows}x{columns} patches"
            "; accepted: images of the model's own img_size"
        )
    return scores * mask.factor(mask.grid, prefix).to(scores.dtype)
