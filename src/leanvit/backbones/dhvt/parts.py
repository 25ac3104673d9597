"""The parts of DHVT: stem (SOPE), attention with head tokens (HI-MHSA), feed-forward (DAFF), block."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from timm.layers import DropPath, register_notrace_module, use_fused_attn
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from leanvit.errors import BadInput

WIDTHS = {16: (8, 4, 2, 1), 4: (2, 1), 2: (1,)}  # patch size -> by what each convolution of the stem divides the width
EPS = 1e-6  # of the block norms; head tokens have torch's 1e-5


class Affine(nn.Module):
    """A learned scale and shift of each channel, (B, C, H, W) -> the same; starts as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.alpha + self.beta


@register_notrace_module
class OverlappingPatchEmbed(nn.Module):
    """Sequential overlapping patch embedding (SOPE): (B, C, H, W) -> grid (B, D, H / patch, W / patch).

    3x3 convolutions of stride 2 without bias, each with a batch norm, GELU between them, between two affine layers. The
    one convolution of patch 2 has its GELU behind it.
    """

    img_size: tuple[int, int] | None = None  # that the model is meant for
    strict_img_size = False  # nothing in it depends on the image's size

    def __init__(self, patch_size: int, in_chans: int, embed_dim: int, norm: type[nn.Module]) -> None:
        super().__init__()
        self.patch_size = (patch_size, patch_size)
        self.pre_affine = Affine(in_chans)
        channels = [in_chans, *(embed_dim // share for share in WIDTHS[patch_size])]
        parts: list[nn.Module] = []
        for before, after in pairwise(channels):
            conv = nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)
            parts += [nn.Sequential(conv, norm(after)), nn.GELU()]
        self.proj = nn.Sequential(*(parts if patch_size == 2 else parts[:-1]))
        self.post_affine: nn.Module = Affine(embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        side = self.patch_size[0]
        if height % side or width % side:
            raise BadInput(f"images are {height}x{width}; accepted: sides that are multiples of {side}, the patch size")
        return self.post_affine(self.proj(self.pre_affine(x)))

    def fuse(self) -> OverlappingPatchEmbed:
        """Fold norms, and the affine layer where no GELU stands before it, into the convolutions. Eval mode only."""
        for part in self.proj:
            if isinstance(part, nn.Sequential):
                part[0], part[1] = folded(part[0], part[1]), nn.Identity()
        last = self.proj[-1]
        if isinstance(last, nn.Sequential) and isinstance(self.post_affine, Affine):
            conv: Any = last[0]
            alpha, beta = self.post_affine.alpha.flatten(), self.post_affine.beta.flatten()
            conv.weight = nn.Parameter((conv.weight * alpha[:, None, None, None]).detach())
            conv.bias = nn.Parameter((conv.bias * alpha + beta).detach())
            self.post_affine = nn.Identity()
        return self


@register_notrace_module
class HeadTokenAttention(nn.Module):
    """Head-interacted multi-head self-attention (HI-MHSA): (B, 1 + patches, C) -> the same.

    Each head makes one token out of the mean of its channels over the sequence; these join the sequence for the
    attention, and leave it in the class token, as their mean. `head_tokens=False` is plain attention.
    """

    def __init__(self, dim: int, heads: int, *, head_tokens: bool, attn_drop: float, proj_drop: float) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, dim // heads
        self.scale = self.head_dim**-0.5
        self.has_head_tokens = head_tokens
        self.fused_attn = use_fused_attn()
        self.qkv = nn.Linear(dim, 3 * dim)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        if head_tokens:
            self.ht_proj = nn.Linear(self.head_dim, dim)
            self.ht_norm = nn.LayerNorm(self.head_dim)
            self.ht_act = nn.GELU()
            self.pos_embed = nn.Parameter(torch.zeros(1, heads, dim))  # says which head a token is of

    def head_tokens(self, x: Tensor) -> Tensor:
        """(B, N, C) -> one token a head, (B, heads, C)."""
        means = x.mean(dim=1).unflatten(-1, (self.num_heads, self.head_dim))
        tokens = self.ht_proj(means).unflatten(-1, (self.num_heads, self.head_dim))
        return self.ht_act(self.ht_norm(tokens)).flatten(2) + self.pos_embed

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.shape[1]
        if self.has_head_tokens:
            x = self.attend(torch.cat([x, self.head_tokens(x)], dim=1))
            cls = x[:, :1] + x[:, tokens:].mean(dim=1, keepdim=True)
            x = torch.cat([cls, x[:, 1:tokens]], dim=1)
        else:
            x = self.attend(x)
        return self.proj_drop(x)

    def attend(self, x: Tensor) -> Tensor:
        """Multi-head self-attention with its projection, (B, N, C) -> (B, N, C)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused_attn:
            out = F.scaled_dot_product_attention(q, k, v, dropout_p=self.attn_drop.p if self.training else 0.0)
        else:
            weights = (q * self.scale @ k.transpose(-2, -1)).softmax(dim=-1)
            out = self.attn_drop(weights) @ v
        return self.proj(out.transpose(1, 2).flatten(2))


@register_notrace_module
class AggregationFeedForward(nn.Module):
    """Dynamic aggregation feed-forward (DAFF): (B, 1 + H W, C) and the grid (H, W) -> (B, 1 + H W, C).

    Patches go through an inverted bottleneck with a depthwise convolution. Their mean, squeezed and widened again,
    multiplies the class token, which meets no other layer here; the gate has no sigmoid.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, hidden, 1)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = nn.Conv2d(hidden, dim, 1)
        self.bn3 = nn.BatchNorm2d(dim)
        self.act = nn.GELU()
        self.compress = nn.Linear(dim, dim // 4)
        self.excitation = nn.Linear(dim // 4, dim)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        cls, patches = x[:, :1], x[:, 1:]
        u = patches.transpose(1, 2).unflatten(2, grid)  # (B, C, H, W), channels last in memory: nothing is copied
        u = self.act(self.bn1(self.conv1(u)))
        u = u + self.act(self.bn2(self.conv2(u)))
        patches = self.bn3(self.conv3(u)).flatten(2).transpose(1, 2)
        gate = self.excitation(self.act(self.compress(patches.mean(dim=1, keepdim=True))))
        return torch.cat([cls * gate, patches], dim=1)

    def fuse(self) -> AggregationFeedForward:
        """Fold the norms into the convolutions. Eval mode only."""
        for i in (1, 2, 3):
            setattr(self, f"conv{i}", folded(getattr(self, f"conv{i}"), getattr(self, f"bn{i}")))
            setattr(self, f"bn{i}", nn.Identity())
        return self


class DHVTBlock(nn.Module):
    """Pre-norm block: (B, 1 + H W, C) and the grid (H, W) -> (B, 1 + H W, C)."""

    def __init__(
        self, dim: int, heads: int, hidden: int, *, head_tokens: bool, attn_drop: float, proj_drop: float, path: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.attn = HeadTokenAttention(dim, heads, head_tokens=head_tokens, attn_drop=attn_drop, proj_drop=proj_drop)
        self.drop_path1 = DropPath(path) if path > 0.0 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        self.mlp = AggregationFeedForward(dim, hidden)
        self.drop_path2 = DropPath(path) if path > 0.0 else nn.Identity()

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        x = x + self.drop_path1(self.attn(self.norm1(x)))
        return x + self.drop_path2(self.mlp(self.norm2(x), grid))


def folded(conv: Any, norm: Any) -> nn.Module:
    """One convolution that does what both did; as it was where the norm is folded already."""
    return conv if isinstance(norm, nn.Identity) else fuse_conv_bn_eval(conv, norm)
