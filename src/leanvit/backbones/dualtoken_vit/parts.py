"""The parts of DualToken-ViT: shrinking, the global branch, block, stage. Maps are (B, H, W, C)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import Attention, DropPath, Mlp, register_notrace_module, use_fused_attn
from timm.models.convnext import ConvNeXtBlock
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from leanvit.backbones.dualtoken_vit.lightvit import BiAttnMlp, ResidualMerge

EPS = 1e-6  # of its own norms; LightViT's parts have 1e-5


@register_notrace_module
class Shrink(nn.Module):
    """A map as `side` x `side` tokens: (B, H, W, C) -> (B, side^2, C).

    Step by step: halved by averages `halvings` times, with a depthwise convolution between two of them. What is not
    `side` x `side` then, or from the start with `step_wise=False`, is averaged to it at once.
    """

    def __init__(self, dim: int, side: int, halvings: int, *, step_wise: bool) -> None:
        super().__init__()
        self.side = side
        self.halvings = halvings if step_wise else 0
        self.pool = nn.AvgPool2d(2)
        self.convs = nn.ModuleList(
            nn.Conv2d(dim, dim, 3, padding=1, groups=dim) for _ in range(max(0, self.halvings - 1))
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 3, 1, 2)
        for step in range(self.halvings):
            if min(x.shape[-2:]) < 2:  # an image much smaller than the model was built for
                break
            x = self.pool(self.convs[step - 1](x) if step else x)
        if tuple(x.shape[-2:]) != (self.side, self.side):
            x = F.adaptive_avg_pool2d(x, self.side)
        return x.flatten(2).transpose(1, 2)


@register_notrace_module
class Broadcast(nn.Module):
    """Attention of local tokens (B, N, C) over global ones (B, T, C) -> (B, N, C)."""

    def __init__(self, dim: int, heads: int, attn_drop: float = 0.0, proj_drop: float = 0.0) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, dim // heads
        self.scale = self.head_dim**-0.5
        self.fused_attn = use_fused_attn()
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
        k, v = self.kv(tokens).unflatten(-1, (2, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused_attn:
            out = F.scaled_dot_product_attention(q, k, v, dropout_p=self.attn_drop.p if self.training else 0.0)
        else:
            out = self.attn_drop((q * self.scale @ k.transpose(-2, -1)).softmax(dim=-1)) @ v
        return self.proj_drop(self.proj(out.transpose(1, 2).flatten(2)))


class MixMlp(nn.Module):
    """One layer across channels, one across tokens: (B, T, C) -> (B, T, C)."""

    def __init__(self, dim: int, tokens: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(tokens, tokens)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)).transpose(1, 2)).transpose(1, 2)


class GlobalTokens(nn.Module):
    """The global branch of a block: gather, enrich, broadcast.

    Local tokens as a map (B, H, W, C) and global tokens (B, T, C) -> what the map gets (B, H, W, C), and the tokens of
    the next block. `alpha` is the share of what was gathered; it is not learned.
    """

    def __init__(
        self, dim: int, heads: int, shrink: Shrink, *, g_mlp: str, alpha: float, attn_drop: float, proj_drop: float
    ) -> None:
        super().__init__()
        self.alpha = float(alpha)
        self.shrink = shrink
        self.gather = Attention(dim, heads, qkv_bias=True, attn_drop=attn_drop, proj_drop=proj_drop)
        self.norm = nn.LayerNorm(dim, eps=EPS)
        self.mlp: nn.Module = MixMlp(dim, shrink.side**2) if g_mlp == "mix" else Mlp(dim, dim)
        self.broadcast = Broadcast(dim, heads, attn_drop, proj_drop)

    def forward(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.alpha * self.gather(self.shrink(x)) + (1.0 - self.alpha) * tokens
        tokens = tokens + self.mlp(self.norm(tokens))
        return self.broadcast(x.flatten(1, 2), tokens).unflatten(1, x.shape[1:3]), tokens


class DualTokenBlock(nn.Module):
    """(B, H, W, C) and global tokens (B, T, C), or None without the global branch -> the same.

    Drop path spares the global tokens.
    """

    def __init__(
        self,
        dim: int,
        *,
        conv_ratio: float | None,
        branch: GlobalTokens | None,
        ffn_ratio: float,
        proj_drop: float,
        path: float,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.conv_encoder: nn.Module = nn.Identity()
        if conv_ratio is not None:
            self.conv_encoder = ConvNeXtBlock(dim, mlp_ratio=conv_ratio, ls_init_value=None)
        self.global_branch = branch
        self.drop_path1 = DropPath(path) if path > 0.0 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        self.mlp = BiAttnMlp(dim, int(dim * ffn_ratio), proj_drop)
        self.drop_path2 = DropPath(path) if path > 0.0 else nn.Identity()

    def forward(self, x: Tensor, tokens: Any) -> tuple[Tensor, Any]:
        local = self.conv_encoder(self.norm1(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        if self.global_branch is not None:
            whole, tokens = self.global_branch(local, tokens)
            local = local + whole
        x = x + self.drop_path1(local)
        y = self.mlp(self.norm2(x).flatten(1, 2)).unflatten(1, x.shape[1:3])
        return x + self.drop_path2(y), tokens


class DualTokenStage(nn.Module):
    """Merging (but in the first stage), then blocks."""

    def __init__(self, merge: ResidualMerge | None, blocks: Sequence[DualTokenBlock]) -> None:
        super().__init__()
        self.merge = merge
        self.blocks = nn.ModuleList(blocks)
        self.grad_checkpointing = False

    def forward(self, x: Tensor, tokens: Any) -> tuple[Tensor, Any]:
        if self.merge is not None:
            x, tokens = self.merge(x, tokens)
        for block in self.blocks:
            if self.grad_checkpointing and not torch.jit.is_scripting():
                x, tokens = checkpoint(block, x, tokens, use_reentrant=False)  # type: ignore[misc]
            else:
                x, tokens = block(x, tokens)
        return x, tokens
