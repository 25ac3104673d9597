"""The tokens-to-token module: three overlapping soft splits with an attention behind each of the first two.

A soft split unfolds a map into overlapping windows, a token each (section 3.1 of the paper). The attention behind it
has one head, and its skip comes from the *values*, as the width changes inside. Children carry the official names.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from timm.layers import Mlp, register_notrace_module
from torch import Tensor, nn
from torch.nn import functional as F

from leanvit.anatomy.arithmetic.score import autocast_off
from leanvit.errors import BadInput

STRIDE = 16  # pixels of the image a side of a token's cell: 4 x 2 x 2
TOKENS_TYPES = ("performer", "transformer")
EPS = 1e-8  # added to a row's sum of weights


class PerformerCell(nn.Module):
    """Attention with positive random features, linear in the number of tokens (FAVOR+, arXiv 2009.14794), and an MLP.

    phi(u) = exp(u wᵀ - |u|²/2) / √m weighs value j for query i by phi(q_i) · phi(k_j); there is no softmax, and no
    scale. The features are computed in float32 whatever the precision around them: |u|²/2 leaves the range of float16.

    Args:
        dim: channels that come in.
        width: channels of k, q, v and of what goes out.
        kernel_ratio: random features m = width · kernel_ratio, at most one a channel.
        dropout: behind the projection and in the MLP; part of the published cell, whatever `drop_rate` is.
        fp32: float32 features. Without, they are of the dtype at hand.
        stable_exp: subtract the largest exponent (of a query, or of all keys of an image) before `exp`. The same
            quotient but for `EPS`; for activations so large that all weights of a row would round to zero.
    """

    RUNS_WHOLE = True  # one step that stays float: its exponentials are no place for 8 bits

    w: Tensor

    def __init__(
        self,
        dim: int,
        width: int,
        *,
        kernel_ratio: float = 0.5,
        dropout: float = 0.1,
        fp32: bool = True,
        stable_exp: bool = False,
    ) -> None:
        super().__init__()
        self.fp32, self.stable_exp = fp32, stable_exp
        self.norm1 = nn.LayerNorm(dim)
        self.kqv = nn.Linear(dim, 3 * width)
        self.proj = nn.Linear(width, width)
        self.proj_drop = nn.Dropout(dropout)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.Dropout(dropout))
        features = max(1, int(width * kernel_ratio))
        self.register_buffer("w", nn.init.orthogonal_(torch.empty(features, width)) * math.sqrt(features))

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, dim) -> (B, N, width)."""
        k, q, v = self.kqv(self.norm1(x)).chunk(3, dim=-1)
        x = v + self.proj_drop(self.proj(self.attended(k, q, v)))
        return x + self.mlp(self.norm2(x))

    def attended(self, k: Tensor, q: Tensor, v: Tensor) -> Tensor:
        """Weighted mean of the values for each query, each (B, N, width)."""
        dtype = v.dtype
        with self._precision(v.device.type):
            if self.fp32:
                k, q, v = k.float(), q.float(), v.float()
            keys = self._features(k, largest=(1, 2))  # (B, N, m)
            queries = self._features(q, largest=(2,))
            total = queries @ keys.sum(dim=1).unsqueeze(-1)  # (B, N, 1)
            y = queries @ (keys.transpose(1, 2) @ v) / (total + EPS)
        return y.to(dtype)

    def extra_repr(self) -> str:
        return f"fp32={self.fp32}, stable_exp={self.stable_exp}"

    def _features(self, u: Tensor, largest: tuple[int, ...]) -> Tensor:
        """phi(u), (B, N, m); `largest`: the dimensions that share what `stable_exp` subtracts."""
        w = self.w.to(u.dtype)
        exponent = u @ w.T - u.square().sum(dim=-1, keepdim=True) / 2
        if self.stable_exp:
            exponent = exponent - exponent.amax(dim=largest, keepdim=True)
        return exponent.exp() / math.sqrt(w.shape[0])

    def _precision(self, device: str) -> AbstractContextManager[object]:
        return autocast_off(device) if self.fp32 else nullcontext()


class SoftmaxMean(nn.Module):
    """softmax(q kᵀ · scale) v of one head, without parameters.

    A step of its own, so that it stays float where everything else is rounded: a weight of one among thousands of
    tokens is below a step of 8 bits, and a map of all their pairs does not fit the memory of a calibration.
    """

    RUNS_WHOLE = True

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, qkv: Tensor) -> Tensor:
        """q, k, v side by side, (B, N, 3 width) -> (B, N, width)."""
        q, k, v = qkv.unsqueeze(1).chunk(3, dim=-1)  # one head: (B, 1, N, width)
        return F.scaled_dot_product_attention(q, k, v, scale=self.scale).squeeze(1)

    def extra_repr(self) -> str:
        return f"scale={self.scale}"


class CellAttention(nn.Module):
    """Softmax attention with one head whose skip comes from the values.

    The scale is that of the width that comes *in*, dim ** -0.5, as in the published code.
    """

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * width, bias=False)
        self.mean = SoftmaxMean(dim**-0.5)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, dim) -> (B, N, width)."""
        qkv = self.qkv(x)
        return qkv.chunk(3, dim=-1)[2] + self.proj(self.mean(qkv))


class TransformerCell(nn.Module):
    """Softmax attention and an MLP, both as wide as what goes out."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = CellAttention(dim, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, dim) -> (B, N, width)."""
        x = self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


@register_notrace_module
class TokensToToken(nn.Module):
    """Images to tokens, (B, C, H, W) -> (B, H W / 256, embed_dim).

    Args:
        img_size: (H, W), multiples of 16.
        tokens_type: "performer" or "transformer", the kind of its two cells.
        token_dim: width inside.
        fp32, stable_exp: of the performer cells.

    Raises:
        BadInput: a size that 16 does not divide, or an unknown kind. Of `forward`: images of another size.
    """

    patch_size = (STRIDE, STRIDE)
    strict_img_size = True
    dynamic_img_pad = False
    resize_positions = "interpolate"  # what becomes of the positions of a checkpoint of another image size

    def __init__(
        self,
        img_size: tuple[int, int],
        in_chans: int,
        embed_dim: int,
        *,
        tokens_type: str = "performer",
        token_dim: int = 64,
        fp32: bool = True,
        stable_exp: bool = False,
    ) -> None:
        super().__init__()
        if tokens_type not in TOKENS_TYPES:
            raise BadInput(f"tokens_type is {tokens_type!r}; accepted: {', '.join(map(repr, TOKENS_TYPES))}")
        self.img_size, self.in_chans = img_size, in_chans
        self.grid_size = (img_size[0] // STRIDE, img_size[1] // STRIDE)
        self.num_patches = self.grid_size[0] * self.grid_size[1]

        def cell(dim: int) -> nn.Module:
            if tokens_type == "transformer":
                return TransformerCell(dim, token_dim)
            return PerformerCell(dim, token_dim, fp32=fp32, stable_exp=stable_exp)

        self.soft_split0 = nn.Unfold(kernel_size=7, stride=4, padding=2)
        self.soft_split1 = nn.Unfold(kernel_size=3, stride=2, padding=1)
        self.soft_split2: nn.Module = nn.Unfold(kernel_size=3, stride=2, padding=1)
        self.attention1 = cell(49 * in_chans)
        self.attention2 = cell(9 * token_dim)
        self.project: nn.Linear | nn.Conv2d = nn.Linear(9 * token_dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Raises `BadInput` for images of another size than the module was built for."""
        height, width = x.shape[-2:]
        if (height, width) != self.img_size:
            built = f"{self.img_size[0]}x{self.img_size[1]}"
            raise BadInput(f"images are {height}x{width}, the model takes {built} (img_size)")
        x = self.attention1(self.soft_split0(x).transpose(1, 2))
        x = self.attention2(self.soft_split1(as_map(x, self.grid(4))).transpose(1, 2))
        x = as_map(x, self.grid(8))
        if isinstance(self.project, nn.Conv2d):
            return self.project(x).flatten(2).transpose(1, 2)
        return self.project(self.soft_split2(x).transpose(1, 2))

    def fuse(self) -> TokensToToken:
        """In place, the last soft split and the projection as the convolution that they are together."""
        if isinstance(self.project, nn.Conv2d):
            return self
        out, width = self.project.out_features, self.project.in_features // 9
        conv = nn.Conv2d(width, out, kernel_size=3, stride=2, padding=1)
        conv.weight = nn.Parameter(self.project.weight.detach().unflatten(1, (width, 3, 3)))
        conv.bias = nn.Parameter(self.project.bias.detach())
        self.soft_split2, self.project = nn.Identity(), conv.eval()
        return self

    def grid(self, stride: int) -> tuple[int, int]:
        """Rows and columns of the map whose cells are `stride` pixels wide."""
        return self.img_size[0] // stride, self.img_size[1] // stride


def as_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tokens in rows, (B, h w, C), as a map (B, C, h, w)."""
    return tokens.transpose(1, 2).unflatten(2, grid)
