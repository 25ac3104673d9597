"""Cross attention: queries of some tokens, keys and values of others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from leanvit.anatomy.arithmetic.ops import Ops
from leanvit.anatomy.parts.blocks import Attention, head_cut
from leanvit.anatomy.state import State

_NUMBERS = ("name", "heads", "qk_dim", "v_dim", "scale", "fused", "scale_on_q")
_CHILDREN = ("q_norm", "k_norm", "attn_drop", "norm", "gate", "proj", "proj_drop")
PARTS = (*_NUMBERS, *_CHILDREN)  # of an attention, but what gives q, k and v


class CrossAttention(Attention):
    """Attention with one linear for q and one for [k, v]: (B, N, C), and (B, M, C) that it looks at -> (B, N, C)."""

    def __init__(self, *, q: nn.Linear, kv: nn.Linear, **parts: Any) -> None:
        """`q` gives heads x qk_dim channels, `kv` [k (heads x qk_dim), v (heads x v_dim)]; `parts`: see `Attention`."""
        super().__init__(**parts)
        self.q, self.kv = q, kv

    @classmethod
    def like(cls, attn: Attention) -> CrossAttention:
        """Heads, widths and other parts of a self-attention, by reference; its linears are new and hold zeros."""
        parts = {key: getattr(attn, key) for key in PARTS}
        q = _empty(attn.qkv, attn.heads * attn.qk_dim)
        kv = _empty(attn.qkv, attn.heads * (attn.qk_dim + attn.v_dim))
        return cls(q=q, kv=kv, **parts)

    def take(self, before: Mapping[str, Tensor]) -> None:
        """Values from those of the self-attention in a state dict, whose one linear gave q, k and v."""
        cut = self.heads * self.qk_dim
        for key in ("weight", "bias"):
            if f"{self.name}.qkv.{key}" in before:
                joint = before[f"{self.name}.qkv.{key}"]
                getattr(self.q, key).copy_(joint[:cut])
                getattr(self.kv, key).copy_(joint[cut:])

    def across(self, x: Any, keys: Any, state: State) -> tuple[Any, State]:
        """Queries of `x` (B, N, C), keys and values of `keys` (B, M, C) -> (B, N, C)."""
        ops, at, qk = state.ops, self.name, self.heads * self.qk_dim
        gate = self.gate_of(x, ops)
        q = ops.rearrange(f"{at}.q_heads", ops.linear(f"{at}.q", self.q, x), head_cut(0, None, self.heads, self.qk_dim))
        kv = ops.linear(f"{at}.kv", self.kv, keys)
        k = ops.rearrange(f"{at}.k", kv, head_cut(0, qk, self.heads, self.qk_dim))
        v = ops.rearrange(f"{at}.v", kv, head_cut(qk, None, self.heads, self.v_dim))
        return self.joined(gate, q, k, v, state, frozenset())

    def project(self, x: Any, ops: Ops) -> tuple[Any, Any, Any]:
        raise TypeError(f"{self.name} is cross attention: call across(x, keys, state)")


def _empty(like: nn.Linear, outputs: int) -> nn.Linear:
    weight = like.weight
    new = nn.Linear(like.in_features, outputs, bias=like.bias is not None, device="meta", dtype=weight.dtype)
    new.to_empty(device=weight.device)
    with torch.no_grad():
        for p in new.parameters():
            p.zero_()
    return new
