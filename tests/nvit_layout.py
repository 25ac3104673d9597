"""The weights of NViT's golden cases in timm's layout."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def as_timm(weights: Mapping[str, Tensor], patch: int) -> dict[str, Tensor]:
    """Split q, k, v (dim, in, head) to one qkv; patches unfolded as (row, column, channel) to a convolution."""
    out = {key: t for key, t in weights.items() if "qkv" not in key}
    for key in [key for key in weights if key.endswith("qkv.Q.weight")]:
        at = key.removesuffix("Q.weight")
        out[f"{at}weight"] = torch.cat([weights[f"{at}{x}.weight"].permute(2, 0, 1).flatten(0, 1) for x in "QKV"])
        out[f"{at}bias"] = torch.cat([weights[f"{at}{x}.bias"].T.flatten() for x in "QKV"])
        at = at.replace("qkv.", "proj.weight")
        out[at] = weights[at].transpose(1, 2).flatten(1)
    conv = weights["patch_embed.proj.weight"].flatten(1).unflatten(1, (patch, patch, -1))
    return out | {"patch_embed.proj.weight": conv.permute(0, 3, 1, 2)}
