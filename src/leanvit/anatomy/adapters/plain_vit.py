"""Adapter for timm's plain vision transformers.

`vit_*`, `deit_*` (distilled too), `deit3_*`, registers, CLIP and DINOv2 towers, mean-pooled heads, layer scale,
q/k norm, sub-norms, gated attention, SwiGLU. Read from timm 1.0.31.
"""

from __future__ import annotations

from typing import Any

from timm.layers import DropPath, GluMlp, LayerScale, PatchDropout, PatchEmbed, SwiGLU
from timm.layers import Mlp as TimmMlp
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Attention as TimmAttention
from timm.models.vision_transformer import Block as TimmBlock
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from leanvit.anatomy.blocks import Attention, Block, Mlp, PackedGluMlp, SplitGluMlp
from leanvit.anatomy.vit import OpenViT
from leanvit.errors import Refused

SUPPORTED = (
    "plain vision transformers of timm (vit_*, deit_*, deit3_*; distilled, registers, CLIP towers, average pooling)"
)

_TOKENS = ("cls_token", "dist_token", "reg_token")
_EXTRAS = ("pos_drop", "patch_drop", "norm_pre")
_HEADS = ("fc_norm", "head_drop", "head", "head_dist")
_CHILDREN = {"patch_embed", "blocks", "norm", *_EXTRAS, *_HEADS}
_BLOCK = {"norm1", "attn", "ls1", "drop_path1", "norm2", "mlp", "ls2", "drop_path2"}
_ATTENTION = {"qkv", "q_norm", "k_norm", "attn_drop", "norm", "gate", "proj", "proj_drop"}
_MLP = {"fc1", "fc1_g", "fc1_x", "act", "drop1", "norm", "fc2", "drop2"}
_POOLS = ("", "token", "avg", "avgmax", "max")
_PLAIN = {  # exact classes only: a subclass may have another forward
    "attn": (TimmAttention,),
    "mlp": (TimmMlp, GluMlp, SwiGLU),
    "ls1": (LayerScale, nn.Identity),
    "ls2": (LayerScale, nn.Identity),
    "drop_path1": (DropPath, nn.Identity),
    "drop_path2": (DropPath, nn.Identity),
}
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
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
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
    _check_model(model)
    attributes = {key: getattr(model, key) for key in _COPIED if hasattr(model, key)}
    attributes |= {
        "grad_checkpointing": model.grad_checkpointing,
        "pool_include_prefix": getattr(model, "pool_include_prefix", False),
        "distilled_training": getattr(model, "distilled_training", False),
    }
    opened = OpenViT(
        patch_embed=model.patch_embed,
        blocks=[_block(f"blocks.{i}", block) for i, block in enumerate(model.blocks)],
        norm=model.norm,
        heads={key: child for key, child in model.named_children() if key in _HEADS},
        tokens={key: getattr(model, key, None) for key in _TOKENS if key in model._parameters},
        pos_embed=model.pos_embed,
        extras={key: getattr(model, key) for key in _EXTRAS},
        attributes=attributes,
        source=model,
    )
    return opened.train(model.training)


def _block(name: str, block: Any) -> Block:
    attn = block.attn
    parts = {key: child for key, child in attn.named_children() if key in _ATTENTION}
    attention = Attention(
        name=f"{name}.attn",
        heads=attn.num_heads,
        qk_dim=attn.head_dim,
        v_dim=attn.head_dim,
        scale=attn.scale,
        fused=attn.fused_attn,
        **parts,
    )
    children = {key: child for key, child in block.named_children() if key not in ("attn", "mlp")}
    return Block(name=name, attn=attention, mlp=_mlp(f"{name}.mlp", block.mlp), **children)


def _mlp(name: str, mlp: nn.Module) -> Mlp:
    parts = dict(mlp.named_children())
    if isinstance(mlp, GluMlp):
        return PackedGluMlp(name=name, parts=parts, gate_last=mlp.gate_last)
    return (SplitGluMlp if isinstance(mlp, SwiGLU) else Mlp)(name=name, parts=parts)


def _check_model(model: Any) -> None:
    _only("the model", dict(model.named_children()), _CHILDREN)
    _only("the model", dict(model.named_parameters(recurse=False)), {*_TOKENS, "pos_embed"})
    if model.global_pool not in _POOLS:
        raise Refused(f"global_pool {model.global_pool!r} (attention pooling) is not supported; supported: {_POOLS}")
    if type(model.patch_embed) is not PatchEmbed:
        raise Refused(f"patch_embed is a {type(model.patch_embed).__name__}; supported: PatchEmbed (one convolution)")
    if type(model.patch_drop) not in (nn.Identity, PatchDropout):
        raise Refused(f"patch_drop is a {type(model.patch_drop).__name__}")
    for module_name, module in model.named_modules():
        if "forward" in vars(module):
            raise Refused(f"{module_name or 'the model'} has a forward of its own (patched): open it before patching")
        if any(getattr(module, hooks) for hooks in _HOOKS):
            raise Refused(f"{module_name or 'the model'} carries forward or backward hooks: remove them first")
    for i, block in enumerate(model.blocks):
        _check_block(f"blocks.{i}", block)


def _check_block(name: str, block: Any) -> None:
    if type(block) is not TimmBlock:
        raise Refused(f"{name} is a {type(block).__name__}; supported: the pre-norm Block")
    _only(name, dict(block.named_children()), _BLOCK)
    for key, kinds in _PLAIN.items():
        part = getattr(block, key)
        if type(part) not in kinds:
            raise Refused(f"{name}.{key} is a {type(part).__name__}; supported: {', '.join(k.__name__ for k in kinds)}")
    _only(f"{name}.attn", dict(block.attn.named_children()), _ATTENTION)
    _only(f"{name}.mlp", dict(block.mlp.named_children()), _MLP)


def _only(where: str, given: dict[str, Any], known: set[str]) -> None:
    foreign = sorted(set(given) - known)
    if foreign:
        raise Refused(f"{where} has parts that leanvit does not understand: {', '.join(foreign)}")


def close_family(opened: OpenViT, source: Any) -> nn.Module:
    """Hand the children back to the timm model that `opened` was made from. Fewer blocks than it had are fine."""
    if len(opened.blocks) > len(source.blocks):
        raise Refused(f"cannot close: {len(opened.blocks)} blocks, the timm model holds {len(source.blocks)}")
    source.blocks = source.blocks[: len(opened.blocks)]
    for block, timm_block in zip(opened.blocks, source.blocks, strict=True):
        attn = block.attn
        if attn.qk_dim != attn.v_dim:
            raise Refused(
                f"cannot close: {attn.name} has q/k width {attn.qk_dim} and v width {attn.v_dim}; timm knows one"
            )
        if attn.terms:
            raise Refused(f"cannot close: {attn.name} holds score terms, which timm's class would not apply")
        if not isinstance(block.mlp, Mlp):
            raise Refused(f"cannot close: {block.name}.mlp is a {type(block.mlp).__name__}")
        timm_block.attn.num_heads, timm_block.attn.head_dim = attn.heads, attn.qk_dim
        timm_block.attn.attn_dim, timm_block.attn.scale = attn.heads * attn.qk_dim, attn.scale
        # timm's fused path takes the scale of the width at hand and would ignore a stored one
        timm_block.attn.fused_attn = attn.fused and attn.scale == attn.qk_dim**-0.5
        _hand_back(timm_block.attn, attn)
        _hand_back(timm_block.mlp, block.mlp)
        for key in _BLOCK - {"attn", "mlp"}:
            setattr(timm_block, key, getattr(block, key))
    for key in ("patch_embed", "norm", *_EXTRAS, *_HEADS):
        if key in dict(source.named_children()):
            setattr(source, key, getattr(opened, key))
    for key in (*_TOKENS, "pos_embed"):
        if key in source._parameters:
            source._parameters[key] = opened._parameters[key]
    for key in _STATE:
        if hasattr(source, key):
            setattr(source, key, getattr(opened, key))
    return source.train(opened.training)


def _hand_back(timm_part: nn.Module, part: nn.Module) -> None:
    for key, child in part.named_children():
        setattr(timm_part, key, child)
