"""Adapter for timm's Swin (`swin_*`, `swin_s3_*`) and Swin V2 (`swinv2_*`). Read from timm 1.0.31."""

from __future__ import annotations

from typing import Any

from timm.layers import ClassifierHead, DropPath, PatchEmbed
from timm.layers import Mlp as TimmMlp
from timm.models import swin_transformer as v1
from timm.models import swin_transformer_v2 as v2
from torch import nn

from leanvit.anatomy.adapters.parts import check_untouched, foreign_terms, only
from leanvit.anatomy.families.swin import POOLS, OpenSwin
from leanvit.anatomy.families.swin_parts import (
    PatchMerging,
    PlacedPatchEmbed,
    PostNormPatchMerging,
    Stage,
    SwinAttention,
    SwinV2Attention,
    UnitNorm,
)
from leanvit.anatomy.parts.blocks import Block, Mlp, PostNormBlock
from leanvit.anatomy.parts.masked import MaskedWindowAttention
from leanvit.errors import Refused

SUPPORTED = "Swin (swin_*, swin_s3_*) and Swin V2 (swinv2_*) of timm"

_CHILDREN = {"patch_embed", "layers", "norm", "head"}
_STAGE = {"downsample", "blocks"}
_BLOCK = {"norm1", "attn", "drop_path1", "norm2", "mlp", "drop_path2"}
_ATTENTION = {"qkv", "attn_drop", "proj", "proj_drop", "softmax", "cpb_mlp"}
_MASKED = _ATTENTION | {"mask"}
_OWN = {"relative_position_bias_table", "logit_scale", "q_bias", "v_bias"}  # parameters of an attention itself
_MLP = {"fc1", "act", "drop1", "norm", "fc2", "drop2"}
_HEAD = {"global_pool", "drop", "fc", "flatten"}
_COPIED = (
    "num_classes",
    "in_chans",
    "global_pool",
    "output_fmt",
    "num_layers",
    "num_features",
    "head_hidden_size",
    "embed_dim",
    "feature_info",
    "pretrained_cfg",
    "default_cfg",
    "_model_args",
)
_STATE = (
    "num_classes",
    "global_pool",
    "num_features",
    "head_hidden_size",
    "feature_info",
)  # may have changed since it was opened
_KINDS = {  # stage, block, attention, patch merging of each class
    v1.SwinTransformer: (v1.SwinTransformerStage, v1.SwinTransformerBlock, v1.WindowAttention, v1.PatchMerging),
    v2.SwinTransformerV2: (v2.SwinTransformerV2Stage, v2.SwinTransformerV2Block, v2.WindowAttention, v2.PatchMerging),
}


def understands(model: nn.Module) -> bool:
    """Swin, Swin V2, and their subclasses, which `open_family` refuses."""
    return isinstance(model, tuple(_KINDS))


def open_family(model: Any) -> OpenSwin:
    """Build the opened model around the children of a timm one. Raises `Refused`, naming what is not understood."""
    _check_model(model)
    attributes = {key: getattr(model, key) for key in _COPIED if hasattr(model, key)}
    attributes |= {
        "grad_checkpointing": any(stage.grad_checkpointing for stage in model.layers),
        "dynamic_img_size": not model.patch_embed.strict_img_size,
    }
    opened = OpenSwin(
        patch_embed=model.patch_embed,
        layers=[_stage(f"layers.{i}", stage) for i, stage in enumerate(model.layers)],
        norm=model.norm,
        head=model.head,
        attributes=attributes,
        source=model,
    )
    return opened.train(model.training)


def _stage(name: str, stage: Any) -> Stage:
    merging = stage.downsample
    if not isinstance(merging, nn.Identity):
        kind = PatchMerging if isinstance(merging, v1.PatchMerging) else PostNormPatchMerging
        merging = kind(name=f"{name}.downsample", norm=merging.norm, reduction=merging.reduction)
    return Stage(downsample=merging, blocks=[_block(f"{name}.blocks.{i}", b) for i, b in enumerate(stage.blocks)])


def _block(name: str, block: Any) -> Block:
    kind = Block if isinstance(block, v1.SwinTransformerBlock) else PostNormBlock
    children = {key: child for key, child in block.named_children() if key not in ("attn", "mlp")}
    mlp = Mlp(name=f"{name}.mlp", parts=dict(block.mlp.named_children()))
    return kind(name=name, attn=_attention(f"{name}.attn", block), mlp=mlp, **children)


def _attention(name: str, block: Any) -> SwinAttention | SwinV2Attention:
    attn = block.attn
    width = attn.qkv.out_features // (3 * attn.num_heads)
    given = {
        "name": name,
        "heads": attn.num_heads,
        "qk_dim": width,
        "v_dim": width,
        "window": tuple(block.window_size),
        "shift": tuple(block.shift_size),
        "grid": None if getattr(block, "dynamic_mask", False) else tuple(block.input_resolution),
        **{key: getattr(attn, key) for key in ("qkv", "proj", "attn_drop", "proj_drop")},
    }
    if isinstance(attn, v1.WindowAttention):
        table = attn.relative_position_bias_table
        opened = SwinAttention(scale=attn.scale, fused=attn.fused_attn, table=table, **given)
        if isinstance(attn, MaskedWindowAttention):
            opened.hold(attn.mask)
        return opened
    return SwinV2Attention(
        scale=1.0,
        fused=False,
        q_norm=UnitNorm(width),
        k_norm=UnitNorm(width),
        logit_scale=attn.logit_scale,
        cpb_mlp=attn.cpb_mlp,
        q_bias=attn.q_bias,
        v_bias=attn.v_bias,
        pretrained_window=tuple(attn.pretrained_window_size),
        **given,
    )


def _check_model(model: Any) -> None:
    if type(model) not in _KINDS:
        raise Refused(f"the model is a {type(model).__name__}, a subclass that may have another forward")
    only("the model", dict(model.named_children()), _CHILDREN)
    only("the model", dict(model.named_parameters(recurse=False)), set())
    if type(model.patch_embed) not in (PatchEmbed, PlacedPatchEmbed) or model.patch_embed.dynamic_img_pad:
        raise Refused(f"patch_embed is a {type(model.patch_embed).__name__}; supported: PatchEmbed that pads no images")
    if type(model.head) is not ClassifierHead or model.head.use_conv:
        raise Refused(f"head is a {type(model.head).__name__}; supported: ClassifierHead with a linear classifier")
    only("head", dict(model.head.named_children()), _HEAD)
    if model.global_pool not in POOLS:
        raise Refused(f"global_pool {model.global_pool!r} is not supported; supported: {POOLS}")
    check_untouched(model)
    for i, stage in enumerate(model.layers):
        _check_stage(f"layers.{i}", stage, *_KINDS[type(model)])


def _check_stage(name: str, stage: Any, stage_kind: type, block_kind: type, attention: type, merging: type) -> None:
    _exact(name, stage, stage_kind)
    only(name, dict(stage.named_children()), _STAGE)
    _exact(f"{name}.downsample", stage.downsample, merging, nn.Identity)
    if not len(stage.blocks):
        raise Refused(f"{name} has no blocks")
    for i, block in enumerate(stage.blocks):
        at = f"{name}.blocks.{i}"
        _exact(at, block, block_kind)
        only(at, dict(block.named_children()), _BLOCK)
        held = type(block.attn) is MaskedWindowAttention and attention is v1.WindowAttention
        _exact(f"{at}.attn", block.attn, MaskedWindowAttention if held else attention)
        only(f"{at}.attn", dict(block.attn.named_children()), _MASKED if held else _ATTENTION)
        only(f"{at}.attn", dict(block.attn.named_parameters(recurse=False)), _OWN)
        if getattr(block.attn, "qkv_bias_separate", False):
            raise Refused(f"{at}.attn adds its q/k/v bias after the projection (qkv_bias_separate)")
        _exact(f"{at}.mlp", block.mlp, TimmMlp)
        only(f"{at}.mlp", dict(block.mlp.named_children()), _MLP)
        for key in ("drop_path1", "drop_path2"):
            _exact(f"{at}.{key}", getattr(block, key), DropPath, nn.Identity)


def _exact(where: str, part: nn.Module, *kinds: type) -> None:
    if type(part) not in kinds:
        raise Refused(f"{where} is a {type(part).__name__}; supported: {', '.join(k.__name__ for k in kinds)}")


def close_family(opened: OpenSwin, source: Any) -> nn.Module:
    """Hand the children back to the timm model that `opened` was made from. Fewer stages than it had are fine."""
    if len(opened.layers) > len(source.layers):
        raise Refused(f"cannot close: {len(opened.layers)} stages, the timm model holds {len(source.layers)}")
    pairs = [
        (block, timm_block)
        for stage, timm_stage in zip(opened.layers, source.layers, strict=False)
        for block, timm_block in zip(stage.blocks, timm_stage.blocks, strict=True)
    ]
    for block, timm_block in pairs:
        _check_closable(block, timm_block)
    source.layers = source.layers[: len(opened.layers)]
    for block, timm_block in pairs:
        _close_attention(block.attn, timm_block.attn)
        for key, child in block.mlp.named_children():
            setattr(timm_block.mlp, key, child)
        for key in _BLOCK - {"attn", "mlp"}:
            setattr(timm_block, key, getattr(block, key))
    for stage, timm_stage in zip(opened.layers, source.layers, strict=True):
        timm_stage.grad_checkpointing = opened.grad_checkpointing
        for key, child in stage.downsample.named_children():
            setattr(timm_stage.downsample, key, child)
    for key in _CHILDREN - {"layers"}:
        setattr(source, key, getattr(opened, key))
    for key in _STATE:
        setattr(source, key, getattr(opened, key))
    if hasattr(source, "_ref_window_sizes"):
        source._ref_window_sizes = source._ref_window_sizes[: len(opened.layers)]
    return source.train(opened.training)


def _check_closable(block: Any, timm_block: Any) -> None:
    attn = block.attn
    if attn.qk_dim != attn.v_dim:
        raise Refused(f"cannot close: {attn.name} has q/k width {attn.qk_dim} and v width {attn.v_dim}; timm knows one")
    if isinstance(attn, SwinV2Attention) and attn.heads * attn.v_dim != attn.proj.out_features:
        raise Refused(
            f"cannot close: {attn.name} has {attn.heads} heads of {attn.v_dim}; timm's Swin V2 knows "
            f"{attn.proj.out_features} in all"
        )
    if foreign_terms(attn, timm_block.attn):
        raise Refused(f"cannot close: {attn.name} holds score terms, which timm's class would not apply")
    if (attn.window, attn.shift) != (tuple(timm_block.window_size), tuple(timm_block.shift_size)):
        raise Refused(f"cannot close: {attn.name} has other windows than the timm model that it came from")
    if attn.padding != "tokens":
        raise Refused(f"cannot close: {attn.name} has padding {attn.padding!r}, timm's has 'tokens'")
    if type(block.mlp) is not Mlp:
        raise Refused(f"cannot close: {block.name}.mlp is a {type(block.mlp).__name__}")


def _close_attention(attn: Any, timm_attn: Any) -> None:
    for key in _OWN:
        if key in timm_attn._parameters:
            setattr(timm_attn, key, getattr(attn, key))
    if isinstance(attn, SwinV2Attention):
        timm_attn.cpb_mlp = attn.cpb_mlp
        if timm_attn.k_bias is not None:
            timm_attn.k_bias = timm_attn.k_bias.new_zeros(attn.heads * attn.qk_dim)
    else:
        timm_attn.scale = attn.scale
        # timm's fused path takes the scale of the width at hand and would ignore a stored one
        timm_attn.fused_attn = attn.fused and attn.scale == attn.qk_dim**-0.5
    timm_attn.num_heads = attn.heads
    for key in ("qkv", "proj", "attn_drop", "proj_drop"):
        setattr(timm_attn, key, getattr(attn, key))
    if "mask" in timm_attn._modules:
        timm_attn.mask = attn.mask
