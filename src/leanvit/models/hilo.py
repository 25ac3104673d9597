"""HiLo: attention in two groups of heads, near ones in windows and far ones on a pooled grid (arXiv 2205.13213).

The layer of LITv2 (`litv2.py`), usable wherever tokens lie on a grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_module
from torch import Tensor, nn

from leanvit.errors import BadInput, Refused, is_whole
from leanvit.knobs import Count, Fraction, check


@register_notrace_module
class HiLoAttention(nn.Module):
    """Heads for high frequencies (Hi-Fi), each inside a window, and for low ones (Lo-Fi), on pooled keys (section 3).

    Of `num_heads` heads, int(num_heads * alpha) are Lo-Fi: their queries are all tokens, their keys and values come
    from the means of the windows. The others attend inside windows of window_size x window_size tokens that do not
    overlap. The results lie side by side, Hi-Fi first, and nothing mixes them. With window_size 1 all heads attend to
    all tokens, whatever alpha says. There is no position in it: the network's depthwise convolutions bring that.

    A grid that windows do not fill is padded with zeros at the right and the bottom, before the projections; padded
    positions are attended to like others, as in the paper's code for detection.

    In a timm ViT, whose tokens are a sequence: `block.attn = HiLoAttention(192, 3, grid_size=(14, 14))`. Such a model
    must be without class and register tokens (`class_token=False, global_pool="avg"`): those have no position in a
    window.

    Args:
        dim: channels C. num_heads: heads, which divide C.
        window_size: side of a window. alpha: share of Lo-Fi heads, 0 to 1.
        qk_scale: factor on the scores; None: head_dim ** -0.5.
        grid_size: (H, W) of the grid that sequences are; not needed for maps.

    Raises:
        BadInput: a value outside its range.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        *,
        window_size: int = 2,
        alpha: float = 0.5,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        grid_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        check_heads("dim", dim, "num_heads", num_heads)
        check("window_size", window_size, Count)
        check("alpha", alpha, Fraction)
        self.head_dim = dim // num_heads
        self.scale = qk_scale
        self.window_size, self.alpha, self.grid_size = window_size, alpha, grid_size
        self.l_heads = num_heads if window_size == 1 else int(num_heads * alpha)
        self.h_heads = num_heads - self.l_heads
        self.l_dim, self.h_dim = self.l_heads * self.head_dim, self.h_heads * self.head_dim
        self.pool = nn.AvgPool2d(window_size)
        self.h_qkv, self.h_proj = _linear(dim, 3 * self.h_dim, qkv_bias), _linear(self.h_dim, self.h_dim)
        self.l_q, self.l_kv = _linear(dim, self.l_dim, qkv_bias), _linear(dim, 2 * self.l_dim, qkv_bias)
        self.l_proj = _linear(self.l_dim, self.l_dim)
        self.joint: nn.Linear | None = None  # after `fuse`: every projection of the unpooled map in one

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C), or, with `grid_size`, (B, H * W, C) -> (B, H * W, C).

        Raises `BadInput` for a sequence that is not the grid (prefix tokens), `Refused` for a mask.
        """
        if attn_mask is not None or is_causal:
            raise Refused("HiLo attends in windows and to means of windows: it takes no mask of tokens")
        if x.dim() == 3:
            return self._of_map(x.unflatten(1, self._grid_of(x))).flatten(1, 2)
        return self._of_map(x)

    def fuse(self) -> None:
        """Make one linear of those that read the same map, in place. Its outputs are the same up to rounding."""
        parts = (self.l_q, self.l_kv) if self.window_size == 1 else (self.h_qkv, self.l_q)
        if self.joint is not None or None in parts:
            return
        self.joint = _side_by_side([part for part in parts if part is not None])
        self.l_q = None
        if self.window_size == 1:
            self.l_kv = None
        else:
            self.h_qkv = None

    def _grid_of(self, x: Tensor) -> tuple[int, int]:
        if self.grid_size is None:
            raise BadInput(f"x is {tuple(x.shape)}, a sequence: give HiLoAttention a grid_size, or a map (B, H, W, C)")
        height, width = self.grid_size
        if x.shape[1] != height * width:
            raise BadInput(
                f"x has {x.shape[1]} tokens, grid_size {self.grid_size} has {height * width}: HiLo takes grid tokens "
                "only, build the model without class and register tokens (class_token=False, global_pool='avg')"
            )
        return height, width

    def _of_map(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        down, right = -height % self.window_size, -width % self.window_size
        if down or right:
            x = F.pad(x, (0, 0, 0, right, 0, down))
        high, q, kv = self._projected(x)
        parts = ([] if high is None else [self._near(high)]) + ([] if q is None else [self._far(q, kv)])
        y = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        return y[:, :height, :width] if down or right else y

    def _projected(self, x: Tensor) -> tuple[Tensor | None, Tensor | None, Any]:
        """Hi-Fi's q, k, v (B, H, W, 3 h_dim), Lo-Fi's q (B, H, W, l_dim) and k, v (B, h, w, 2 l_dim), or None each."""
        if self.joint is None:
            high = None if self.h_qkv is None else self.h_qkv(x)
            q = None if self.l_q is None else self.l_q(x)
        elif self.window_size == 1:
            return (None, *self.joint(x).split((self.l_dim, 2 * self.l_dim), dim=-1))
        else:
            high, q = self.joint(x).split((3 * self.h_dim, self.l_dim), dim=-1)
        return high, q, None if self.l_kv is None else self.l_kv(self._pooled(x))

    def _pooled(self, x: Tensor) -> Tensor:
        return x if self.window_size == 1 else self.pool(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def _near(self, qkv: Tensor) -> Tensor:
        """Attention inside windows: (B, H, W, 3 h_dim) -> (B, H, W, h_dim)."""
        batch, height, width = qkv.shape[:3]
        s, heads = self.window_size, self.h_heads
        cut = qkv.reshape(batch, height // s, s, width // s, s, 3, heads, self.head_dim)
        windows = cut.permute(5, 0, 1, 3, 6, 2, 4, 7)  # (3, B, rows, columns, heads, s, s, d)
        q, k, v = windows.reshape(3, -1, heads, s * s, self.head_dim).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        y = y.reshape(batch, height // s, width // s, heads, s, s, self.head_dim).permute(0, 1, 4, 2, 5, 3, 6)
        return _applied(self.h_proj, y.reshape(batch, height, width, self.h_dim))

    def _far(self, q: Tensor, kv: Tensor) -> Tensor:
        """Attention of every token to the pooled ones: (B, H, W, l_dim), (B, h, w, 2 l_dim) -> (B, H, W, l_dim)."""
        batch, height, width = q.shape[:3]
        q = q.reshape(batch, height * width, self.l_heads, self.head_dim).transpose(1, 2)
        k, v = kv.reshape(batch, -1, 2, self.l_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, scale=self.scale).transpose(1, 2)
        return _applied(self.l_proj, y.reshape(batch, height, width, self.l_dim))


def check_heads(dim_name: str, dim: Any, heads_name: str, heads: Any) -> None:
    """Raise `BadInput` unless there is a whole number of heads that divides the channels."""
    if not is_whole(heads, least=1) or not is_whole(dim, least=1) or dim % heads:
        raise BadInput(
            f"{heads_name} is {heads!r} for {dim_name} {dim!r}; accepted: whole numbers, heads divide channels"
        )


def _linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear | None:
    return nn.Linear(inputs, outputs, bias=bias) if outputs else None


def _applied(linear: nn.Linear | None, x: Tensor) -> Tensor:
    assert linear is not None
    return linear(x)


def _side_by_side(linears: Sequence[nn.Linear]) -> nn.Linear:
    """One linear whose outputs are those of several, in order."""
    like = linears[0].weight
    bias = linears[0].bias is not None
    outputs = sum(part.out_features for part in linears)
    joint = nn.Linear(linears[0].in_features, outputs, bias=bias, device=like.device, dtype=like.dtype)
    with torch.no_grad():
        joint.weight.copy_(torch.cat([part.weight for part in linears]))
        if bias:
            joint.bias.copy_(torch.cat([part.bias for part in linears]))
    return joint
