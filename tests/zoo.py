"""Small timm models of the plain family with every parameter random, so that a wrong detail shows in the output."""

from __future__ import annotations

import timm
import torch
from timm.layers import Attention, GluMlp, RmsNorm
from torch import Tensor, nn

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 7}


# name -> constructor arguments; a suffix after ":" only tells two variants of one timm name apart
ZOO: dict[str, dict] = {
    "vit_tiny_patch16_224": {},
    "vit_tiny_patch16_224:dynamic": {"dynamic_img_size": True},
    "vit_tiny_patch16_224:dynamic_pad": {"dynamic_img_size": True, "dynamic_img_pad": True, "img_size": (30, 21)},
    "vit_tiny_patch16_224:no_position": {"pos_embed": "none"},
    "vit_small_patch16_224:one_channel": {"in_chans": 1, "img_size": (24, 40)},
    "vit_small_patch32_224:headless": {"num_classes": 0},
    "vit_small_patch16_224:packed_glu": {"mlp_layer": GluMlp, "scale_mlp_norm": True},
    "vit_base_patch16_224:qk_norm": {"qk_norm": True, "patch_size": (8, 4)},
    "vit_base_patch16_224:regularised": {
        "drop_path_rate": 0.4,
        "drop_rate": 0.1,
        "proj_drop_rate": 0.1,
        "attn_drop_rate": 0.1,
        "pos_drop_rate": 0.1,
        "patch_drop_rate": 0.5,
    },
    "vit_tiny_patch16_224:gated": {"gated": True},
    "vit_base_patch16_224_miil": {},  # no qkv bias
    "vit_small_patch16_36x1_224": {},
    "eva_large_patch14_196": {},
    "flexivit_small": {},
    "deit_tiny_patch16_224": {},
    "deit_tiny_distilled_patch16_224": {},
    "deit_small_distilled_patch16_224:drop_path": {"drop_path_rate": 0.3, "img_size": (16, 32)},
    "deit3_small_patch16_224": {"init_values": 0.1},
    "vit_small_patch14_dinov2": {},
    "vit_small_patch14_reg4_dinov2": {},
    "vit_giant_patch14_dinov2": {},  # packed SwiGLU
    "vit_giant_patch14_reg4_dinov2": {},
    "vit_base_patch14_reg1_tipsv2": {},
    "vit_base_patch32_clip_224": {},
    "vit_base_patch16_clip_quickgelu_224": {},
    "vit_xsmall_patch16_clip_224": {},
    "vit_medium_patch16_gap_240": {},
    "vit_base_patch16_siglip_gap_224": {},
    "vit_medium_patch16_reg4_gap_256": {},
    "vit_medium_patch16_reg4_gap_256:prefix_pooled": {"pool_include_prefix": True},
    "vit_so150m2_patch16_reg1_gap_256": {},
    "vit_little_patch16_reg4_gap_256": {},
    "vit_tiny_patch16_224:avgmax": {"global_pool": "avgmax"},
    "vit_tiny_patch16_224:max": {"global_pool": "max", "fc_norm": False},
    "vit_tiny_patch16_224:unpooled": {"global_pool": ""},
    "vit_intern300m_patch14_448": {},  # layer scale, no final norm, dynamic size
    "vit_base_patch16_radio_v3": {},
    "beit3_base_patch16_224": {},  # sub-norms
    "aimv2_large_patch14_224": {},  # RMS norms, a norm after the patches, split SwiGLU
    "test_vit4": {"qk_norm": True, "norm_layer": RmsNorm},
}


def build(name: str, **kwargs) -> nn.Module:
    """A small model of the zoo in eval mode, all parameters random; `kwargs` go over the zoo's."""
    arguments = {**SMALL, **ZOO.get(name, {}), **kwargs}
    gated = arguments.pop("gated", False)  # reachable in timm only as an argument of the layer
    model = timm.create_model(name.partition(":")[0], **arguments)
    for block in model.blocks if gated else ():
        block.attn = Attention(block.attn.qkv.in_features, block.attn.num_heads, qkv_bias=True, gated=True)
    return randomise(model).eval()


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights, biases, norms, layer scales, tokens and tables, each at a size that keeps activations of order one."""
    rng = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=rng)
        if p.ndim == 1 and not name.endswith("bias"):
            p.copy_(0.6 + 0.3 * noise)  # norm weights and layer scales
        elif p.ndim in (2, 4):
            p.copy_(noise * 1.5 / p[0].numel() ** 0.5)
        else:
            p.copy_(0.5 * noise)
    return model


def images(model: nn.Module, batch: int = 2, seed: int = 1) -> Tensor:
    embed = model.patch_embed
    noise = torch.randn(batch, embed.proj.in_channels, *embed.img_size, generator=torch.Generator().manual_seed(seed))
    return noise.to(embed.proj.weight.dtype)


SMALL_SWIN = {
    "img_size": 32,
    "patch_size": 2,
    "embed_dim": 12,
    "depths": (2, 2, 1),
    "num_heads": (2, 2, 3),
    "window_size": 4,
    "num_classes": 7,
}

ZOO_SWIN: dict[str, dict] = {
    "swin_tiny_patch4_window7_224": {},
    "swin_small_patch4_window7_224:padded": {"img_size": (36, 20)},  # grids of 18x10, 9x5, 5x3 in windows of 4
    "swin_base_patch4_window7_224:any_size": {"strict_img_size": False, "in_chans": 1},
    "swin_base_patch4_window12_384:one_window": {"window_size": 40},
    "swin_large_patch4_window7_224:always": {"always_partition": True, "window_size": 6, "qkv_bias": False},
    "swin_s3_tiny_224": {"window_size": (4, 3, 2), "head_dim": 5},
    "swin_s3_base_224:headless": {"num_classes": 0, "global_pool": ""},
    "swin_s3_small_224:regularised": {
        "drop_path_rate": 0.3,
        "drop_rate": 0.1,
        "proj_drop_rate": 0.1,
        "attn_drop_rate": 0.1,
        "global_pool": "avgmax",
    },
    "swinv2_tiny_window8_256": {},
    "swinv2_small_window8_256:padded": {"img_size": (36, 20), "global_pool": "max"},
    "swinv2_tiny_window16_256:any_size": {"strict_img_size": False, "qkv_bias": False},
    "swinv2_base_window12to16_192to256": {"pretrained_window_sizes": (3, 3, 2), "drop_path_rate": 0.3},
}


def build_swin(name: str, **kwargs) -> nn.Module:
    """A small Swin of the zoo in eval mode, all parameters random; `kwargs` go over the zoo's."""
    arguments = {**SMALL_SWIN, **ZOO_SWIN.get(name, {}), **kwargs}
    return randomise(timm.create_model(name.partition(":")[0], **arguments)).eval()
