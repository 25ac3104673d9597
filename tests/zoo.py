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

# what is not of the plain family, or odd within it: rotary positions, relative biases, attention pools, other blocks
_EVA = {"embed_dim": 48}  # rotary tables need a head width that is a multiple of 4
ODD: dict[str, dict] = {
    "eva_giant_patch14_224": {},
    "eva02_tiny_patch14_224": _EVA,
    "eva02_small_patch14_224:dynamic": {**_EVA, "dynamic_img_size": True},
    "eva02_base_patch14_224": _EVA,  # q, k and v apart, a norm in the MLP
    "eva02_base_patch14_224:regularised": {
        **_EVA,
        "drop_path_rate": 0.4,
        "drop_rate": 0.1,
        "proj_drop_rate": 0.1,
        "attn_drop_rate": 0.1,
        "pos_drop_rate": 0.1,
        "patch_drop_rate": 0.5,
        "rope_shift_coords": 0.2,
    },
    "eva02_base_patch16_clip_224": _EVA,  # a norm in the attention
    "eva02_enormous_patch14_clip_224": {},  # post-norm
    "vit_medium_patch16_rope_reg1_gap_256": _EVA,
    "vit_mediumd_patch16_rope_reg1_gap_256": _EVA,  # no q, k, v bias
    "vit_betwixt_patch16_rope_reg4_gap_256": _EVA,
    "vit_small_patch16_rope_224": _EVA,
    "vit_small_patch16_rope_ape_224": _EVA,
    "vit_small_patch16_rope_mixed_224": _EVA,  # learned angles for each block and head
    "vit_small_patch16_rope_mixed_ape_224:patch_drop": {**_EVA, "patch_drop_rate": 0.5},
    "vit_small_patch16_dinov3": _EVA,
    "vit_small_patch16_dinov3_qkvb": _EVA,
    "vit_small_plus_patch16_dinov3": _EVA,
    "vit_small_patch16_lingbot": _EVA,
    "vit_base_patch16_sapiens2": {**_EVA, "num_heads": 4, "num_kv_heads": 2},  # grouped queries
    "vit_pe_core_tiny_patch16_384": {**_EVA, "attn_pool_num_heads": 3},
    "vit_pe_core_gigantic_patch14_448": {**_EVA, "attn_pool_num_heads": 3},
    "vit_pe_lang_large_patch14_448": _EVA,
    "vit_pe_spatial_tiny_patch16_512": _EVA,
    "vit_base_patch16_siglip_224": {},
    "vit_so400m_patch14_siglip_224": {"dynamic_img_size": True},
    "vit_so150m_patch16_reg4_map_256": {},
    "vit_small_patch16_18x2_224": {},
    "vit_base_patch16_xp_224": {},
    "vit_pwee_patch16_reg1_gap_256": {},
    "vit_base_patch16_rpn_224": {},
    "vit_dwee_patch16_reg1_gap_256": {"num_heads": 4},
    "vit_dpwee_patch16_reg1_gap_256": {"num_heads": 4},
    "vit_relpos_small_patch16_224": {},
    "vit_relpos_base_patch16_cls_224": {},
    "vit_relpos_base_patch16_clsgap_224": {},
    "vit_srelpos_small_patch16_224": {},
    "vit_relpos_base_patch32_plus_rpn_256": {},
    "beit_base_patch16_224": {},
    "beit_base_patch16_224:shared": {"use_shared_rel_pos_bias": True, "use_rel_pos_bias": False},
    "beitv2_base_patch16_224": {},
}


def build(name: str, **kwargs) -> nn.Module:
    """A small model of the zoo in eval mode, all parameters random; `kwargs` go over the zoo's."""
    arguments = {**SMALL, **(ZOO | ODD).get(name, {}), **kwargs}
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
