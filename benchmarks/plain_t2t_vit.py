"""The control: T2T-ViT as the paper and its published formulas write it, with attention maps in full.

It runs the weights of leanvit's model, with none of its text: `benchmarks/plain_speed.py` times the two against each
other, and the tests hold one to the other.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PlainT2TViT(nn.Module):
    """leanvit's T2T-ViT run by plain lines; eval mode, the plain trunk."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.m = model
        self.table = positions(model.tokens_to_token.num_patches + 1, model.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        m = self.m
        x = tokens(m.tokens_to_token, x)
        x = torch.cat([m.cls_token.expand(len(x), -1, -1), x], dim=1)
        x = x + self.table
        for block in m.blocks:
            x = x + attention(block.attn, layer_norm(block.norm1, x))
            x = x + mlp(block.mlp.fc1, block.mlp.fc2, layer_norm(block.norm2, x))
        return F.linear(layer_norm(m.norm, x)[:, 0], m.head.weight, m.head.bias)


def tokens(p: Any, x: Tensor) -> Tensor:
    """Three soft splits, a cell behind the first two, a projection behind the last."""
    height, width = x.shape[2] // 4, x.shape[3] // 4
    x = F.unfold(x, kernel_size=7, stride=4, padding=2).permute(0, 2, 1).contiguous()
    for cell in (p.attention1, p.attention2):
        x = performer(cell, x) if hasattr(cell, "kqv") else transformer(cell, x)
        x = x.permute(0, 2, 1).reshape(len(x), -1, height, width)
        x = F.unfold(x, kernel_size=3, stride=2, padding=1).permute(0, 2, 1).contiguous()
        height, width = height // 2, width // 2
    return F.linear(x, p.project.weight, p.project.bias)


def performer(p: Any, x: Tensor) -> Tensor:
    k, q, v = F.linear(layer_norm(p.norm1, x), p.kqv.weight, p.kqv.bias).split(p.proj.in_features, dim=-1)
    kp, qp = features(p.w, k), features(p.w, q)
    total = torch.einsum("bti,bi->bt", qp, kp.sum(1)).unsqueeze(-1)
    y = torch.einsum("bti,bni->btn", qp, torch.einsum("bin,bim->bnm", v, kp)) / (total + 1e-8)
    y = v + F.linear(y, p.proj.weight, p.proj.bias)
    return y + mlp(p.mlp[0], p.mlp[2], layer_norm(p.norm2, y))


def features(w: Tensor, u: Tensor) -> Tensor:
    half = (u * u).sum(-1, keepdim=True) / 2
    return torch.exp(torch.einsum("bti,mi->btm", u, w) - half) / math.sqrt(len(w))


def transformer(p: Any, x: Tensor) -> Tensor:
    x = layer_norm(p.norm1, x)
    q, k, v = F.linear(x, p.attn.qkv.weight).chunk(3, dim=-1)
    weights = torch.softmax(q * x.shape[-1] ** -0.5 @ k.transpose(-2, -1), dim=-1)
    y = v + F.linear(weights @ v, p.attn.proj.weight, p.attn.proj.bias)
    return y + mlp(p.mlp.fc1, p.mlp.fc2, layer_norm(p.norm2, y))


def attention(p: Any, x: Tensor) -> Tensor:
    b, n, c = x.shape
    d = c // p.num_heads
    q, k, v = F.linear(x, p.qkv.weight).reshape(b, n, 3, p.num_heads, d).permute(2, 0, 3, 1, 4)
    weights = torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(d), dim=-1)
    return F.linear((weights @ v).transpose(1, 2).reshape(b, n, c), p.proj.weight, p.proj.bias)


def mlp(fc1: Any, fc2: Any, x: Tensor) -> Tensor:
    return F.linear(F.gelu(F.linear(x, fc1.weight, fc1.bias)), fc2.weight, fc2.bias)


def layer_norm(p: Any, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], p.weight, p.bias, 1e-5)


def positions(count: int, dim: int) -> Tensor:
    rows = [[p / 10000 ** (2 * (j // 2) / dim) for j in range(dim)] for p in range(count)]
    table = torch.tensor(rows, dtype=torch.float64)
    table[:, 0::2], table[:, 1::2] = table[:, 0::2].sin(), table[:, 1::2].cos()
    return table.float()
