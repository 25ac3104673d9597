"""Pooling by attention: learned queries read the tokens (timm's `AttentionPoolLatent`: SigLIP, perception encoders)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from leanvit.anatomy.arithmetic.score import Phases, attend
from leanvit.anatomy.parts.blocks import Heads, Mlp, apply_norm, head_cut, merge_heads
from leanvit.anatomy.state import State


class AttentionPool(Heads, nn.Module):
    """Tokens (B, N, C) -> (B, C), or (B, L, C) where nothing pools the L queries.

    Every product is a site (`attn_pool.kv`, `attn_pool.matmul1`, ...). Merged tokens count as often as they stand for
    patches, as they do in a mean.
    """

    latent: Tensor

    def __init__(
        self,
        *,
        latent: nn.Parameter,
        parts: dict[str, nn.Module],
        mlp: Mlp | None,
        heads: int,
        head_dim: int,
        scale: float,
        pool: str,
        fused: bool,
    ) -> None:
        """`parts`: timm's q, kv, q_norm, k_norm, proj, proj_drop and norm."""
        nn.Module.__init__(self)
        Heads.__init__(self, name="attn_pool", heads=heads, qk_dim=head_dim, v_dim=head_dim, scale=scale, fused=fused)
        self.pool = pool
        self.register_parameter("latent", latent)
        for key, part in parts.items():
            self.add_module(key, part)
        if mlp is not None:
            self.mlp = mlp

    def forward(self, x: Any, state: State, size: Tensor | None = None) -> Any:
        """`size` (B, N): patches that each token stands for; None: one each."""
        ops, at, part = state.ops, self.name, dict(self.named_children())
        q = ops.expand(f"{at}.latent", self.latent, x)
        if not isinstance(part["q"], nn.Identity):
            q = ops.linear(f"{at}.q", part["q"], q)
        kv = ops.linear(f"{at}.kv", part["kv"], x)
        width = self.heads * self.qk_dim
        q = ops.rearrange(f"{at}.q_heads", q, head_cut(0, None, self.heads, self.qk_dim))
        k = ops.rearrange(f"{at}.k", kv, head_cut(0, width, self.heads, self.qk_dim))
        v = ops.rearrange(f"{at}.v", kv, head_cut(width, None, self.heads, self.v_dim))
        q, k = apply_norm(ops, f"{at}.q_norm", part["q_norm"], q), apply_norm(ops, f"{at}.k_norm", part["k_norm"], k)
        phases = Phases() if size is None else Phases(bias=size.log()[:, None, None, :])
        out, _ = attend(ops, at, q, k, v, scale=self.scale, phases=phases, fused=self.fused)
        x = ops.rearrange(f"{at}.merge", out, merge_heads)  # (B, H, L, d) -> (B, L, H d)
        if not isinstance(part["proj"], nn.Identity):
            x = ops.linear(f"{at}.proj", part["proj"], x)
        x = ops.drop(part["proj_drop"], x)
        if "mlp" in part:
            branch, shortcut = ops.clone(f"{at}.clone", x)
            branch, _ = part["mlp"](apply_norm(ops, f"{at}.norm", part["norm"], branch), state)
            x = ops.add(f"{at}.add", shortcut, branch)
        if self.pool == "token":
            return ops.rearrange(f"{at}.first", x, lambda t: t[:, 0])
        return ops.mean(f"{at}.mean", x) if self.pool == "avg" else x
