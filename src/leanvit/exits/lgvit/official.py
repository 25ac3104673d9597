"""The published code's names and one of its defects, for golden cases and official checkpoints."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from leanvit.exits.lgvit.losses import Seen

_BACKBONE = (  # (pattern of Hugging Face's DeiT and ViT, timm's name)
    (r"^(deit|vit)\.(embeddings|encoder)\.", ""),
    (r"^patch_embeddings\.projection", "patch_embed.proj"),
    (r"^distillation_token", "dist_token"),
    (r"^position_embeddings", "pos_embed"),
    (r"^layer\.", "blocks."),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"attention\.output\.dense", "attn.proj"),
    (r"intermediate\.dense", "mlp.fc1"),
    (r"\.output\.dense", ".mlp.fc2"),
    (r"^(deit|vit)\.layernorm", "norm"),
    (r"^(cls_)?classifier\.", "head."),
    (r"^distillation_classifier\.", "head_dist."),
)
_HEAD = (
    (r"^highway\.(\d+)\.", r"exits.heads.\1."),
    (r"\.mlp\.", ".map."),
    (r"\.(cls_)?classifier\.", ".classifiers.0."),
    (r"\.distillation_classifier\.", ".classifiers.1."),
)
_MAP = (
    (r"conv1\.0\.", "conv1."),
    (r"conv1\.2\.", "norm1."),
    (r"conv2\.0\.", "conv2."),
    (r"conv2\.1\.", "norm2."),
    (r"proj_bn\.", "norm_dw."),
)


def map_names(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of one head's map under our names. A `proj` beside convolutions is the depthwise one."""
    local = any(key.startswith("conv1.") for key in given)
    rules = (*_MAP, (r"^proj\.", "conv_dw.")) if local else ()
    return {_renamed(key, rules): tensor for key, tensor in given.items()}


def official_names(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint of the published code under our names: q, k and v become one, the unused pooler goes."""
    found: dict[str, Tensor] = {}
    heads: dict[str, dict[str, Tensor]] = {}
    for key, tensor in given.items():
        name = re.sub(_BACKBONE[0][0], "", key)
        if ".pooler." in key or re.search(r"attention\.(key|value)\.", key):
            continue
        if name.startswith("highway."):
            place, _, rest = _renamed(name, _HEAD).partition(".map.")
            if rest:
                heads.setdefault(place, {})[rest] = tensor
            else:
                found[place] = tensor
        elif ".attention.query." in key:
            parts = [given[key.replace(".query.", f".{part}.")] for part in ("query", "key", "value")]
            qkv = re.sub(r"attention\.attention\.query", "attn.qkv", name)
            found[_renamed(qkv, _BACKBONE)] = torch.cat(parts)
        else:
            found[_renamed(key, _BACKBONE)] = tensor
    for place, tensors in heads.items():
        found |= {f"{place}.map.{name}": tensor for name, tensor in map_names(tensors).items()}
    return found


def _renamed(key: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, name in rules:
        key = re.sub(pattern, name, key)
    return key


def reference_teacher(model: Any, seen: Seen) -> Tensor:
    """The published code's teacher: the final classifiers on tokens that did not pass the final norm, (B, classes).

    A defect: what is deployed classifies normalised tokens. The method uses those.
    """
    logits: Tensor = model._logits(seen.tokens, seen.states[-1])
    return logits.float()
