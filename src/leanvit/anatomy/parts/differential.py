"""Differential attention: the difference of two softmax maps (Ye et al., arXiv 2410.05258), as timm runs it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from leanvit.anatomy.arithmetic.ops import Ops
from leanvit.anatomy.arithmetic.score import Phases, normalise, score_rows, scores
from leanvit.anatomy.parts.blocks import Attention, Heads, head_cut
from leanvit.anatomy.parts.parallel import JointBlock
from leanvit.anatomy.state import State

LAMBDAS = ("lambda_a", "lambda_b", "lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2")


class DifferentialHeads(Heads):
    """Two maps for each head, from q and k of half its width; the second is taken off lambda times.

    `owner` holds lambda's parameters and `sub_norm`. The class attention that a step asks for is the difference, and
    may be negative; `keys` are those of both maps.
    """

    lambda_init: float

    @property
    def maps(self) -> int:
        return 2 * self.heads

    def weigh_pair(
        self,
        owner: nn.Module,
        qkv: tuple[Any, Any, Any],
        state: State,
        needs: frozenset[str],
        dropout: nn.Module,
    ) -> tuple[Any, State]:
        """q, k (B, 2 H, N, d), v (B, H, N, 2 d) -> (B, H, N, 2 d)."""
        ops, at = state.ops, self.name
        q, k, v = qkv
        weight = self._lambda(owner).to(q.dtype) if isinstance(q, Tensor) else self._lambda(owner)
        phases = self.phases(state)
        if self.fused and ops.fused and phases.fusable:
            out = self._fused(ops, qkv, weight, phases, dropout)
        else:
            s = scores(ops, at, q, k, self.scale, phases, scale_on_q=True)
            maps = ops.drop(dropout, normalise(ops, at, s, phases))
            out = ops.matmul(f"{at}.matmul2", self._difference(ops, maps, weight), v)
        if "keys" in needs:
            state = state.with_(keys=k)
        if "cls_attn" in needs:
            first = slice(0, 1)
            rows = score_rows(q[:, :, first], k, scale=self.scale, phases=phases.rows(first))[:, :, 0]
            row = rows[:, 0::2] - weight * rows[:, 1::2]  # (B, H, N)
            state = state.with_(cls_attn=row[:, :, state.num_prefix :].mean(dim=1))
        out = ops.norm(f"{at}.sub_norm", owner.get_submodule("sub_norm"), out)
        return ops.scale(f"{at}.sub_scale", out, 1 - self.lambda_init), state

    def _fused(self, ops: Ops, qkv: tuple[Any, Any, Any], weight: Tensor, phases: Phases, dropout: nn.Module) -> Any:
        q, k, v = qkv
        bias = phases.additive
        bias = None if bias is None else bias.to(q.dtype)
        p = dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0
        scale = self.scale / phases.temperature
        first, second = (
            ops.attention(
                f"{self.name}.map{i + 1}",
                ops.rearrange(f"{self.name}.q{i + 1}", q, _every_other(i)),
                ops.rearrange(f"{self.name}.k{i + 1}", k, _every_other(i)),
                v,
                scale=scale,
                bias=bias,
                dropout=p,
            )
            for i in (0, 1)
        )
        return self._minus(ops, first, second, weight)

    def _difference(self, ops: Ops, maps: Any, weight: Tensor) -> Any:
        first, second = (ops.rearrange(f"{self.name}.map{i + 1}", maps, _every_other(i)) for i in (0, 1))
        return self._minus(ops, first, second, weight)

    def _minus(self, ops: Ops, first: Any, second: Any, weight: Tensor) -> Any:
        second = ops.scale(f"{self.name}.minus", ops.mul(f"{self.name}.lambda", second, weight), -1.0)
        return ops.add(f"{self.name}.difference", first, second)

    def _lambda(self, owner: nn.Module) -> Tensor:
        """The factor of the second map, learned; a scalar (paper, equation 2)."""
        p = owner._parameters
        if p.get("lambda_a") is not None:
            return torch.exp(_some(p["lambda_a"])) - torch.exp(_some(p["lambda_b"])) + self.lambda_init
        one = torch.exp(torch.sum(_some(p["lambda_q1"]) * _some(p["lambda_k1"]), dim=-1).float())
        two = torch.exp(torch.sum(_some(p["lambda_q2"]) * _some(p["lambda_k2"]), dim=-1).float())
        return one - two + self.lambda_init


class DifferentialAttention(DifferentialHeads, Attention):
    """Differential attention with its own projections (timm's `DiffAttention`). `v_dim` is twice `qk_dim`."""

    def __init__(
        self, *, sub_norm: nn.Module, lambdas: dict[str, nn.Parameter], lambda_init: float, **parts: Any
    ) -> None:
        Attention.__init__(self, **parts)
        self.sub_norm = sub_norm
        for key, value in lambdas.items():
            self.register_parameter(key, value)
        self.lambda_init = lambda_init

    def split_heads(self, ops: Ops, qkv: Any) -> tuple[Any, Any, Any]:
        width = self.heads * self.v_dim
        return split_pairs(ops, self.name, qkv, start=0, width=width, heads=self)

    def weigh(
        self, q: Any, k: Any, v: Any, state: State, needs: frozenset[str], dropout: nn.Module | None = None
    ) -> tuple[Any, State]:
        return self.weigh_pair(self, (q, k, v), state, needs, dropout or nn.Identity())


class DifferentialJointBlock(JointBlock):
    """Differential attention beside the MLP (timm's `DiffParallelScalingBlock`)."""

    attn: DifferentialHeads

    def __init__(self, *, lambdas: dict[str, nn.Parameter], **parts: Any) -> None:
        super().__init__(**parts)
        for key, value in lambdas.items():
            self.register_parameter(key, value)

    def _projected(self, both: Any, ops: Ops) -> tuple[Any, Any, Any]:
        heads = self.attn
        return split_pairs(ops, self.name, both, start=self.hidden, width=heads.heads * heads.v_dim, heads=heads)

    def _weighed(self, qkv: tuple[Any, Any, Any], state: State, needs: frozenset[str]) -> tuple[Any, State]:
        return self.attn.weigh_pair(self, qkv, state, needs, self.attn_drop)


def split_pairs(ops: Ops, at: str, qkv: Any, *, start: int, width: int, heads: Heads) -> tuple[Any, Any, Any]:
    """Channels from `start` as q, k (B, 2 H, N, qk_dim) and v (B, H, N, v_dim)."""
    rows = (("q", 2 * heads.heads, heads.qk_dim), ("k", 2 * heads.heads, heads.qk_dim), ("v", heads.heads, heads.v_dim))
    q, k, v = (
        ops.rearrange(f"{at}.{letter}", qkv, head_cut(start + i * width, start + (i + 1) * width, count, dim))
        for i, (letter, count, dim) in enumerate(rows)
    )
    return q, k, v


def _every_other(i: int) -> Any:
    return lambda t: t[:, i::2]


def _some(p: Tensor | None) -> Tensor:
    assert p is not None
    return p
