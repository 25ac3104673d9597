"""Small models and gates for the tests of pruning."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from leanvit.anatomy import OpenModel, open_model
from leanvit.prune.nvit.groups import all_open
from leanvit.prune.nvit.units import Layout, layout
from zoo import build, build_swin

SUPPORTED = (  # each with something that an implementation easily forgets
    "vit_tiny_patch16_224",
    "vit_small_patch16_224:packed_glu",
    "vit_base_patch16_224:qk_norm",
    "vit_tiny_patch16_224:gated",
    "vit_base_patch16_224_miil",  # no qkv bias
    "deit_tiny_distilled_patch16_224",
    "deit3_small_patch16_224",  # layer scale
    "vit_small_patch14_reg4_dinov2",  # registers
    "vit_medium_patch16_gap_240",
    "beit3_base_patch16_224",  # norms in attention and MLP
    "aimv2_large_patch14_224",  # RMS norms, split SwiGLU
    "vit_base_patch32_clip_224",  # a norm before the blocks
)
SWINS = ("swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "swin_small_patch4_window7_224:padded")
POST_NORM = ("vit_base_patch16_rpn_224",)


def opened(name: str, **kwargs: Any) -> OpenModel:
    return open_model((build_swin if name.startswith("swin") else build)(name, **kwargs))


def some_open(units: Layout, share: float, seed: int = 0) -> Tensor:
    """Gates (total,) bool: about `share` of each list open, at least one unit."""
    generator = torch.Generator().manual_seed(seed)
    gates = all_open(units)
    for u, span in units.spans():
        closed = torch.randperm(u.size, generator=generator)[max(1, round(share * u.size)) :]
        gates[span][closed] = False
    return gates


def pictures(model: OpenModel, batch: int = 2) -> Tensor:
    return torch.randn(batch, *model.input_size(), generator=torch.Generator().manual_seed(3))


def units_of(model: OpenModel, *kinds: str) -> Layout:
    return layout(model, kinds or None)
