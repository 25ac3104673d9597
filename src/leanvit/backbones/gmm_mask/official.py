"""Official checkpoints under our names: those of the ViT host."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from leanvit.anatomy.parts.masks import ElementMask
from leanvit.models.registration import renamed

_AROUND = {
    "to_patch_embedding.1": "patch_embed.proj",
    "pos_embedding": "pos_embed",
    "cls_token": "cls_token",
    "mlp_head.1": "head",
}
_LAYER = {
    "0.norm": "norm1",
    "0.fn.to_qkv": "attn.qkv",
    "0.fn.to_out.0": "attn.proj",
    "0.fn.mask": "attn.mask",
    "1.norm": "norm2",
    "1.fn.net.0": "mlp.fc1",
    "1.fn.net.3": "mlp.fc2",
}
_TABLE = re.compile(r"(transformer\.layers\.\d+\.0\.fn\.mask\.)?mask")  # distances, or the elements of an ELM


def checkpoint_filter_fn(state: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """An official state dict under the names of `model`; one that has them already comes back as it is.

    The official Gaussian masks carry an (N, N) table of distances at the root and in every layer, which is computed
    here and may be missing there. Positions are resampled to the model's grid.

    Raises:
        ValueError: names that are left over on either side, or a host other than ViT.
    """
    for entry in ("state_dict", "model"):
        if isinstance(state.get(entry), Mapping):
            state = state[entry]
    own = model.state_dict()
    if set(own) == set(state):
        return dict(state)
    if not isinstance(model, VisionTransformer):
        raise ValueError(
            f"the names of the official checkpoints are known for the ViT host, not {type(model).__name__}"
        )
    final = "norm" if isinstance(model.fc_norm, nn.Identity) else "fc_norm"
    learned = any(isinstance(module, ElementMask) for module in model.modules())
    found = renamed(state, model, lambda name: _ours(name, final, learned))
    return {name: _fitted(name, tensor, own[name], model) for name, tensor in found.items()}


def _ours(name: str, final: str, learned: bool) -> str | None:
    """Our name of an official one; `learned`: whether the tables in the layers are an ELM's parameters."""
    table = _TABLE.fullmatch(name)
    if table and not (table[1] and learned):
        return None
    if found := re.fullmatch(r"transformer\.layers\.(\d+)\.(.+)", name):
        part, _, leaf = found[2].rpartition(".")
        leaf = "elements" if table else leaf
        return f"blocks.{found[1]}.{_LAYER.get(part, part)}.{leaf}"
    if name in _AROUND:
        return _AROUND[name]
    part, _, leaf = name.rpartition(".")
    return f"{ {**_AROUND, 'mlp_head.0': final}.get(part, part) }.{leaf}"


def _fitted(name: str, tensor: Tensor, own: Tensor, model: VisionTransformer) -> Tensor:
    if name == "patch_embed.proj.weight" and tensor.ndim == 2:  # a linear of patches unfolded as (row, column, channel)
        dim, channels, high, wide = own.shape
        return tensor.reshape(dim, high, wide, channels).permute(0, 3, 1, 2).contiguous()
    if name == "pos_embed" and tensor.shape != own.shape:
        prefix = model.num_prefix_tokens
        return resample_abs_pos_embed(tensor, list(model.patch_embed.grid_size), num_prefix_tokens=prefix)
    return tensor
