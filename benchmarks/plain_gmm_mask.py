"""The control: the masked ViT as the paper writes it, every exponential of every pair of patches, layer by layer.

It runs the weights of leanvit's model, with none of its text: `benchmarks/plain_speed.py` times the two against each
other, and the tests hold one to the other.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PlainGmmViT(nn.Module):
    """leanvit's `gmm_vit_*` (square images) run by plain lines; eval mode."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.m: Any = model

    def forward(self, x: Tensor) -> Tensor:
        m, p = self.m, self.m.patch_embed.patch_size[0]
        x = F.unfold(x, p, stride=p).transpose(1, 2)  # (B, N, C p p)
        x = F.linear(x, m.patch_embed.proj.weight.flatten(1), m.patch_embed.proj.bias) + m.pos_embed
        squared = squared_distances(x.shape[1])
        for block in m.blocks:
            x = x + attention(block.attn, layer_norm(block.norm1, x), squared)
            hidden = F.gelu(linear(block.mlp.fc1, layer_norm(block.norm2, x)))
            x = x + linear(block.mlp.fc2, hidden)
        return linear(m.head, layer_norm(m.fc_norm, x.mean(dim=1)))


def squared_distances(patches: int) -> Tensor:
    side = round(patches**0.5)
    place = torch.tensor([(i // side, i % side) for i in range(patches)], dtype=torch.float32)
    return ((place[:, None] - place[None]) ** 2).sum(-1)


def attention(p: Any, x: Tensor, squared: Tensor) -> Tensor:
    b, n, _ = x.shape
    heads, d = p.num_heads, p.qk_dim
    q, k, v = F.linear(x, p.qkv.weight).reshape(b, n, 3, heads, d).permute(2, 0, 3, 1, 4)
    scores = q @ k.transpose(-2, -1) * d**-0.5
    mask = (p.mask.alpha * torch.exp(-squared / (2 * (p.mask.sigma**2 + 1e-5)))).sum(0)  # (heads, N, N)
    weights = torch.softmax(mask * scores, dim=-1)
    return linear(p.proj, (weights @ v).transpose(1, 2).reshape(b, n, heads * d))


def linear(p: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, p.weight, p.bias)


def layer_norm(p: nn.LayerNorm, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], p.weight, p.bias, p.eps)
