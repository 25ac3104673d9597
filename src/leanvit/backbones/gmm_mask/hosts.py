"""The small vision transformers that the masks were published in, on timm's own classes (arXiv 2309.05375, section 4).

They are those of the small-data line of work behind the paper: patches straight into a linear, no q, k, v bias, MLPs of
twice the width. `mask` is "gmm", "elm" or "none" (the same model without one, as the baseline).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, cast

import torch
from timm.layers import DropPath
from timm.models.cait import Cait
from timm.models.swin_transformer import SwinTransformer, WindowAttention
from timm.models.vision_transformer import VisionTransformer, init_weights_vit_timm
from torch import Tensor, nn

from leanvit.anatomy.families.swin_parts import PlacedPatchEmbed
from leanvit.anatomy.parts.masked import MaskedAttention, MaskedWindowAttention
from leanvit.anatomy.parts.masks import KERNELS, MASKS, ScoreMask, make_mask
from leanvit.anatomy.parts.wide import WideAttention
from leanvit.backbones.gmm_mask.pit import MaskedPiT
from leanvit.backbones.gmm_mask.t2t import MaskedT2T, SoftSplits
from leanvit.backbones.gmm_mask.talking import ContextAttention, ContextBlock, TalkingHeads
from leanvit.errors import BadInput, unknown
from leanvit.knobs import Count, check

Side = int | tuple[int, int]
KINDS = (*MASKS, "none")
NORM = partial(nn.LayerNorm, eps=1e-5)
PRECISE = (
    (18, 0.1),
    (24, 1e-5),
)  # layer scale of CaiT: up to this layer, this much; 1e-6 beyond (2103.17239, section 2)


def vit(
    *,
    mask: str = "gmm",
    num_kernels: int = KERNELS,
    head_dim: int | None = None,
    img_size: Side = 32,
    patch_size: int = 4,
    drop_path_rate: float = 0.0,
    **given: Any,
) -> VisionTransformer:
    """A plain ViT, masked in every layer, mean-pooled. One drop-path rate for all layers, as published.

    The published baseline is mask="none", class_token=True, global_pool="token".

    Args:
        head_dim: width of a head; None: embed_dim / num_heads.
        given: other arguments of timm's `VisionTransformer`.

    Raises:
        BadInput: an unknown mask, kernels or widths that are no whole number above 0, `dynamic_img_size`.
    """
    _check(mask, num_kernels, head_dim, given)
    plain: dict[str, Any] = {"embed_dim": 192, "depth": 9, "num_heads": 12, "mlp_ratio": 2.0, "qkv_bias": False}
    plain |= {"class_token": False, "global_pool": "avg", "norm_layer": NORM}
    model = VisionTransformer(img_size=img_size, patch_size=patch_size, **{**plain, **given})
    for block in model.blocks:
        _set_attention(block, mask, num_kernels, head_dim, _grid(img_size, patch_size), model.num_prefix_tokens)
        _set_drop_path(block, drop_path_rate, "drop_path1", "drop_path2")
    _start(model, (model.pos_embed, model.cls_token))
    return model


def cait(
    *,
    mask: str = "gmm",
    num_kernels: int = KERNELS,
    head_dim: int = 64,
    img_size: Side = 32,
    patch_size: int = 4,
    **given: Any,
) -> Cait:
    """CaiT, masked in its patch layers before the heads talk; its class layers are not.

    The official code has heads of 64 (9.0 M parameters); the published 5.1 M are those of head_dim=16.
    """
    _check(mask, num_kernels, head_dim, given)
    plain: dict[str, Any] = {"embed_dim": 192, "depth": 24, "num_heads": 4, "mlp_ratio": 2.0, "qkv_bias": False}
    plain |= {"depth_token_only": 2, "mlp_ratio_token_only": 2.0, "norm_layer": NORM}
    arguments = {**plain, **given}
    make = partial(_made, mask, arguments["num_heads"], _grid(img_size, patch_size), num_kernels)
    model = Cait(
        img_size=img_size,  # type: ignore[arg-type]
        patch_size=patch_size,
        attn_block=partial(TalkingHeads, head_dim=head_dim, make_mask=make),  # type: ignore[arg-type]
        attn_block_token_only=partial(ContextAttention, head_dim=head_dim),  # type: ignore[arg-type]
        block_layers_token=ContextBlock,
        **arguments,
    )
    _start(model, (model.pos_embed, model.cls_token))
    for blocks in (model.blocks, model.blocks_token_only):
        for i, block in enumerate(blocks):
            for gamma in cast("tuple[Tensor, Tensor]", (block.gamma_1, block.gamma_2)):
                nn.init.constant_(gamma, next((eps for last, eps in PRECISE if i < last), 1e-6))
    return model


def pit(
    *,
    mask: str = "gmm",
    num_kernels: int = KERNELS,
    head_dim: int | None = None,
    img_size: Side = 32,
    patch_size: int = 2,
    drop_path_rate: float = 0.0,
    **given: Any,
) -> MaskedPiT:
    """PiT, masked between patches on the grid of each stage, the class token left out. One drop-path rate for all."""
    _check(mask, num_kernels, head_dim, given)
    plain: dict[str, Any] = {"base_dims": (48, 48, 48), "depth": (2, 6, 4), "heads": (2, 4, 8), "mlp_ratio": 2.0}
    model = MaskedPiT(img_size=img_size, patch_size=patch_size, stride=patch_size, **{**plain, **given})
    grid = model.patch_embed.grid_size
    for stage in cast("Iterable[Any]", model.transformers):
        if stage.pool is not None:
            grid = ((grid[0] + 1) // 2, (grid[1] + 1) // 2)
        for block in stage.blocks:
            _set_attention(block, mask, num_kernels, head_dim, grid, model.num_tokens)
            _set_drop_path(block, drop_path_rate, "drop_path1", "drop_path2")
    _start(model, (model.pos_embed, model.cls_token, model.cls_pos))
    return model


def t2t(
    *,
    mask: str = "gmm",
    num_kernels: int = KERNELS,
    head_dim: int | None = None,
    img_size: Side = 32,
    patch_size: int = 4,
    token_dim: int = 64,
    **given: Any,
) -> MaskedT2T:
    """T2T-ViT without a class token, masked in its tokenizer and in every block. `patch_size`: 2 to the soft splits."""
    _check(mask, num_kernels, head_dim, given)
    plain: dict[str, Any] = {"embed_dim": 256, "depth": 12, "num_heads": 4, "mlp_ratio": 2.0, "qkv_bias": False}
    plain |= {"class_token": False, "global_pool": "avg", "fc_norm": False, "norm_layer": NORM}
    side: Any = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
    stem: Any = partial(SoftSplits, token_dim=token_dim)
    model = MaskedT2T(img_size=side, patch_size=patch_size, embed_layer=stem, **{**plain, **given})
    for block in model.blocks:
        _set_attention(block, mask, num_kernels, head_dim, _grid(img_size, patch_size), model.num_prefix_tokens)
        cast(nn.Module, block.attn).apply(init_weights_vit_timm)
    if mask != "none":
        model.mask_cells(lambda grid: make_mask(mask, 1, grid, kernels=num_kernels))
    return model


def swin(
    *, mask: str = "gmm", num_kernels: int = KERNELS, img_size: Side = 32, patch_size: int = 2, **given: Any
) -> SwinTransformer:
    """Swin with learned positions of patches, masked in its windows before the relative positions are added."""
    _check(mask, num_kernels, None, given)
    plain: dict[str, Any] = {"embed_dim": 96, "depths": (2, 6, 4), "num_heads": (3, 6, 12), "mlp_ratio": 2.0}
    arguments = {**plain, "window_size": 4, "norm_layer": NORM, **given}
    model = SwinTransformer(img_size=img_size, patch_size=patch_size, **arguments)  # type: ignore[arg-type]
    old: Any = model.patch_embed
    model.patch_embed = PlacedPatchEmbed(
        img_size=img_size,
        patch_size=patch_size,
        in_chans=old.proj.in_channels,
        embed_dim=old.proj.out_channels,
        norm_layer=arguments["norm_layer"],
    )
    nn.init.trunc_normal_(model.patch_embed.pos_embed, std=0.02)
    for block in (block for stage in cast("Iterable[Any]", model.layers) for block in stage.blocks if mask != "none"):
        block.attn = _window_attention(block.attn, mask, num_kernels)
    return model


def _window_attention(old: WindowAttention, mask: str, kernels: int) -> MaskedWindowAttention:
    attn = MaskedWindowAttention(
        mask=make_mask(mask, old.num_heads, old.window_size, kernels=kernels),
        dim=old.dim,
        num_heads=old.num_heads,
        head_dim=old.qkv.out_features // (3 * old.num_heads),
        window_size=old.window_size,
        qkv_bias=old.qkv.bias is not None,
        attn_drop=old.attn_drop.p,
        proj_drop=old.proj_drop.p,
    )
    for linear in (attn.qkv, attn.proj):
        nn.init.trunc_normal_(linear.weight, std=0.02)
        if linear.bias is not None:
            nn.init.zeros_(linear.bias)
    return attn


# --- shared ----------------------------------------------------------------------------


def _check(mask: str, kernels: int, head_dim: int | None, given: dict[str, Any]) -> None:
    if mask not in KINDS:
        raise unknown("mask", str(mask), KINDS)
    check("num_kernels", kernels, Count)
    check("head_dim", head_dim, Count | None)
    for name, usual in (("dynamic_img_size", False), ("strict_img_size", True), ("patch_drop_rate", 0.0)):
        if given.get(name, usual) != usual:
            raise BadInput(f"{name} is {given[name]!r}; accepted: {usual}: a mask is of the grid of its img_size")


def _grid(img_size: Side, patch: int) -> tuple[int, int]:
    high, wide = (img_size, img_size) if isinstance(img_size, int) else img_size
    return high // patch, wide // patch


def _made(mask: str, heads: int, grid: tuple[int, int], kernels: int) -> ScoreMask | None:
    return None if mask == "none" else make_mask(mask, heads, grid, kernels=kernels)


def _set_attention(
    block: Any, mask: str, kernels: int, head_dim: int | None, grid: tuple[int, int], prefix: int
) -> None:
    """Put the attention of these widths and this mask into a timm block."""
    old = block.attn
    heads, dim = old.num_heads, old.qkv.in_features
    width = head_dim or dim // heads
    widths = {"heads": heads, "qk_dim": width, "v_dim": width, "scale": width**-0.5, "qkv_bias": False}
    widths |= {"attn_drop": old.attn_drop.p, "proj_drop": old.proj_drop.p}
    made = _made(mask, heads, grid, kernels)
    block.attn = (
        WideAttention(dim, **widths) if made is None else MaskedAttention(dim, mask=made, num_prefix=prefix, **widths)
    )


def _set_drop_path(block: Any, rate: float, *keys: str) -> None:
    for key in keys:
        setattr(block, key, DropPath(rate) if rate else nn.Identity())


@torch.no_grad()
def _start(model: nn.Module, tables: tuple[Tensor | None, ...]) -> None:
    """Xavier's normal weights, zero biases, tables of positions and tokens from N(0, 1): where these hosts start."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            linear = name.startswith("patch_embed")  # a convolution here, a linear of unfolded patches there
            nn.init.xavier_normal_(module.weight.flatten(1) if linear else module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for table in tables:
        if table is not None:
            nn.init.normal_(table)


def masks_of(model: nn.Module) -> Iterator[ScoreMask]:
    """Every mask in a model."""
    return (module for module in model.modules() if isinstance(module, ScoreMask))
