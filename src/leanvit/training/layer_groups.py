"""Which layer each parameter belongs to, for `layer_decay`: recipes that name the same number count layers differently.

`FitConfig.layer_groups` names the rule:

    timm      by the model's `group_matcher`: a plain ViT's last norm belongs to its last block
    mae       as MAE's fine-tuning code (arXiv 2111.06377): class token, positions and patches are layer 0, block i is
              i + 1, and all the rest (norms, heads, distillation token) is the top
    tinyvit   as TinyViT's code (arXiv 2207.10666), by timm's names: block i of all stages is i, the stem is as block 0,
              a downsampling as the last block before it, norm and head as the last block
    model     as the model states itself, by a method `layer_ids() -> dict[str, int]` of parameter names, from 0 up;
              what it leaves out is the top. So a paper brings a rule of its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from leanvit.errors import BadInput
from leanvit.training.config import FitConfig

_MAE_BLOCK = re.compile(r"blocks\.(\d+)\.")
_MAE_BOTTOM = re.compile(r"cls_token$|pos_embed$|patch_embed")
_TINYVIT_BLOCK = re.compile(r"stages\.(\d+)\.blocks\.(\d+)\.")
_TINYVIT_DOWNSAMPLE = re.compile(r"stages\.(\d+)\.downsample\.")


def layer_scales(model: nn.Module, config: FitConfig) -> dict[str, float]:
    """Factor on the learning rate by parameter name, layer_decay ** (top - layer); empty where timm's rule does it.

    Raises BadInput for a model that does not have the layers of the rule.
    """
    if config.layer_decay is None or config.layer_groups == "timm":
        return {}
    names = [name for name, _ in model.named_parameters()]
    rules = {"mae": _of_mae, "tinyvit": _of_tinyvit}
    layers = _of_model(model) if config.layer_groups == "model" else rules[config.layer_groups](names)
    if not layers:
        raise BadInput(
            f"layer_groups={config.layer_groups!r}: {type(model).__name__} has no parameters with the names of its "
            "layers: give 'timm', or leave layer_decay out"
        )
    top = max(layers.values())
    return {name: config.layer_decay ** (top - layers.get(name, top)) for name in names}


def _of_mae(names: list[str]) -> dict[str, int]:
    blocks = {name: int(found[1]) for name in names if (found := _MAE_BLOCK.match(name))}
    if not blocks:
        return {}
    top = max(blocks.values()) + 2
    layers = {name: 0 if _MAE_BOTTOM.match(name) else top for name in names}
    return layers | {name: block + 1 for name, block in blocks.items()}


def _of_tinyvit(names: list[str]) -> dict[str, int]:
    blocks = {name: (int(found[1]), int(found[2])) for name in names if (found := _TINYVIT_BLOCK.match(name))}
    if not blocks:
        return {}
    order = sorted(set(blocks.values()))
    layers = {name: 0 if name.startswith("patch_embed.") else len(order) - 1 for name in names}
    for name in names:
        if found := _TINYVIT_DOWNSAMPLE.match(name):
            layers[name] = sum(stage < int(found[1]) for stage, _ in order) - 1
    return layers | {name: order.index(block) for name, block in blocks.items()}


def _of_model(model: Any) -> Mapping[str, int]:
    states = getattr(model, "layer_ids", None)
    if states is None:
        raise BadInput(
            f"layer_groups='model': {type(model).__name__} does not state its layers (layer_ids()): give another, "
            "or leave layer_decay out"
        )
    return states()
