"""The parts that timm's vision transformers are made of: which are understood, how each opens, how each closes.

Exact classes only: a subclass may have another forward. Read from timm 1.0.31.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from timm.layers import AttentionPoolLatent, DropPath, GluMlp, LayerScale, SwiGLU
from timm.layers import AttentionRope as TimmAttentionRope
from timm.layers import Mlp as TimmMlp
from timm.layers import RelPosBias as TimmRelPosBias
from timm.layers import RelPosMlp as TimmRelPosMlp
from timm.models import beit, eva, vision_transformer, vision_transformer_relpos
from torch import nn

from leanvit.anatomy.parts.blocks import Attention, Block, Heads, Mlp, PackedGluMlp, PostNormBlock, SplitGluMlp
from leanvit.anatomy.parts.differential import LAMBDAS, DifferentialAttention, DifferentialHeads, DifferentialJointBlock
from leanvit.anatomy.parts.masked import MaskedAttention
from leanvit.anatomy.parts.parallel import AttentionBranch, Branch, JointBlock, ManyBlock, MlpBranch
from leanvit.anatomy.parts.pooling import AttentionPool
from leanvit.anatomy.parts.positions import Rotary
from leanvit.anatomy.parts.projections import BeitAttention, BiasedAttention, RelPosAttention, SplitAttention
from leanvit.anatomy.parts.scaled import ScaledBlock
from leanvit.anatomy.parts.wide import WideAttention
from leanvit.errors import Refused

# --- attention -------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """A timm class that is understood: what it may hold, and what it becomes."""

    opened: Callable[..., Any]
    children: frozenset[str]
    parameters: frozenset[str] = frozenset()


def _heads(name: str, attn: Any, rotary: Rotary | None) -> dict[str, Any]:
    width = getattr(attn, "head_dim", None) or attn.proj.in_features // attn.num_heads  # of the values, at least
    return {
        "name": name,
        "heads": attn.num_heads,
        "qk_dim": getattr(attn, "qk_dim", width),
        "v_dim": width,
        "scale": attn.scale,
        "fused": attn.fused_attn,
        "rotary": rotary,
    }


def _plain(attn: Any, parts: dict[str, Any]) -> Attention:
    return Attention(**parts)


def _masked(attn: Any, parts: dict[str, Any]) -> Attention:
    mask = parts.pop("mask")
    opened = Attention(**parts)
    opened.hold(mask)
    return opened


def _eva(attn: Any, parts: dict[str, Any]) -> Attention:
    if attn.qkv is None:
        return SplitAttention(kv_heads=getattr(attn, "num_kv_heads", attn.num_heads), **parts)
    biases = {f"{letter}_bias": getattr(attn, f"{letter}_bias", None) for letter in "qkv"}
    return BiasedAttention(**biases, separate=getattr(attn, "qkv_bias_separate", False), **parts)


def _beit(attn: Any, parts: dict[str, Any]) -> Attention:
    biases = {f"{letter}_bias": getattr(attn, f"{letter}_bias") for letter in "qkv"}
    where = {"index": attn.relative_position_index, "window": attn.window_size}
    table = attn.relative_position_bias_table
    return BeitAttention(table=table, **where, **biases, separate=attn.qkv_bias_separate, **parts)


def _relative(attn: Any, parts: dict[str, Any]) -> Attention:
    rel_pos = parts.pop("rel_pos", None)
    if rel_pos is not None and type(rel_pos) not in (TimmRelPosBias, TimmRelPosMlp):
        raise Refused(f"{parts['name']}.rel_pos is a {type(rel_pos).__name__}; supported: RelPosBias, RelPosMlp")
    return RelPosAttention(rel_pos=rel_pos, **parts)


def _differential(attn: Any, parts: dict[str, Any]) -> Attention:
    parts["v_dim"] = 2 * parts["qk_dim"]
    return DifferentialAttention(lambdas=_lambdas(attn), lambda_init=attn.lambda_init, **parts)


def _lambdas(part: nn.Module) -> dict[str, nn.Parameter]:
    return {key: p for key, p in part.named_parameters(recurse=False) if key in LAMBDAS}


_SELF = frozenset({"qkv", "q_norm", "k_norm", "attn_drop", "norm", "gate", "proj", "proj_drop"})
_SPLIT = frozenset({"q_proj", "k_proj", "v_proj"})
_BIASES = frozenset({"q_bias", "v_bias"})
ATTENTIONS: dict[type, Kind] = {
    WideAttention: Kind(_plain, _SELF),
    MaskedAttention: Kind(_masked, _SELF | {"mask"}),
    vision_transformer.Attention: Kind(_plain, _SELF),
    eva.EvaAttention: Kind(_eva, _SELF | _SPLIT, _BIASES),
    TimmAttentionRope: Kind(_eva, _SELF | _SPLIT),
    beit.Attention: Kind(_beit, _SELF, _BIASES | {"relative_position_bias_table"}),
    vision_transformer.DiffAttention: Kind(_differential, _SELF | {"sub_norm"}, frozenset(LAMBDAS)),
    vision_transformer_relpos.RelPosAttention: Kind(_relative, _SELF | {"rel_pos"}),
}


def open_attention(name: str, attn: Any, rotary: Rotary | None = None) -> Attention:
    kind = _understood(name, attn, ATTENTIONS)
    parts = _heads(name, attn, rotary) | dict(attn.named_children())
    opened: Attention = kind.opened(attn, parts)
    return opened


# --- MLP and pooling -------------------------------------------------------------

_MLP = frozenset({"fc1", "fc1_g", "fc1_x", "act", "drop1", "norm", "fc2", "drop2"})
_POOL = frozenset({"q", "kv", "q_norm", "k_norm", "proj", "proj_drop", "norm", "mlp"})


def _plain_mlp(mlp: Any, name: str, parts: dict[str, nn.Module]) -> Mlp:
    return Mlp(name=name, parts=parts)


def _packed_mlp(mlp: Any, name: str, parts: dict[str, nn.Module]) -> Mlp:
    return PackedGluMlp(name=name, parts=parts, gate_last=mlp.gate_last)


def _split_mlp(mlp: Any, name: str, parts: dict[str, nn.Module]) -> Mlp:
    return SplitGluMlp(name=name, parts=parts)


MLPS: dict[type, Kind] = {
    TimmMlp: Kind(_plain_mlp, _MLP),
    GluMlp: Kind(_packed_mlp, _MLP),
    SwiGLU: Kind(_split_mlp, _MLP),
}


def open_mlp(name: str, mlp: Any) -> Mlp:
    opened: Mlp = _understood(name, mlp, MLPS).opened(mlp, name, dict(mlp.named_children()))
    return opened


def open_pool(pool: Any) -> AttentionPool | None:
    """The attention pool of a head; None where there is none. Raises `Refused` for other kinds than a latent query."""
    if pool is None:
        return None
    if type(pool) is not AttentionPoolLatent:
        raise Refused(f"attn_pool is a {type(pool).__name__}; supported: AttentionPoolLatent (global_pool 'map')")
    only("attn_pool", dict(pool.named_children()), _POOL)
    only("attn_pool", dict(pool.named_parameters(recurse=False)), {"latent"})
    parts = {key: part for key, part in pool.named_children() if key != "mlp"}
    return AttentionPool(
        latent=pool.latent,
        parts=parts,
        mlp=None if pool.mlp is None else open_mlp("attn_pool.mlp", pool.mlp),
        heads=pool.num_heads,
        head_dim=pool.head_dim,
        scale=pool.scale,
        pool=pool.pool,
        fused=pool.fused_attn,
    )


# --- blocks ----------------------------------------------------------------------

_PRE = frozenset({"norm1", "attn", "ls1", "drop_path1", "norm2", "mlp", "ls2", "drop_path2"})
_POST = _PRE - {"ls1", "ls2"}
_GAMMAS = frozenset({"gamma_1", "gamma_2"})
_JOINT = frozenset({"in_norm", "in_proj", "q_norm", "k_norm", "attn_drop", "mlp_drop", "mlp_act", "ls", "drop_path"})
_JOINT |= {"out_proj", "attn_out_proj", "mlp_out_proj"}
_EXACT: dict[str, tuple[type, ...]] = {
    "ls": (LayerScale, nn.Identity),
    "ls1": (LayerScale, nn.Identity),
    "ls2": (LayerScale, nn.Identity),
    "drop_path": (DropPath, nn.Identity),
    "drop_path1": (DropPath, nn.Identity),
    "drop_path2": (DropPath, nn.Identity),
}


def _block(name: str, block: Any, rotary: Rotary | None, *, kind: type[Block]) -> Block:
    parts: dict[str, Any] = dict(block.named_children())
    parts["attn"] = open_attention(f"{name}.attn", block.attn, rotary)
    parts["mlp"] = open_mlp(f"{name}.mlp", block.mlp)
    parts.pop("after", None)  # steps that a model is built with
    return kind(name=name, gammas=dict(block.named_parameters(recurse=False)), **parts)


def _pre_norm(name: str, block: Any, rotary: Rotary | None) -> Block:
    return _block(name, block, rotary, kind=Block)


def _post_norm(name: str, block: Any, rotary: Rotary | None) -> Block:
    return _block(name, block, rotary, kind=PostNormBlock)


def _scaled(name: str, block: Any, rotary: Rotary | None) -> Block:
    opened = _block(name, block, rotary, kind=Block)
    opened.branch_scale = block.branch_scale
    opened.after.extend(block.after)
    return opened


def _many(name: str, block: Any, rotary: Rotary | None) -> Block:
    attns, ffns = [], []
    for i, (a, f) in enumerate(zip(block.attns, block.ffns, strict=True)):
        at, fn = f"{name}.attns.{i}", f"{name}.ffns.{i}"
        _check_classes(at, a)
        _check_classes(fn, f)
        attn, mlp = open_attention(f"{at}.attn", a.attn), open_mlp(f"{fn}.mlp", f.mlp)
        attns.append(AttentionBranch(name=at, norm=a.norm, attn=attn, ls=a.ls, drop_path=a.drop_path))
        ffns.append(MlpBranch(name=fn, norm=f.norm, mlp=mlp, ls=f.ls, drop_path=f.drop_path))
    return ManyBlock(name=name, attns=attns, ffns=ffns)


def _joint(name: str, block: Any, rotary: Rotary | None) -> Block:
    heads = Heads(
        name=f"{name}.attn",
        heads=block.num_heads,
        qk_dim=block.head_dim,
        v_dim=block.head_dim,
        scale=block.scale,
        fused=block.fused_attn,
    )
    parts = dict(block.named_children())
    return JointBlock(name=name, heads=heads, hidden=block.in_split[0], parts=parts, mlp_bias=block.mlp_bias)


def _differential_joint(name: str, block: Any, rotary: Rotary | None) -> Block:
    heads = DifferentialHeads(
        name=f"{name}.attn",
        heads=block.num_heads,
        qk_dim=block.head_dim,
        v_dim=2 * block.head_dim,
        scale=block.scale,
        fused=block.fused_attn,
    )
    heads.lambda_init = block.lambda_init
    return DifferentialJointBlock(
        name=name,
        heads=heads,
        hidden=block.in_split[0],
        parts=dict(block.named_children()),
        mlp_bias=block.mlp_bias,
        lambdas=_lambdas(block),
    )


BLOCKS: dict[type, Kind] = {
    vision_transformer.Block: Kind(_pre_norm, _PRE),
    ScaledBlock: Kind(_scaled, _PRE | {"after"}),
    vision_transformer.ResPostBlock: Kind(_post_norm, _POST),
    vision_transformer.ParallelThingsBlock: Kind(_many, frozenset({"attns", "ffns"})),
    vision_transformer.ParallelScalingBlock: Kind(_joint, _JOINT, frozenset({"mlp_bias"})),
    vision_transformer.DiffParallelScalingBlock: Kind(
        _differential_joint, _JOINT | {"sub_norm"}, frozenset({"mlp_bias", *LAMBDAS})
    ),
    eva.EvaBlock: Kind(_pre_norm, _PRE, _GAMMAS),
    eva.EvaBlockPostNorm: Kind(_post_norm, _POST),
    beit.Block: Kind(_pre_norm, _PRE, _GAMMAS),
    vision_transformer_relpos.RelPosBlock: Kind(_pre_norm, _PRE),
    vision_transformer_relpos.ResPostRelPosBlock: Kind(_post_norm, _POST),
}


def open_block(name: str, block: Any, rotary: Rotary | None = None) -> Block:
    kind = _understood(name, block, BLOCKS)
    _check_classes(name, block)
    opened: Block = kind.opened(name, block, rotary)
    return opened


# --- checks ----------------------------------------------------------------------

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def opens_itself(kind: type) -> str | None:
    """The adapter module that a class of models names itself (`OPENS`, its own, not inherited); None for any other."""
    named = vars(kind).get("OPENS")
    return None if named is None else str(named)


def check_untouched(model: nn.Module) -> None:
    """Raise `Refused` for a forward that was patched or a hook, which the opened model would not run."""
    for name, module in model.named_modules():
        if "forward" in vars(module):
            raise Refused(f"{name or 'the model'} has a forward of its own (patched): open it before patching")
        if any(getattr(module, hooks) for hooks in _HOOKS):
            raise Refused(f"{name or 'the model'} carries forward or backward hooks: remove them first")


def only(where: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise `Refused`, naming what is not known."""
    foreign = sorted(set(given) - set(known))
    if foreign:
        raise Refused(f"{where} has parts that leanvit does not understand: {', '.join(foreign)}")


def _understood(name: str, part: nn.Module, kinds: dict[type, Kind]) -> Kind:
    kind = kinds.get(type(part))
    if kind is None:
        raise Refused(f"{name} is a {type(part).__name__}; supported: {', '.join(sorted({k.__name__ for k in kinds}))}")
    only(name, dict(part.named_children()), kind.children)
    only(name, dict(part.named_parameters(recurse=False)), kind.parameters)
    return kind


def _check_classes(name: str, block: nn.Module) -> None:
    for key, child in block.named_children():
        kinds = _EXACT.get(key)
        if kinds and type(child) not in kinds:
            names = ", ".join(k.__name__ for k in kinds)
            raise Refused(f"{name}.{key} is a {type(child).__name__}; supported: {names}")


# --- closing ---------------------------------------------------------------------

_OURS = (Block, Branch, Attention, Mlp, AttentionPool, nn.ModuleList)


def check_closable(block: Block, timm_block: Any) -> None:
    """Raise `Refused` for what timm's block would not run."""
    two_widths = isinstance(getattr(timm_block, "attn", None), WideAttention)
    for attn in block.attentions():
        if attn.qk_dim != attn.v_dim and not two_widths and not isinstance(attn, DifferentialHeads):
            raise Refused(
                f"cannot close: {attn.name} has q/k width {attn.qk_dim} and v width {attn.v_dim}; timm knows one"
            )
        if foreign_terms(attn, getattr(timm_block, "attn", None)):
            raise Refused(f"cannot close: {attn.name} holds score terms, which timm's class would not apply")
    if "mlp" in block._modules and not isinstance(block.mlp, Mlp):
        raise Refused(f"cannot close: {block.name}.mlp is a {type(block.mlp).__name__}")


def foreign_terms(attn: Heads, timm_attn: nn.Module | None) -> bool:
    """Whether terms of methods act on the scores; a mask that timm's attention holds itself is its own."""
    own = getattr(timm_attn, "mask", None)
    return any(term is not own for term in attn.terms)


def hand_back(part: nn.Module, timm_part: nn.Module) -> None:
    """Give children, parameters and numbers back to the timm module that `part` was opened from."""
    for key, p in part._parameters.items():
        if key in timm_part._parameters:
            timm_part._parameters[key] = p
    for key, child in part.named_children():
        if key not in timm_part._modules:
            continue  # slots, and identities where timm has nothing
        if isinstance(child, _OURS):
            hand_back(child, timm_part.get_submodule(key))
        else:
            setattr(timm_part, key, child)
    heads = part if isinstance(part, Heads) else part.attn if isinstance(part, JointBlock) else None
    if heads is not None:
        _hand_numbers(heads, timm_part)


def _hand_numbers(heads: Heads, timm_part: Any) -> None:
    timm_part.num_heads, timm_part.scale = heads.heads, heads.scale
    if isinstance(timm_part, WideAttention):
        timm_part.qk_dim, timm_part.v_dim, timm_part.fused_attn = heads.qk_dim, heads.v_dim, heads.fused
        return
    for key, value in (("head_dim", heads.qk_dim), ("attn_dim", heads.heads * heads.v_dim)):
        if hasattr(timm_part, key):
            setattr(timm_part, key, value)
    # timm's fused path takes the scale of the width at hand and would ignore a stored one
    timm_part.fused_attn = heads.fused and heads.scale == heads.qk_dim**-0.5
