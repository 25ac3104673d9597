"""The control: DualToken-ViT step by step from its formulas, with attention maps and every norm apart.

It runs the weights of leanvit's model, with none of its text; see `plain_speed.py`. Maps are (B, C, H, W) throughout.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PlainDualTokenViT(nn.Module):
    """leanvit's DualToken-ViT run by plain lines; eval mode."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.m: Any = model

    def forward(self, x: Tensor) -> Tensor:
        m = self.m
        x = stem(m.patch_embed, x)
        g = m.global_tokens.repeat(len(x), 1, 1)
        for stage in m.stages:
            if stage.merge is not None:
                x, g = merge(stage.merge, x), linear(stage.merge.proj, norm(stage.merge.norm2, g, 1e-5))
            for block in stage.blocks:
                x, g = dual_token_block(block, x, g)
        return linear(m.head, norm(m.norm, tokens(x), 1e-6).mean(1))


def stem(p: Any, x: Tensor) -> Tensor:
    for i, stride in zip(range(0, 12, 3), (2, 1, 1, 2), strict=True):
        conv, bn = p.stem[i], p.stem[i + 1]
        x = F.conv2d(x, conv.weight, stride=stride, padding=1, groups=1 if i == 0 else x.shape[1])
        x = F.gelu(F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias))
    x = F.conv2d(x, p.proj.weight, p.proj.bias, stride=2, padding=1)
    return grid(norm(p.norm, tokens(x), 1e-5), x)


def merge(p: Any, x: Tensor) -> Tensor:
    corners = [x[:, :, i::2, j::2] for j in (0, 1) for i in (0, 1)]
    joined = linear(p.reduction, norm(p.norm, tokens(torch.cat(corners, dim=1)), 1e-5))
    return grid(joined + linear(p.res_proj, tokens(F.max_pool2d(x, 2))), corners[0])


def dual_token_block(p: Any, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    b = p.global_branch
    z = grid(norm(p.norm1, tokens(x), 1e-6), x)
    local = conv_encoder(p.conv_encoder, z)
    small = shrink(b.shrink, local)
    q, k, v = linear(b.gather.qkv, tokens(small)).chunk(3, dim=-1)
    gathered = linear(b.gather.proj, attend(q, k, v, b.gather.num_heads))
    t = b.alpha * gathered + (1 - b.alpha) * g
    g = t + global_mlp(b.mlp, norm(b.norm, t, 1e-6))
    k, v = linear(b.broadcast.kv, g).chunk(2, dim=-1)
    whole = attend(linear(b.broadcast.q, tokens(local)), k, v, b.broadcast.num_heads)
    x = x + local + grid(linear(b.broadcast.proj, whole), x)
    u = linear(p.mlp.fc2, F.gelu(linear(p.mlp.fc1, norm(p.norm2, tokens(x), 1e-6))))
    return x + grid(gated(p.mlp.attn, u), x), g


def conv_encoder(p: Any, z: Tensor) -> Tensor:
    y = F.conv2d(z, p.conv_dw.weight, p.conv_dw.bias, padding=3, groups=z.shape[1])
    y = linear(p.mlp.fc2, F.gelu(linear(p.mlp.fc1, norm(p.norm, tokens(y), 1e-6))))
    return z + grid(y, z)


def shrink(p: Any, x: Tensor) -> Tensor:
    for step in range(p.halvings):
        if step:
            conv = p.convs[step - 1]
            x = F.conv2d(x, conv.weight, conv.bias, padding=1, groups=x.shape[1])
        x = F.avg_pool2d(x, 2)
    return F.adaptive_avg_pool2d(x, p.side)


def global_mlp(p: Any, x: Tensor) -> Tensor:
    x = F.gelu(linear(p.fc1, x))
    across = p.fc1.in_features != p.fc2.in_features  # 7 x 7 tokens, never as many channels
    return linear(p.fc2, x.mT).mT if across else linear(p.fc2, x)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    q, k, v = (t.reshape(len(t), t.shape[1], heads, -1).transpose(1, 2) for t in (q, k, v))
    weights = torch.softmax(q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5, dim=-1)
    out = (weights @ v).transpose(1, 2)
    return out.reshape(len(out), out.shape[1], -1)


def gated(p: Any, u: Tensor) -> Tensor:
    w = norm(p.norm, u, 1e-5)
    whole = F.gelu(linear(p.global_reduce, w.mean(1, keepdim=True)))
    local = F.gelu(linear(p.local_reduce, w))
    spatial = torch.sigmoid(linear(p.spatial_select, torch.cat([local, whole.repeat(1, u.shape[1], 1)], dim=-1)))
    return u * torch.sigmoid(linear(p.channel_select, whole)) * spatial


def tokens(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], x.shape[1], -1).permute(0, 2, 1).contiguous()


def grid(x: Tensor, like: Tensor) -> Tensor:
    return x.permute(0, 2, 1).reshape(x.shape[0], x.shape[2], *like.shape[-2:])


def linear(p: Any, x: Tensor) -> Tensor:
    return F.linear(x, p.weight, p.bias)


def norm(p: Any, x: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], p.weight, p.bias, eps)
