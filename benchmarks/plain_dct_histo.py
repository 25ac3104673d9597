"""DCT-HistoTransformer step by step: the cosine transform summed as it is defined, cut, and put back into zeros.

The control of `plain_speed.py`, and the oracle of the tests: it runs the weights of one of our models ("frequency").
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PlainDctHisto(nn.Module):
    """The network of a `DctHistoTransformer` in eval mode: images (B, C, H, W) -> logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.m: Any = model

    def forward(self, x: Tensor) -> Tensor:
        m = self.m
        for layer in m.stem:
            x = conv(layer, x, stride=2)
        for i, stage in enumerate(m.stages):
            if i:
                x = mobile(stage.downsample, x, stride=2)
            for block in stage.blocks:
                both = torch.cat([attention(block.dct, x), mobile(block.conv, x)], dim=1)
                x = x + batch_norm(block.fusing.bn, F.conv2d(both, block.fusing.conv.weight))
                y = norm(block.norm, x)
                y = F.conv2d(y, block.mlp.fc1.weight[:, :, None, None], block.mlp.fc1.bias)
                x = x + F.conv2d(F.gelu(y), block.mlp.fc2.weight[:, :, None, None], block.mlp.fc2.bias)
        return m.head(m.norm(x.mean(dim=(2, 3))))


def cosines(n: int) -> Tensor:
    x, u = torch.arange(n), torch.arange(n)[:, None]
    scale = torch.where(u == 0, math.sqrt(1 / n), math.sqrt(2 / n))
    return scale * torch.cos(math.pi / n * (x + 0.5) * u)


def attention(m: Any, x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    down, across = cosines(height), cosines(width)
    spectrum = down @ norm(m.norm, x) @ across.T
    h, w = math.ceil(m.keep * height), math.ceil(m.keep * width)
    tokens = spectrum[:, :, :h, :w].flatten(2).transpose(1, 2)
    tokens = m.token_norm(tokens) + m.pos_embed.flatten(1, 2)
    q, k, v = (t.unflatten(2, (m.heads, -1)).transpose(1, 2) for t in m.qkv(tokens).chunk(3, dim=-1))
    weights = (q @ k.transpose(-2, -1) / math.sqrt(channels // m.heads)).softmax(dim=-1)
    y = m.proj((weights @ v).transpose(1, 2).flatten(2)).transpose(1, 2).reshape(batch, channels, h, w)
    full = torch.zeros_like(x)
    full[:, :, :h, :w] = y
    return down.T @ full @ across


def mobile(m: Any, x: Tensor, stride: int = 1) -> Tensor:
    return conv(m.reduce, conv(m.depthwise, conv(m.expand, x), stride=stride), act=False)


def conv(m: Any, x: Tensor, stride: int = 1, act: bool = True) -> Tensor:
    weight = m.conv.weight
    y = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=x.shape[1] // weight.shape[1])
    y = batch_norm(m.bn, y)
    return F.silu(y) if act else y


def batch_norm(m: Any, x: Tensor) -> Tensor:
    return F.batch_norm(x, m.running_mean, m.running_var, m.weight, m.bias)


def norm(m: Any, x: Tensor) -> Tensor:
    return m(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
