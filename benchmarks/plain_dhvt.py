"""The control: DHVT as the paper writes it, step by step, with attention maps and every norm apart.

It runs the weights of leanvit's model, with none of its text: `benchmarks/plain_speed.py` times the two against each
other, and the tests hold one to the other.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PlainDHVT(nn.Module):
    """leanvit's DHVT run by plain lines; eval mode."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.m: Any = model

    def forward(self, x: Tensor) -> Tensor:
        m = self.m
        x = stem(m.patch_embed, x)
        height, width = x.shape[-2:]
        x = x.reshape(x.shape[0], x.shape[1], -1).permute(0, 2, 1).contiguous()
        x = torch.cat([m.cls_token.expand(len(x), -1, -1), x], dim=1)
        for block in m.blocks:
            x = x + attention(block.attn, layer_norm(block.norm1, x))
            x = x + feed_forward(block.mlp, layer_norm(block.norm2, x), height, width)
        return F.linear(layer_norm(m.norm, x)[:, 0], m.head.weight, m.head.bias)


def stem(p: Any, x: Tensor) -> Tensor:
    x = p.pre_affine.alpha * x + p.pre_affine.beta
    units = [unit for unit in p.proj if isinstance(unit, nn.Sequential)]
    for i, (conv, norm) in enumerate(units):
        x = batch_norm(norm, F.conv2d(x, conv.weight, stride=2, padding=1))
        if i < len(units) - 1 or len(units) == 1:
            x = F.gelu(x)
    return p.post_affine.alpha * x + p.post_affine.beta


def attention(p: Any, x: Tensor) -> Tensor:
    b, n, c = x.shape
    heads, d = p.num_heads, c // p.num_heads
    means = x.reshape(b, n, heads, d).sum(1) / n
    tokens = F.linear(means, p.ht_proj.weight, p.ht_proj.bias).reshape(b, heads, heads, d)
    tokens = F.gelu(F.layer_norm(tokens, (d,), p.ht_norm.weight, p.ht_norm.bias, 1e-5))
    x = torch.cat([x, tokens.reshape(b, heads, c) + p.pos_embed], dim=1)
    q, k, v = F.linear(x, p.qkv.weight, p.qkv.bias).reshape(b, n + heads, 3, heads, d).permute(2, 0, 3, 1, 4)
    weights = torch.softmax(q @ k.transpose(-2, -1) / d**0.5, dim=-1)
    x = F.linear((weights @ v).transpose(1, 2).reshape(b, n + heads, c), p.proj.weight, p.proj.bias)
    cls, patches, tokens = x.split([1, n - 1, heads], dim=1)
    return torch.cat([cls + tokens.mean(1, keepdim=True), patches], dim=1)


def feed_forward(p: Any, x: Tensor, height: int, width: int) -> Tensor:
    b, n, c = x.shape
    cls, patches = x.split([1, n - 1], dim=1)
    u = patches.permute(0, 2, 1).reshape(b, c, height, width)
    u = F.gelu(batch_norm(p.bn1, F.conv2d(u, p.conv1.weight, p.conv1.bias)))
    near = F.conv2d(u, p.conv2.weight, p.conv2.bias, padding=1, groups=u.shape[1])
    u = u + F.gelu(batch_norm(p.bn2, near))
    u = batch_norm(p.bn3, F.conv2d(u, p.conv3.weight, p.conv3.bias))
    pooled = F.adaptive_avg_pool2d(u, 1).reshape(b, 1, c)
    squeezed = F.gelu(F.linear(pooled, p.compress.weight, p.compress.bias))
    gate = F.linear(squeezed, p.excitation.weight, p.excitation.bias)
    return torch.cat([cls * gate, u.reshape(b, c, n - 1).permute(0, 2, 1)], dim=1)


def layer_norm(p: Any, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], p.weight, p.bias, 1e-6)


def batch_norm(p: Any, x: Tensor) -> Tensor:
    return F.batch_norm(x, p.running_mean, p.running_var, p.weight, p.bias)
