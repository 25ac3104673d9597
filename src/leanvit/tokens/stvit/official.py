"""Official checkpoints of STViT-R under our names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from leanvit.models.registration import renamed


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """A checkpoint of the paper's repository under our names; our own come back as they are.

    Theirs merge at the end of a stage, ours at the start of the next, where timm's features end. Raises `ValueError`
    for a checkpoint of another model.
    """
    return renamed(state_dict, model, official_name)


def official_name(name: str) -> str | None:
    """Our name of an official one; None for tables that are computed."""
    if name.endswith(("relative_position_index", "attn_mask")):
        return None
    name = re.sub(r"^layers\.(\d+)\.downsample\.", lambda m: f"layers.{int(m[1]) + 1}.downsample.", name)
    for old, new in (
        ("patch_embed.proj.0.c.", "patch_embed.conv1."),
        ("patch_embed.proj.0.bn.", "patch_embed.norm1."),
        ("patch_embed.proj.2.c.", "patch_embed.conv2."),
        ("patch_embed.proj.2.bn.", "patch_embed.norm2."),
        ("conv_pos.proj.0.", "conv_pos."),
        ("semantic_token2", "centres"),
    ):
        name = name.replace(old, new)
    return re.sub(r"\.layer_scale_(\d)$", r".ls\1.gamma", name)
