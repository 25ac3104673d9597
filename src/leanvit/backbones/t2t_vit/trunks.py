"""The paper's other trunks (section 3.2 and table 6): squeeze-and-excitation, ghost features, dense connections.

Behind the same tokens-to-token module. They are not blocks of attention and MLP in a row, so leanvit opens them as
traced graphs, not as plain vision transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import DropPath, calculate_drop_path_rates, register_notrace_module
from timm.models.vision_transformer import Attention
from torch import Tensor, nn
from torch.nn import functional as F

from leanvit.backbones.t2t_vit.model import LayerNorm, T2TViT, check_heads, plain_block
from leanvit.errors import BadInput
from leanvit.knobs import Count, Counts, check


class ChannelGate(nn.Module):
    """Channels times a gate from the mean of all tokens, the class token among them (squeeze and excitation)."""

    def __init__(self, dim: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(1, dim // reduction)
        self.fc = nn.Sequential(
            nn.Linear(dim, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, dim, bias=False), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        return x * self.fc(x.mean(dim=1, keepdim=True))


@register_notrace_module
class SEAttention(Attention):
    """Attention whose projection is gated by channel."""

    def __init__(self, dim: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(dim, *args, **kwargs)
        self.se_layer = ChannelGate(dim)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.se_layer(super().forward(x, *args, **kwargs))


class T2TViTSE(T2TViT):
    """T2T-ViT with gated channels in every attention."""

    OPENS = "leanvit.anatomy.adapters.hybrid"

    attention = SEAttention


class ChannelScale(nn.Module):
    """One factor a channel: the published "cheap operation", a depthwise convolution over single tokens."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, 1).uniform_(-1, 1))  # as such a convolution begins

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight.flatten()


@register_notrace_module
class GhostAttention(nn.Module):
    """Attention whose q, k and v are half linear, half a scaled copy of that half."""

    def __init__(self, dim: int, num_heads: int, *, attn_drop: float = 0.0, proj_drop: float = 0.0) -> None:
        super().__init__()
        self.num_heads, self.attn_drop = num_heads, attn_drop
        for name in "qkv":
            self.add_module(name, nn.Linear(dim, dim // 2, bias=False))
            self.add_module(f"cheap_operation_{name}", ChannelScale(dim // 2))
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        q, k, v = (self._heads(name, x) for name in "qkv")
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=self.attn_drop if self.training else 0.0)
        return self.proj_drop(self.proj(y.transpose(1, 2).flatten(2)))

    def _heads(self, name: str, x: Tensor) -> Tensor:
        half = self.get_submodule(name)(x)
        whole = torch.cat([half, self.get_submodule(f"cheap_operation_{name}")(half)], dim=-1)
        return whole.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


@register_notrace_module
class GhostMlp(nn.Module):
    """MLP with three times the tokens' channels inside, of which one third is linear and two are scaled copies."""

    def __init__(self, dim: int, *, drop: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, dim)
        self.cheap_operation2, self.cheap_operation3 = ChannelScale(dim), ChannelScale(dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(3 * dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        x = self.act(self.fc1(x))
        copies = (F.gelu(scale(x)) for scale in (self.cheap_operation2, self.cheap_operation3))
        return self.drop(self.fc2(torch.cat([x, *copies], dim=-1)))


class GhostBlock(nn.Module):
    """Pre-norm block of ghost attention and ghost MLP."""

    def __init__(self, dim: int, num_heads: int, *, attn_drop: float, proj_drop: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim)
        self.attn = GhostAttention(dim, num_heads, attn_drop=attn_drop, proj_drop=proj_drop)
        self.drop_path1 = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = LayerNorm(dim)
        self.mlp = GhostMlp(dim, drop=proj_drop)
        self.drop_path2 = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        x = x + self.drop_path1(self.attn(self.norm1(x)))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class T2TViTGhost(T2TViT):
    """T2T-ViT of ghost features. Its MLP is three tokens wide: `mlp_ratio` must be 3, the width even."""

    OPENS = "leanvit.anatomy.adapters.hybrid"

    def block(self, dim: int, num_heads: int, mlp_ratio: float, **drops: float) -> nn.Module:
        check_heads(dim, num_heads)
        if mlp_ratio != 3 or dim % 2:
            raise BadInput(f"mlp_ratio is {mlp_ratio!r} and embed_dim {dim}; accepted: 3, and an even width")
        return GhostBlock(dim, num_heads, **drops)


class DenseBlock(nn.Module):
    """A block that keeps its input and puts `growth` new channels beside it."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, growth: int, **drops: float) -> None:
        super().__init__()
        plain: Any = plain_block(dim, num_heads, mlp_ratio, Attention, drops)
        self.norm1, self.attn, self.drop_path1 = plain.norm1, plain.attn, plain.drop_path1
        self.norm2, self.mlp, self.drop_path2 = plain.norm2, plain.mlp, plain.drop_path2
        self.dense_linear = nn.Linear(dim, growth)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, dim) -> (B, N, dim + growth)."""
        y = x + self.drop_path1(self.attn(self.norm1(x)))
        y = y + self.drop_path2(self.mlp(self.norm2(y)))
        return torch.cat([x, self.dense_linear(y)], dim=-1)


class Transition(nn.Module):
    """Between two stages of dense blocks: half of the channels."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, out)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.linear(x))


class T2TViTDense(T2TViT):
    """T2T-ViT whose blocks are densely connected (DenseNet): `depths` blocks a stage, channels halved in between.

    Every entry of `blocks`, transitions too, is a level of features. Drop path rises block by block; in the published
    code all blocks of a stage share one of its first rates.

    Args:
        depths: blocks of each stage.
        growth: channels that each block adds.
        kwargs: those of `T2TViT`, without `depth`.
    """

    OPENS = "leanvit.anatomy.adapters.hybrid"

    def __init__(self, *args: Any, depths: Sequence[int] = (3, 6, 6, 4), growth: int = 64, **kwargs: Any) -> None:
        if "depth" in kwargs:
            raise BadInput(f"depth is {kwargs['depth']!r}; a dense trunk takes depths, the blocks of each stage")
        check("depths", depths, Counts)
        check("growth", growth, Count)
        self.depths, self.growth = tuple(depths), growth
        super().__init__(*args, depth=sum(depths), **kwargs)

    def trunk(
        self, depth: int, num_heads: int, mlp_ratio: float, drops: dict[str, float], drop_path_rate: float
    ) -> tuple[nn.Sequential, list[int]]:
        rates = iter(calculate_drop_path_rates(drop_path_rate, depth))
        blocks: list[nn.Module] = []
        widths, dim = [], self.embed_dim
        for stage, number in enumerate(self.depths):
            if stage:
                blocks.append(Transition(dim, dim // 2))
                dim //= 2
                widths.append(dim)
            for _ in range(number):
                drop_path: Any = next(rates)
                blocks.append(DenseBlock(dim, num_heads, mlp_ratio, self.growth, drop_path=drop_path, **drops))
                dim += self.growth
                widths.append(dim)
        return nn.Sequential(*blocks), widths
