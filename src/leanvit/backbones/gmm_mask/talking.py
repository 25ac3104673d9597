"""Talking heads and class attention as the small CaiT of the paper has them: heads of any width, mixed without bias.

Mixing is one product of (heads, heads) with (heads, N²), where the maps lie: nothing is permuted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from timm.layers import register_notrace_module
from timm.models.cait import LayerScaleBlockClassAttn
from torch import Tensor, nn

from leanvit.anatomy.parts.masked import masked
from leanvit.anatomy.parts.masks import ScoreMask


@register_notrace_module
class TalkingHeads(nn.Module):
    """Self-attention (B, N, C) -> (B, N, C) of patches; a mask multiplies the scaled scores, then heads are mixed."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        head_dim: int,
        make_mask: Callable[[], ScoreMask | None],
        qkv_bias: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        **placed: Any,
    ) -> None:
        super().__init__()
        self.num_heads, self.scale = num_heads, head_dim**-0.5
        self.qkv = nn.Linear(dim, 3 * num_heads * head_dim, bias=qkv_bias, **placed)
        self.mask = make_mask()
        _add_way_out(self, dim, num_heads * head_dim, attn_drop, proj_drop, placed)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        scores = q * self.scale @ k.transpose(-2, -1)
        if self.mask is not None:
            scores = masked(scores, self.mask)
        return _weighed(self, scores, v)


@register_notrace_module
class ContextAttention(nn.Module):
    """Attention of some tokens to all, (B, M, C) and (B, N, C) -> (B, M, C), heads mixed; without a mask."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        head_dim: int,
        qkv_bias: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        **placed: Any,
    ) -> None:
        super().__init__()
        self.num_heads, self.scale = num_heads, head_dim**-0.5
        self.q = nn.Linear(dim, num_heads * head_dim, bias=qkv_bias, **placed)
        self.kv = nn.Linear(dim, 2 * num_heads * head_dim, bias=qkv_bias, **placed)
        _add_way_out(self, dim, num_heads * head_dim, attn_drop, proj_drop, placed)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k, v = self.kv(context).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return _weighed(self, q * self.scale @ k.transpose(-2, -1), v)


class ContextBlock(LayerScaleBlockClassAttn):
    """timm's class layer, but only the class token is normalised: the patches enter its attention as they are."""

    def forward(self, x: Tensor, x_cls: Tensor) -> Tensor:
        own = self.norm1(x_cls)
        x_cls = x_cls + self.drop_path(self.gamma_1 * self.attn(own, torch.cat((own, x), dim=1)))
        return x_cls + self.drop_path(self.gamma_2 * self.mlp(self.norm2(x_cls)))


def _add_way_out(attn: Any, dim: int, inner: int, attn_drop: float, proj_drop: float, placed: dict[str, Any]) -> None:
    heads = attn.num_heads
    attn.mix_pre, attn.mix_post = (nn.Parameter(torch.randn(heads, heads, **placed)) for _ in range(2))
    attn.attn_drop, attn.proj_drop = nn.Dropout(attn_drop), nn.Dropout(proj_drop)
    attn.proj = nn.Linear(inner, dim, **placed)


def _weighed(attn: Any, scores: Tensor, v: Tensor) -> Tensor:
    weights = mixed(mixed(scores, attn.mix_pre).softmax(dim=-1), attn.mix_post)
    x = (attn.attn_drop(weights) @ v).transpose(1, 2).flatten(2)
    return attn.proj_drop(attn.proj(x))


def mixed(maps: Tensor, mix: Tensor) -> Tensor:
    """Maps (B, H, N, M) through `mix` (H, G), from old heads to new ones -> (B, G, N, M)."""
    return (mix.transpose(0, 1) @ maps.flatten(2)).unflatten(2, maps.shape[2:])
