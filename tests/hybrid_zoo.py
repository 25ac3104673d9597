"""Small hybrids of timm, every parameter and running statistic random."""

from __future__ import annotations

import timm
import torch
from torch import Tensor, nn

from zoo import randomise

# name -> (image side, constructor arguments)
HYBRIDS: dict[str, tuple[int, dict]] = {
    "mobilevit_xxs": (64, {}),
    "mobilevit_xs": (96, {}),
    "mobilevitv2_050": (64, {}),
    "efficientformer_l1": (224, {}),
    "efficientformerv2_s0": (224, {}),
    "tiny_vit_5m_224": (224, {}),
    "levit_128s": (224, {}),
    "fastvit_t8": (64, {}),
    "fastvit_sa12": (64, {}),
    "repvit_m0_9": (64, {}),
    "edgenext_xx_small": (64, {}),
    "efficientvit_b0": (64, {}),
    "efficientvit_l1": (64, {}),
    "efficientvit_m0": (224, {}),
}


def build(name: str, **kwargs) -> nn.Module:
    """A hybrid of the zoo in eval mode."""
    side, given = HYBRIDS[name]
    given = {"num_classes": 7, "pretrained_cfg_overlay": {"input_size": (3, side, side)}, **given, **kwargs}
    model = randomise(timm.create_model(name, **given)).eval()
    rng = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for key, b in model.named_buffers():
            if key.endswith("running_mean"):
                b.copy_(0.2 * torch.randn(b.shape, generator=rng))
            if key.endswith("running_var"):
                b.copy_(0.5 + torch.rand(b.shape, generator=rng))
    return model


def images(model: nn.Module, batch: int = 2, seed: int = 1) -> Tensor:
    return torch.randn(batch, *model.pretrained_cfg["input_size"], generator=torch.Generator().manual_seed(seed))
