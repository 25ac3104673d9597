"""LITv2 as its paper writes it, line by line: tokens as sequences, softmax spelled out, windows cut and put back.

The control of `plain_speed.py`, and the oracle of the tests: it runs the weights of one of our models.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import deform_conv2d


class PlainLITv2(nn.Module):
    """The network of a `LITv2` in eval mode: images (B, C, H, W) -> logits. Sides are multiples of 32."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.m = model

    def forward(self, images: Tensor) -> Tensor:
        m: nn.Module = self.m
        x = m.patch_embed.proj(images)
        grid = x.shape[2:]
        x = m.patch_embed.norm(x.flatten(2).transpose(1, 2))
        for i, stage in enumerate(m.layers):
            if i:
                x, grid = merged(stage.downsample, x, grid)
            for block in stage.blocks:
                if block.attn is not None:
                    x = x + hilo(block.attn, block.norm1(x), grid)
                x = x + mlp(block.mlp, block.norm2(x), grid)
        return m.head(m.norm(x).mean(dim=1))


def as_map(x: Tensor, grid: tuple[int, int]) -> Tensor:
    return x.transpose(1, 2).reshape(len(x), x.shape[2], *grid)


def merged(m: nn.Module, x: Tensor, grid: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
    x = as_map(x, grid)
    x = deform_conv2d(x, F.conv2d(x, m.offset.weight, m.offset.bias, 2), m.conv.weight, m.conv.bias, stride=2)
    x = F.gelu(m.norm(x))
    return x.flatten(2).transpose(1, 2), x.shape[2:]


def mlp(m: nn.Module, x: Tensor, grid: tuple[int, int]) -> Tensor:
    x = m.dwconv(as_map(m.fc1(x), grid)).flatten(2).transpose(1, 2)
    return m.fc2(F.gelu(x))


def hilo(m: nn.Module, x: Tensor, grid: tuple[int, int]) -> Tensor:
    x = x.reshape(len(x), *grid, -1)
    groups = [near(m, x)] if m.h_heads else []
    groups += [far(m, x)] if m.l_heads else []
    return torch.cat(groups, dim=-1).flatten(1, 2)


def near(m: nn.Module, x: Tensor) -> Tensor:
    batch, height, width, dim = x.shape
    s, rows, columns = m.window_size, height // m.window_size, width // m.window_size
    windows = x.reshape(batch, rows, s, columns, s, dim).transpose(2, 3).reshape(batch, rows * columns, s * s, dim)
    qkv = m.h_qkv(windows).reshape(batch, rows * columns, s * s, 3, m.h_heads, m.head_dim)
    q, k, v = qkv.permute(3, 0, 1, 4, 2, 5)  # each (B, windows, heads, s * s, d)
    attn = (q @ k.transpose(-2, -1) * m.head_dim**-0.5).softmax(dim=-1)
    y = (attn @ v).transpose(2, 3).reshape(batch, rows, columns, s, s, m.h_dim)
    return m.h_proj(y.transpose(2, 3).reshape(batch, height, width, m.h_dim))


def far(m: nn.Module, x: Tensor) -> Tensor:
    batch, height, width, _ = x.shape
    q = m.l_q(x).reshape(batch, height * width, m.l_heads, m.head_dim).transpose(1, 2)
    pooled = x
    if m.window_size > 1:
        pooled = F.avg_pool2d(x.permute(0, 3, 1, 2), m.window_size).permute(0, 2, 3, 1)
    k, v = m.l_kv(pooled).reshape(batch, -1, 2, m.l_heads, m.head_dim).permute(2, 0, 3, 1, 4)
    attn = (q @ k.transpose(-2, -1) * m.head_dim**-0.5).softmax(dim=-1)
    return m.l_proj((attn @ v).transpose(1, 2).reshape(batch, height, width, m.l_dim))
