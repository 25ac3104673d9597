"""Adapter for leanvit's own T2T-ViT (`t2t_vit_*`), the plain ones: their classes are known by name, as floors go."""

from __future__ import annotations

from typing import Any

from torch import nn

from leanvit.anatomy.adapters import plain_vit
from leanvit.anatomy.adapters.parts import check_untouched, only
from leanvit.backbones.t2t_vit.opened import OpenT2TViT
from leanvit.errors import Refused

SUPPORTED = "T2T-ViT of leanvit (t2t_vit_*)"

_HOME = "leanvit.backbones.t2t_vit"
_CHILDREN = {"tokens_to_token", "pos_drop", "blocks", "norm", "fc_norm", "head_drop", "head"}
_STEM = {"soft_split0", "soft_split1", "soft_split2", "attention1", "attention2", "project"}
_CELLS = {  # class: children
    "PerformerCell": {"norm1", "kqv", "proj", "proj_drop", "norm2", "mlp"},
    "TransformerCell": {"norm1", "attn", "norm2", "mlp"},
}

close_family = plain_vit.close_family


def understands(model: nn.Module) -> bool:
    return _is(model, "model.T2TViT")


def open_family(model: Any) -> OpenT2TViT:
    """Build the opened model around the children of a T2T-ViT. Raises `Refused`, naming what is not understood."""
    _check(model)
    extras = {"pos_drop": model.pos_drop, "patch_drop": nn.Identity(), "norm_pre": nn.Identity()}
    opened: OpenT2TViT = plain_vit.open_as(OpenT2TViT, model, extras=extras)
    return opened


def _check(model: Any) -> None:
    only("the model", dict(model.named_children()), _CHILDREN)
    only("the model", dict(model.named_parameters(recurse=False)), {"cls_token"})
    stem = model.tokens_to_token
    if not _is(stem, "tokenizer.TokensToToken"):
        raise Refused(f"tokens_to_token is a {type(stem).__name__}; supported: TokensToToken")
    only("tokens_to_token", dict(stem.named_children()), _STEM)
    if model.ends_alone or not isinstance(stem.project, nn.Linear):
        raise Refused("the model was fused for deployment: open it as it was before fuse()")
    for key in ("attention1", "attention2"):
        cell = getattr(stem, key)
        kind = type(cell).__name__
        if kind not in _CELLS or not _is(cell, f"tokenizer.{kind}"):
            raise Refused(f"tokens_to_token.{key} is a {kind}; supported: {', '.join(_CELLS)}")
        only(f"tokens_to_token.{key}", dict(cell.named_children()), _CELLS[kind])
    check_untouched(model)


def _is(part: nn.Module, name: str) -> bool:
    return f"{type(part).__module__}.{type(part).__name__}" == f"{_HOME}.{name}"
