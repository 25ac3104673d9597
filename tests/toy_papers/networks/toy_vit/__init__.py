"""A toy of an architecture: a ViT with a part of its own, opened as a traced graph."""

from __future__ import annotations

from typing import Any

import torch
from timm.models import build_model_with_cfg
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from leanvit.models.registration import pretrained_cfg, register

__all__ = ["ToyViT"]


class GatedMlp(nn.Module):
    """Two linears with a gate between them: (B, N, C) -> (B, N, C)."""

    def __init__(self, in_features: int, hidden_features: int, **_: Any) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_features, hidden_features)
        self.act = nn.GELU()
        self.gate = nn.Parameter(torch.ones(hidden_features))
        self.fc2 = nn.Linear(hidden_features, in_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)) * self.gate)


class ToyViT(VisionTransformer):
    """A ViT of patches of 16 pixels with `GatedMlp`."""

    OPENS = "leanvit.anatomy.adapters.hybrid"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"mlp_layer": GatedMlp, **kwargs})


default_cfgs = {"toy_vit_tiny": pretrained_cfg(fixed_input_size=True)}


@register
def toy_vit_tiny(pretrained: bool = False, **kwargs: Any) -> ToyViT:
    """Two blocks of 48 channels."""
    features = {"out_indices": 2, "feature_cls": "getter"}
    given = {"embed_dim": 48, "depth": 2, "num_heads": 3, **kwargs}
    model: ToyViT = build_model_with_cfg(ToyViT, "toy_vit_tiny", pretrained, feature_cfg=features, **given)
    return model
