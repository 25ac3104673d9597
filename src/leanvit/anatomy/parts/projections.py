"""Attentions whose q, k and v do not come from one linear with its own bias, and those with a bias of positions."""

from __future__ import annotations

from typing import Any

import torch
from timm.models.beit import gen_relative_position_index
from torch import Tensor, nn

from leanvit.anatomy.arithmetic.ops import Ops
from leanvit.anatomy.parts.blocks import Attention, head_cut
from leanvit.anatomy.parts.positions import bias_at, bias_of
from leanvit.anatomy.state import State


class BiasedAttention(Attention):
    """One linear for q, k and v, whose bias is kept apart: learned for q and v, zero for k, or none
    at all (BEiT, EVA).

    `separate` adds the bias after the product, as a sum of its own; else the product takes it.
    """

    q_bias: Tensor | None
    k_bias: Tensor | None
    v_bias: Tensor

    def __init__(
        self,
        *,
        q_bias: nn.Parameter | None,
        k_bias: Tensor | None,
        v_bias: nn.Parameter | None,
        separate: bool = False,
        **parts: Any,
    ) -> None:
        super().__init__(**parts)
        self.register_parameter("q_bias", q_bias)
        self.register_buffer("k_bias", k_bias, persistent=False)
        self.register_parameter("v_bias", v_bias)
        self.separate = separate

    def init_non_persistent_buffers(self) -> None:
        """Fill what no state dict holds (timm's name for it); a load calls it."""
        if self.k_bias is not None:
            self.k_bias.zero_()

    def project(self, x: Any, ops: Ops) -> tuple[Any, Any, Any]:
        if self.q_bias is None:
            return super().project(x, ops)
        assert self.k_bias is not None
        bias, at = torch.cat([self.q_bias, self.k_bias, self.v_bias]), f"{self.name}.qkv"
        if not self.separate:
            return self.split_heads(ops, ops.linear(at, self.qkv, x, bias))
        qkv = ops.linear(at, self.qkv, x)
        return self.split_heads(ops, ops.add(f"{at}_bias", qkv, ops.param(f"{at}_bias_param", bias, qkv)))


class SplitAttention(Attention):
    """A linear each for q, k and v. Keys and values may have fewer heads than queries (grouped queries)."""

    def __init__(self, *, q_proj: nn.Module, k_proj: nn.Module, v_proj: nn.Module, kv_heads: int, **parts: Any) -> None:
        super().__init__(**parts)
        self.q_proj, self.k_proj, self.v_proj = q_proj, k_proj, v_proj
        self.kv_heads = kv_heads

    def project(self, x: Any, ops: Ops) -> tuple[Any, Any, Any]:
        at = self.name
        rows = (
            ("q", self.q_proj, self.heads, self.qk_dim),
            ("k", self.k_proj, self.kv_heads, self.qk_dim),
            ("v", self.v_proj, self.kv_heads, self.v_dim),
        )
        q, k, v = (
            ops.rearrange(
                f"{at}.{letter}", ops.linear(f"{at}.{letter}_proj", linear, x), head_cut(0, None, heads, width)
            )
            for letter, linear, heads, width in rows
        )
        return q, k, v


class RelPosAttention(Attention):
    """With relative positions in a module of its own (timm's `RelPosBias`, `RelPosMlp`), or shared by the model."""

    PLAIN = True
    PLACED = True
    rel_pos: Any

    def __init__(self, *, rel_pos: nn.Module | None, **parts: Any) -> None:
        super().__init__(**parts)
        self.rel_pos = rel_pos

    def position_bias(self, state: State) -> Tensor | None:
        own = state.position_bias if self.rel_pos is None else self.rel_pos.get_bias()
        return None if own is None else bias_at(own, state)


class BeitAttention(BiasedAttention):
    """BEiT's: relative positions in a table of the attention itself, added to the model's shared bias."""

    PLACED = True
    relative_position_bias_table: Tensor | None
    relative_position_index: Tensor

    def __init__(
        self, *, table: nn.Parameter | None, index: Tensor | None, window: tuple[int, int] | None, **parts: Any
    ) -> None:
        """`window`: the grid (rows, columns) that `index` is of."""
        super().__init__(**parts)
        self.window = window
        self.register_parameter("relative_position_bias_table", table)
        self.register_buffer("relative_position_index", index, persistent=False)

    def init_non_persistent_buffers(self) -> None:
        super().init_non_persistent_buffers()
        if self.window is not None:
            index = self.relative_position_index
            index.copy_(gen_relative_position_index(self.window, device=index.device))

    def position_bias(self, state: State) -> Tensor | None:
        table, bias = self.relative_position_bias_table, state.position_bias
        if table is not None:
            own = bias_of(table, self.relative_position_index)
            bias = own if bias is None else own + bias
        return None if bias is None else bias_at(bias, state)
