"""Attention, on timm's side, whose number of heads and widths are its own: what timm's class cannot be built with.

A model of timm that holds it runs, opens and closes like any other.
"""

from __future__ import annotations

from timm.layers import register_notrace_module, use_fused_attn
from torch import Tensor, nn
from torch.nn import functional as F

from leanvit.errors import BadInput


@register_notrace_module
class WideAttention(nn.Module):
    """Self-attention of (B, N, C) with `heads` heads of width `qk_dim` for scores and `v_dim` for values.

    The layout of `qkv` is that of `anatomy.Attention`. `scale` is given: it need not follow the width.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int,
        qk_dim: int,
        v_dim: int,
        scale: float,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads, self.qk_dim, self.v_dim, self.scale = heads, qk_dim, v_dim, scale
        self.fused_attn = bool(use_fused_attn())
        self.qkv = nn.Linear(dim, heads * (2 * qk_dim + v_dim), bias=qkv_bias)
        self.q_norm, self.k_norm, self.norm = nn.Identity(), nn.Identity(), nn.Identity()
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(heads * v_dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        if attn_mask is not None or is_causal:
            raise BadInput("attn_mask and is_causal: this attention knows no masks")
        qk, v = self.num_heads * self.qk_dim, self.num_heads * self.v_dim
        q, k, values = (self._heads(t) for t in self.qkv(x).split((qk, qk, v), dim=-1))  # (B, heads, N, width)
        if self.fused_attn and self.qk_dim == self.v_dim:  # at other widths PyTorch leaves its fast CPU kernel
            drop = self.attn_drop.p if self.training else 0.0
            x = F.scaled_dot_product_attention(q, k, values, dropout_p=drop, scale=self.scale)
        else:
            x = self.attn_drop(self.scored(q * self.scale @ k.transpose(-2, -1)).softmax(dim=-1)) @ values
        return self.proj_drop(self.proj(x.transpose(1, 2).flatten(2)))

    def scored(self, scores: Tensor) -> Tensor:
        """What acts on the scaled scores (B, heads, N, N) before the softmax; here nothing."""
        return scores

    def _heads(self, t: Tensor) -> Tensor:
        return t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
