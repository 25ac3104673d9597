"""Parts of LightViT (Huang et al., arXiv 2207.05557) in DualToken-ViT: stem, bi-dimensional attention, merging.

Names, parameters and numbers are those of the official code (hunto/LightViT, Apache-2.0), whose norms have torch's eps.
Maps are (B, H, W, C).
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import Mlp, register_notrace_module
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

REDUCE = 4  # bi-dimensional attention looks at a quarter of the channels


@register_notrace_module
class LightViTStem(nn.Module):
    """Four convolutions with batch norms, then one of stride 2: (B, C, H, W) -> map (B, H / 8, W / 8, D)."""

    # as `leanvit.data` reads them: images of any size whose sides are multiples of 32 fit the models
    img_size: tuple[int, int] | None = None
    patch_size = (32, 32)
    strict_img_size = False

    def __init__(self, in_chans: int, dim: int) -> None:
        super().__init__()
        half = dim // 2
        convs = (
            nn.Conv2d(in_chans, half, 3, stride=2, padding=1, bias=False),
            nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False),
            nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False),
            nn.Conv2d(half, half, 3, stride=2, padding=1, groups=half, bias=False),
        )
        self.stem = nn.Sequential(*(part for conv in convs for part in (conv, nn.BatchNorm2d(half), nn.GELU())))
        self.proj = nn.Conv2d(half, dim, 3, stride=2, padding=1)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(self.stem(x)).permute(0, 2, 3, 1))

    def fuse(self) -> LightViTStem:
        """Fold the batch norms into the convolutions. Eval mode only."""
        for i in range(0, len(self.stem), 3):
            conv, norm = self.stem[i], self.stem[i + 1]
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                self.stem[i], self.stem[i + 1] = fuse_conv_bn_eval(conv, norm), nn.Identity()
        return self


@register_notrace_module
class BiDimAttention(nn.Module):
    """Bi-dimensional attention: each channel and each place of (B, N, C) gets a gate in (0, 1)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        reduced = dim // REDUCE
        self.norm = nn.LayerNorm(dim)
        self.global_reduce = nn.Linear(dim, reduced)
        self.local_reduce = nn.Linear(dim, reduced)
        self.channel_select = nn.Linear(reduced, dim)
        self.spatial_select = nn.Linear(2 * reduced, 1)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        local = self.act(self.local_reduce(y))
        whole = self.act(self.global_reduce(y.mean(dim=1, keepdim=True)))
        channel = self.channel_select(whole).sigmoid()  # (B, 1, C)
        both = torch.cat([local, whole.expand(-1, local.shape[1], -1)], dim=-1)
        spatial = self.spatial_select(both).sigmoid()  # (B, N, 1)
        return x * (channel * spatial)


class BiAttnMlp(Mlp):
    """A feed-forward layer whose output is gated by bi-dimensional attention: (B, N, C) -> (B, N, C)."""

    def __init__(self, dim: int, hidden: int, drop: float = 0.0) -> None:
        super().__init__(dim, hidden, drop=drop)
        self.attn = BiDimAttention(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.attn(super().forward(x))


@register_notrace_module
class ResidualMerge(nn.Module):
    """Halves a map and widens map and global tokens: (B, H, W, C), (B, T, C) -> (B, H / 2, W / 2, D), (B, T, D).

    Odd sides are padded with zeros, right and below. Beside the concatenation of 2x2 tokens runs their maximum.
    """

    def __init__(self, dim: int, out_dim: int, *, global_tokens: bool = True) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, out_dim, bias=False)
        self.pool = nn.MaxPool2d(2)
        self.res_proj = nn.Linear(dim, out_dim, bias=False)
        if global_tokens:
            self.norm2 = nn.LayerNorm(dim)
            self.proj = nn.Linear(dim, out_dim, bias=False)

    def forward(self, x: Tensor, tokens: Any) -> tuple[Tensor, Any]:
        height, width = x.shape[1:3]
        if height % 2 or width % 2:
            x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        largest = self.pool(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        # (row, column) of the 2x2 tokens: (0, 0), (1, 0), (0, 1), (1, 1)
        x = x.unflatten(1, (-1, 2)).unflatten(3, (-1, 2)).permute(0, 1, 3, 4, 2, 5).flatten(3)
        x = self.reduction(self.norm(x)) + self.res_proj(largest)
        return x, None if tokens is None else self.proj(self.norm2(tokens))
