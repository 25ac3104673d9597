"""Official checkpoints under our names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from leanvit.models.hilo import HiLoAttention
from leanvit.models.registration import renamed, weights_of


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """A checkpoint of the paper's repository under our names; our own come back as they are.

    Theirs merge at the end of a stage, ours at the start of the next, where timm's features end.

    Raises:
        ValueError: it is of another model, or was trained with another alpha (both are named).
    """
    state = weights_of(state_dict)
    _check_same_heads(state, model)
    return renamed(state, model, _ours)


def _ours(name: str) -> str:
    name = re.sub(r"^layers\.(\d+)\.downsample\.", lambda m: f"layers.{int(m[1]) + 1}.downsample.", name)
    for old, new in (
        (".dconv.conv_offset.", ".offset."),
        (".downsample.dconv.", ".downsample.conv."),
        (".downsample.norm_layer.", ".downsample.norm."),
        (".dwconv.dwconv.", ".dwconv."),
    ):
        name = name.replace(old, new)
    return name


def _check_same_heads(state: Mapping[str, Tensor], model: nn.Module) -> None:
    for name, module in model.named_modules():
        if not isinstance(module, HiLoAttention) or module.window_size == 1:
            continue
        theirs = _low_heads(state, name, module.head_dim)
        if theirs is not None and theirs != module.l_heads:
            heads = module.l_heads + module.h_heads
            top = min((theirs + 1) / heads, 1.0)
            raise ValueError(
                f"{name} has {theirs} Lo-Fi heads of {heads} in the checkpoint (alpha from {theirs / heads:.3f} to "
                f"{top:.3f}), {module.l_heads} in the model (alpha={module.alpha}): build it with the checkpoint's"
            )


def _low_heads(state: Mapping[str, Tensor], name: str, head_dim: int) -> int | None:
    """Lo-Fi heads of an attention in a state dict; None where it holds nothing of it."""
    if f"{name}.l_q.weight" in state:
        return len(state[f"{name}.l_q.weight"]) // head_dim
    return 0 if f"{name}.h_qkv.weight" in state else None
