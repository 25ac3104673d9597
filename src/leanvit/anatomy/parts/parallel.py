"""Blocks whose attention and MLP run side by side, or that have several of each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from leanvit.anatomy.arithmetic.ops import Ops
from leanvit.anatomy.parts.blocks import Attention, Block, Heads, Mlp, apply_norm, head_cut, layer_scale, merge_heads
from leanvit.anatomy.state import State


class Branch(nn.Module):
    """One of several residual branches: norm, attention or MLP, layer scale, drop path."""

    def __init__(self, *, name: str, norm: nn.Module, ls: nn.Module, drop_path: nn.Module, **part: nn.Module) -> None:
        """`part` is `attn` or `mlp`, under that name."""
        super().__init__()
        self.name = name
        self.norm = norm
        for key, module in part.items():
            self.add_module(key, module)
        self.ls, self.drop_path = ls, drop_path

    def ends(self, state: State, x: Any) -> Any:
        return state.ops.drop(self.drop_path, layer_scale(state.ops, f"{self.name}.ls", self.ls, x))


class AttentionBranch(Branch):
    attn: Attention

    def forward(self, x: Any, state: State, needs: frozenset[str]) -> tuple[Any, State]:
        x, state = self.attn(apply_norm(state.ops, f"{self.name}.norm", self.norm, x), state, needs)
        return self.ends(state, x), state


class MlpBranch(Branch):
    mlp: Mlp

    def forward(self, x: Any, state: State) -> tuple[Any, State]:
        x, state = self.mlp(apply_norm(state.ops, f"{self.name}.norm", self.norm, x), state)
        return self.ends(state, x), state


class ManyBlock(Block):
    """Several attentions side by side, then several MLPs (Touvron et al., arXiv 2203.09795).

    The class attention that a step asks for is the mean over the attentions, the keys are those of all their heads.
    """

    def __init__(self, *, name: str, attns: list[AttentionBranch], ffns: list[MlpBranch]) -> None:
        nn.Module.__init__(self)
        self.name = name
        self.attns, self.ffns = nn.ModuleList(attns), nn.ModuleList(ffns)
        self.add_slots()

    def attentions(self) -> list[Any]:
        return [branch.attn for branch in self.attns]

    def attended(self, x: Any, state: State, needs: frozenset[str]) -> tuple[Any, State]:
        ops, at = state.ops, self.name
        branch, shortcut = ops.clone(f"{at}.clone1", x)
        outs: list[Any] = []
        seen: list[State] = []
        for attend in self.attns:
            out, after = attend(branch, state, needs)
            outs.append(out)
            seen.append(after)
        if "cls_attn" in needs:
            state = state.with_(cls_attn=_mean([after.cls_attn for after in seen]))
        if "keys" in needs:
            state = state.with_(keys=torch.cat([after.keys for after in seen if after.keys is not None], dim=1))
        return ops.add(f"{at}.add1", shortcut, self._sum(f"{at}.sum1", outs, state)), state

    def transformed(self, x: Any, state: State) -> tuple[Any, State]:
        ops, at = state.ops, self.name
        branch, shortcut = ops.clone(f"{at}.clone2", x)
        state = state.counted(ops.shape(branch)[1])
        outs: list[Any] = []
        for transform in self.ffns:
            out, state = transform(branch, state)
            outs.append(out)
        return ops.add(f"{at}.add2", shortcut, self._sum(f"{at}.sum2", outs, state)), state

    def _sum(self, site: str, xs: list[Any], state: State) -> Any:
        total, *others = xs
        for i, x in enumerate(others):
            total = state.ops.add(f"{site}.{i}", total, x)
        return total


class JointBlock(Block):
    """Attention and MLP on the same tokens, from one linear (Dehghani et al., arXiv 2302.05442).

    There is nothing between the two: steps of the slot `between` work on the sum of both, at the end of the block.
    """

    in_norm: nn.Module
    in_proj: nn.Module
    q_norm: nn.Module
    k_norm: nn.Module
    attn_drop: nn.Module
    mlp_act: nn.Module
    mlp_drop: nn.Module
    out_proj: Any  # None where each has its own
    attn_out_proj: Any
    mlp_out_proj: Any
    ls: nn.Module
    drop_path: nn.Module
    mlp_bias: Tensor | None

    def __init__(
        self, *, name: str, heads: Heads, hidden: int, parts: dict[str, nn.Module], mlp_bias: nn.Parameter | None
    ) -> None:
        """`parts`: timm's children; `out_proj` for both, or `attn_out_proj` and `mlp_out_proj`."""
        nn.Module.__init__(self)
        self.name, self.attn, self.hidden = name, heads, hidden
        self.out_proj = self.attn_out_proj = self.mlp_out_proj = None
        for key, part in parts.items():
            setattr(self, key, part)
        self.register_parameter("mlp_bias", mlp_bias)
        self.add_slots()

    def hold(self, mask: Any) -> None:
        """Take a score term that has parameters in, as the child `mask`: the scoring part of this block holds none."""
        self.mask = mask
        self.attn.terms = (*self.attn.terms, mask)

    def attended(self, x: Any, state: State, needs: frozenset[str]) -> tuple[Any, State]:
        """The tokens after the residual sum of both."""
        ops, at = state.ops, self.name
        branch, shortcut = ops.clone(f"{at}.clone", x)
        state = state.counted(ops.shape(branch)[1])
        both = ops.linear(f"{at}.in_proj", self.in_proj, apply_norm(ops, f"{at}.in_norm", self.in_norm, branch))
        attended, state = self._attention(both, state, needs)
        hidden = self._hidden(both, state)
        branch = self._out(attended, hidden, state)
        branch = layer_scale(ops, f"{at}.ls", self.ls, branch)
        return ops.add(f"{at}.add", shortcut, ops.drop(self.drop_path, branch)), state

    def transformed(self, x: Any, state: State) -> tuple[Any, State]:
        return x, state

    def _attention(self, both: Any, state: State, needs: frozenset[str]) -> tuple[Any, State]:
        ops, at = state.ops, self.name
        q, k, v = self._projected(both, ops)
        q, k = apply_norm(ops, f"{at}.q_norm", self.q_norm, q), apply_norm(ops, f"{at}.k_norm", self.k_norm, k)
        out, state = self._weighed((q, k, v), state, needs)
        return ops.rearrange(f"{at}.merge", out, merge_heads), state

    def _projected(self, both: Any, ops: Ops) -> tuple[Any, Any, Any]:
        heads, start = self.attn, self.hidden
        width = heads.heads * heads.qk_dim
        q, k, v = (
            ops.rearrange(
                f"{self.name}.{letter}",
                both,
                head_cut(start + i * width, start + (i + 1) * width, heads.heads, heads.qk_dim),
            )
            for i, letter in enumerate("qkv")
        )
        return q, k, v

    def _weighed(self, qkv: tuple[Any, Any, Any], state: State, needs: frozenset[str]) -> tuple[Any, State]:
        return self.attn.weigh(*qkv, state, needs, self.attn_drop)

    def _hidden(self, both: Any, state: State) -> Any:
        ops, at, hidden = state.ops, self.name, self.hidden
        x = ops.rearrange(f"{at}.mlp_in", both, lambda t: t[..., :hidden])
        if self.mlp_bias is not None:
            x = ops.add(f"{at}.mlp_bias_add", x, ops.param(f"{at}.mlp_bias", self.mlp_bias, x))
        return ops.drop(self.mlp_drop, ops.act(f"{at}.mlp_act", self.mlp_act, x))

    def _out(self, attended: Any, hidden: Any, state: State) -> Any:
        ops, at = state.ops, self.name
        if self.out_proj is not None:
            joined = ops.cat(f"{at}.join", [attended, hidden], dim=-1)
            return ops.linear(f"{at}.out_proj", self.out_proj, joined)
        a = ops.linear(f"{at}.attn_out_proj", self.attn_out_proj, attended)
        b = ops.linear(f"{at}.mlp_out_proj", self.mlp_out_proj, hidden)
        return ops.add(f"{at}.sum", a, b)


def _mean(scores: list[Tensor | None]) -> Tensor:
    return torch.stack([s for s in scores if s is not None]).mean(dim=0)
