"""A timm vision transformer from the constructor of a golden case."""

from __future__ import annotations

from functools import partial
from typing import Any

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from leanvit.anatomy import OpenViT, open_model


def opened_vit(constructor: dict[str, Any], weights: dict[str, Tensor], *, not_timm: tuple[str, ...] = ()) -> OpenViT:
    """Built from official arguments, weights loaded strictly. `not_timm`: arguments of the official class alone."""
    kwargs = {key: value for key, value in constructor.items() if key not in not_timm}
    if "norm_eps" in kwargs:
        kwargs["norm_layer"] = partial(nn.LayerNorm, eps=kwargs.pop("norm_eps"))
    model = VisionTransformer(**kwargs)
    model.load_state_dict(weights, strict=True)
    return open_model(model)
