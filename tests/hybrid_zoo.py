"""Small hybrids of timm and of leanvit, every parameter and running statistic random."""

from __future__ import annotations

import timm
import torch
from torch import Tensor, nn

import leanvit.backbones  # noqa: F401 (registers leanvit's)
from zoo import randomise

# name -> (image side, constructor arguments that keep it small)
HYBRIDS: dict[str, tuple[int, dict]] = {
    "mobilevit_xxs": (64, {}),
    "mobilevitv2_050": (64, {}),
    "efficientformer_l1": (224, {"depths": (1, 1, 1, 2)}),
    "efficientformerv2_s0": (224, {"depths": (1, 1, 2, 3)}),
    "tiny_vit_5m_224": (64, {"depths": (1, 1, 2, 1)}),
    "levit_128s": (224, {"depth": (1, 1, 1)}),
    "fastvit_sa12": (64, {"layers": (1, 1, 1, 1)}),
    "repvit_m0_9": (64, {"depth": (1, 1, 2, 1)}),
    "edgenext_xx_small": (64, {}),
    "efficientvit_b0": (64, {}),
    "efficientvit_l1": (64, {"depths": (1, 1, 1, 1, 1)}),
    "efficientvit_m0": (224, {"depth": (1, 1, 1)}),
    "maxvit_nano_rw_256": (64, {"img_size": 64, "depths": (1, 1, 1, 1)}),
    "coatnet_nano_rw_224": (64, {"img_size": 64, "depths": (1, 1, 1, 1)}),
    "pvt_v2_b0": (64, {"depths": (1, 1, 1, 1)}),
    "davit_tiny": (64, {"depths": (1, 1, 1, 1)}),
    "nextvit_small": (64, {}),
    "poolformer_s12": (64, {}),
    "caformer_s18": (64, {}),
    "shvit_s1": (64, {}),
    "nest_tiny": (64, {"img_size": 64}),
    "gcvit_xxtiny": (64, {"img_size": 64}),
    "visformer_tiny": (64, {"img_size": 64, "depth": (1, 1, 1)}),
    "iformer_s": (64, {}),
    "pit_ti_224": (64, {"img_size": 64, "depth": (1, 1, 1)}),
    "swinv2_cr_tiny_224": (64, {"img_size": 64, "depths": (1, 2, 1, 1)}),
    "botnet26t_256": (64, {"img_size": 64}),
    "cait_xxs24_224": (64, {"img_size": 64, "depth": 2, "depth_token_only": 1}),
    "gmm_pit_cifar": (16, {"img_size": 16, "depth": (1, 1, 1)}),
    "litv2_small": (64, {"img_size": 64, "embed_dim": 24, "depths": (1, 1, 2, 1)}),
    "stvit_r_swin_tiny": (128, {"img_size": 128, "embed_dim": 12, "depths": (1, 1, 6, 1), "window_size": 4}),
    "dhvt_tiny_cifar_patch4": (32, {"depth": 2}),
    "dualtoken_vit_small_mix": (64, {"img_size": 64, "dims": (16, 32, 64), "depths": (1, 1, 2), "token_side": 2}),
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
