"""The operations that a ViT is written in, and their default arithmetic: PyTorch.

Embed, block and head (`parts/blocks.py`, `families/vit.py`) call nothing else, so quantizers, integer-only
arithmetic, relevance propagation or compressed storage are subclasses of `Ops`, never a second forward. Values may be
anything an op set understands (a tensor here; an integer tensor with its scale elsewhere): the text only hands them
on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.layers import apply_rot_embed_cat
from torch import Tensor, nn

Rearrange = Callable[[Tensor], Tensor]


class Ops:
    """The default op set: every operation as PyTorch does it.

    An op set that must see the products of attention one by one sets `fused = False`. One whose linears are no
    longer the model's own float weights sets `float_weights = False`. With `rows_apart`, rows of the attention map that
    a step asks for are scored from q and k, not read off the map: a map that only v meets stays inside the attention
    kernel of an exported graph.
    """

    fused: bool = True
    float_weights: bool = True
    precision: str | None = None  # None: that of the tensors
    rows_apart: bool = False

    def conv(self, site: str, module: nn.Module, x: Any) -> Any:
        """Patch convolution: (B, C, H, W) -> (B, D, h, w)."""
        return module(x)

    def linear(self, site: str, module: nn.Module, x: Any, bias: Tensor | None = None) -> Any:
        """`bias`: one that is made elsewhere (of q, k and v apart), for a module without its own."""
        return module(x) if bias is None else F.linear(x, cast(Tensor, module.weight), bias)

    def norm(self, site: str, module: nn.Module, x: Any) -> Any:
        return module(x)

    def act(self, site: str, module: nn.Module, x: Any) -> Any:
        return module(x)

    def matmul(self, site: str, a: Any, b: Any) -> Any:
        return a @ b

    def softmax(self, site: str, scores: Any) -> Any:
        return scores.softmax(dim=-1)

    def attention(self, site: str, q: Any, k: Any, v: Any, *, scale: float, bias: Tensor | None, dropout: float) -> Any:
        """Fused softmax(q kᵀ · scale + bias) v, (B, H, N, d). Only called when `fused`."""
        usual = scale == q.shape[-1] ** -0.5  # the kernel's own 1/√d differs from it by a bit in float64
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=bias, dropout_p=dropout, scale=None if usual else scale
        )

    def scale(self, site: str, x: Any, factor: float) -> Any:
        return x * factor

    def mask(self, site: str, x: Any, allowed: Tensor) -> Any:
        """Minus infinity where the bool tensor does not allow."""
        return x.masked_fill(~allowed, float("-inf"))

    def mul(self, site: str, x: Any, y: Any) -> Any:
        """Elementwise; `y` may be a parameter (layer scale), (C,)."""
        return x * y

    def add(self, site: str, x: Any, y: Any) -> Any:
        return x + y

    def clone(self, site: str, x: Any) -> tuple[Any, Any]:
        """The two uses of a residual stream: (into the branch, along the shortcut)."""
        return x, x

    def cat(self, site: str, xs: Sequence[Any], dim: int = 1) -> Any:
        """Concatenate (B, N_i, C) along the tokens, or along the channels (`dim` -1)."""
        return torch.cat(list(xs), dim=dim)

    def param(self, site: str, p: Tensor, x: Any) -> Any:
        """A parameter (1, N, C) enters the arithmetic of `x`."""
        return p

    def expand(self, site: str, p: Tensor, x: Any) -> Any:
        """A learned token (1, N, C) enters the arithmetic of `x`, once for each image of its batch."""
        return p.expand(x.shape[0], -1, -1)

    def rearrange(self, site: str, x: Any, fn: Rearrange) -> Any:
        """`fn` moves elements (reshape, permute, index) and never computes with them."""
        return fn(x)

    def pick(self, site: str, x: Any, fn: Rearrange) -> Any:
        """`fn` takes elements by their values (max pooling); what it gives are elements of `x`."""
        return fn(x)

    def mix(self, site: str, x: Any, fn: Rearrange) -> Any:
        """`fn` makes tokens that are weighted sums of tokens, (B, N, C) -> (B, M, C). It is linear in `x`."""
        return fn(x)

    def mean(self, site: str, x: Any, *, weights: Tensor | None = None) -> Any:
        """Mean over the tokens, (B, N, C) -> (B, C); `weights` (B, N): weighted by the patches of each token."""
        if weights is None:
            return x.mean(dim=1)
        mean = (x * weights.unsqueeze(-1)).sum(dim=1) / weights.sum(dim=1, keepdim=True)
        return mean.to(x.dtype)  # weights are float32, also of a model in half precision

    def amax(self, site: str, x: Any) -> Any:
        """Maximum over the tokens, (B, N, C) -> (B, C)."""
        return x.amax(dim=1)

    def rotate(self, site: str, x: Any, table: Tensor, *, prefix: int, half: bool) -> Any:
        """Rotary positions, (B, H, N, d) -> (B, H, N, d): pairs of channels turn by the angles of their token.

        `table` (..., N - prefix, 2 d) holds sines, then cosines; the first `prefix` tokens stay. Pairs are neighbours,
        or, with `half`, channels half a head apart.
        """
        return torch.cat([x[:, :, :prefix], apply_rot_embed_cat(x[:, :, prefix:], table, half=half)], dim=2)

    def sigmoid(self, site: str, x: Any) -> Any:
        return x.sigmoid()

    def drop(self, module: nn.Module, x: Any) -> Any:
        """Dropout, drop path and patch dropout: nothing outside training, whatever the values are."""
        return module(x) if module.training else x

    def shape(self, x: Any) -> tuple[int, ...]:
        return tuple(x.shape)


TORCH = Ops()
