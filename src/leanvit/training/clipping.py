"""Clipping of a step's gradients, as timm's `dispatch_clip_grad` does it; of sharded ones, too."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.utils.agc import adaptive_clip_grad
from torch import Tensor, nn

from leanvit.training.config import FitConfig
from leanvit.training.optimizers import classifier
from leanvit.training.parallel import own_part, scale_gradients


def clip(model: nn.Module, trained: Sequence[nn.Parameter], norm: Tensor, config: FitConfig) -> float:
    """Clip the gradients in place by the recipe's mode; returns the one factor on all of them ("norm"), else 1.

    norm: the global 2-norm of the gradients, a scalar.
    """
    if config.clip_grad is None:
        return 1.0
    if config.clip_mode == "norm":
        factor = torch.clamp(config.clip_grad / (norm + 1e-6), max=1.0)
        scale_gradients(trained, factor)
        return float(factor)
    if config.clip_mode == "value":
        for p in trained:
            if p.grad is not None:
                own_part(p.grad).clamp_(-config.clip_grad, config.clip_grad)
        return 1.0
    head = classifier(model)  # timm leaves out the model's last two parameters, which are those of its classifier
    adaptive_clip_grad([p for p in trained if id(p) not in head], config.clip_grad)
    return 1.0
