"""Explicit widths: give an attention, an MLP or a whole model other widths. Structure only: linears and tables
start at zero, norms as new.

The heads, q/k and v widths and the MLP's hidden width belong to a block; the embedding width to the model, or to a
stage of a hierarchical one. Values are moved in by whoever prunes (`fold`); on load they come from the state dict.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from leanvit.anatomy.families.swin import OpenSwin
from leanvit.anatomy.families.swin_parts import PlacedPatchEmbed
from leanvit.anatomy.model import OpenModel
from leanvit.anatomy.parts.blocks import Attention, Mlp, PackedGluMlp
from leanvit.anatomy.surgery.norms import PhantomNorm, loses_channels, phantom_of, plain_kind
from leanvit.errors import BadInput, Refused


def set_attention_widths(
    attn: Attention,
    *,
    heads: int | None = None,
    qk_dim: int | None = None,
    v_dim: int | None = None,
    exact: bool = False,
) -> None:
    """Change the number of heads and the widths per head. The attention scale stays as stored.

    `exact`, here and below: norms over what became narrower go on counting the missing channels as zeros (`norms.py`).
    """
    if not attn.prunable:
        raise Refused(f"{attn.name}: widths can be changed where one linear makes q, k and v, without rotary positions")
    heads = attn.heads if heads is None else heads
    qk_dim = attn.qk_dim if qk_dim is None else qk_dim
    v_dim = attn.v_dim if v_dim is None else v_dim
    for name, value in (("heads", heads), ("qk_dim", qk_dim), ("v_dim", v_dim)):
        if value < 1:
            raise BadInput(f"{attn.name}: {name} is {value}; accepted: 1 or more")
    attn.qkv = empty_linear(attn.qkv, outputs=heads * (2 * qk_dim + v_dim))
    attn.proj = empty_linear(attn.proj, inputs=heads * v_dim)
    if attn.gate is not None:
        attn.gate = empty_linear(attn.gate, outputs=heads * v_dim)
    attn.q_norm, attn.k_norm = (resized_norm(norm, qk_dim, exact=exact) for norm in (attn.q_norm, attn.k_norm))
    attn.norm = resized_norm(attn.norm, heads * v_dim, exact=exact)
    attn.heads, attn.qk_dim, attn.v_dim = heads, qk_dim, v_dim
    attn.refit()


def set_mlp_width(mlp: Mlp, hidden: int, *, exact: bool = False) -> None:
    """Change the hidden width of an MLP (for a gated one: the width after the gate)."""
    if hidden < 1:
        raise BadInput(f"{mlp.name}: hidden width is {hidden}; accepted: 1 or more")
    if isinstance(mlp, PackedGluMlp):
        mlp.fc1 = empty_linear(mlp.fc1, outputs=2 * hidden)
    else:
        for key in ("fc1", "fc1_g", "fc1_x"):
            if key in mlp._modules:
                setattr(mlp, key, empty_linear(getattr(mlp, key), outputs=hidden))
    mlp.fc2 = empty_linear(mlp.fc2, inputs=hidden)
    mlp.norm = resized_norm(mlp.norm, hidden, exact=exact)


def set_embed_width(model: OpenModel, width: int, *, exact: bool = False) -> None:
    """Change the width of the residual stream of a whole model. Raises `Refused` for one with a `width_refusal`."""
    if width < 1:
        raise BadInput(f"embed width is {width}; accepted: 1 or more")
    if why_not := model.width_refusal():
        raise Refused(
            f"the embedding width can be changed of plain pre-norm models without attention pooling: {why_not}"
        )
    _set_embed_width(model, width, exact=exact)


def _set_embed_width(model: Any, width: int, *, exact: bool) -> None:
    _set_wide(model, model.STEM_PROJECTION, width)
    if model.STEM_NORM:
        _set_norm(model, model.STEM_NORM, width, exact=exact)
    for key in (*model.token_names, "pos_embed"):
        table = getattr(model, key)
        if table is not None:
            empty = table.new_zeros(*table.shape[:-1], width)
            setattr(model, key, nn.Parameter(empty) if isinstance(table, nn.Parameter) else empty)
    for key in ("norm_pre", "norm", "fc_norm"):
        _set_norm(model, key, width, exact=exact)
    for key in ("head", "head_dist"):
        if isinstance(model._modules.get(key), nn.Linear):
            setattr(model, key, empty_linear(getattr(model, key), inputs=width))
    for block in model.blocks:
        _set_block_embed(block, width, exact=exact)
    model.embed_dim = width
    model.num_features = model.head_hidden_size = width


def set_stage_width(model: OpenSwin, stage: int, width: int) -> None:
    """Change the width of the residual stream of one stage of a hierarchical model."""
    if width < 1:
        raise BadInput(f"width of stage {stage} is {width}; accepted: 1 or more")
    if not 0 <= stage < len(model.layers):
        raise BadInput(f"stage is {stage}; accepted: 0 to {len(model.layers) - 1}")
    for block in model.layers[stage].blocks:
        _set_block_embed(block, width)
    if stage == 0:
        _set_wide(model, "patch_embed.proj", width)
        _set_norm(model, "patch_embed.norm", width)
        if isinstance(model.patch_embed, PlacedPatchEmbed):
            table = model.patch_embed.pos_embed
            model.patch_embed.pos_embed = nn.Parameter(table.new_zeros(*table.shape[:-1], width))
    else:
        merging = model.layers[stage].downsample
        merging.reduction = empty_linear(merging.reduction, outputs=width)
        merging.norm = resized_norm(merging.norm, merging.norm_width)
    if stage + 1 < len(model.layers):
        merging = model.layers[stage + 1].downsample
        merging.reduction = empty_linear(merging.reduction, inputs=4 * width)
        merging.norm = resized_norm(merging.norm, merging.norm_width)
    else:
        model.norm = resized_norm(model.norm, width)
        if isinstance(model.head.fc, nn.Linear):
            model.head.fc = empty_linear(model.head.fc, inputs=width)
        model.num_features = model.head_hidden_size = model.head.in_features = model.head.num_features = width
    infos = [dict(info) for info in model.feature_info]
    infos[stage]["num_chs"] = width
    model.feature_info = infos


def _set_wide(model: nn.Module, path: str, outputs: int) -> None:
    """Give the convolution or linear at a path so many outputs."""
    holder, _, name = path.rpartition(".")
    old: Any = model.get_submodule(path)
    if isinstance(old, nn.Linear):
        new: nn.Module = empty_linear(old, outputs=outputs)
    else:
        bias = old.bias is not None
        new = nn.Conv2d(old.in_channels, outputs, old.kernel_size, old.stride, bias=bias, **_placed(old.weight))
        new = _zeroed(new)
    setattr(model.get_submodule(holder), name, new)


def _set_norm(model: nn.Module, path: str, width: int, *, exact: bool = False) -> None:
    holder, _, name = path.rpartition(".")
    setattr(model.get_submodule(holder), name, resized_norm(model.get_submodule(path), width, exact=exact))


def _set_block_embed(block: Any, width: int, *, exact: bool = False) -> None:
    block.norm1, block.norm2 = (resized_norm(norm, width, exact=exact) for norm in (block.norm1, block.norm2))
    block.attn.qkv = empty_linear(block.attn.qkv, inputs=width)
    block.attn.proj = empty_linear(block.attn.proj, outputs=width)
    if block.attn.gate is not None:
        block.attn.gate = empty_linear(block.attn.gate, inputs=width)
    for key in ("fc1", "fc1_g", "fc1_x"):
        if key in block.mlp._modules:
            setattr(block.mlp, key, empty_linear(getattr(block.mlp, key), inputs=width))
    block.mlp.fc2 = empty_linear(block.mlp.fc2, outputs=width)
    for scale in (block.ls1, block.ls2):
        if hasattr(scale, "gamma"):
            scale.gamma = nn.Parameter(scale.gamma.new_zeros(width))


def empty_linear(like: nn.Linear, *, inputs: int | None = None, outputs: int | None = None) -> nn.Linear:
    """A linear of zeros, of other widths, with `like`'s bias flag, device, dtype and mode."""
    new = nn.Linear(
        inputs or like.in_features, outputs or like.out_features, bias=like.bias is not None, **_placed(like.weight)
    )
    return _zeroed(new).train(like.training)


def resized_norm(norm: nn.Module, width: int, *, exact: bool = False) -> nn.Module:
    """A norm of `norm`'s class and eps over another width; an identity stays one."""
    if isinstance(norm, nn.Identity) or (isinstance(norm, PhantomNorm) and norm.width == width):
        return norm
    if exact and loses_channels(norm, width):
        return phantom_of(norm, width)
    weight = getattr(norm, "weight", None)
    placed = _placed(weight) if isinstance(weight, Tensor) else {}
    kind = plain_kind(norm) if isinstance(norm, PhantomNorm) else type(norm)
    new = kind(width, eps=norm.eps, **placed)  # type: ignore[call-arg]
    return new.train(norm.training)


def _placed(weight: Tensor) -> dict[str, Any]:
    return {"device": weight.device, "dtype": weight.dtype}


@torch.no_grad()
def _zeroed(module: Any) -> Any:
    for p in module.parameters():
        p.zero_()
    return module
