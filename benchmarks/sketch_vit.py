"""The control: the same network written plainly, token reduction hard-coded, no anatomy, no state, no options."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SketchViT(nn.Module):
    """A timm DeiT run by 60 plain lines; `reduce` is "", "evit" (0.7 at blocks 3, 6, 9, fused) or "tome" (r = 13)."""

    def __init__(self, timm_model: nn.Module, reduce: str = "") -> None:
        super().__init__()
        self.m, self.reduce = timm_model, reduce

    def forward(self, x: Tensor) -> Tensor:
        m: nn.Module = self.m
        x = m.patch_embed.proj(x).flatten(2).transpose(1, 2)
        x = torch.cat([m.cls_token.expand(len(x), -1, -1), x], dim=1) + m.pos_embed
        size = None
        for i, block in enumerate(m.blocks):
            y = block.attn.qkv(block.norm1(x)).unflatten(-1, (3, block.attn.num_heads, -1))
            q, k, v = y.permute(2, 0, 3, 1, 4)
            bias = None if size is None else size.log()[:, None, None]
            x = x + block.attn.proj(F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2))
            if self.reduce == "evit" and i in (3, 6, 9):
                x = evit(x, q, k)
            if self.reduce == "tome":
                x, size = tome(x, k.mean(1), torch.ones(x.shape[:2]) if size is None else size)
            x = x + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x))))
        return m.head(m.norm(x)[:, 0])


def evit(x: Tensor, q: Tensor, k: Tensor) -> Tensor:
    scores = (q[:, :, :1] @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)[:, :, 0, 1:].mean(1)
    keep = math.ceil(0.7 * scores.shape[1])
    order = scores.argsort(dim=1, descending=True)
    patches = x[:, 1:].gather(1, order[:, :, None].expand(-1, -1, x.shape[2]))
    fused = (patches[:, keep:] * scores.gather(1, order[:, keep:])[:, :, None]).sum(1, keepdim=True)
    return torch.cat([x[:, :1], patches[:, :keep], fused], dim=1)


def tome(x: Tensor, metric: Tensor, size: Tensor, r: int = 13) -> tuple[Tensor, Tensor]:
    r = min(r, (x.shape[1] - 1) // 2)
    metric = F.normalize(metric, dim=-1)
    similarity = metric[:, ::2] @ metric[:, 1::2].transpose(1, 2)
    similarity[:, 0] = -math.inf
    best, target = similarity.max(-1)
    order = best.argsort(dim=1, descending=True)
    gone, stay = order[:, :r], order[:, r:].sort(1).values
    target = target.gather(1, gone)
    parts = []
    for t in (x * size[:, :, None], size[:, :, None]):
        even, odd = t[:, ::2], t[:, 1::2]
        wide = (-1, -1, t.shape[2])
        moved = even.gather(1, gone[:, :, None].expand(wide))
        odd = odd.scatter_add(1, target[:, :, None].expand(wide), moved)
        parts.append(torch.cat([even.gather(1, stay[:, :, None].expand(wide)), odd], dim=1))
    return parts[0] / parts[1], parts[1].squeeze(-1)
