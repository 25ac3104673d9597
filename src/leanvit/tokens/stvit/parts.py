"""The parts of STViT-R: stem, Swin's block, patch merging, the blocks of semantic tokens. Maps are (B, H, W, C)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerScale, Mlp, register_notrace_module
from torch import Tensor, nn

from leanvit.anatomy.arithmetic.partition import Windows
from leanvit.anatomy.families.swin_parts import relative_index
from leanvit.anatomy.parts.positions import bias_of

LAYER_SCALE = 1e-5  # initial value of the semantic blocks' layer scale


class ConvStem(nn.Module):
    """Two 3x3 convolutions of stride 2, each with batch norm and Hardswish: (B, C, H, W) -> (B, ~H/4, ~W/4, D).

    Unlike Swin's patch embedding it has no layer norm.
    """

    def __init__(self, in_chans: int, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, dim // 2, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(dim // 2)
        self.act1 = nn.Hardswish()
        self.conv2 = nn.Conv2d(dim // 2, dim, 3, stride=2, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(dim)
        self.act2 = nn.Hardswish()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.norm1(self.conv1(x)))
        x = self.act2(self.norm2(self.conv2(x)))
        return x.permute(0, 2, 3, 1)


@register_notrace_module
class PatchMerging(nn.Module):
    """Swin's: four neighbours to one token of twice the channels, (B, H, W, C) -> (B, ceil(H/2), ceil(W/2), 2 C)."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, out_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        if height % 2 or width % 2:
            x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        x = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # (B, h, 2, w, 2, C)
        x = x.permute(0, 1, 3, 4, 2, 5).flatten(3)
        return self.reduction(self.norm(x))


class _Biased(nn.Module):
    """An attention that may have a learned bias for each relative position in a grid of `side` x `side`."""

    relative_position_index: Tensor
    relative_position_bias_table: Tensor | None

    def __init__(self, dim: int, num_heads: int, side: int | None) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.side = num_heads, dim // num_heads, side
        table = None if side is None else nn.Parameter(torch.zeros((2 * side - 1) ** 2, num_heads))
        self.register_parameter("relative_position_bias_table", table)
        if side is not None:
            self.register_buffer("relative_position_index", torch.zeros(side**2, side**2).long(), persistent=False)
            self.init_non_persistent_buffers()

    def init_non_persistent_buffers(self) -> None:
        """Fill what no state dict holds (timm's name for it)."""
        if self.side is not None and not self.relative_position_index.is_meta:
            self.relative_position_index.copy_(relative_index((self.side, self.side)))

    def heads_of(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, heads, N, d)."""
        return x.unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """(B, heads, N, d) -> (B, N, C); `mask` is added to the scores."""
        table = self.relative_position_bias_table
        if table is not None:
            bias = bias_of(table, self.relative_position_index)
            mask = bias if mask is None else bias + mask
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return x.transpose(1, 2).flatten(2)


@register_notrace_module
class WindowAttention(_Biased):
    """Swin's: self-attention in a window, with a bias of relative positions."""

    def __init__(self, dim: int, num_heads: int, window: int) -> None:
        super().__init__(dim, num_heads, window)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = (self.heads_of(part) for part in self.qkv(x).chunk(3, dim=-1))
        return self.proj(self.attend(q, k, v, mask))


@register_notrace_module
class SwinBlock(nn.Module):
    """Swin's block: windows that may be shifted, no layer scale. Maps that windows do not fill are padded with zeros,
    which are attended to, as in Swin."""

    def __init__(self, dim: int, num_heads: int, window: int, shift: int, hidden: int, drop_path: float) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, num_heads, window)
        self.drop_path1 = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, hidden)
        self.drop_path2 = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        grid = (x.shape[1], x.shape[2])
        shift = [0 if side <= self.window else self.shift for side in grid]  # one window: nothing to shift
        windows = Windows(grid, (self.window, self.window), (shift[0], shift[1]))
        mask = None
        if any(shift):
            mask = windows.shift_mask(x.device, x.dtype).unsqueeze(1).repeat(x.shape[0], 1, 1, 1)
        y = windows.reverse(self.attn(windows.partition(self.norm1(x).flatten(1, 2)), mask))
        x = x + self.drop_path1(y.unflatten(1, grid))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


@register_notrace_module
class SemanticAttention(_Biased):
    """Attention with queries of some tokens, and keys and values of others."""

    def __init__(self, dim: int, num_heads: int, side: int | None = None) -> None:
        super().__init__(dim, num_heads, side)
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Queries (B, N, C), keys and values (B, M, C) -> (B, N, C)."""
        return self.met(x, self.kv(y))

    def met(self, x: Tensor, kv: Tensor, mask: Tensor | None = None) -> Tensor:
        """As `forward`, where keys and values (B, M, 2 C) are computed already."""
        k, v = (self.heads_of(part) for part in kv.chunk(2, dim=-1))
        return self.proj(self.attend(self.heads_of(self.q(x)), k, v, mask))


@register_notrace_module
class SemanticBlock(nn.Module):
    """h = x + ls1 * attention(norm1(x), norm1(y)); h + ls2 * MLP(norm2(h)), with drop path on both branches.

    `conv_pos`: holds a depthwise 3x3 convolution, by which pooled tokens learn where they are.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        hidden: int,
        drop_path: float,
        *,
        side: int | None = None,
        conv_pos: bool = False,
    ) -> None:
        """`side`: of the grid for whose relative positions the attention has a bias; None: none."""
        super().__init__()
        self.conv_pos = nn.Conv2d(dim, dim, 3, padding=1, groups=dim) if conv_pos else None
        self.norm1 = nn.LayerNorm(dim)
        self.attn = SemanticAttention(dim, num_heads, side)
        self.ls1 = LayerScale(dim, LAYER_SCALE)
        self.drop_path1 = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, hidden)
        self.ls2 = LayerScale(dim, LAYER_SCALE)
        self.drop_path2 = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """(B, N, C), attending to (B, M, C), or to itself -> (B, N, C)."""
        queries, keys = self.normed(x, y)
        return self.transformed(x + self.drop_path1(self.ls1(self.attn(queries, keys))))

    def normed(self, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        """Queries of (B, N, C) and keys of (B, M, C), or of the same, by one run of one norm."""
        if y is None:
            x = self.norm1(x)
            return x, x
        both = self.norm1(torch.cat([x, y], dim=1))
        return both[:, : x.shape[1]], both[:, x.shape[1] :]

    def transformed(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))
        return out

    def placed(self, pooled: Tensor, count: int) -> Tensor:
        """Pooled tokens of windows, (B, count^2, C), and what the convolution makes of them."""
        if self.conv_pos is None:
            return pooled
        grid = pooled.unflatten(1, (count, count)).permute(0, 3, 1, 2)
        out: Tensor = pooled + self.conv_pos(grid).flatten(2).transpose(1, 2)
        return out


def init_weights(module: Any) -> None:
    """As the official code: linears and tables truncated normal of 0.02, biases zero; convolutions as torch's."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, _Biased) and module.relative_position_bias_table is not None:
        nn.init.trunc_normal_(module.relative_position_bias_table, std=0.02)
