"""Adapter for timm's plain vision transformers.

`vit_*`, `deit_*` (distilled too), `deit3_*`, registers, CLIP, SigLIP and DINOv2 towers, mean-pooled and
attention-pooled heads, layer scale, q/k norm, sub-norms, gated and differential attention, SwiGLU, post-norm and
parallel blocks. Read from timm 1.0.31.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from timm.layers import PatchDropout, PatchEmbed
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from leanvit.anatomy.adapters.parts import check_closable, check_untouched, hand_back, only, open_block, open_pool
from leanvit.anatomy.families.vit import OpenViT
from leanvit.anatomy.parts.positions import Rotary
from leanvit.errors import Refused

SUPPORTED = (
    "plain vision transformers of timm (vit_*, deit_*, deit3_*; distilled, registers, CLIP and SigLIP towers, average "
    "and attention pooling, parallel and post-norm blocks)"
)

TOKENS = ("cls_token", "dist_token", "reg_token")
EXTRAS = ("pos_drop", "patch_drop", "norm_pre")
_HEADS = ("attn_pool", "fc_norm", "head_drop", "head", "head_dist")
CHILDREN = {"patch_embed", "blocks", "norm", *EXTRAS, *_HEADS}
_COPIED = (  # public attributes that timm's tools and users read
    "num_classes",
    "in_chans",
    "global_pool",
    "num_features",
    "head_hidden_size",
    "embed_dim",
    "num_prefix_tokens",
    "num_reg_tokens",
    "has_class_token",
    "no_embed_class",
    "dynamic_img_size",
    "feature_info",
    "pretrained_cfg",
    "default_cfg",
    "_model_args",
)
_STATE = (  # what may have changed since the model was opened
    "num_classes",
    "global_pool",
    "embed_dim",
    "num_features",
    "head_hidden_size",
    "grad_checkpointing",
    "distilled_training",
)


def understands(model: nn.Module) -> bool:
    return type(model) in (VisionTransformer, VisionTransformerDistilled)


def open_family(model: Any) -> OpenViT:
    """Build the opened model around the children of a timm one. Raises `Refused`, naming what is not understood."""
    _check(model)
    return open_as(OpenViT, model, extras={key: getattr(model, key) for key in EXTRAS})


def _check(model: Any) -> None:
    check_model(model, children=CHILDREN, tokens=TOKENS)
    if type(model) is VisionTransformerDistilled and getattr(model, "reg_token", None) is not None:
        raise Refused(
            "a distilled model with reg_tokens: timm's class never puts the register tokens into the sequence"
        )
    if type(model.patch_drop) not in (nn.Identity, PatchDropout):
        raise Refused(f"patch_drop is a {type(model.patch_drop).__name__}; supported: PatchDropout")


def check_model(model: Any, *, children: Iterable[str], tokens: Iterable[str] = ("cls_token",)) -> None:
    """What every family of this kind checks of the whole model. Raises `Refused`."""
    only("the model", dict(model.named_children()), children)
    only("the model", dict(model.named_parameters(recurse=False)), {*tokens, "pos_embed"})
    if type(model.patch_embed) is not PatchEmbed:
        raise Refused(f"patch_embed is a {type(model.patch_embed).__name__}; supported: PatchEmbed (one convolution)")
    check_untouched(model)


def open_as(
    kind: type[OpenViT],
    model: Any,
    *,
    extras: dict[str, nn.Module | None],
    rotary: Callable[[int], Rotary | None] = lambda i: None,
) -> Any:
    """An opened model of class `kind` around the children of a timm one."""
    attributes = {"no_embed_class": False, "dynamic_img_size": False}
    attributes |= {key: getattr(model, key) for key in _COPIED if hasattr(model, key)}
    attributes |= {
        "grad_checkpointing": model.grad_checkpointing,
        "pool_include_prefix": getattr(model, "pool_include_prefix", False),
        "distilled_training": getattr(model, "distilled_training", False),
    }
    heads: dict[str, nn.Module | None] = {key: child for key, child in model.named_children() if key in _HEADS}
    heads["attn_pool"] = open_pool(getattr(model, "attn_pool", None))
    opened = kind(
        patch_embed=getattr(model, kind.STEM),
        blocks=[open_block(f"blocks.{i}", block, rotary(i)) for i, block in enumerate(model.blocks)],
        norm=model.norm,
        heads=heads,
        tokens={key: getattr(model, key, None) for key in TOKENS if key in model._parameters},
        pos_embed=getattr(model, "pos_embed", None),
        extras=extras,
        attributes=attributes,
        source=model,
    )
    return opened.train(model.training)


def close_family(opened: OpenViT, source: Any) -> nn.Module:
    """Hand the children back to the timm model that `opened` was made from. Fewer blocks than it had are fine."""
    if len(opened.blocks) > len(source.blocks):
        raise Refused(f"cannot close: {len(opened.blocks)} blocks, the timm model holds {len(source.blocks)}")
    for block, timm_block in zip(opened.blocks, source.blocks, strict=False):
        check_closable(block, timm_block)
    source.blocks = source.blocks[: len(opened.blocks)]
    for block, timm_block in zip(opened.blocks, source.blocks, strict=True):
        hand_back(block, timm_block)
    if opened.attn_pool is not None:
        hand_back(opened.attn_pool, source.attn_pool)
    elif hasattr(source, "attn_pool"):
        source.attn_pool = None
    for key in source._modules.keys() - {"blocks", "attn_pool"}:
        setattr(source, key, getattr(opened, key))
    for key in source._parameters:
        source._parameters[key] = opened._parameters[key]
    for key in source._buffers:
        source._buffers[key] = opened._buffers[key]
    for key in _STATE:
        if hasattr(source, key):
            setattr(source, key, getattr(opened, key))
    return source.train(opened.training)
